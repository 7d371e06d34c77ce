"""Reductions, scans, and what orders elements."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.pointwise import Op, in_int64
from npu_fused_graph.engine.registry import Int, Ints, KernelFn, kernel, unsupported

Axes = list[int] | tuple[int, ...]

# -- over axes -------------------------------------------------------------------------------------------


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point() or x.is_complex():
        return torch.mean(x, axes, keepdim=keep)
    total = torch.sum(x, axes, keepdim=keep)
    return torch.div(total, _count(x, axes), rounding_mode="trunc").to(x.dtype)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """torch.prod takes one dim or all of them."""
    rank = x.dim() or 1
    dims = sorted({axis % rank for axis in axes}, reverse=True)
    if len(dims) == x.dim():
        result = torch.prod(x, dtype=x.dtype)
        return result.reshape([1] * rank) if keep else result
    for dim in dims:
        x = torch.prod(x, dim, keepdim=keep, dtype=x.dtype)
    return x


def _max(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.amax(x, axes, keep)


def _min(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.amin(x, axes, keep)


def _any(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.any(x, axes, keep)


def _all(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.all(x, axes, keep)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keep)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.log(_sum(x, axes, keep))


def _euclidean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point() or x.is_complex():
        norm: Tensor = torch.linalg.vector_norm(x, 2, axes, keep)
        return norm
    return torch.sqrt(torch.sum(torch.square(x.double()), axes, keepdim=keep)).to(x.dtype)


def _count(x: Tensor, axes: list[int]) -> int:
    return math.prod(x.shape[axis] for axis in axes) if x.dim() else 1


def _over(op: Op, x: Tensor, axes: list[int], keep_dims: bool) -> Tensor:
    """``op`` over ``axes``. GE reduces nothing for an empty list, where torch would reduce everything."""
    if not axes:
        return x
    try:
        return op(x, axes, keep_dims)
    except NotImplementedError:
        return in_int64(op, x, axes, keep_dims)


def _reduction(ge_type: str, op: Op, *, with_d: bool = True) -> None:
    """Register ``ge_type`` (axes as input) and the type with a D behind it (axes as attribute)."""

    def by_input(x: Tensor, axes: Ints, *, keep_dims: bool = False) -> Tensor:
        return _over(op, x, axes, keep_dims)

    def by_attribute(x: Tensor, *, axes: list[int], keep_dims: bool = False) -> Tensor:
        return _over(op, x, axes, keep_dims)

    kernel(ge_type)(by_input)
    if with_d:
        kernel(f"{ge_type}D")(by_attribute)


_reduction("ReduceSum", _sum)
_reduction("ReduceProd", _prod)
_reduction("ReduceMax", _max)
_reduction("ReduceMin", _min)
_reduction("ReduceAny", _any)
_reduction("ReduceAll", _all)
_reduction("ReduceLogSumExp", _log_sum_exp, with_d=False)
_reduction("ReduceLogSum", _log_sum, with_d=False)
_reduction("EuclideanNorm", _euclidean, with_d=False)


def _all_axes(x: Tensor, axes: list[int], noop: bool) -> list[int]:
    return axes if axes or noop else list(range(x.dim()))


@kernel("ReduceMean")
def reduce_mean(x: Tensor, axes: Ints, *, keep_dims: bool = False, noop_with_empty_axes: bool = True) -> Tensor:
    return _over(_mean, x, _all_axes(x, axes, noop_with_empty_axes), keep_dims)


@kernel("ReduceMeanD")
def reduce_mean_d(x: Tensor, *, axes: list[int], keep_dims: bool = False, noop_with_empty_axes: bool = False) -> Tensor:
    return _over(_mean, x, _all_axes(x, axes, noop_with_empty_axes), keep_dims)


@kernel("ReduceMeanWithCast")
def reduce_mean_with_cast(
    x: Tensor,
    axes: Ints,
    *,
    keep_dims: bool = False,
    noop_with_empty_axes: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Mean of x in ``dtype``; none = that of x."""
    if dtype is not None and x.dtype is not dtype:
        x = x.to(dtype)
    return _over(_mean, x, _all_axes(x, axes, noop_with_empty_axes), keep_dims)


# -- deviation and norm ----------------------------------------------------------------------------------


