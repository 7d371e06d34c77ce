"""Ops in the order in which a reader follows the computation, whatever their order in the file."""

from __future__ import annotations

import re
from itertools import accumulate

import numpy as np

from npu_fused_graph.inspector.dump import DumpGraph

COLLECTORS = frozenset(("NetOutput",))
"""Types that only gather a graph's results: they read ops of all layers and belong to none."""


def natural_order(graph: DumpGraph) -> list[int]:
    """Producers first; an op right behind what it needs; a side result right behind the last op it is made of.

    Only edges, ports and, between ops nothing else tells apart, names decide. Of a cycle one edge is disregarded.
    """
    return _Walk(graph).order()


class _Walk:
    """readers: of each op, how many. satellite: whether it and all it is made of have one reader, as weights have.

    depth: the longest way to it from a source; a satellite's does not count for its reader, so that the first layers
    are ordered like the others.
    """

    def __init__(self, graph: DumpGraph) -> None:
        self.names, self.types = graph.names, graph.types
        self.inputs = [tuple([source for source, _ in row if source >= 0]) for row in graph.sources]
        for op, row in graph.controls.items():
            self.inputs[op] += tuple(source for source in row if source >= 0)
        # of each op its readers, one behind the other: many small lists keep the garbage collector busy
        source = np.array([source for sources in self.inputs for source in sources], np.int64)
        reader = np.repeat(np.arange(len(self.inputs)), [len(sources) for sources in self.inputs])
        self.reader: list[int] = reader[np.argsort(source, kind="stable")].tolist()
        self.readers: list[int] = np.bincount(source, minlength=len(self.inputs)).tolist()
        self.topological = self._topological()
        count = len(self.inputs)
        self.satellite, self.depth = [False] * count, [0] * count
        self._measure()
        # inputs are followed by rank: the deepest first, satellites last
        self.rank = [
            (count if satellite else 0) - depth for satellite, depth in zip(self.satellite, self.depth, strict=True)
        ]
        self.is_seen = bytearray(count)

    def _topological(self) -> list[int]:
        """Kahn's order; ops of a cycle and behind it come last."""
        missing = [len(row) for row in self.inputs]
        found = [op for op, count in enumerate(missing) if not count]
        ends = list(accumulate(self.readers))
        for op in found:
            for reader in self.reader[ends[op] - self.readers[op] : ends[op]]:
                missing[reader] -= 1
                if not missing[reader]:
                    found.append(reader)
        return found if len(found) == len(missing) else found + [op for op, count in enumerate(missing) if count]

    def _measure(self) -> None:
        satellite, depth = self.satellite, self.depth
        for op in self.topological:
            is_satellite = self.readers[op] <= 1
            beside = deepest = 0
            for source in self.inputs[op]:
                if satellite[source]:
                    beside = max(beside, depth[source])
                else:
                    is_satellite = False
                    deepest = max(deepest, depth[source])
            satellite[op] = is_satellite
            depth[op] = 1 + (beside if is_satellite else deepest)

    def order(self) -> list[int]:
        collectors = [op for op, kind in enumerate(self.types) if kind in COLLECTORS]
        roots = {op for op, readers in enumerate(self.readers) if not readers}
        roots.update(source for op in collectors for source in self.inputs[op])
        roots.difference_update(collectors)
        if not roots:
            return self._visit_all(range(len(self.inputs)))
        trunk_end = max(roots, key=lambda op: (not self.satellite[op], self.depth[op], _counted(self.names[op])))
        trunk = self._visit(trunk_end)
        place = [-1] * len(self.inputs)
        for at, op in enumerate(trunk):
            place[op] = at
        beside: dict[int, list[int]] = {}
        for root in [*self._sides(roots, place), *collectors, *range(len(self.inputs))]:
            found = self._visit(root)
            for op in found:
                place[op] = max((place[source] for source in self.inputs[op]), default=-1)
            for op in reversed(found):  # what is made of nothing stands with its first reader
                if place[op] < 0:
                    place[op] = len(trunk)
                for source in self.inputs[op]:
                    if place[source] < 0:
                        place[source] = place[op]
            for op in found:
                beside.setdefault(place[op], []).append(op)
        order = []
        for at, op in enumerate(trunk):
            order.append(op)
            order += beside.get(at, ())
        return order + beside.get(len(trunk), [])

    def _sides(self, roots: set[int], place: list[int]) -> list[int]:
        """Roots beside the trunk by how far along it they reach."""
        reach = list(place)
        for op in self.topological:
            if reach[op] < 0:
                reach[op] = max((reach[source] for source in self.inputs[op]), default=-1)

        def key(op: int) -> tuple[object, ...]:
            sources = [reach[source] for source in self.inputs[op]]
            return reach[op], self.depth[op], self.types[op], sources, _counted(self.names[op])

        return sorted((op for op in roots if place[op] < 0), key=key)

    def _visit_all(self, roots: range) -> list[int]:
        return [op for root in roots for op in self._visit(root)]

    def _visit(self, root: int) -> list[int]:
        """Ops not seen yet that the root is made of, it last."""
        is_seen, inputs, rank = self.is_seen, self.inputs, self.rank
        if is_seen[root]:
            return []
        found: list[int] = []
        stack = [root]
        while stack:
            op = stack[-1]
            if is_seen[op]:
                stack.pop()
                if is_seen[op] == 1:
                    is_seen[op] = 2
                    found.append(op)
                continue
            is_seen[op] = 1
            row = [source for source in inputs[op] if not is_seen[source]]
            if len(row) > 1:
                row.sort(key=rank.__getitem__)
                row.reverse()
            stack += row
        return found


_NUMBER = re.compile(r"(\d+)")


def _counted(name: str) -> list[tuple[int, str]]:
    """So that MatMul_9 comes before MatMul_10."""
    return [(int(part[:18]), "") if part.isdecimal() and part.isascii() else (-1, part) for part in _NUMBER.split(name)]
