"""Shapes: reshape and permute (views), shape queries, joining, splitting and repeating."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.registry import Int, Ints, KernelFn, kernel


def always(fn: KernelFn) -> Callable[[dict[str, Any], dict[str, Any]], KernelFn]:
    """A ``specialise`` that always takes ``fn``, a torch function with the kernel's own positional arguments."""
    return lambda consts, attrs: fn


# -- reshape ---------------------------------------------------------------------------------------------


def _whole_reshape(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    return torch.reshape if attrs["axis"] == 0 and attrs["num_axes"] == -1 else None


@kernel("Reshape", specialise=_whole_reshape)
def reshape(x: Tensor, shape: Ints, *, axis: int = 0, num_axes: int = -1) -> Tensor:
    """``num_axes`` dims from ``axis`` on (-1 = all the rest) become ``shape``. A 0 is an empty dim, as in torch."""
    if axis < 0:
        axis += x.dim() + 1
    stop = x.dim() if num_axes == -1 else axis + num_axes
    return torch.reshape(x, (*x.shape[:axis], *shape, *x.shape[stop:]))


def _insert_ones(x: Tensor, axes: Sequence[int]) -> Tensor:
    """``axes`` are positions in the result."""
    rank = x.dim() + len(axes)
    wanted = sorted({axis + rank if axis < 0 else axis for axis in axes})
    if len(wanted) != len(axes) or (wanted and wanted[0] < 0):
        raise ValueError(f"expected distinct axes of a result of rank {rank}, got {list(axes)}.")
    for axis in wanted:
        x = torch.unsqueeze(x, axis)
    return x


def _one_axis_unsqueeze(name: str) -> Any:
    def specialise(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
        if len(attrs[name]) != 1:
            return None
        axis = attrs[name][0]
        return lambda x: torch.unsqueeze(x, axis)

    return specialise


@kernel("Unsqueeze", specialise=_one_axis_unsqueeze("axes"))
def unsqueeze(x: Tensor, *, axes: Sequence[int] = ()) -> Tensor:
    return _insert_ones(x, axes)


@kernel("UnsqueezeV2", specialise=_one_axis_unsqueeze("axis"))
def unsqueeze_v2(x: Tensor, *, axis: Sequence[int] = ()) -> Tensor:
    return _insert_ones(x, axis)


@kernel("UnsqueezeV3")
def unsqueeze_v3(x: Tensor, axes: Ints) -> Tensor:
    return _insert_ones(x, axes)


@kernel("ExpandDims", specialise=always(torch.unsqueeze))
def expand_dims(x: Tensor, axis: Int) -> Tensor:
    return torch.unsqueeze(x, axis)


def _drop_ones(x: Tensor, axes: Sequence[int]) -> Tensor:
    """No axes = all dims of size 1. Torch would pass over a larger dim, GE refuses it."""
    if not axes:
        return torch.squeeze(x)
    for axis in axes:
        if x.shape[axis] != 1:
            raise ValueError(f"expected size 1 on axis {axis}, got shape {list(x.shape)}.")
    return torch.squeeze(x, tuple(axes))


@kernel("Squeeze", "SqueezeV2")
def squeeze(x: Tensor, *, axis: Sequence[int] = ()) -> Tensor:
    return _drop_ones(x, axis)


@kernel("SqueezeV3")
def squeeze_v3(x: Tensor, axes: Ints | None = None) -> Tensor:
    return _drop_ones(x, axes or ())


@kernel("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """To two dims: those before ``axis`` and the rest."""
    if axis < 0:
        axis += x.dim()
    return torch.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@kernel("FlattenV2")
def flatten_v2(x: Tensor, *, axis: int = 1, end_axis: int = -1) -> Tensor:
    return torch.flatten(x, axis, end_axis)


# -- permute ---------------------------------------------------------------------------------------------


@kernel("Transpose", specialise=always(torch.permute))
def transpose(x: Tensor, perm: Ints) -> Tensor:
    return torch.permute(x, perm)


@kernel("TransposeD")
def transpose_d(x: Tensor, *, perm: Sequence[int]) -> Tensor:
    return torch.permute(x, tuple(perm))


@kernel("Permute")
def permute(x: Tensor, *, order: Sequence[int] = (0,)) -> Tensor:
    return torch.permute(x, tuple(order))


# -- queries ---------------------------------------------------------------------------------------------


@kernel("Shape")
def shape(x: Tensor, *, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(x.shape, dtype=dtype)


@kernel("ShapeN")
def shape_n(x: list[Tensor], *, dtype: torch.dtype = torch.int32) -> tuple[list[Tensor]]:
    return ([torch.tensor(item.shape, dtype=dtype) for item in x],)


@kernel("Size")
def size(x: Tensor, *, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(x.numel(), dtype=dtype)


@kernel("Rank")
def rank(x: Tensor) -> Tensor:
    return torch.tensor(x.dim(), dtype=torch.int32)


# -- join and split --------------------------------------------------------------------------------------


@kernel("Pack", ignored=("N",), same_dtype=("x",))
def pack(x: list[Tensor], *, axis: int = 0) -> Tensor:
    return torch.stack(x, axis)


def _join(parts: list[Tensor], axis: int) -> Tensor:
    """A 0-d part counts as one of length 1."""
    try:
        return torch.cat(parts, axis)
    except RuntimeError:
        if all(part.dim() for part in parts):
            raise
    return torch.cat([part if part.dim() else part.reshape(1) for part in parts], axis)


@kernel("ConcatV2", ignored=("N",), same_dtype=("x",), specialise=always(_join))
def concat_v2(x: list[Tensor], concat_dim: Int) -> Tensor:
    return _join(x, concat_dim)


@kernel("Concat", ignored=("N",), same_dtype=("x",))
def concat(concat_dim: Int, x: list[Tensor]) -> Tensor:
    return _join(x, concat_dim)


@kernel("ConcatD", ignored=("N",), same_dtype=("x",))
def concat_d(x: list[Tensor], *, concat_dim: int) -> Tensor:
    return _join(x, concat_dim)


def _constant_sizes(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    if "size_splits" not in consts or "split_dim" not in consts or -1 in consts["size_splits"]:
        return None
    return lambda x, sizes, axis: (torch.split_with_sizes(x, sizes, axis),)


# num_split only repeats the number of outputs, which the engine checks against what a kernel returns.
@kernel("SplitV", ignored=("num_split",), specialise=_constant_sizes)
def split_v(x: Tensor, size_splits: Ints, split_dim: Int) -> tuple[Sequence[Tensor]]:
    """One of the sizes may be -1: what the others leave."""
    sizes: list[int] = list(size_splits)
    if -1 in sizes:
        at = sizes.index(-1)
        sizes[at] = x.shape[split_dim] - sum(sizes) - 1
    return (torch.split_with_sizes(x, sizes, split_dim),)


def _equal_parts(x: Tensor, count: int, axis: int) -> tuple[Sequence[Tensor]]:
    length, rest = divmod(x.shape[axis], count)
    if rest:
        raise ValueError(f"expected axis {axis} to divide into {count} equal parts, got shape {list(x.shape)}.")
    return (torch.split_with_sizes(x, [length] * count, axis),)


@kernel("Split")
def split(split_dim: Int, x: Tensor, *, num_split: int) -> tuple[Sequence[Tensor]]:
    return _equal_parts(x, num_split, split_dim)


@kernel("SplitD")
def split_d(x: Tensor, *, split_dim: int, num_split: int) -> tuple[Sequence[Tensor]]:
    return _equal_parts(x, num_split, split_dim)


def _unpack_axis(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn:
    axis = attrs["axis"]
    return lambda x: (torch.unbind(x, axis),)


@kernel("Unpack", ignored=("num",), specialise=_unpack_axis)
def unpack(x: Tensor, *, axis: int = 0) -> tuple[Sequence[Tensor]]:
    return (torch.unbind(x, axis),)


# -- repeat ----------------------------------------------------------------------------------------------


@kernel("BroadcastTo", specialise=always(Tensor.expand))
def broadcast_to(x: Tensor, shape: Ints) -> Tensor:
    """A -1 keeps the dim; TorchAir passes on what aten.expand was given."""
    return x.expand(shape)


@kernel("Expand")
def expand(x: Tensor, shape: Ints) -> Tensor:
    """Both sides broadcast: a 1 or -1 in ``shape`` keeps the dim of ``x``."""
    sizes = [1] * (x.dim() - len(shape)) + list(shape)
    first = len(sizes) - x.dim()
    return x.expand([-1 if n in (1, -1) and i >= first else n for i, n in enumerate(sizes)])


@kernel("Tile", specialise=always(Tensor.repeat))
def tile(x: Tensor, multiples: Ints) -> Tensor:
    return x.repeat(multiples)
