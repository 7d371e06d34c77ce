"""Slices (views) and pads, and what moves whole rows: reverse, roll."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.shape import always
from npu_fused_graph.engine.registry import Ints, KernelFn, kernel, unsupported

FULL = slice(None)

# -- slices ----------------------------------------------------------------------------------------------


def _items(
    begin: Sequence[int],
    end: Sequence[int],
    strides: Sequence[int],
    begin_mask: int,
    end_mask: int,
    ellipsis_mask: int,
    new_axis_mask: int,
    shrink_axis_mask: int,
) -> list[Any]:
    """Python index items. Bit i of a mask speaks of entry i of begin, end and strides."""
    if not len(begin) == len(end) == len(strides):
        raise ValueError(f"expected begin, end and strides of one length, got {begin}, {end}, {strides}.")
    items: list[Any] = []
    for i, (first, stop, step) in enumerate(zip(begin, end, strides, strict=True)):
        bit = 1 << i
        if ellipsis_mask & bit:
            items.append(Ellipsis)
        elif new_axis_mask & bit:
            items.append(None)
        elif shrink_axis_mask & bit:
            items.append(first)
        else:
            items.append(slice(None if begin_mask & bit else first, None if end_mask & bit else stop, step))
    return items


def _runs_backwards(items: Sequence[Any]) -> bool:
    return any(isinstance(item, slice) and item.step is not None and item.step < 0 for item in items)


def _take(x: Tensor, items: Sequence[Any]) -> Tensor:
    """``x[items]``, also with the negative steps that torch does not know."""
    if not _runs_backwards(items):
        return x[tuple(items)]
    used = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items = [*items[:at], *[FULL] * (x.dim() - used), *items[at + 1 :]]
    forward: list[Any] = []
    flipped: list[int] = []  # dims of the result
    axis = position = 0
    for item in items:
        if isinstance(item, slice) and _runs_backwards([item]):
            picked = range(*item.indices(x.shape[axis]))
            flipped.append(position)
            item = slice(picked[-1], picked[0] + 1, -item.step) if picked else slice(0, 0)
        forward.append(item)
        axis += item is not None
        position += not isinstance(item, int)
    return torch.flip(x[tuple(forward)], flipped)


def _constant_slice(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    if not consts.keys() >= {"begin", "end", "axes", "strides"} or attrs["ellipsis_mask"] or attrs["new_axis_mask"]:
        return None
    axes = consts["axes"]
    items = _items(consts["begin"], consts["end"], consts["strides"], **attrs)
    if len(axes) != len(items) or len(set(axes)) != len(axes) or _runs_backwards(items):
        return None
    index: list[Any]
    if min(axes) >= 0:
        index = [FULL] * (max(axes) + 1)
    elif max(axes) < 0:
        index = [Ellipsis, *[FULL] * -min(axes)]
    else:
        return None
    for axis, item in zip(axes, items, strict=True):
        index[axis] = item
    key = tuple(index)
    return lambda x, begin, end, axes, strides: x[key]


@kernel("StridedSliceV2", specialise=_constant_slice)
def strided_slice_v2(
    x: Tensor,
    begin: Ints,
    end: Ints,
    axes: Ints | None = None,
    strides: Ints | None = None,
    *,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> Tensor:
    """Bounds count and clamp as in Python. Without axes: the leading ones; without strides: 1."""
    steps: Sequence[int] = strides if strides is not None else [1] * len(begin)
    items = _items(begin, end, steps, begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask)
    if axes is None:
        return _take(x, items)
    if ellipsis_mask or new_axis_mask:
        masks = (ellipsis_mask, new_axis_mask)
        raise unsupported("StridedSliceV2", "ellipsis_mask, new_axis_mask", "0 where axes are given", masks)
    index: list[Any] = [FULL] * x.dim()
    for axis, item in zip(axes, items, strict=True):
        if index[axis] is not FULL:
            raise ValueError(f"expected each axis once, got axes {axes} on rank {x.dim()}.")
        index[axis] = item
    return _take(x, index)


@kernel("StridedSlice")
def strided_slice(
    x: Tensor,
    begin: Ints,
    end: Ints,
    strides: Ints,
    *,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> Tensor:
    return _take(x, _items(begin, end, strides, begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask))


@kernel("Slice")
def slice_(x: Tensor, offsets: Ints, size: Ints) -> Tensor:
    """A size of -1 takes the rest. Nothing is clamped."""
    index = []
    for n, offset, count in zip(x.shape, offsets, size, strict=True):
        stop = n if count == -1 else offset + count
        if not 0 <= offset <= stop <= n:
            raise IndexError(f"expected a window inside shape {list(x.shape)}, got offsets {offsets}, size {size}.")
        index.append(slice(offset, stop))
    return x[tuple(index)]


# -- pads ------------------------------------------------------------------------------------------------

Pairs = list[tuple[int, int]]


def _pairs(rank: int, paddings: Sequence[int], contiguous: bool = True) -> Pairs:
    """(before, after) per dim. contiguous: as pairs; else all the befores, then all the afters."""
    if len(paddings) != 2 * rank:
        raise ValueError(f"expected {2 * rank} paddings for rank {rank}, got {list(paddings)}.")
    if contiguous:
        return list(zip(paddings[::2], paddings[1::2], strict=True))
    return list(zip(paddings[:rank], paddings[rank:], strict=True))


def _last_dim_first(pairs: Pairs) -> list[int]:
    return [n for pair in reversed(pairs) for n in pair]


def _source(n: int, before: int, after: int, mode: str) -> Tensor:
    """For each position of a padded dim of size ``n``, the position its value comes from."""
    position = torch.arange(-before, n + after)
    if n == 0 and position.numel():
        raise ValueError(f"expected a dim that is not empty for mode {mode}, got one.")
    room = {"reflect": n - 1, "symmetric": n}.get(mode)
    if room is not None and max(before, after) > room:
        raise ValueError(f"expected paddings of at most {room} on a dim of size {n}, got {before}, {after}.")
    if mode == "edge":
        return position.clamp(0, n - 1)
    if mode == "circular":
        return position % n
    skip = int(mode == "symmetric")  # the mirror stands beyond the outermost element, not on it
    position = torch.where(position < 0, -position - skip, position)
    return torch.where(position >= n, 2 * n - 2 + skip - position, position)


def _pad_from_inside(x: Tensor, pairs: Pairs, mode: str) -> Tensor:
    for axis, (before, after) in enumerate(pairs):
        if before or after:
            x = torch.index_select(x, axis, _source(x.shape[axis], before, after, mode))
    return x


_MODES = ("reflect", "symmetric", "edge", "circular")


def _constant_pad(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    value = consts.get("constant_values")
    if attrs["mode"] != "constant" or value is None or value.numel() != 1 or "paddings" not in consts:
        return None
    rank, number = len(consts["paddings"]) // 2, value.item()
    flat = _last_dim_first(_pairs(rank, consts["paddings"], attrs["paddings_contiguous"]))

    def padded(x: Tensor, paddings: Ints, constant_values: Tensor) -> Tensor:
        if x.dim() != rank:
            raise ValueError(f"expected {2 * x.dim()} paddings for rank {x.dim()}, got {2 * rank}.")
        return torch.constant_pad_nd(x, flat, number)

    return padded


@kernel("PadV3", allowed={"mode": ("constant", *_MODES)}, specialise=_constant_pad)
def pad_v3(
    x: Tensor,
    paddings: Ints,
    constant_values: Tensor | None = None,
    *,
    mode: str = "constant",
    paddings_contiguous: bool = True,
) -> Tensor:
    pairs = _pairs(x.dim(), paddings, paddings_contiguous)
    if mode == "constant":
        number = 0 if constant_values is None else constant_values.item()
        return torch.constant_pad_nd(x, _last_dim_first(pairs), number)
    return _pad_from_inside(x, pairs, mode)


@kernel("Pad")
def pad(x: Tensor, paddings: Ints) -> Tensor:
    return torch.constant_pad_nd(x, _last_dim_first(_pairs(x.dim(), paddings)), 0)


@kernel("PadV2")
def pad_v2(x: Tensor, paddings: Ints, constant_values: Tensor) -> Tensor:
    return torch.constant_pad_nd(x, _last_dim_first(_pairs(x.dim(), paddings)), constant_values.item())


@kernel("MirrorPad", allowed={"mode": ("REFLECT", "SYMMETRIC")})
def mirror_pad(x: Tensor, paddings: Ints, *, mode: str) -> Tensor:
    return _pad_from_inside(x, _pairs(x.dim(), paddings), mode.lower())


@kernel("PadV3Grad", allowed={"mode": _MODES})
def pad_v3_grad(x: Tensor, paddings: Ints, *, mode: str = "reflect", paddings_contiguous: bool = True) -> Tensor:
    """Gradient of PadV3: each padded position adds to the one it came from."""
    for axis, (before, after) in enumerate(_pairs(x.dim(), paddings, paddings_contiguous)):
        if before or after:
            n = x.shape[axis] - before - after
            shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
            x = torch.zeros(shape, dtype=x.dtype).index_add_(axis, _source(n, before, after, mode), x)
    return x


# -- whole rows ------------------------------------------------------------------------------------------


@kernel("ReverseV2", specialise=always(torch.flip))
def reverse_v2(x: Tensor, axis: Ints) -> Tensor:
    return torch.flip(x, axis)


@kernel("Roll")
def roll(x: Tensor, *, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    """No dims = roll the flattened tensor."""
    return torch.roll(x, tuple(shifts), tuple(dims))
