"""A matched site of GroupedMatMulAllReduce."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.fx import Node

from npu_fused_graph.passes.fx import dtype_name, is_contiguous, shape_of
from npu_fused_graph.passes.spellings.products import Product
from npu_fused_graph.passes.spellings.reduces import AllReduce


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows ``start`` to ``end`` of a matrix."""

    source: Node
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Slot:
    """Matrix ``index`` of a (groups, k, n) tensor."""

    source: Node
    index: int


@dataclass(frozen=True, slots=True)
class Member:
    """One group. rows: what x is a part of. slot: what the weight is a part of; None where they are of their own.

    product.x and product.weight may be the whole of it.
    """

    product: Product
    rows: Rows | None = None
    slot: Slot | None = None

    @property
    def row_count(self) -> Any:
        if self.rows is not None:
            return self.rows.end - self.rows.start
        return math.prod(shape_of(self.product.x)[:-1])

    @property
    def weight_shape(self) -> tuple[Any, ...]:
        """(k, n)"""
        k, n = shape_of(self.product.weight)[-2:]
        return (n, k) if self.product.is_stored_transposed else (k, n)


@dataclass(frozen=True, slots=True)
class Part:
    """One all-reduce and what it sums.

    before: nodes from what is reduced back to the matmuls. is_joined: the results of several matmuls, one below the
    other. grouped: the npu_grouped_matmul whose result this is.
    """

    reduce: AllReduce
    members: tuple[Member, ...]
    before: tuple[Node, ...]
    is_joined: bool = False
    grouped: Node | None = None

    @property
    def result_dtype(self) -> str:
        return dtype_name(self.reduce.result)


@dataclass(frozen=True)
class GroupedSite:
    """All-reduces that become one, in graph order; a joined one is a site by itself."""

    parts: tuple[Part, ...]

    @property
    def reduce(self) -> AllReduce:
        return self.parts[0].reduce

    @property
    def before(self) -> tuple[Node, ...]:
        return tuple(node for part in self.parts for node in part.before)

    @property
    def inner(self) -> tuple[Node, ...]:
        """The collectives and their waits."""
        return tuple(node for part in self.parts for node in part.reduce.inner)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        return tuple(member for part in self.parts for member in part.members)

    @property
    def is_joined(self) -> bool:
        return self.parts[0].is_joined

    @cached_property
    def split_source(self) -> Node | None:
        """The matrix whose rows, one group after the other and all of them, are the left operands."""
        first = self.members[0].rows
        if first is None or not is_contiguous(first.source):
            return None
        end = 0
        for member in self.members:
            rows = member.rows
            if rows is None or rows.source is not first.source or rows.start != end:
                return None
            end = rows.end
        return first.source if end == shape_of(first.source)[0] else None

    @property
    def split_item(self) -> int:
        return 2 * self.is_joined + (self.split_source is not None)

    @cached_property
    def stacked_weight(self) -> Node | None:
        """The (groups, k, n) tensor whose matrices, in order and all of them, are the weights."""
        first = self.members[0].slot
        if self.split_item != 3 or first is None or not is_contiguous(first.source):
            return None
        wanted = [(first.source, i) for i in range(shape_of(first.source)[0])]
        slots = [m.slot for m in self.members]
        return first.source if [(s.source, s.index) if s else None for s in slots] == wanted else None

    @property
    def shape(self) -> str:
        """Of the results, for reports."""
        shapes = [f"{part.result_dtype}{list(shape_of(part.reduce.result))}" for part in self.parts]
        return shapes[0] if len(shapes) == 1 else f"{len(shapes)} x {', '.join(dict.fromkeys(shapes))}"
