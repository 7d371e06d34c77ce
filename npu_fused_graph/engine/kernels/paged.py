"""Writing rows into KV caches: only the rows that an index names are touched, however long the cache is."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.registry import unsupported

Where = tuple[Tensor, Tensor, Tensor]
"""Per token its block, the place in it and whether it is written at all: a negative index says that it is not."""
CACHE_MODES = ("Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ")


def apart(values: Tensor, cache: Tensor) -> Tensor:
    """``values``, copied if they are a view of the cache that they go into."""
    return values.clone() if values.untyped_storage()._cdata == cache.untyped_storage()._cdata else values


def nz(ge_type: str, name: str, cache: Tensor) -> Tensor:
    """A contiguous cache [blocks, block_size, heads, size] whose blocks lie in memory as FRACTAL_NZ, that is as [heads,
    size / width, block_size, width] with 32 bytes of width: a view [blocks, block_size, heads, size / width, width].
    """
    blocks, block_size, heads, size = cache.shape
    width = 32 // cache.element_size()
    if size % width:
        raise unsupported(ge_type, name, f"a multiple of {width}, the width of NZ, as last axis", cache)
    return cache.view(blocks, heads, size // width, block_size, width).permute(0, 3, 1, 2, 4)


def write(ge_type: str, name: str, cache: Tensor, is_nz: bool, where: Where, values: Tensor) -> None:
    """cache[block[i], place[i]] = values[i] for what is wanted; is_nz: see :func:`nz`."""
    block, place, is_wanted = where
    dense = cache.contiguous() if is_nz else cache  # itself, unless it is a view of other memory
    rows = nz(ge_type, name, dense) if is_nz else cache
    values = apart(values, cache).reshape(values.shape[0], *rows.shape[2:])
    if not bool(is_wanted.all()):
        block, place, values = block[is_wanted], place[is_wanted], values[is_wanted]
    torch.ops.aten.index_put_.default(rows, [block, place], values, False)
    if dense.data_ptr() != cache.data_ptr():
        cache.copy_(dense)


def slots(index: Tensor, block_size: int) -> Where:
    """Of tokens whose index is block * block_size + place."""
    flat = index.reshape(-1).long()
    return flat.div(block_size, rounding_mode="floor"), flat % block_size, flat >= 0


def within(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(sequence, place in it) of every token of sequences of these lengths, back to back."""
    sequence = torch.repeat_interleave(torch.arange(lengths.numel()), lengths)
    return sequence, torch.arange(sequence.numel()) - (lengths.cumsum(0) - lengths)[sequence]


def filled_blocks(block: Tensor, lengths: Tensor, block_size: int) -> Where:
    """Of such tokens where each sequence has blocks of its own, which it fills from the first place on."""
    sequence, place = within(lengths)
    blocks = -(-lengths // block_size)
    found = block.reshape(-1).long()[(blocks.cumsum(0) - blocks)[sequence] + place // block_size]
    return found, place % block_size, found >= 0


def places(cache_mode: str, index: Tensor, batches: int, length: int, block_size: int) -> Where:
    """Of each of ``batches * length`` tokens.

    Norm: index[b, s] is the place in batch b. PA*: index[token] = block * block_size + place. PA_BLK*: such a number
    per block of a sequence.
    """
    if cache_mode == "Norm":
        place = index.reshape(-1).long()
        return torch.arange(batches * length) // length, place, place >= 0
    if cache_mode.startswith("PA_BLK"):
        block = index.reshape(-1).div(block_size, rounding_mode="floor")
        return filled_blocks(block, torch.full((batches,), length), block_size)
    return slots(index, block_size)
