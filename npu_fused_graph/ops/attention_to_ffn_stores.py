"""What AttentionToFFN writes, in the order in which it writes it.

x86-64 shows stores to other processors in the order they were made, so no fence stands between a table and its flag:
each store here is a call of its own into numpy, which no compiler moves, and long copies of the C library end with a
fence. Windows are refused on CPUs that reorder stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from npu_fused_graph.comm.windows import Bytes
from npu_fused_graph.ops.attention_to_ffn_routes import Routes, Words
from npu_fused_graph.ops.window_tables import FLAG, LAYER, AttentionTables, FfnTables, aligned


class Store(NamedTuple):
    """Words or records written into one rank's window, in any order among themselves.

    value is broadcast to target; where: which of its elements are written.
    """

    what: Literal["record", "scale", "number", "layer", "flag", "inactive"]
    rank: int
    target: NDArray[Any]
    value: Any
    where: Any = True

    def write(self) -> None:
        numpy.copyto(self.target, self.value, where=self.where)


_CHUNK = 1 << 20
"""Bytes of float32 that are quantised at a time: they stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One call: where everything goes. memory: a rank's window. told: ranks that learn of it."""

    memory: Callable[[int], Bytes]
    tables: FfnTables
    own: AttentionTables
    rank: int
    session: int
    micro_batch: int
    layer: int
    told: tuple[int, ...]
    routes: Routes

    def slot(self, rank: int) -> Words:
        """The words of this session and micro batch on an FFN rank."""
        words: Words = self.tables.info(self.memory(rank))[self.session, self.micro_batch]
        return words

    def stores(self, x: Tensor, scales: Tensor | None, is_quantised: bool) -> Iterator[Store]:
        """Records and numbers of all ranks; then, rank by rank, the layer and the flag that says that all is there.

        x: the active tokens [n, H]. scales: [experts, H].
        """
        active, ranks = len(x), self.routes.ranks
        hit = {int(r): ranks == r for r in numpy.unique(ranks)} if active else {}
        records = self._quantised if is_quantised else self._plain
        yield from records(x.contiguous(), scales, hit)
        for r, where in hit.items():
            numbers = self.tables.numbers(self.memory(r), self.session, self.micro_batch)
            yield Store("number", r, numbers[:active], self.routes.numbers, where)
        for r in self.told:
            slot = self.slot(r)
            yield Store("layer", r, slot[LAYER : LAYER + 1], self.layer)
            yield Store("flag", r, slot[FLAG : FLAG + 1], 1)

    def inactive(self, active: int) -> Iterator[Store]:
        """This rank's own flags of tokens that are not sent: nobody answers for them."""
        flags = self.own.flags(self.memory(self.rank))[self.micro_batch, active:]
        yield Store("inactive", self.rank, flags, 1)

    def _plain(self, x: Tensor, scales: Tensor | None, hit: dict[int, NDArray[Any]]) -> Iterator[Store]:
        rows = _as_records(x)
        for r, where in hit.items():
            yield Store("record", r, self._records(r, 0, len(x), 0, rows.itemsize), rows, where)

    def _quantised(self, x: Tensor, scales: Tensor | None, hit: dict[int, NDArray[Any]]) -> Iterator[Store]:
        """Without scales the records of a token are alike, and it is quantised once."""
        width = x.size(1)
        copies = 1 if scales is None else self.tables.slots
        step = max(1, _CHUNK // (4 * width * copies))
        for first in range(0, len(x), step):
            rows = x[first : first + step].float()
            last = first + len(rows)
            if scales is not None:
                experts = torch.from_numpy(self.routes.experts[first:last].ravel())
                smooth = scales.index_select(0, experts).view(len(rows), copies, width)
                rows = smooth.mul_(rows[:, None])
            values, factors = (_as_records(part) for part in quantised(rows))
            for r, whole in hit.items():
                where = whole[first:last]
                if where.any():
                    yield Store("record", r, self._records(r, first, last, 0, width), values, where)
                    yield Store("scale", r, self._records(r, first, last, aligned(width, 32), 4), factors, where)

    def _records(self, rank: int, first: int, last: int, at: int, size: int) -> NDArray[Any]:
        view = self.tables.records(self.memory(rank), self.session, self.micro_batch, at, size)
        return view[first:last]


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows and their float32 scales [..., 1].

    ``q = round(v * 127 / max |v|)``, half to even, ``scale = max / 127``. rows: float32 [..., n], overwritten. A row of
    zeros has the scale 0; one with an infinity or NaN is zeros with that as its scale.
    """
    largest = rows.abs().amax(-1, keepdim=True)
    factor = torch.tensor(127.0) / largest  # torch computes a number by a tensor as its reciprocal times the number
    scale = factor.reciprocal()
    usable = factor.isfinite() & largest.isfinite()
    if not bool(usable.all()):
        factor = torch.where(usable, factor, 0.0)
        rows = torch.where(usable, rows, 0.0)
    return rows.mul_(factor).round_().to(torch.int8), scale


def _as_records(x: Tensor) -> NDArray[Any]:
    """Rows of bytes as one element each: [n, 1] of [n, size], [n, slots] of [n, slots, size]."""
    rows = x.view(torch.uint8).numpy()
    records = rows.view(numpy.dtype((numpy.void, rows.shape[-1])))
    return records if rows.ndim == 2 else records[..., 0]
