"""One HTML page of everything the other commands say of a dump; it needs no server and no network."""

from __future__ import annotations

import hashlib
import html
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
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
    if most_megabytes <= 0:
        raise argument_error("report", "--max-mb", "more than 0", str(most_megabytes), "Leave it out.")
    dumps = [dump, *([against] if against is not None else []), *(ranks or {}).values()]
    inputs = [_input(each, is_anonymous) for each in dumps]
    if is_anonymous:
        ordinals = Ordinals()
        dump, against, explain = ordinals.dump(dump, 0), None if against is None else ordinals.dump(against, 1), None
        ranks = {rank: ordinals.dump(each, 2 + rank) for rank, each in (ranks or {}).items()}
    when = "" if is_reproducible else datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    name = title or (f"{dump.path.name}" if not is_anonymous else "a graph dump")
    facts: dict[str, Any] = {
        "about": {
            "title": name, "version": __version__, "when": when, "inputs": inputs,
            "command": "" if is_anonymous else shlex.join(command),
        },
        **facts_of(dump, against=against, ranks=ranks, explain=explain),
    }  # fmt: skip
    payload, notes = within(dump, facts, round(most_megabytes * 2**20))
    try:
        Path(output).write_text(page(name, payload), encoding="utf-8")
    except OSError as error:
        raise DumpError(f"[report] --output: expected a file that can be written, got: {error}.") from None
    return notes


def _input(dump: Dump, is_anonymous: bool) -> dict[str, Any]:
    digest = hashlib.sha256(dump.path.read_bytes()).hexdigest() if dump.path.is_file() else ""
    name = "" if is_anonymous else dump.path.name
    return {"name": name, "format": dump.format, "bytes": dump.size, "rank": dump.file.rank, "sha256": digest}


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
