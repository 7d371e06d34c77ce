"""Assertions about a dump, for CI."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import argument_error
from npu_fused_graph.inspector.arena import memory
from npu_fused_graph.inspector.dump import Dump
from npu_fused_graph.inspector.readers import read_dump

_EXPECTATION = re.compile(r"^([A-Za-z_]\w*)\s*(==?|>=|<=)\s*(\d+)$")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was asked, what is there, and whether that is fine."""

    asked: str
    got: str
    is_fine: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(dump: Dump, expect: Sequence[str] = (), *, memory_below: int | None = None) -> list[Finding]:
    """expect: ``TYPE=N``, ``TYPE>=N`` or ``TYPE<=N`` ops of a type. memory_below: bytes the graph may need.

    Raises InvalidArgumentError for another form.
    """
    found = []
    for text in expect:
        match = _EXPECTATION.match(text.strip())
        if match is None:
            raise argument_error(
                "check", "--expect", "TYPE=N, TYPE>=N or TYPE<=N", repr(text), "Quote it for the shell."
            )
        kind, sign, number = match[1], match[2].strip("="), int(match[3])
        got = sum(graph.histogram[kind] for graph in dump.graphs)
        is_fine = got >= number if sign == ">" else got <= number if sign == "<" else got == number
        found.append(Finding(text, str(got), is_fine))
    if memory_below is not None:
        facts = memory(dump)
        what = "estimated" if facts.is_estimate else "of the arena"
        found.append(
            Finding(f"memory below {memory_below} bytes", f"{facts.high_water} {what}", facts.high_water < memory_below)
        )
    return found


def assert_fused(path: Path | str, type: str, count: int) -> None:
    """Fail a test unless a dump has exactly ``count`` ops of a type. Raises AssertionError, DumpError."""
    dump = read_dump(path)
    got = sum(graph.histogram[type] for graph in dump.graphs)
    if got != count:
        types = ", ".join(f"{n} {kind}" for kind, n in dump.root.histogram.most_common(8))
        raise AssertionError(f"{path}: expected {count} {type}, got {got}. It has {types}, ...")
