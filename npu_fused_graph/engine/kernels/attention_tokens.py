"""Where the tokens of each sequence lie: layouts, packed sequences, paged caches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from npu_fused_graph.engine.registry import unsupported

PACKED = ("TND", "NTD")
"""Layouts of sequences one behind the other, whose lengths are cumulative."""


def tokens(x: Tensor, layout: str, heads: int, ge_type: str, attribute: str) -> Tensor:
    """x as [B, S, N, D]; B is 1 in a layout without it. attribute: where ``heads`` comes from."""
    if layout == "BSH":
        if x.shape[2] % heads:
            raise unsupported(ge_type, attribute, f"a divisor of the hidden size {x.shape[2]}", heads)
        return x.reshape(*x.shape[:2], heads, x.shape[2] // heads)
    x = x if layout.startswith("B") else x.unsqueeze(0)
    x = x.transpose(1, 2) if layout in ("BNSD", "NTD", "NSD") else x
    if x.shape[2] != heads:
        raise unsupported(ge_type, attribute, f"{x.shape[2]}, the N axis in layout {layout}", heads)
    return x


def laid_out(x: Tensor, layout: str) -> Tensor:
    """[B, S, N, D] in the layout of the result."""
    match layout:
        case "BSH":
            return x.flatten(2)
        case "BNSD":
            return x.transpose(1, 2)
        case "NBSD":
            return x.permute(2, 0, 1, 3)
        case "TND":
            return x[0]
        case "NTD" | "NSD":
            return x[0].transpose(0, 1)
    return x


def picked(pages: Tensor, numbers: Tensor) -> Tensor:
    """Rows ``numbers``, which come from a table of pages. Raises IndexError where there is no such page."""
    try:
        return pages.index_select(0, numbers)
    except IndexError:
        raise IndexError("block_table: expected pages of the cache, got a number that none has.") from None


@dataclass(frozen=True)
class Sequences:
    """Sequence i is ``lengths[i]`` tokens of ``x`` [B, S, N, D] from ``starts[i]`` on, in row i or (packed) row 0."""

    x: Tensor
    starts: Sequence[int]
    lengths: Sequence[int]
    packed: bool = False

    @property
    def is_in_place(self) -> bool:
        """Whether sequences of one length need no copy."""
        return True

    @property
    def width(self) -> int:
        """D."""
        return self.x.shape[-1]

    def of(self, x: Tensor) -> Sequences:
        """The same places of another tensor."""
        return Sequences(x, self.starts, self.lengths, self.packed)

    def without_first(self, counts: Sequence[int]) -> Sequences:
        """All but the first ``counts[i]`` tokens of each."""
        given = list(zip(self.starts, self.lengths, counts, strict=True))
        return replace(self, starts=[s + n for s, _, n in given], lengths=[length - n for _, length, n in given])

    def take(self, members: Sequence[int]) -> Tensor:
        """[len(members), longest, N, D], shorter ones padded: what lies behind a sequence may be anything, NaN too."""
        if not self._is_even(members):
            return pad_sequence([self._one(self.x, i) for i in members], batch_first=True)
        return self._together(self.x, members)

    def joined(
        self, parts: Sequence[tuple[Sequence[int], Tensor]], size: tuple[int, ...], blank: float, dtype: torch.dtype
    ) -> Tensor:
        """The reverse of take: [B, S, *size] of what ``parts`` (members, values) say, elsewhere ``blank``."""
        shape = (*self.x.shape[:2], *size)
        if len(parts) == 1 and self._is_even(parts[0][0]) and parts[0][1].numel() == math.prod(shape):
            return parts[0][1].reshape(shape).to(dtype)
        x = torch.full(shape, blank, dtype=dtype)
        for members, values in parts:
            if self._is_even(members):
                self._together(x, members).copy_(values)
            else:
                for i, own in zip(members, values, strict=True):
                    self._one(x, i).copy_(own[: self.lengths[i]])
        return x

    def _one(self, x: Tensor, i: int) -> Tensor:
        return x[0 if self.packed else i].narrow(0, self.starts[i], self.lengths[i])

    def _is_even(self, members: Sequence[int]) -> bool:
        """Whether ``members`` lie as one tensor in memory: one behind the other, all of one length."""
        first = members[0]
        start, length = self.starts[first], self.lengths[first]
        step = length if self.packed else 0
        for place, i in enumerate(members):
            if i != first + place or self.lengths[i] != length or self.starts[i] != start + step * place:
                return False
        return True

    def _together(self, x: Tensor, members: Sequence[int]) -> Tensor:
        """``members``, which are even, as a view of ``x``."""
        first, count = members[0], len(members)
        start, length = self.starts[first], self.lengths[first]
        if not self.packed:
            return x.narrow(0, first, count).narrow(1, start, length)
        if count * length < x.shape[1]:
            x = x.narrow(1, start, count * length)
        return x.view(count, length, *x.shape[2:])


@dataclass(frozen=True)
class Places:
    """Numbers of the pages [b, pages] of b sequences: each has ``lengths[i]`` tokens from ``offsets[i]`` on."""

    pages: Tensor
    offsets: list[int]
    lengths: list[int]

    @property
    def is_even(self) -> bool:
        """Whether all begin and end alike."""
        return len(set(self.lengths)) == len(set(self.offsets)) == 1


@dataclass(frozen=True)
class Paged(Sequences):
    """Sequence i is ``lengths[i]`` tokens from ``starts[i]`` on in the pages ``table[i]`` of ``x``.

    x: [blocks, block_size, H], [blocks, N, block_size, D] or NZ [blocks, N, D / 16, block_size, 16].
    """

    table: Tensor = field(default_factory=lambda: torch.empty(0))
    heads: int = 1
    _found: dict[tuple[int, ...], Places] = field(default_factory=dict)

    @property
    def is_in_place(self) -> bool:
        return False

    @property
    def width(self) -> int:
        shape = self.x.shape
        return shape[2] // self.heads if len(shape) == 3 else shape[-1] * (shape[2] if len(shape) == 5 else 1)

    @property
    def block_size(self) -> int:
        return self.x.shape[1 if self.x.dim() == 3 else -2]

    def of(self, x: Tensor) -> Paged:
        found = Paged(x, self.starts, self.lengths, self.packed, self.table, self.heads, self._found)
        if found.block_size != self.block_size:
            raise ValueError(f"expected caches of one block size, got {self.block_size} and {found.block_size}.")
        return found

    def without_first(self, counts: Sequence[int]) -> Sequences:
        left = super().without_first(counts)
        return Paged(self.x, left.starts, left.lengths, self.packed, self.table, self.heads)

    def take(self, members: Sequence[int]) -> Tensor:
        """Of the cache it reads the pages that ``members`` use. Entries of the table behind their ends do not count."""
        key = tuple(members)
        places = self._found.get(key)
        if places is None:
            places = self._found[key] = self._places(members)
        taken = self._pages(places.pages)
        offsets, lengths = places.offsets, places.lengths
        longest = max(lengths)
        if places.is_even:
            return taken.narrow(1, offsets[0], longest)
        parts = zip(taken, offsets, lengths, strict=True)
        if any(offsets):
            return pad_sequence([row.narrow(0, offset, length) for row, offset, length in parts], batch_first=True)
        for row, _, length in parts:
            row[length:longest] = 0
        return taken.narrow(1, 0, longest)

    def _places(self, members: Sequence[int]) -> Places:
        size = self.block_size
        starts, lengths = [self.starts[i] for i in members], [self.lengths[i] for i in members]
        firsts = [start // size for start in starts]
        counts = [-(-(s + n) // size) - first for s, n, first in zip(starts, lengths, firsts, strict=True)]
        rows, most = self.table, max(counts)
        if len(members) < len(rows):
            rows = rows[members[0] : members[0] + 1] if len(members) == 1 else rows[torch.tensor(members)]
        if min(counts) == most and not any(firsts):
            pages = rows.narrow(1, 0, most)
        else:
            own = [[s + min(j, n - 1) for j in range(most)] for s, n in zip(firsts, counts, strict=True)]
            pages = rows.gather(1, torch.tensor(own))
        return Places(pages, [s - first * size for s, first in zip(starts, firsts, strict=True)], lengths)

    def _pages(self, numbers: Tensor) -> Tensor:
        """[b, pages * block_size, N, D] for page numbers [b, pages]; new memory."""
        count, pages = numbers.shape
        if self.x.dim() == 3:
            return picked(self.x, numbers.flatten()).view(count, -1, self.heads, self.width)
        # one row of memory per page and head (and 16 columns), picked in the order of the result
        blocks, *middle, size, width = self.x.shape
        parts = middle[0] if len(middle) == 1 else middle[0] * middle[1]
        rows = numbers.unsqueeze(1) * parts + torch.arange(parts).unsqueeze(1)
        taken = picked(self.x.reshape(blocks * parts, size * width), rows.flatten())
        taken = taken.view(count, parts, pages * size, width)
        if len(middle) == 1:
            return taken.transpose(1, 2)
        return taken.view(count, *middle, pages * size, width).permute(0, 3, 1, 2, 4).flatten(3)


def each(lengths: Sequence[int] | None, batch: int, full: int) -> list[int]:
    """One length per sequence; a single one holds for all."""
    if lengths is None:
        return [full] * batch
    return list(lengths) * batch if len(lengths) == 1 else list(lengths)[:batch]


def in_rows(
    x: Tensor, lengths: Sequence[int] | None, padding: Sequence[int] | None, ge_type: str, name: str
) -> Sequences:
    """The sequences of [B, S, N, D]. padding: places behind each, with which lengths count from the right."""
    batch, full = x.shape[:2]
    own = each(lengths, batch, full)
    if len(own) < batch or any(not 0 <= n <= full for n in own):
        raise unsupported(ge_type, name, f"{batch} lengths from 0 to {full}", own)
    if padding is None or lengths is None:
        return Sequences(x, [0] * batch, own)
    starts = [full - max(n, 0) - length for n, length in zip(each(padding, batch, 0), own, strict=True)]
    if any(start < 0 for start in starts):
        raise unsupported(ge_type, name, f"lengths that leave room for a padding of {padding} in {full}", own)
    return Sequences(x, starts, own)


def in_a_pack(x: Tensor, ends: Sequence[int] | None, ge_type: str, name: str) -> Sequences:
    """The sequences of [1, T, N, D] from their cumulative lengths."""
    if ends is None:
        raise unsupported(ge_type, name, "cumulative lengths, which a packed layout needs", None)
    starts = [0, *ends][:-1]
    if any(a > b for a, b in pairwise([0, *ends, x.shape[1]])):
        raise unsupported(ge_type, name, f"cumulative lengths of at most {x.shape[1]} tokens", list(ends))
    return Sequences(x, starts, [end - start for start, end in zip(starts, ends, strict=True)], packed=True)


def in_pages(
    cache: Tensor, table: Tensor, lengths: Sequence[int] | None, batch: int, heads: int, block_size: int, ge_type: str
) -> Paged:
    """The sequences of a paged cache; their lengths are their own also where those of the query are cumulative."""
    if lengths is None:
        raise unsupported(ge_type, "actual_seq_lengths_kv", "the lengths in a paged cache", None)
    own = each(lengths, batch, 0)
    found = Paged(cache, [0] * len(own), own, table=table, heads=heads)
    if cache.dim() == 3:
        fits = cache.shape[2] % heads == 0
    else:
        fits = cache.dim() in (4, 5) and cache.shape[1] == heads
    if not fits:
        raise unsupported(
            ge_type, "key",
            f"pages [blocks, block_size, {heads} * D], [blocks, {heads}, block_size, D] or "
            f"[blocks, {heads}, D / 16, block_size, 16]", cache,
        )  # fmt: skip
    if block_size not in (0, found.block_size):
        raise unsupported(ge_type, "block_size", f"{found.block_size}, as the pages have it", block_size)
    room = table.shape[1] * found.block_size
    if len(own) < batch or table.shape[0] < batch or any(not 0 <= n <= room for n in own):
        raise unsupported(
            ge_type, "actual_seq_lengths_kv",
            f"{batch} lengths from 0 to {room}, the pages in block_table {list(table.shape)}", own,
        )  # fmt: skip
    return found
