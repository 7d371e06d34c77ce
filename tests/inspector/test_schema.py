"""docs/inspect_json.md names every key the commands print, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from npu_fused_graph.commands.cli import main
from tests.inspector.build import node, torchair_dump
from tests.inspector.pages import decoder_dump

PAGE = Path(__file__).parents[2] / "docs" / "inspect_json.md"
MAPS = re.compile(
    r"^(types|fused|groups|shapes|dtypes|layouts|attrs|declared_others|damaged|counts|missing|ge_passes|graphs\[\]\.streams"
    r"|graphs\[\]\.items\[\].*|sites\[\]\.recorded|divergences\[\]\.around)$"
)


def documented() -> dict[str, set[str]]:
    """Command -> keys."""
    sections = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.M)[1:]
    found = {}
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
        found[title] = {key for row in rows for key in re.findall(r"`([^`]+)`", row)}
    return found


def keys(value: Any, prefix: str = "") -> set[str]:
    """Of objects, ``a.b``; of lists of objects, ``a[].b``. A map counts as one key."""
    found: set[str] = set()
    for key, held in value.items():
        name = f"{prefix}{key}"
        first = held[0] if isinstance(held, list) and held else None
        if isinstance(held, dict) and not MAPS.match(name):
            found |= keys(held, f"{name}.")
        elif isinstance(first, dict) and name != "graphs[].items":
            found |= set().union(*(keys(item, f"{name}[].") for item in held))
        else:
            found.add(name)
    return found


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("schema")
    dump = str(decoder_dump(folder, 5, [0, 1, 3]))
    cast = [node("x", "Data"), node("c", "Cast", "x", dst_type=0), node("out", "NetOutput", "c", outputs=0)]
    changed = [node("x", "Data"), node("c", "Cast", "x", dst_type=1), node("out", "NetOutput", "c", outputs=0)]
    reduced = [node("x", "Data"), node("ar", "HcomAllReduce", "x", group="tp", reduction="sum")]
    gathered = [node("x", "Data"), node("ag", "HcomAllGather", "x", group="tp")]
    torchair_dump(folder / "r", *reduced, rank=0)
    torchair_dump(folder / "r", *gathered, rank=1)
    pair = [str(torchair_dump(folder / n, *nodes)) for n, nodes in (("c", cast), ("d", changed))]
    return {
        "inspect DUMP": ["inspect", dump],
        "inspect DUMP --type GLOB": ["inspect", dump, "--type", "Hcom*"],
        "inspect DUMP --node NAME --hops 1": ["inspect", dump, "--node", "layers.0/Add_0", "--hops", "1"],
        "inspect DUMP --fold": ["inspect", dump, "--fold"],
        "inspect FOLDER": ["inspect", str(folder / "r")],
        "fused DUMP": ["fused", dump],
        "why DUMP": ["why", dump],
        "diff DUMP OTHER": ["diff", *pair],
        "memory DUMP": ["memory", dump],
        "ranks DIR": ["ranks", str(folder / "r")],
        "check DUMP": ["check", dump, "--expect", "Add=1"],
        "report DUMP": ["report", dump, "-o", str(folder / "report.html")],
    }


@pytest.mark.parametrize("title", list(documented()))
def test_every_key(title: str, commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    main([*commands[title], "--json"])
    found = keys(json.loads(capsys.readouterr().out))
    wanted = documented()[title]
    if title == "diff DUMP OTHER":  # nothing was exchanged there
        wanted = {key for key in wanted if not key.startswith("exchanges[]")} | {"exchanges"}
    assert found == wanted
