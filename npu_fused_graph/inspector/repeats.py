"""Stretches of a graph that repeat, found in the labels of its ops in natural order, and proven edge by edge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from npu_fused_graph.inspector.dump import DumpGraph
from npu_fused_graph.inspector.natural_order import COLLECTORS

Numbers = NDArray[np.int64]

CANDIDATES = 24
"""Periods that are tried."""

SMALLEST = 8
"""Ops that repeats one behind the other are at least: fewer are read sooner than unfolded."""

TWICE = 0.2
"""What an op counts in a run of two: halves of a graph around an odd layer are such a run, too."""


class Wiring:
    """A graph's edges as columns, ordered by reader, and its ops' labels.

    own: what an op is: type, which inputs are fed, number of control edges, outputs where they are given. near: the
    same with its producers. source: of each edge, -1 where the producer is not in the graph. port: output + 1; 0 for
    a control edge. begin: of each op's edges.
    """

    def __init__(self, graph: DumpGraph, outputs: Callable[[int], Hashable] | None = None) -> None:
        source: list[int] = []
        port: list[int] = []
        count: list[int] = []
        own: list[int] = []
        labels: dict[Hashable, int] = {}
        self.kinds: list[str] = []
        waits = graph.controls
        for op, (kind, written, row) in enumerate(zip(graph.types, graph.inputs, graph.sources, strict=True)):
            for producer, index in row:
                source.append(producer)
                port.append(index + 1)
            controls = waits.get(op, ())
            source += controls
            port += [0] * len(controls)
            count.append(len(row) + len(controls))
            unfed = tuple(i for i, text in enumerate(written) if not text) if "" in written else ()
            key = (kind, len(row), len(controls), unfed, outputs(op) if outputs else None)
            label = labels.setdefault(key, len(labels))
            if label == len(self.kinds):
                self.kinds.append(kind)
            own.append(label)
        self.source, self.port, self.count, self.own = (np.array(x, np.int64) for x in (source, port, count, own))
        self.begin = np.concatenate(([0], np.cumsum(self.count)))
        self.ports = int(self.port.max(initial=0)) + 1
        self.is_collector = np.array([kind in COLLECTORS for kind in graph.types], bool)
        self.near = self._near()

    def _near(self) -> Numbers:
        """Equal for ops that are alike and whose producers are, by a hash; what it says is proven later."""
        producer = np.where(self.source < 0, -1, self.own[self.source]) if len(self.own) else self.source
        nth = np.arange(len(self.source)) - np.repeat(self.begin[:-1], self.count)
        edges = _mixed(_mixed(_mixed(producer) + self.port.astype(np.uint64)) + nth.astype(np.uint64))
        sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(edges, dtype=np.uint64)))
        hashes = _mixed(_mixed(self.own) + sums[self.begin[1:]] - sums[self.begin[:-1]])
        return np.unique(hashes, return_inverse=True)[1].astype(np.int64)


def _mixed(numbers: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64's finish: numbers that are near each other come far apart."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


@dataclass(slots=True)
class Class:
    """Repeats of one stretch.

    starts: their places in the line. moved: of stretches that are alike but wired otherwise, by start: the places that
    are. shared: values that all repeats read. crossing: values that pass from one to the next.
    """

    size: int
    starts: list[int]
    moved: dict[int, list[int]] = field(default_factory=dict)
    shared: list[tuple[int, int]] = field(default_factory=list)
    crossing: int = 0


class Line:
    """Ops in natural order; an op is meant by its place in it. Edges from elsewhere come from place -1."""

    def __init__(self, wiring: Wiring, order: Numbers) -> None:
        self.wiring, self.order = wiring, order
        self.own, self.near = wiring.own[order], wiring.near[order]
        count = wiring.count[order]
        self.begin = np.concatenate(([0], np.cumsum(count)))
        edges = np.repeat(wiring.begin[order] - self.begin[:-1], count) + np.arange(self.begin[-1])
        self.source, self.port = wiring.source[edges], wiring.port[edges]
        places = np.full(len(wiring.own) + 1, -1)
        places[order] = np.arange(len(order))
        self.places = places
        self.producer = places[self.source]
        self.reader = np.repeat(np.arange(len(order)), count)

    def __len__(self) -> int:
        return len(self.order)

    @cached_property
    def value(self) -> Numbers:
        """Of each edge: a number of the value it carries, wherever it comes from."""
        found: Numbers = self.source * self.wiring.ports + self.port
        return found

    def live(self, period: int, shared: Sequence[tuple[int, int]] = ()) -> Numbers:
        """Of the cut in front of each place, and behind the last: values that are read behind it.

        A value read further away than two periods passes by: it is no part of what one repeat hands to the next. Nor
        is one that is a result of the graph.
        """
        counted = (self.producer >= 0) & (self.reader > self.producer) & (self.port > 0)
        counted &= ~self.wiring.is_collector[self.order[self.reader]]
        if shared:
            counted &= ~np.isin(self.value, [op * self.wiring.ports + port for op, port in shared])
        edges = np.flatnonzero(counted)[::-1]
        last = edges[np.unique(self.value[edges], return_index=True)[1]]
        last = last[self.reader[last] - self.producer[last] <= 2 * period]
        change = np.bincount(self.producer[last] + 1, minlength=len(self) + 2)
        change -= np.bincount(self.reader[last] + 1, minlength=len(self) + 2)
        return np.cumsum(change)[: len(self) + 1]

    def ancestors(self, places: Sequence[int], begin: int) -> list[int]:
        """These and what they are made of, from a place on, in order."""
        found: set[int] = set()
        left = [place for place in places if place >= begin]
        while left:
            place = left.pop()
            if place not in found:
                found.add(place)
                left += [p for p in self.producer[self.begin[place] : self.begin[place + 1]].tolist() if p >= begin]
        return sorted(found)

    # -- classes ------------------------------------------------------------------------------------------------

    def text(self, free: Sequence[tuple[int, int]]) -> tuple[Numbers, Numbers]:
        """Places of stretches one behind the other, a -1 behind each; and their ``near``, other numbers for each -1."""
        gap = np.full(1, -1)
        at = np.concatenate([part for begin, end in free for part in (np.arange(begin, end), gap)])
        return at, _separated(self.near, at)

    def class_of(self, first: int, size: int, free: Sequence[tuple[int, int]]) -> Class | None:
        """What is like the stretch of this size from a place on: alike by label, then proven."""
        at, _ = self.text(free)
        labels = _separated(self.own, at)
        windows = _windows(labels, size)
        here = int(np.flatnonzero(at == first)[0])
        found = np.flatnonzero(windows == windows[here])
        found = found[(labels[found[:, None] + np.arange(size)] == labels[here : here + size]).all(1)]
        return self._proven(_apart(at[found].tolist(), size), size)

    def _proven(self, starts: list[int], size: int) -> Class | None:
        """Keeps those that take their inputs from where most of them do.

        An input comes from inside, at the same distance; or is one value for all; or comes from what the repeat
        before hands over, at the same distance where the two stand side by side, else at least the same value for
        the same inputs.
        """
        if len(starts) < 2:
            return None
        begin = np.array(starts)
        length = int(self.begin[starts[0] + size] - self.begin[starts[0]])
        edges = self.begin[begin][:, None] + np.arange(length)
        ports = self.wiring.ports
        value, producer = self.value[edges], self.producer[edges]
        # a value from outside the line is the same only if it is the very same
        distance = np.where(producer >= 0, (producer - begin[:, None]) * ports + self.port[edges], 0)
        distance = np.where(producer >= 0, distance, -(1 << 48) - value)
        behind = np.zeros(len(starts), bool)
        behind[1:] = begin[1:] == begin[:-1] + size
        half = len(starts) // 2
        same_value, same_distance = (np.sort(x, axis=0)[half] for x in (value, distance))
        is_shared = ((value == same_value).sum(0) > len(starts) / 2) & ~(distance == same_distance).all(0)
        is_inside = (same_distance >= 0) & (same_distance < size * ports) & ~is_shared
        is_handed = ~is_inside & ~is_shared
        if behind.any():
            chained = distance[behind]
            same_distance = np.where(is_handed, np.sort(chained, axis=0)[len(chained) // 2], same_distance)
        fits = np.where(is_shared, value == same_value, distance == same_distance)
        fits |= is_handed & ~behind[:, None] & (producer < begin[:, None])
        handed = np.flatnonzero(is_handed)
        usual = self._pattern(value, distance, behind, handed)
        for nth in np.flatnonzero(~behind).tolist():
            if _pattern(value[nth, handed].tolist()) != usual:
                fits[nth, handed] = False
        good = fits.all(1)
        found = Class(size, _long(begin[good].tolist(), size))
        if len(found.starts) < 2:
            return None
        reader = self.reader[edges]
        for nth in np.flatnonzero(~good).tolist():
            found.moved[starts[nth]] = sorted(set(reader[nth, ~fits[nth]].tolist()))
        shared = {int(v) for v in same_value[is_shared & (same_value >= 0)]}
        found.shared = sorted(divmod(v, ports) for v in shared)
        return found

    @staticmethod
    def _pattern(value: Numbers, distance: Numbers, behind: NDArray[np.bool_], handed: Numbers) -> list[int]:
        """Which of the inputs handed over are the same value, in most repeats."""
        rows = value[behind] if behind.any() else value
        patterns = Counter(tuple(_pattern(row[handed].tolist())) for row in rows[:64])
        return list(patterns.most_common(1)[0][0])

    def period(self, free: Sequence[tuple[int, int]], banned: set[int]) -> tuple[int, int, int] | None:
        """The period that covers most, and place and length of its longest run."""
        if not free:
            return None
        at, labels = self.text(free)
        best: tuple[float, int] = (0.0, 0)
        runs = {}
        for period in _gaps(labels):
            if period not in banned:
                runs[period] = _runs(labels, period)
                best = max(best, (_score(*runs[period], period), -period))
        if best[0] < SMALLEST / 2:
            return None
        chosen = -best[1]
        for period in sorted(runs):
            # what a longer period covers beside repeats of the shorter one: layers, and not the experts in them
            if period > chosen:
                same = np.concatenate(([0], np.cumsum(labels[chosen:] == labels[:-chosen])))
                begins, lengths = runs[period]
                inner = same[begins + lengths + period - chosen] - same[begins]
                is_own = inner < lengths + period - chosen
                if _score(begins[is_own], lengths[is_own], period) > best[0] / 2:
                    chosen = period
                    runs[period] = begins[is_own], lengths[is_own]
        begins, lengths = runs[chosen]
        longest = int(np.argmax(lengths))
        return chosen, int(at[begins[longest]]), int(lengths[longest])

    def phase(
        self, period: int, begin: int, length: int, free: Sequence[tuple[int, int]], is_named: Callable[[int], bool]
    ) -> int:
        """Where to cut a run: the fewest values cross, then most repeats are whole, then names change there.

        Then what crosses is read most: behind the sum, not in front of the activation that follows it.
        """
        middle = begin + max(0, (length // period - 1) // 2) * period
        live = self.live(period)[middle : middle + period]
        cuts = np.flatnonzero(live == live.min())[: 16 * CANDIDATES]
        at, _ = self.text(free)
        windows = _windows(_separated(self.own, at), period)
        here = int(np.flatnonzero(at == middle)[0])
        ordered = np.sort(windows)
        wanted = windows[here + cuts]
        whole = np.searchsorted(ordered, wanted, "right") - np.searchsorted(ordered, wanted, "left")
        readers = np.bincount(self.producer[self.producer >= 0], minlength=len(self))
        best: list[int] = (middle + cuts[whole == whole.max()]).tolist()
        return max(best, key=lambda cut: (is_named(cut), readers[cut - 1] if cut else 0, -cut))


def _separated(labels: Numbers, at: Numbers) -> Numbers:
    found = np.where(at >= 0, labels[at], 0)
    gaps = np.flatnonzero(at < 0)
    found[gaps] = -1 - np.arange(len(gaps))
    return found


def _windows(labels: Numbers, size: int) -> NDArray[np.uint64]:
    """A hash of each window of this size: polynomial, modulo 2**64."""
    if len(labels) < size:
        return np.zeros(0, np.uint64)
    base = np.uint64(0x9E3779B97F4A7C15)
    powers = np.cumprod(np.full(len(labels), base, np.uint64), dtype=np.uint64)
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(_mixed(labels) * powers[::-1], dtype=np.uint64)))
    return (sums[size:] - sums[:-size]) * powers[: len(labels) - size + 1]


def _apart(starts: list[int], size: int) -> list[int]:
    """Those that do not overlap, from the left."""
    found: list[int] = []
    for start in starts:
        if not found or start >= found[-1] + size:
            found.append(start)
    return found


def _long(starts: list[int], size: int) -> list[int]:
    """Those that with their neighbours are a stretch worth a box."""
    found: list[int] = []
    begin = 0
    for at in range(1, len(starts) + 1):
        if at == len(starts) or starts[at] != starts[at - 1] + size:
            if (at - begin) * size >= SMALLEST:
                found += starts[begin:at]
            begin = at
    return found


def _gaps(labels: Numbers) -> list[int]:
    """Distances between ops alike: those with most votes, and those with most votes for their size."""
    order = np.argsort(labels, kind="stable")
    found = order[1:] - order[:-1]
    found = found[labels[order[1:]] == labels[order[:-1]]]
    votes = np.bincount(found[found <= len(labels) // 2], minlength=1)
    votes[0] = 0
    weighted = votes * np.arange(len(votes))
    best: set[int] = set()
    for column in (votes, weighted):
        best.update(np.argsort(-column, kind="stable")[: CANDIDATES // 2].tolist())
    return sorted(period for period in best if votes[period])


def _runs(labels: Numbers, period: int) -> tuple[Numbers, Numbers]:
    """Where labels equal those a period on, for at least a period: begins and lengths."""
    same = np.concatenate(([False], labels[period:] == labels[:-period], [False])).astype(np.int8)
    edges = np.flatnonzero(np.diff(same))
    begins, ends = edges[::2], edges[1::2]
    keep = ends - begins >= period
    return begins[keep], (ends - begins)[keep]


def _score(begins: Numbers, lengths: Numbers, period: int) -> float:
    """Ops that runs cover."""
    return float(np.where(lengths < 2 * period, TWICE, 1.0) @ (lengths + period)) if len(begins) else 0.0


def _pattern(values: Sequence[int]) -> list[int]:
    """The same number for the same value, by first occurrence."""
    seen: dict[int, int] = {}
    return [seen.setdefault(value, len(seen)) for value in values]
