"""A graph as a few boxes: layers that repeat once, with their number, and beside them the ones that differ.

Ops are put in natural order, the distance at which most of them repeat is a layer's size, and a layer is cut where the
fewest values cross. Every repeat is proven edge by edge; what stands between two repeats and is none is told as a
variant, by what it has more and less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from npu_fused_graph.inspector.boxes import Fold, Item, Run, Single, Variant, label, numbers
from npu_fused_graph.inspector.counting import DECODED
from npu_fused_graph.inspector.dump import DumpGraph
from npu_fused_graph.inspector.natural_order import natural_order
from npu_fused_graph.inspector.repeats import Class, Line, Numbers, Wiring

LEVELS = 4
"""Repeats inside repeats that are looked for."""

CLASSES = 64
"""Classes of one level that are looked for."""

FAILURES = 8
"""Periods that may turn out to be none before the search ends."""

SMALLEST_LAYER = 4
"""Ops of a repeat from which something else may be a variant of it."""

SAME_END = 0.1
"""What it counts, of 1, that a stretch ends with the op a repeat ends with."""


def fold(graph: DumpGraph, *, is_full: bool = False) -> Fold:
    """is_full: outputs are read, so that shapes and dtypes count, however many ops there are.

    Else they count up to 20,000 ops, in dumps that state them.
    """
    has_shapes = graph.is_stated and (is_full or len(graph) <= DECODED)

    def outputs(op: int) -> Hashable:
        return tuple((d.dtype if d.dtype_trusted else None, d.shape, d.layout or "ND") for d in graph.node(op).outputs)

    folder = _Folder(graph, Wiring(graph, outputs if has_shapes else None))
    items = folder.fold(np.array(natural_order(graph), np.int64), LEVELS)
    return Fold(graph, items, folder.groups, has_shapes)


@dataclass(slots=True)
class _Found:
    """What is known of a stretch of the line: a repeat of a class, or a variant of it."""

    begin: int
    end: int
    group: int
    is_repeat: bool


class _Folder:
    def __init__(self, graph: DumpGraph, wiring: Wiring) -> None:
        self.graph, self.wiring = graph, wiring
        self.groups = 0

    def fold(self, order: Numbers, levels: int) -> list[Item]:
        """Some ops, in natural order."""
        return _Level(self, order, levels).items()

    def number_changes(self, op: int, before: int) -> bool:
        """Whether names say that another layer begins with an op."""
        return numbers(self.graph.names[op])[:1] != numbers(self.graph.names[before])[:1] != []


class _Level:
    """Some ops in natural order, and what was found in them."""

    def __init__(self, folder: _Folder, order: Numbers, levels: int) -> None:
        self.folder, self.levels = folder, levels
        self.line = Line(folder.wiring, order)
        self.found: list[_Found] = []
        self.classes: dict[int, Class] = {}
        self.open: list[int] = []  # classes that may get variants yet
        if levels:
            self._search()

    def _free(self) -> list[tuple[int, int]]:
        """Stretches that nothing was found in, as (begin, end)."""
        free, at = [], 0
        for item in [*self.found, _Found(len(self.line), len(self.line), -1, False)]:
            if item.begin > at:
                free.append((at, item.begin))
            at = item.end
        return free

    def _search(self) -> None:
        banned: set[int] = set()
        moved: set[int] = set()
        while len(self.classes) < CLASSES and len(banned) < FAILURES:
            free = self._free()
            best = self.line.period(free, banned)
            if self.open and (best is None or 2 * best[0] < self.classes[self.open[-1]].size):
                self._close()  # what else repeats is smaller than a layer
                continue
            if best is None:
                break
            period, begin, length = best
            first = self.line.phase(period, begin, length, free, self._is_named)
            found = self.line.class_of(first, period, free)
            if found is None:
                banned.add(period)
            elif period not in moved and self._hoisted(found):
                moved.add(period)  # its first repeat may be whole now, and another cut the better one
            else:
                self._keep(found)
        self._close()

    def _is_named(self, place: int) -> bool:
        order = self.line.order
        return place > 0 and self.folder.number_changes(int(order[place]), int(order[place - 1]))

    def _hoisted(self, found: Class) -> bool:
        """Puts what all repeats read, and stands among the ops in front of them, in front of those ops."""
        first = found.starts[0]
        begin = max((item.end for item in self.found if item.end <= first), default=0)
        places = [int(self.line.places[op]) for op, _ in found.shared]
        moved = self.line.ancestors([place for place in places if place < first], begin)
        if moved == list(range(begin, begin + len(moved))):
            return False
        rest = np.setdiff1d(np.arange(begin, first), moved)
        order = self.line.order.copy()
        order[begin:first] = self.line.order[np.concatenate((moved, rest)).astype(np.int64)]
        self.line = Line(self.folder.wiring, order)
        return True

    def _keep(self, found: Class) -> None:
        """A class, and the variants that stand between its repeats."""
        group = self.folder.groups
        self.folder.groups += 1
        self.classes[group] = found
        self.open.append(group)
        live = self.line.live(found.size, found.shared)
        found.crossing = int(np.median(live[found.starts]))
        self.found += [_Found(start, start + found.size, group, True) for start in found.starts]
        self.found.sort(key=lambda item: item.begin)
        likeness = _Likeness(self.line, found, live)
        variants = []
        for one, other in pairwise(self.found):
            if one.group == other.group == group and one.end < other.begin:
                variants += likeness.between(one.end, other.begin)
        self._add_variants(group, variants)

    def _close(self) -> None:
        """What stands in front of the first repeat of a class, or behind the last, may be a variant of it, too."""
        for group in self.open:
            found = self.classes[group]
            likeness = _Likeness(self.line, found, self.line.live(found.size, found.shared))
            row = [_Found(0, 0, -1, False), *self.found, _Found(len(self.line), len(self.line), -1, False)]
            variants = []
            for one, other in pairwise(row):
                begin, end = one.end, other.begin
                if one.group == group != other.group and (cut := likeness.first(begin, end)):
                    variants.append((begin, cut))
                    begin = cut
                if other.group == group != one.group and (cut := likeness.last(begin, end)) is not None:
                    variants.append((cut, end))
            self._add_variants(group, variants)
        self.open = []

    def _add_variants(self, group: int, variants: list[tuple[int, int]]) -> None:
        if self.classes[group].size < SMALLEST_LAYER:
            return
        self.found += [_Found(begin, end, group, False) for begin, end in variants]
        self.found.sort(key=lambda item: item.begin)

    # -- boxes --------------------------------------------------------------------------------------------------

    def items(self) -> list[Item]:
        boxes: list[Item] = []
        folded: dict[int, list[Item]] = {}
        at = 0
        last: _Found | None = None
        for item in [*self.found, _Found(len(self.line), len(self.line), -1, False)]:
            boxes += map(Single, self.line.order[at : item.begin].tolist())
            ops = self.line.order[item.begin : item.end].tolist()
            if item.is_repeat:
                run = boxes[-1] if boxes else None
                if last and last.is_repeat and last.group == item.group and last.end == item.begin:
                    assert isinstance(run, Run)
                    run.repeats.append(ops)
                else:
                    if item.group not in folded:
                        folded[item.group] = self._inside(ops)
                    boxes.append(Run(item.group, [ops], self.classes[item.group].crossing, folded[item.group]))
            elif item.group >= 0:
                boxes.append(self._variant(item, ops))
            at, last = item.end, item
        label(self.folder.graph.names, boxes)
        return boxes

    def _inside(self, ops: list[int]) -> list[Item]:
        found = self.folder.fold(np.array(ops, np.int64), self.levels - 1)
        return found if any(not isinstance(item, Single) for item in found) else []

    def _variant(self, item: _Found, ops: list[int]) -> Variant:
        found, own, kinds = self.classes[item.group], self.line.own, self.folder.wiring.kinds
        usual = Counter(own[found.starts[0] : found.starts[0] + found.size].tolist())
        here = Counter(own[item.begin : item.end].tolist())
        more, less = _types(here - usual, kinds), _types(usual - here, kinds)
        changed = more & less
        rewired = [] if more or less else self.line.order[found.moved.get(item.begin, [])].tolist()
        return Variant(
            item.group, ops, dict((more - changed).most_common()), dict((less - changed).most_common()),
            dict(changed.most_common()), rewired, self._inside(ops),
        )  # fmt: skip


class _Likeness:
    """How like a class stretches are that begin or end with one of its repeats."""

    def __init__(self, line: Line, found: Class, live: Numbers) -> None:
        self.own, self.size, self.live = line.own, found.size, live
        self.crossing = found.crossing
        first = found.starts[0]
        self.usual = Counter(line.own[first : first + found.size].tolist())
        self.ends = int(line.own[first]), int(line.own[first + found.size - 1])

    def first(self, begin: int, end: int) -> int | None:
        """Where a stretch that is like a repeat ends; None where none begins."""
        return self._best(range(begin, end), 1)

    def last(self, begin: int, end: int) -> int | None:
        """Where a stretch that is like a repeat begins, and ends with the whole stretch."""
        return self._best(range(end - 1, begin - 1, -1), 0)

    def between(self, begin: int, end: int) -> list[tuple[int, int]]:
        """The variants that stretches between two repeats are."""
        found = []
        while end - begin > 1.5 * self.size and (cut := self._best(range(begin, end), 1, 0.75)):
            found.append((begin, cut))
            begin = cut
        if end - begin >= self.size / 5 and self._common(begin, end) * 3 >= end - begin:
            found.append((begin, end))
        return found

    def _common(self, begin: int, end: int) -> int:
        return (Counter(self.own[begin:end].tolist()) & self.usual).total()

    def _best(self, places: range, side: int, least: float = 0.6) -> int | None:
        """The cut at which a stretch of these ops is most like a repeat, of those where as many values cross.

        side: what is added to a place to make it the cut behind it.
        """
        left = self.usual.copy()
        common, best, cut = 0, 0.0, None
        for count, place in enumerate(places[: 3 * self.size], 1):
            kind = int(self.own[place])
            if left[kind] > 0:
                left[kind] -= 1
                common += 1
            alike = 2 * common / (self.size + count) + SAME_END * (kind == self.ends[side])
            if alike > best and self.live[place + side] == self.crossing:
                best, cut = alike, place + side
        return cut if best >= least else None


def _types(labels: Counter[int], kinds: list[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for own, count in labels.items():
        found[kinds[own]] += count
    return found