@kernel("ReduceStdV2")
def reduce_std_v2(
    x: Tensor,
    *,
    dim: Axes = (),
    correction: int = 1,
    keepdim: bool = False,
    is_mean_out: bool = True,
) -> tuple[Tensor, Tensor]:
    """Deviation and mean over dim (none = all); without is_mean_out the second result is empty."""
    dims = dim or None
    if not is_mean_out:
        return torch.std(x, dims, correction=correction, keepdim=keepdim), x.new_empty(0)
    return torch.std_mean(x, dims, correction=correction, keepdim=keepdim)


@kernel("ReduceStd")
def reduce_std(
    x: Tensor,
    *,
    dim: Axes = (),
    unbiased: bool = True,
    keepdim: bool = False,
) -> tuple[Tensor, Tensor]:
    return torch.std_mean(x, dim or None, correction=int(unbiased), keepdim=keepdim)


@kernel("ReduceStdWithMean", same_dtype=("x", "mean"))
def reduce_std_with_mean(
    x: Tensor,
    mean: Tensor,
    *,
    dim: Axes = (),
    unbiased: bool = True,
    keepdim: bool = False,
    invert: bool = False,
    epsilon: float = 0.001,
    correction: int = 1,
) -> Tensor:
    """Deviation of x over dim (none = all), or with invert 1 / sqrt(variance + epsilon).

    ``mean`` is by the IR the mean of x over dim. It is not read: it comes rounded to the dtype of x, and for an
    empty dim TorchAir feeds x itself (ReduceMean over no axes), from which no deviation can be had.
    """
    steps = correction if unbiased else 0
    if not invert:
        return torch.std(x, dim or None, correction=steps, keepdim=keepdim)
    wide = x.double() if x.dtype is torch.float64 else x.float()
    return torch.rsqrt(torch.var(wide, dim or None, correction=steps, keepdim=keepdim) + epsilon).to(x.dtype)


_INFINITE = 2**31 - 1  # how TorchAir writes an infinite order; float32 rounds it up


def _norm_of(p: float, axes: Axes, keepdim: bool, epsilon: float) -> KernelFn:
    order = math.copysign(math.inf, p) if abs(p) >= _INFINITE else float(p)
    dims = list(axes) or None

    def call(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, order, dims, keepdim)
        return torch.clamp(norm, min=epsilon) if epsilon > 0 else norm

    return call


