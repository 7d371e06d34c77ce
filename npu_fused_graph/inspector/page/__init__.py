"""One HTML page of everything the other commands say of a dump; it needs no server and no network."""

from __future__ import annotations

import hashlib
import html
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import DumpError, argument_error
from npu_fused_graph.inspector.dump import Dump
from npu_fused_graph.inspector.page.anonymous import Ordinals
from npu_fused_graph.inspector.page.payload import facts_of, within
from npu_fused_graph.version import __version__

PAGE = Path(__file__).parent
SCRIPTS = ("data.js", "dom.js", "tables.js", "levels.js", "picture.js", "sections.js", "keys.js", "start.js")
"""In the order they run: classic scripts, as a page from a file can load no modules."""


def report(
    dump: Dump,
    output: Path | str,
    *,
    against: Dump | None = None,
    ranks: Mapping[int, Dump] | None = None,
    explain: Path | None = None,
    title: str = "",
    is_reproducible: bool = False,
    is_anonymous: bool = False,
    most_megabytes: float = 25.0,
    command: Sequence[str] = (),
) -> list[str]:
    """Write the page; returns what was left out to keep it below ``most_megabytes``.

    against: another dump that ``dump`` is compared with. ranks: dumps of all ranks. explain: as in ``why``.
    is_reproducible: no date, so that the same dumps give the same bytes. is_anonymous: types with numbers for names,
    numbers for groups and paths, no other texts. command: what the page says made it. Raises DumpError where the page
    cannot be written or is too large.
    """
    if not 0 < most_megabytes < _MOST:
        raise argument_error(
            "report", "--max-mb", f"more than 0, less than {_MOST}", str(most_megabytes), "Leave it out."
        )
    output = Path(output)
    dumps = [dump, *([against] if against is not None else []), *(ranks or {}).values()]
    if any(output.exists() and each.path.exists() and output.samefile(each.path) for each in dumps):
        raise argument_error("report", "--output", "another file than the dump", str(output), "Name another one.")
    inputs = [_input(each, is_anonymous) for each in dumps]
    if is_anonymous:
        ordinals = Ordinals()
        dump, against, explain = ordinals.dump(dump, 0), None if against is None else ordinals.dump(against, 1), None
        ranks = {rank: ordinals.dump(each, 2 + rank) for rank, each in (ranks or {}).items()}
    when = "" if is_reproducible else datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    name = title or ("a graph dump" if is_anonymous else dump.path.name)
    name = name.encode(errors="replace").decode()
    facts: dict[str, Any] = {
        "about": {
            "title": name, "version": __version__, "when": when, "inputs": inputs,
            "command": "" if is_anonymous or is_reproducible else shlex.join(command),
        },
        **facts_of(dump, against=against, ranks=ranks, explain=explain),
    }  # fmt: skip
    facts["warnings"] = _warnings(dump, against, ranks or {}) if not is_anonymous else [
        f"what could not be read of a dump: {count:,} warnings, left out here" for each in dumps
        if (count := len(each.warnings))
    ]  # fmt: skip
    room = round(most_megabytes * 2**20) - len(page(name, "").encode())
    payload, notes = within(dump, facts, room)
    part = output.with_name(output.name + ".part")
    try:
        part.write_text(page(name, payload), encoding="utf-8")
        part.replace(output)
    except OSError as error:
        raise DumpError(f"[report] --output: expected a file that can be written, got: {error}.") from None
    return notes


_MOST = 4096
"""Megabytes that no browser opens."""


def _input(dump: Dump, is_anonymous: bool) -> dict[str, Any]:
    """A hash would tell whoever has the dump that it is this one."""
    if is_anonymous:
        return {"name": "", "format": dump.format, "bytes": dump.size, "rank": dump.file.rank, "sha256": ""}
    digest = hashlib.sha256(dump.path.read_bytes()).hexdigest() if dump.path.is_file() else ""
    name = dump.path.name.encode(errors="replace").decode()
    return {"name": name, "format": dump.format, "bytes": dump.size, "rank": dump.file.rank, "sha256": digest}


def _warnings(dump: Dump, against: Dump | None, ranks: Mapping[int, Dump]) -> list[str]:
    """Of all dumps, those too that came up while they were questioned."""
    found = list(dump.warnings)
    found += [f"the other dump: {warning}" for warning in (against.warnings if against else ())]
    return found + [f"rank {rank}: {warning}" for rank, each in ranks.items() for warning in each.warnings]


def page(title: str, payload: str) -> str:
    """The file: texts of page/ put together, the data behind them."""
    scripts = "\n".join(_text(name) for name in SCRIPTS)
    parts = {
        "TITLE": html.escape(title, quote=True),
        "STYLE": _text("report.css"),
        "SCRIPT": scripts,
        "DAGRE": _text("vendor/dagre.js"),
        "LICENCE": html.escape(_text("vendor/dagre.LICENSE")),
        "DATA": payload,
    }
    found = _text("report.html")
    before, rest = "", found
    for name in ("TITLE", "STYLE", "LICENCE", "DAGRE", "DATA", "SCRIPT"):
        head, mark, rest = rest.partition(f"%{name}%")
        assert mark, name
        before += head + parts[name]
    return before + rest


def _text(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")
