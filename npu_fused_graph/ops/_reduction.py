"""The all-reduce inside the reference of a communicating operator: partial results in, their sum out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from torch import Tensor

CHUNK_BYTES = 16 << 20
"""Size of a reference's accumulator: what is computed and summed at a time. Ranks gather at most as many bytes each."""

ReduceMode = Literal["once", "seq"]
"""once: summed in float32 and rounded once. seq: rounded after each addition. HCCL's own order lies in between."""

Gather = Callable[[Tensor], list[Tensor]]
"""All ranks' tensors, in rank order."""

GatherLists = Callable[[Sequence[Tensor]], list[list[Tensor]]]
"""All ranks' lists of tensors, in rank order."""


def row_chunks(rows: int, n: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of the rows of n elements that one accumulator holds."""
    size = max(1, CHUNK_BYTES // (4 * n))
    for first in range(0, rows, size):
        yield first, min(first + size, rows)


def sum_ranks(partials: Sequence[Tensor], mode: ReduceMode) -> Tensor:
    """The sum of the ranks' partial results, in their dtype."""
    total = partials[0].float()
    for partial in partials[1:]:
        total = total + partial.float()
        if mode == "seq":
            total = total.to(partial.dtype).float()
    return total.to(partials[0].dtype)


def is_full(partials: Sequence[Tensor]) -> bool:
    """Whether partial results that wait for the exchange are as large as an accumulator."""
    return 4 * sum(partial.numel() for partial in partials) >= CHUNK_BYTES