def _norm_of_attrs(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn:
    return _norm_of(attrs["p"], attrs["axes"], attrs["keepdim"], attrs["epsilon"])


@kernel("LpNormV2", specialise=_norm_of_attrs)
def lp_norm_v2(
    x: Tensor,
    *,
    p: float = 2.0,
    axes: Axes = (),
    keepdim: bool = False,
    epsilon: float = 1e-12,
) -> Tensor:
    """p-norm over axes (none = all), at least epsilon."""
    result: Tensor = _norm_of(p, axes, keepdim, epsilon)(x)
    return result


@kernel("LpNorm", specialise=_norm_of_attrs)
def lp_norm(
    x: Tensor,
    *,
    p: int = 2,
    axes: Axes = (),
    keepdim: bool = False,
    epsilon: float = 1e-12,
) -> Tensor:
    result: Tensor = _norm_of(p, axes, keepdim, epsilon)(x)
    return result


def _loss_of(reduction: str) -> Op:
    """The mean or sum of the squared differences, or each of them."""
    if reduction not in ("none", "mean", "sum"):
        raise unsupported("MseLoss", "reduction", "'none', 'mean' or 'sum'", reduction)
    return functools.partial(torch.nn.functional.mse_loss, reduction=reduction)


@kernel("MseLoss", same_dtype=("predict", "label"), specialise=lambda consts, attrs: _loss_of(attrs["reduction"]))
def mse_loss(predict: Tensor, label: Tensor, *, reduction: str = "mean") -> Tensor:
    return _loss_of(reduction)(predict, label)


# -- extremes and order ----------------------------------------------------------------------------------


@kernel("ArgMaxV2")
def arg_max_v2(x: Tensor, dimension: Int, *, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.argmax(x, dimension).to(dtype)


@kernel("ArgMaxD")
def arg_max_d(x: Tensor, *, dimension: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.argmax(x, dimension).to(dtype)


@kernel("ArgMin")
def arg_min(x: Tensor, dimension: Int, *, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.argmin(x, dimension).to(dtype)


@kernel("ArgMaxWithValue")
def arg_max_with_value(x: Tensor, *, dimension: int, keep_dims: bool = False) -> tuple[Tensor, Tensor]:
    values, indices = torch.max(x, dimension, keep_dims)
    return indices.to(torch.int32), values


@kernel("ArgMinWithValue")
def arg_min_with_value(x: Tensor, *, dimension: int, keep_dims: bool = False) -> tuple[Tensor, Tensor]:
    values, indices = torch.min(x, dimension, keep_dims)
    return indices.to(torch.int32), values


@kernel("TopKV2", ignored=("sort_policy",))  # not in the IR, but TorchAir always writes it
def top_k_v2(x: Tensor, k: Int, *, sorted: bool = True, dim: int = -1, largest: bool = True) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(x, k, dim, largest, sorted)
    return values, indices.to(torch.int32)


@kernel("Sort")
def sort(x: Tensor, *, axis: int = -1, descending: bool = False, stable: bool = False) -> tuple[Tensor, Tensor]:
    values, indices = torch.sort(x, dim=axis, descending=descending, stable=stable)
    return values, indices.to(torch.int32)


# -- scans -----------------------------------------------------------------------------------------------


def _cumsum(x: Tensor, axis: int) -> Tensor:
    return torch.cumsum(x, axis, dtype=x.dtype)


def _cumprod(x: Tensor, axis: int) -> Tensor:
    return torch.cumprod(x, axis, dtype=x.dtype)


def _scan(op: Op, neutral: float, x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    """``op`` along axis; exclusive = up to but without each element, reverse = from the end."""
    if not exclusive and not reverse:
        try:
            return op(x, axis)
        except NotImplementedError:
            return in_int64(op, x, axis)
    if x.dim() == 0:
        return torch.full_like(x, neutral) if exclusive else x
    if reverse:
        x = x.flip(axis)
    if exclusive and x.shape[axis]:
        first = torch.full_like(x.narrow(axis, 0, 1), neutral)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    result = _scan(op, neutral, x, axis, False, False)
    return result.flip(axis) if reverse else result


def _register_scan(ge_type: str, op: Op, neutral: float, *, with_d: bool = True) -> None:
    def by_input(x: Tensor, axis: Int, *, exclusive: bool = False, reverse: bool = False) -> Tensor:
        return _scan(op, neutral, x, axis, exclusive, reverse)

    def by_attribute(x: Tensor, *, axis: int, exclusive: bool = False, reverse: bool = False) -> Tensor:
        return _scan(op, neutral, x, axis, exclusive, reverse)

    kernel(ge_type)(by_input)
    if with_d:
        kernel(f"{ge_type}D")(by_attribute)


_register_scan("Cumsum", _cumsum, 0)
_register_scan("Cumprod", _cumprod, 1)
_register_scan("CumulativeLogsumexp", torch.logcumsumexp, -math.inf, with_d=False)


@kernel("Cummax")
def cummax(x: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    values, indices = torch.cummax(x, dim)
    return values, indices.to(torch.int32)


@kernel("Cummin")
def cummin(x: Tensor, *, axis: int) -> tuple[Tensor, Tensor]:
    values, indices = torch.cummin(x, axis)
    return values, indices.to(torch.int32)


@kernel("Histogram")
def histogram(x: Tensor, *, bins: int = 100, min: float = 0.0, max: float = 0.0) -> Tensor:
    """Counts in ``bins`` equal bins over [min, max], over the range of x when both are 0. Outside is not counted."""
    if x.is_floating_point():
        return torch.histc(x if x.dtype is torch.float64 else x.float(), bins, min, max)
    return torch.histc(x.double(), bins, min, max).to(x.dtype)


@kernel("Bincount")
def bincount(array: Tensor, size: Int, weights: Tensor) -> Tensor:
    """How often each of 0 .. size - 1 comes, or the sum of its weights; empty ``weights`` are ones of their dtype."""
    numbers = array.flatten()
    each = weights.flatten() if weights.numel() else torch.ones_like(numbers, dtype=weights.dtype)
    inside = numbers < size
    return torch.zeros(size, dtype=weights.dtype).index_add_(0, numbers[inside], each[inside])
