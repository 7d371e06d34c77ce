"""Which pairs of query and key dropout keeps, a block of rows at a time."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

HEIGHT = 256
"""Rows that are drawn together; blocks are asked for along this grid."""

_MASK = (1 << 64) - 1


class Keep(Protocol):
    """probability: that a pair is kept."""

    @property
    def probability(self) -> float: ...

    def rows(self, head: int, rows: slice, kv_len: int) -> Tensor:
        """bool (rows, kv_len), True = kept. head: batch * N + head. rows: within one block of HEIGHT."""
        ...


class SeededKeep(NamedTuple):
    """The same pairs for the same seed and offset; those of different heads and blocks have nothing in common."""

    probability: float
    seed: int
    offset: int

    def rows(self, head: int, rows: slice, kv_len: int) -> Tensor:
        assert rows.start % HEIGHT == 0 and rows.stop - rows.start <= HEIGHT, rows
        generator = generator_of(self.seed, self.offset, head, rows.start)
        return torch.rand(rows.stop - rows.start, kv_len, generator=generator) < self.probability


class PackedKeep(NamedTuple):
    """bits: uint8, the lowest bit first, of the pairs in the order (batch, head, query, key); 1 = kept."""

    probability: float
    bits: Tensor
    q_len: int

    def rows(self, head: int, rows: slice, kv_len: int) -> Tensor:
        first = (head * self.q_len + rows.start) * kv_len
        count = (rows.stop - rows.start) * kv_len
        stored = self.bits.flatten()[first // 8 : (first + count + 7) // 8]
        unpacked = (stored.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
        return unpacked.flatten()[first % 8 : first % 8 + count].view(-1, kv_len) != 0


def generator_of(*numbers: int) -> torch.Generator:
    """A generator seeded by all of ``numbers``, whose neighbours give unrelated streams."""
    seed = 0
    for number in numbers:
        # the finaliser of SplitMix64 over the running value
        seed = (seed ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        seed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        seed = (seed ^ (seed >> 27)) * 0x94D049BB133111EB & _MASK
        seed ^= seed >> 31
    generator = torch.Generator()
    generator.manual_seed(seed)
    return generator
