"""Tensors made from a shape, a range or a rule: fill, arange, one-hot, triangles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.dtypes import to_torch
from npu_fused_graph.engine.kernels.shape import always
from npu_fused_graph.engine.registry import Int, Ints, KernelFn, kernel, unsupported
from npu_fused_graph.ir import dtypes as ir_dtypes


def _fill_with_constant(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    value = consts.get("value")
    if value is None or value.numel() != 1:
        return None
    number, dtype = value.item(), value.dtype
    return lambda dims, value: torch.full(dims, number, dtype=dtype)


@kernel("Fill", specialise=_fill_with_constant)
def fill(dims: Ints, value: Tensor) -> Tensor:
    """A buffer of its own, never an expanded view: in-place ops may follow."""
    return torch.full(dims, value.item(), dtype=value.dtype)


# Empty promises no values, so that zeros serve with and without init.
@kernel("Empty", ignored=("init",))
def empty(shape: Ints, *, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@kernel("ZerosLike", specialise=always(torch.zeros_like))
def zeros_like(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


@kernel("OnesLike", specialise=always(torch.ones_like))
def ones_like(x: Tensor) -> Tensor:
    return torch.ones_like(x)


@kernel("Range")
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """TorchAir gives arange(2.5) an integer start and a float limit; the result is in the wider of the dtypes."""
    dtype = torch.promote_types(torch.promote_types(start.dtype, limit.dtype), delta.dtype)
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=dtype)


@kernel("LinSpace")
def lin_space(start: Tensor, stop: Tensor, num: Int) -> Tensor:
    dtype = start.dtype if start.is_floating_point() else torch.float32
    return torch.linspace(start.item(), stop.item(), num, dtype=dtype)


@kernel("Eye")
def eye(*, num_rows: int, num_columns: int = 0, batch_shape: Sequence[int] = (), dtype: int = 0) -> Tensor:
    """num_columns 0 = as many as rows. dtype: GE number (the IR gives its default as a plain int)."""
    name = ir_dtypes.from_ge(dtype)
    if name is None:
        raise unsupported("Eye", "dtype", "the GE number of a dtype", dtype)
    result = torch.zeros((*batch_shape, num_rows, num_columns or num_rows), dtype=to_torch(name))
    torch.diagonal(result, dim1=-2, dim2=-1).fill_(1)
    return result


@kernel("OneHot", same_dtype=("on_value", "off_value"))
def one_hot(x: Tensor, depth: Int, on_value: Tensor, off_value: Tensor, *, axis: int = -1) -> Tensor:
    """An index outside [0, depth) gives a row of off_value. axis -1 = a new last dim."""
    if axis < 0:
        axis += x.dim() + 1
    classes = torch.arange(depth, dtype=torch.int64).reshape([-1] + [1] * (x.dim() - axis))
    hot = torch.unsqueeze(x, axis) == classes
    return torch.where(hot, on_value.reshape(()), off_value.reshape(()))


@kernel("Tril")
def tril(x: Tensor, *, diagonal: int = 0) -> Tensor:
    return torch.tril(x, diagonal)


@kernel("Triu")
def triu(x: Tensor, *, diagonal: int = 0) -> Tensor:
    return torch.triu(x, diagonal)
