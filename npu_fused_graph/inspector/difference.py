"""What differs between two dumps of one graph: by what ops are and where they stand, not by their names.

Names are numbered as ops are made, so that one more op renames those behind it. Ops are aligned in file order, as
lines of two texts are, each line an op's type, attributes, outputs and the types of its inputs; then the inputs of
every aligned pair are compared. Runs of ops that differ in the same way are told once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from npu_fused_graph.inspector.dump import Dump, DumpGraph
from npu_fused_graph.inspector.selection import plain
from npu_fused_graph.ir.graph import Node, TensorDesc

WINDOW = 512
"""Ops of each side among which a way on is searched where the two part."""

STRETCH = 8
"""Ops in common, one behind the other, that are no chance."""


_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Exchange:
    """Ops of the first dump in whose place ops of the second stand. names: of the first of each kind of place."""

    removed: tuple[str, ...]
    added: tuple[str, ...]
    count: int
    removed_names: tuple[str, ...]
    added_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """An op in both dumps that is not the same. what: ``attr dst_type``, ``input 1``, ``output 0``, ``stream``, ..."""

    name: str
    other_name: str
    type: str
    what: str
    before: Any
    after: Any


@dataclass(slots=True)
class Difference:
    """same: ops that are in both and alike. renamed: of these, how many have another name."""

    same: int
    renamed: int
    exchanges: list[Exchange] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_same(self) -> bool:
        return not self.exchanges and not self.changes

    @property
    def kinds(self) -> list[tuple[int, Change]]:
        """How many changes are alike, numbers in names aside, as in every layer; and the first of them."""
        found: dict[tuple[str, ...], tuple[int, Change]] = {}
        for change in self.changes:
            before, after = str(change.before), str(change.after)
            if change.what.startswith("input"):  # names of ops
                before, after = _NUMBER.sub("#", before), _NUMBER.sub("#", after)
            key = change.type, change.what, before, after
            count, first = found.get(key, (0, change))
            found[key] = count + 1, first
        return list(found.values())

    def as_dict(self) -> dict[str, Any]:
        kinds = [{"count": count, **asdict(first)} for count, first in self.kinds]
        return {"is_same": self.is_same, **asdict(self), "kinds": kinds}


def compare(a: Dump, b: Dump) -> Difference:
    """Of all graphs, those of one place in both files together; a graph that only one has is told as such."""
    found = Difference(0, 0)
    exchanges: Counter[_Types] = Counter()
    names: dict[_Types, _Types] = {}
    for one, other in zip(a.graphs, b.graphs, strict=False):
        both = _Pair(one, other)
        for mine, theirs in both.exchanged():
            key = tuple(one.types[op] for op in mine), tuple(other.types[op] for op in theirs)
            exchanges[key] += 1
            names.setdefault(key, (tuple(one.names[op] for op in mine), tuple(other.names[op] for op in theirs)))
        for op, partner in sorted(both.partner.items()):
            changes = both.changes(op, partner)
            found.changes += changes
            found.same += not changes
            found.renamed += not changes and one.names[op] != other.names[partner]
    found.exchanges = [Exchange(*key, count, *names[key]) for key, count in exchanges.most_common()]
    for graph in (*a.graphs[len(b.graphs) :], *b.graphs[len(a.graphs) :]):
        found.notes.append(f"graph {graph.name or '(unnamed)'} is in one of the two only")
    return found


_Types = tuple[tuple[str, ...], tuple[str, ...]]


class _Pair:
    """Two graphs, aligned. partner: op of the one -> op of the other; partners: the other way round."""

    def __init__(self, one: DumpGraph, other: DumpGraph) -> None:
        self.one, self.other = one, other
        pairs, self._gaps = _aligned(one, other)
        for mine, theirs in self._gaps:
            pairs += _paired(one, other, mine, theirs)
        self.partner = dict(pairs)
        self.partners = {theirs: mine for mine, theirs in pairs}

    def exchanged(self) -> Iterator[tuple[list[int], list[int]]]:
        """Runs of ops that only one of the two has, with what stands in their place."""
        for mine, theirs in self._gaps:
            removed = [op for op in mine if op not in self.partner]
            added = [op for op in theirs if op not in self.partners]
            if removed or added:
                yield removed, added

    def changes(self, mine: int, theirs: int) -> list[Change]:
        """What is not the same of two ops that are partners."""
        a, b = self.one.node(mine), self.other.node(theirs)
        found: list[tuple[str, Any, Any]] = []
        before, after = _stable(a), _stable(b)
        for key in sorted({*before, *after}):
            values = plain(before.get(key)), plain(after.get(key))
            if repr(values[0]) != repr(values[1]):
                found.append((f"attr {key}", *values))
        for port in range(max(len(a.outputs), len(b.outputs))):
            one, other = (_tensor(n.outputs[port]) if port < len(n.outputs) else None for n in (a, b))
            if one != other:
                found.append((f"output {port}", _text(one), _text(other)))
        found += self._inputs(mine, theirs)
        if self.one.has_streams and self.other.has_streams and a.build and b.build and a.build.stream != b.build.stream:
            found.append(("stream", a.build.stream, b.build.stream))
        return [Change(a.name, b.name, a.type, *row) for row in found]

    def _inputs(self, mine: int, theirs: int) -> Iterator[tuple[str, Any, Any]]:
        inputs, others = self.one.sources[mine], self.other.sources[theirs]
        for port in range(max(len(inputs), len(others))):
            source = inputs[port] if port < len(inputs) else None
            target = others[port] if port < len(others) else None
            if not self._is_alike(source, target):
                yield f"input {port}", _edge(self.one, source), _edge(self.other, target)
        waits = {op for op in self.one.controls.get(mine, ()) if op in self.partner}
        others_wait = {op for op in self.other.controls.get(theirs, ()) if op in self.partners}
        if {self.partner[op] for op in waits} != others_wait:
            names = [self.one.names[op] for op in sorted(waits)]
            yield "waits for", names, [self.other.names[op] for op in sorted(others_wait)]

    def _is_alike(self, source: tuple[int, int] | None, target: tuple[int, int] | None) -> bool:
        """Whether two inputs come from one place. An op that only one dump has is told by itself, not by readers."""
        if source is None or target is None:
            return source is target
        if source[0] < 0 or target[0] < 0:
            return source[0] == target[0]
        if source[0] in self.partner and target[0] in self.partners:
            return (self.partner[source[0]], source[1]) == target
        return True


# -- alignment -------------------------------------------------------------------------------------------------

Gap = tuple[range, range]
"""Ops of the one and of the other between two pairs."""


def _aligned(one: DumpGraph, other: DumpGraph) -> tuple[list[tuple[int, int]], list[Gap]]:
    """Pairs of ops that read the same, in order; and what lies between them."""
    numbers: dict[Any, int] = {}
    mine, theirs = ([numbers.setdefault(line, len(numbers)) for line in _lines(g)] for g in (one, other))
    pairs = _named(_common(mine, theirs), mine, theirs, one.names, other.names)
    gaps: list[Gap] = []
    at, their_at = 0, 0
    for i, j in [*pairs, (len(mine), len(theirs))]:
        if i > at or j > their_at:
            gaps.append((range(at, i), range(their_at, j)))
        at, their_at = i + 1, j + 1
    return pairs, gaps


def _named(
    pairs: list[tuple[int, int]], a: list[int], b: list[int], names: list[str], others: list[str]
) -> list[tuple[int, int]]:
    """Where an item beside a pair is the same, too, it is the one of the same name that is paired."""
    found = [(-1, -1), *pairs, (len(a), len(b))]
    places = range(1, len(found) - 1)
    for at in (*reversed(places), *places):  # towards the end first, then towards the begin
        (before, their_before), (i, j), (after, their_after) = found[at - 1 : at + 2]
        if names[i] == others[j] or (after - before == 2 and their_after - their_before == 2):
            continue
        own = [x for x in range(before + 1, after) if a[x] == b[j] and names[x] == others[j]]
        theirs = [y for y in range(their_before + 1, their_after) if b[y] == a[i] and others[y] == names[i]]
        if own or theirs:
            found[at] = (own[0], j) if own else (i, theirs[0])
    return found[1:-1]


def _lines(graph: DumpGraph) -> list[Any]:
    """What each op reads like, without names."""
    types = graph.types
    lines = []
    for op, sources in enumerate(graph.sources):
        node = graph.node(op)
        attrs = tuple(sorted((key, repr(plain(value))) for key, value in _stable(node).items()))
        inputs = tuple((types[source] if source >= 0 else "", port) for source, port in sources)
        lines.append((types[op], inputs, tuple(map(_tensor, node.outputs)), attrs, len(node.controls)))
    return lines


def _stable(node: Node) -> dict[str, Any]:
    """Attributes that say what an op does; those with an underscore are notes of the compiler."""
    return {key: value for key, value in node.attrs.items() if not key.startswith("_")}


def _tensor(desc: TensorDesc) -> tuple[str | None, tuple[int, ...] | None, str]:
    return desc.dtype if desc.dtype_trusted else None, desc.shape, desc.layout or "ND"


def _common(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    """Pairs of equal items in the order of both, as many as a search in windows finds.

    Where the two part, the shortest way on is searched in a window, and believed up to its last long stretch in common.
    """
    pairs: list[tuple[int, int]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
            continue
        found = _shortest(a[i : i + WINDOW], b[j : j + WINDOW])
        if i + WINDOW < len(a) or j + WINDOW < len(b):
            found = _believed(found)
        pairs += [(i + x, j + y) for x, y in found]
        x, y = found[-1] if found else (WINDOW - 1, WINDOW - 1)
        i, j = i + x + 1, j + y + 1
    return pairs


def _believed(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Up to the end of the last stretch: behind it the window's edge decides."""
    length = 0
    for at in range(len(pairs) - 1, -1, -1):
        follows = at + 1 < len(pairs) and pairs[at + 1] == (pairs[at][0] + 1, pairs[at][1] + 1)
        length = length + 1 if follows else 1
        if length == STRETCH:
            return pairs[: at + STRETCH]
    return []


