"""What GE says of its own fusion passes: how often each matched, and which are switched on.

A pass that matched without effect is nothing unusual; one that is absent was off, or never matched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector.readers import contents

_SESSION = "session_and_graph_id_"
_KINDS = {"graph_fusion": "graph", "ub_fusion": "ub", "GraphFusion": "graph", "UBFusion": "ub"}


@dataclass(frozen=True, slots=True)
class PassCount:
    """One pass on one graph. session: ``<session>_<graph>``. kind: "graph" or "ub"."""

    session: str
    kind: str
    name: str
    matched: int
    effective: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_fusion_result(path: Path | str) -> tuple[list[PassCount], list[str]]:
    """All of fusion_result.json in order, and what could not be read.

    GE appends to the file, so that keys repeat, each an occurrence of its own, and a crash may leave it open. Raises
    DumpError for what is none.
    """
    text = contents(Path(path)).decode(errors="replace")
    found: list[PassCount] = []
    warnings: list[str] = []
    try:
        pairs = list(_pairs(text))
    except ValueError:
        pairs, rest = _salvaged(text)
        warnings.append(f"line {text.count(chr(10), 0, rest) + 1}: no JSON from here on; what follows was not read")
    keys = dict(pairs)
    if "graph_fusion" in keys or "ub_fusion" in keys:  # an older GE: one graph, without a level for it
        pairs = [(f"{_SESSION}{keys.get('session_and_graph_id', '')}", pairs)]
    for session, kinds in pairs:
        if session.startswith(_SESSION) and isinstance(kinds, list):
            found += _counts(session[len(_SESSION) :], kinds)
    if not found and not any(session.startswith(_SESSION) for session, _ in pairs):
        raise DumpError(f"[inspect] {path}: expected GE's fusion_result.json, got {', '.join(keys) or 'no keys'}.")
    return found, warnings


def _counts(session: str, kinds: list[Any]) -> Iterator[PassCount]:
    for kind, passes in kinds:
        if kind in _KINDS and isinstance(passes, list):
            for name, counts in passes:
                if isinstance(counts, list):
                    given = dict(counts)
                    times = (int(str(given.get(key, "0")) or 0) for key in ("match_times", "effect_times"))
                    yield PassCount(session, _KINDS[kind], name, *times)


def _pairs(text: str) -> list[Any]:
    """JSON whose objects are lists of pairs: no key is lost."""
    found = json.loads(text, object_pairs_hook=list)
    return found if isinstance(found, list) else []


def _salvaged(text: str) -> tuple[list[Any], int]:
    """The whole entries of a file that breaks, and the place where it does."""
    decoder = json.JSONDecoder(object_pairs_hook=list)
    found: list[Any] = []
    at = 0
    for match in re.finditer(r'"(\w+)"\s*:\s*(?=\{)', text):
        if match.start() < at or not match[1].startswith(_SESSION):
            continue
        try:
            value, at = decoder.raw_decode(text, match.end())
        except ValueError:
            return found, match.start()
        found.append((match[1], value))
    return found, at


def read_fusion_config(path: Path | str) -> dict[tuple[str, str], bool]:
    """(kind, pass) -> whether it is on, of fusion_config.json or a switch file. Raises DumpError for what is none."""
    try:
        held = json.loads(contents(Path(path)).decode(errors="replace"))
        switches = held["Switch"]
        return {
            (_KINDS.get(kind, kind), name): str(state).lower() == "on"
            for kind, passes in switches.items()
            for name, state in passes.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DumpError(f'[inspect] {path}: expected fusion switches, {{"Switch": ...}}, got: {error!r}.') from None
