"""Where a fault can be put: every site of the target files, as an edit of a few bytes."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.kinds import KINDS
from tests.mutants.syntax import Source
from tests.mutants.targets import MutantsError
from tests.mutants.walk import nodes_of

WIDTH = 160


@dataclass(frozen=True)
class Site:
    """One fault: bytes start to end of path become ``after``.

    change: the lines concerned, before and after, as one line of text. number: counts sites with the same change.
    first, last: the lines of the statement. at_import: whether it runs when the module is imported.
    """

    path: str
    line: int
    column: int
    kind: str
    before: str
    after: str
    start: int
    end: int
    change: str
    number: int
    first: int
    last: int
    at_import: bool

    @property
    def key(self) -> str:
        """Stays the same while lines are added and removed elsewhere in the file."""
        return f"{self.path} | {self.kind} | {self.change} | {self.number}"

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.kind}: {self.change}"

    def apply(self, data: bytes) -> bytes:
        """The file with the fault."""
        if data[self.start : self.end] != self.before.encode():
            raise MutantsError(f"{self.path}:{self.line}: expected {self.before!r}, the file has changed")
        return data[: self.start] + self.after.encode() + data[self.end :]


def sites_of(path: str, data: bytes) -> list[Site]:
    """The sites of a file, in the order of their bytes."""
    source = Source(data)
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    edits: dict[tuple[int, int, str, str], tuple[int, int, bool]] = {}
    skipped: set[ast.AST] = set()
    for node, place in nodes_of(source.tree):
        if node in skipped:
            continue
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            skipped.add(node.operand)
        for kind, edits_of in KINDS.items():
            for start, end, after in edits_of(source, node, place):
                edits.setdefault((start, end, kind, after), (place.first, place.last, place.at_import))
    for (start, end, kind, after), (first, last, at_import) in sorted(edits.items()):
        change = _change(source, start, end, after)
        found.append(
            Site(
                path=path,
                line=source.line(start),
                column=start - source.starts[source.line(start) - 1],
                kind=kind,
                before=source.text(start, end),
                after=after,
                start=start,
                end=end,
                change=change,
                number=seen[kind, change],
                first=first,
                last=last,
                at_import=at_import,
            )
        )
        seen[kind, change] += 1
    return found


def all_sites(root: Path, paths: Iterable[str]) -> list[Site]:
    return [site for path in paths for site in sites_of(path, (root / path).read_bytes())]


def sample(sites: Sequence[Site], seed: int) -> list[Site]:
    """All sites in a random order that depends on the seed and on each site alone.

    The first 60 of 300 are the first 60 of 60, in every process; and a site keeps its place among the others when
    the checkout changes elsewhere, so that two checkouts are judged by nearly the same faults.
    """
    return sorted(sites, key=lambda site: hashlib.sha256(f"{seed} {site.key}".encode()).digest())


def _change(source: Source, start: int, end: int, after: str) -> str:
    first, last = source.starts[source.line(start) - 1], source.starts[source.line(max(start, end - 1))] - 1
    head, tail = source.text(first, start), source.text(end, last)
    return f"{_short(source.text(first, last))} -> {_short(head + after + tail) or 'nothing'}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