def _shortest(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    """The longest common subsequence, by Myers' greedy search."""
    furthest = {1: 0}
    steps: list[dict[int, int]] = []
    for edits in range(len(a) + len(b) + 1):
        steps.append(dict(furthest))
        for k in range(-edits, edits + 1, 2):
            if not -len(b) <= k <= len(a):
                continue
            i = _step(furthest, k, edits)
            while i < len(a) and i - k < len(b) and a[i] == b[i - k]:
                i += 1
            furthest[k] = i
            if i >= len(a) and i - k >= len(b):
                return _way(steps, len(a), len(b))
    return []


def _goes_down(furthest: dict[int, int], k: int, edits: int) -> bool:
    return k == -edits or (k != edits and furthest.get(k - 1, -1) < furthest.get(k + 1, -1))


def _step(furthest: dict[int, int], k: int, edits: int) -> int:
    return furthest.get(k + 1, 0) if _goes_down(furthest, k, edits) else furthest.get(k - 1, -1) + 1


def _way(steps: list[dict[int, int]], i: int, j: int) -> list[tuple[int, int]]:
    """Back from the end, step by step."""
    pairs = []
    for edits in range(len(steps) - 1, -1, -1):
        furthest, k = steps[edits], i - j
        before = k + 1 if _goes_down(furthest, k, edits) else k - 1
        start = furthest.get(before, 0)
        while i > start and j > start - before:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        if edits:
            i, j = start, start - before
    return pairs[::-1]


def _paired(one: DumpGraph, other: DumpGraph, mine: range, theirs: range) -> list[tuple[int, int]]:
    """Of ops that do not read the same: those of one type, in order, while as many of it are on both sides."""
    by_type: dict[str, tuple[list[int], list[int]]] = {}
    for side, graph, ops in ((0, one, mine), (1, other, theirs)):
        for op in ops:
            by_type.setdefault(graph.types[op], ([], []))[side].append(op)
    return [pair for a, b in by_type.values() if len(a) == len(b) for pair in zip(a, b, strict=True)]


# -- texts -----------------------------------------------------------------------------------------------------


def _edge(graph: DumpGraph, source: tuple[int, int] | None) -> str | None:
    if source is None:
        return None
    return f"{graph.names[source[0]]}:{source[1]}" if source[0] >= 0 else "an op of another graph"


def _text(tensor: tuple[str | None, tuple[int, ...] | None, str] | None) -> str | None:
    if tensor is None:
        return None
    dtype, shape, layout = tensor
    sizes = "[?]" if shape is None else str(list(shape))
    return f"{dtype or '?'}{sizes} {layout}"
