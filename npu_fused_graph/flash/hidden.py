"""Which keys a query does not see: a mask, a band along the diagonal, or both; looked at by blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Band(NamedTuple):
    """Query i sees key j if ``-before <= j - i - shift <= ahead``."""

    before: int
    ahead: int
    shift: int = 0


class Tile(NamedTuple):
    """Queries ``rows``, and the keys that any of them sees.

    hidden: bool (B or 1, N or 1, rows, keys), True where a pair is hidden; None where all are visible.
    """

    rows: slice
    keys: slice
    hidden: Tensor | None

    def hidden_at(self, batch: int, head: int) -> Tensor | None:
        """Of one head: bool (rows, keys)."""
        if self.hidden is None:
            return None
        batches, heads = self.hidden.shape[:2]
        return self.hidden[batch if batches > 1 else 0, head if heads > 1 else 0]

    def sees_nothing(self) -> Tensor:
        """Of each query, bool (B or 1, N or 1, rows)."""
        assert self.hidden is not None
        return self.hidden.view(torch.uint8).amin(-1) != 0


class Biases:
    """What is added to the scores of tiles, one after the other, in the same memory: 0 and -inf."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._memory = torch.empty(0, dtype=dtype)

    def of(self, tile: Tile) -> Tensor | None:
        if tile.hidden is None:
            return None
        count = tile.hidden.numel()
        if self._memory.numel() < count:
            self._memory = torch.empty(count, dtype=self._dtype)
        bias = self._memory[:count].view(tile.hidden.shape)
        # 0 and 1, then 0 and -inf by an overflow: many times as fast as a choice between the two
        return bias.copy_(tile.hidden).mul_(-torch.finfo(self._dtype).max).mul_(2)


class Hidden(NamedTuple):
    """mask: (B or 1, N or 1, Sq, Skv) of any dtype and strides, nonzero = hidden."""

    mask: Tensor | None = None
    band: Band | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether every query sees every key."""
        return self.mask is None and self.band is None

    def tiles(self, q_len: int, kv_len: int, height: int) -> Iterator[Tile]:
        """All queries, ``height`` at a time."""
        for start in range(0, q_len, height):
            yield self._tile(start, min(start + height, q_len), kv_len)

    def is_causal(self, q_len: int, kv_len: int) -> bool:
        """Whether query i sees keys 0 to i, exactly."""
        if q_len != kv_len:
            return False
        if self.band is None:
            return self.mask is not None and _is_upper_triangle(self.mask)
        before, ahead, shift = self.band
        if shift - before > 1 - q_len:
            return False
        if ahead + shift == 0:
            return self.mask is None or _is_upper_triangle(self.mask) or not _any_below(self.mask)
        return ahead + shift >= kv_len - 1 and self.mask is not None and _is_upper_triangle(self.mask)

    def _tile(self, start: int, stop: int, kv_len: int) -> Tile:
        rows, first, last, hidden = slice(start, stop), 0, kv_len, None
        if self.band is not None:
            before, ahead, shift = self.band
            first = min(max(0, start - before + shift), kv_len)
            last = max(first, min(kv_len, stop + ahead + shift))
            if stop - 1 - before + shift > first or start + ahead + shift < last - 1:
                keys = torch.arange(first - shift, last - shift, dtype=torch.int32)
                distance = keys - torch.arange(start, stop, dtype=torch.int32).unsqueeze(1)
                hidden = ((distance > ahead) | (distance < -before))[None, None]
        if self.mask is not None and last > first:
            masked = _dense(self.mask[:, :, rows, first:last])
            hidden = masked if hidden is None else masked | hidden
        if hidden is not None and last > first:
            # bytes, because torch's reductions of bool are slow
            seen = (hidden.view(torch.uint8).flatten(0, -2).amin(0) == 0).nonzero()
            left, right = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0)
            hidden, first, last = hidden[..., left:right].contiguous(), first + left, first + right
            hidden = hidden if hidden.numel() and hidden.view(torch.uint8).amax() else None
        return Tile(rows, slice(first, last), hidden)


def _dense(mask: Tensor) -> Tensor:
    """As bool, in memory in the order of its axes."""
    if mask.stride(-2) >= mask.stride(-1):
        return mask.to(torch.bool).contiguous()
    stored = mask.transpose(-1, -2).to(torch.bool).contiguous()
    dense = torch.empty(mask.shape, dtype=torch.bool)
    for to, source in zip(dense.flatten(0, 1), stored.flatten(0, 1), strict=True):
        to.copy_(source.t())  # one matrix at a time: torch then goes by blocks
    return dense


_HEIGHT = 256


def _is_upper_triangle(mask: Tensor) -> bool:
    """Whether exactly what lies above the diagonal is nonzero. Reads the mask in the order it is stored, once."""
    if mask.shape[:2] != (1, 1):
        return False
    square = mask[0, 0]
    is_stored_transposed = square.stride(0) < square.stride(1)
    stored = square.t() if is_stored_transposed else square
    size = len(stored)
    for start in range(0, size, _HEIGHT):
        stop = min(start + _HEIGHT, size)
        left, right = stored[start:stop, :start], stored[start:stop, stop:]
        zeros, ones = (right, left) if is_stored_transposed else (left, right)
        diagonal = stored[start:stop, start:stop].to(torch.bool)
        wanted = torch.ones_like(diagonal).triu(1)
        if not torch.equal(diagonal, wanted.t() if is_stored_transposed else wanted) or zeros.any() or not ones.all():
            return False
    return True


def _any_below(mask: Tensor) -> bool:
    """Whether anything on the diagonal or below it is nonzero."""
    rows = mask.shape[-2]
    for start in range(0, rows, _HEIGHT):
        stop = min(start + _HEIGHT, rows)
        if mask[..., start:stop, :start].any() or mask[..., start:stop, start:stop].to(torch.bool).tril().any():
            return True
    return False
