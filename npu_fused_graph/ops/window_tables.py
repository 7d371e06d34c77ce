"""What lies where in the windows of attention and FFN ranks: an info table, and from the next 512 bytes on the data.

A = attention ranks (sessions), M = micro batches, BS = tokens, KS = experts of a token, shared ones too, HS = elements
of a record. Slot j of a token is its j-th expert. Views are of memory that other ranks may be writing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from npu_fused_graph.comm.windows import Bytes

FLAG, LAYER, NUMBERS = 0, 1, 2
"""Words of a slot of the FFN info table: 1 when it is full; the layer; from the third on the experts' numbers."""

INVALID = 1_000_000
"""Experts' numbers from here on mean that a token did not go to this rank."""

NOTHING = 2**31 - 1
"""What stands in the place of experts' numbers before anything was sent, and after a batch was taken."""


def aligned(size: int, to: int = 512) -> int:
    return -(-size // to) * to


@dataclass(frozen=True, slots=True)
class FfnTables:
    """Of an FFN rank: info int32 [A, M, 2 + BS * KS], data [A, M, BS, KS, HS]. itemsize: bytes of an element."""

    sessions: int
    micro_batches: int
    tokens: int
    slots: int
    record: int
    itemsize: int

    @property
    def words(self) -> int:
        """Of the info table, for one session and micro batch."""
        return NUMBERS + self.tokens * self.slots

    @property
    def info_size(self) -> int:
        return 4 * self.sessions * self.micro_batches * self.words

    @property
    def record_size(self) -> int:
        return self.itemsize * self.record

    @property
    def records_size(self) -> int:
        return self.sessions * self.micro_batches * self.tokens * self.slots * self.record_size

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return aligned(self.info_size) + self.records_size

    def info(self, window: Bytes) -> NDArray[numpy.int32]:
        words: NDArray[numpy.int32] = numpy.ndarray(
            (self.sessions, self.micro_batches, self.words), numpy.int32, window
        )
        return words

    def numbers(self, window: Bytes, session: int, micro_batch: int) -> NDArray[numpy.int32]:
        """The experts' numbers [BS, KS] of one session and micro batch."""
        return self.info(window)[session, micro_batch, NUMBERS:].reshape(self.tokens, self.slots)

    def records(self, window: Bytes, session: int, micro_batch: int, at: int, size: int) -> NDArray[Any]:
        """``size`` bytes from byte ``at`` of each record [BS, KS] of one session and micro batch."""
        first = (session * self.micro_batches + micro_batch) * self.tokens * self.slots
        return _records(
            window, aligned(self.info_size) + first * self.record_size + at, (self.tokens, self.slots),
            self.record_size, size,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class AttentionTables:
    """Of an attention rank: flags int32 [M, BS, KS], data of two bytes an element [M, BS, KS, HS]."""

    micro_batches: int
    tokens: int
    slots: int
    record: int = 0

    @property
    def info_size(self) -> int:
        return 4 * self.micro_batches * self.tokens * self.slots

    @property
    def record_size(self) -> int:
        return 2 * self.record

    @property
    def records_size(self) -> int:
        return self.micro_batches * self.tokens * self.slots * self.record_size

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return aligned(self.info_size) + self.records_size

    def flags(self, window: Bytes) -> NDArray[numpy.int32]:
        flags: NDArray[numpy.int32] = numpy.ndarray((self.micro_batches, self.tokens, self.slots), numpy.int32, window)
        return flags

    def records(self, window: Bytes, micro_batch: int, size: int) -> NDArray[Any]:
        """The first ``size`` bytes of each record [BS, KS] of one micro batch."""
        first = aligned(self.info_size) + micro_batch * self.tokens * self.slots * self.record_size
        return _records(window, first, (self.tokens, self.slots), self.record_size, size)

    def all_records(self, window: Bytes, size: int) -> NDArray[Any]:
        """The first ``size`` bytes of each record [M * BS * KS]."""
        count = self.micro_batches * self.tokens * self.slots
        records: NDArray[Any] = _records(window, aligned(self.info_size), (1, count), self.record_size, size)[0]
        return records


def _records(window: Bytes, at: int, shape: tuple[int, int], stride: int, size: int) -> NDArray[Any]:
    """Raises ValueError for what is not all inside the window."""
    strides = (shape[1] * stride, stride)
    records: NDArray[Any] = numpy.ndarray(shape, numpy.dtype((numpy.void, size)), window, at, strides)
    return records
