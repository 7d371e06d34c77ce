"""How much of a result the reference of a communicating operator computes and exchanges at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

CHUNK_BYTES = 16 << 20
"""Size of a reference's accumulator: what is computed and summed at a time. Ranks gather at most as many bytes each."""


def row_chunks(rows: int, n: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of the rows of n elements that one accumulator holds."""
    size = max(1, CHUNK_BYTES // (4 * n))
    for first in range(0, rows, size):
        yield first, min(first + size, rows)


def is_full(partials: Sequence[Tensor]) -> bool:
    """Whether partial results that wait for the exchange are as large as an accumulator."""
    return 4 * sum(partial.numel() for partial in partials) >= CHUNK_BYTES
