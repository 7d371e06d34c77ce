"""Reductions, norms, scans and order statistics of aten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import (
    HALF_AND_FLOAT,
    axes_of,
    by_torch,
    computed_in,
    count,
    ge,
    ge_dtype,
    ints,
    is_tensor,
    opmath,
    to,
    torch_dtype,
    typed,
    unsupported,
)

aten = torch.ops.aten


def _reduced(op: str, x: Any, dim: Any, keepdim: bool, dtype: torch.dtype | None = None) -> Any:
    """GE reduction ``op`` over ``dim``, in ``dtype`` or x's own; bool is reduced as uint8."""
    own = dtype or torch_dtype(x)
    if x.rank == 0:
        return to(x, own)
    work = torch.uint8 if own is torch.bool else own
    result = getattr(ge, op)(to(x, work), ints(axes_of(dim, x.rank)), keep_dims=keepdim)
    return to(typed(result, work), own)


def amax(x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return _reduced("ReduceMax", x, dim, keepdim)


def amin(x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return _reduced("ReduceMin", x, dim, keepdim)


def min_all(x: Any) -> Any:
    return _reduced("ReduceMin", x, None, False)


def min_dim(x: Any, dim: int, keepdim: bool = False) -> Any:
    """ArgMinWithValue where it takes the dtype; whole numbers go through ArgMin, they do not fit in a float."""
    dtype = torch_dtype(x)
    if x.rank == 0:
        return x, to(0, torch.int64)
    axis = dim % x.rank
    if dtype.is_floating_point:
        work = computed_in(dtype, HALF_AND_FLOAT, "min.dim")
        index, value = ge.ArgMinWithValue(to(x, work), dimension=axis, keep_dims=keepdim)
        return to(typed(value, work), dtype), to(index, torch.int64)
    number = to(x, torch.uint8) if dtype is torch.bool else x
    index = typed(ge.ArgMin(number, to(axis, torch.int64), dtype=ge_dtype(torch.int64)), torch.int64)
    return amin(x, [axis], keepdim), ge.Unsqueeze(index, axes=[axis]) if keepdim else index


def aminmax(x: Any, *, dim: int | None = None, keepdim: bool = False) -> Any:
    return amin(x, dim, keepdim), amax(x, dim, keepdim)


def prod(x: Any, *, dtype: torch.dtype | None = None, meta_outputs: Any = None) -> Any:
    return _reduced("ReduceProd", x, None, False, torch_dtype(meta_outputs))


def prod_dim(
    x: Any, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None, meta_outputs: Any = None
) -> Any:
    return _reduced("ReduceProd", x, dim, keepdim, torch_dtype(meta_outputs))


def _truth(op: str, x: Any, dim: Any, keepdim: bool, meta_outputs: Any) -> Any:
    """GE's ReduceAll and ReduceAny know bool only; aten gives uint8 for uint8."""
    truth = to(x, torch.bool)
    if x.rank:
        truth = typed(getattr(ge, op)(truth, ints(axes_of(dim, x.rank)), keep_dims=keepdim), torch.bool)
    else:
        truth = truth
    return to(truth, torch_dtype(meta_outputs))


def any_dims(x: Any, dim: Any = None, keepdim: bool = False, meta_outputs: Any = None) -> Any:
    return _truth("ReduceAny", x, dim, keepdim, meta_outputs)


def all_dims(x: Any, dim: Any = None, keepdim: bool = False, meta_outputs: Any = None) -> Any:
    return _truth("ReduceAll", x, dim, keepdim, meta_outputs)


def _variance(x: Any, dim: Any, correction: Any, keepdim: bool) -> tuple[Any, Any]:
    """(variance, mean), two passes in float32: GE's ReduceStdV2 is not on every SoC and rounds the mean to x's dtype.

    The sum of squares is divided by ``max(0, n - correction)``; n = correction gives nan or inf as in torch.
    """
    if torch_dtype(x).is_complex:
        raise unsupported("var", "self", "a real dtype", torch_dtype(x), "Take the variance of both parts.")
    work = opmath(torch_dtype(x))
    wide = to(x, work)
    if x.rank == 0:
        mean, axes = wide, []
        total = ge.Mul(wide, to(0, work))
    else:
        axes = axes_of(dim, x.rank)
        mean = ge.ReduceMean(wide, ints(axes), keep_dims=True)
        total = ge.ReduceSum(ge.Square(ge.Sub(wide, mean)), ints(axes), keep_dims=keepdim)
        if not keepdim:
            mean = ge.Squeeze(mean, axis=axes)
    correction = 1 if correction is None else correction
    number = count(x, axes)
    if is_tensor(number) or is_tensor(correction):
        divisor = ge.Maximum(ge.Sub(to(number, work), to(correction, work)), to(0, work))
    else:
        divisor = to(max(number - correction, 0), work)
    return typed(ge.RealDiv(total, divisor), work), typed(mean, work)


def var(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return to(_variance(x, dim, correction, keepdim)[0], torch_dtype(x))


def var_mean(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    variance, mean = _variance(x, dim, correction, keepdim)
    return to(variance, torch_dtype(x)), to(mean, torch_dtype(x))


def std_mean(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    variance, mean = _variance(x, dim, correction, keepdim)
    std = typed(ge.Sqrt(variance), torch_dtype(variance))
    return to(std, torch_dtype(x)), to(mean, torch_dtype(x))


def std(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return std_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def norm(x: torch.Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> torch.Tensor:
    x, p = x if dtype is None else x.to(dtype), 2 if p is None else p
    result: torch.Tensor = torch.linalg.vector_norm(x, p, dim or None, keepdim)
    return result


def norm_of_dtype(x: torch.Tensor, p: Any, *, dtype: torch.dtype) -> torch.Tensor:
    return norm(x, p, dtype=dtype)


def dist(x: torch.Tensor, other: torch.Tensor, p: Any = 2) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(x - other, p)
    return norm


def nansum(x: torch.Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> torch.Tensor:
    return torch.where(torch.isnan(x), torch.zeros_like(x), x).sum(dim or list(range(x.dim())), keepdim, dtype=dtype)


def count_nonzero(x: torch.Tensor, dim: Any = None) -> torch.Tensor:
    return (x != 0).to(torch.int64).sum(list(range(x.dim())) if dim is None else dim)


def trace(x: torch.Tensor) -> torch.Tensor:
    return torch.diagonal(x).sum()


def is_all_true(x: torch.Tensor) -> torch.Tensor:
    return x.all()


def is_any_true(x: torch.Tensor) -> torch.Tensor:
    return x.any()


def cumprod(x: Any, dim: int, *, dtype: torch.dtype | None = None, meta_outputs: Any = None) -> Any:
    wanted = torch_dtype(meta_outputs)
    if x.rank == 0:
        return to(x, wanted)
    return ge.Cumprod(to(x, wanted), to(dim % x.rank, torch.int64))


def logcumsumexp(x: Any, dim: int) -> Any:
    if x.rank == 0:
        return x
    work = computed_in(torch_dtype(x), (*HALF_AND_FLOAT, torch.float64), "logcumsumexp")
    result = ge.CumulativeLogsumexp(to(x, work), to(dim % x.rank, torch.int32))
    return to(typed(result, work), torch_dtype(x))


def cummax(x: Any, dim: int) -> Any:
    if x.rank == 0:
        return x, to(0, torch.int64)
    value, index = ge.Cummax(x, dim=dim % x.rank)
    return value, to(index, torch.int64)


def cummin(x: Any, dim: int) -> Any:
    if x.rank == 0:
        return x, to(0, torch.int64)
    value, index = ge.Cummin(x, axis=dim % x.rank)
    return value, to(index, torch.int64)


def kthvalue(x: torch.Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    values, indices = torch.sort(x, dim=dim, stable=True)
    place = slice(k - 1, k)
    at = (slice(None),) * (dim % x.dim()) + (place,)
    value, index = values[at], indices[at]
    return (value, index) if keepdim else (value.squeeze(dim), index.squeeze(dim))


def median_dim(x: torch.Tensor, dim: int, keepdim: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower of the two middle values; a nan anywhere along ``dim`` wins, as in torch (sort puts it last)."""
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    size = x.shape[dim]
    value, index = kthvalue(x, (size + 1) // 2, dim, keepdim=True)
    if x.is_floating_point():
        last, last_index = kthvalue(x, size, dim, keepdim=True)
        is_nan = torch.isnan(last)
        value, index = torch.where(is_nan, last, value), torch.where(is_nan, last_index, index)
    return (value, index) if keepdim else (value.squeeze(dim), index.squeeze(dim))


def median(x: torch.Tensor) -> torch.Tensor:
    return median_dim(x.reshape(-1), 0)[0]


def histc(x: Any, bins: int = 100, min: Any = 0, max: Any = 0) -> Any:
    """Histogram; 0, 0 means the range of the data in both worlds."""
    work = computed_in(torch_dtype(x), (torch.float32, torch.int32), "histc")
    if is_tensor(min) or is_tensor(max):
        raise unsupported("histc", "min, max", "numbers", "symbols", "Compile with dynamic=False.")
    result = ge.Histogram(to(x, work), bins=bins, min=float(min), max=float(max))
    return to(typed(result, work), torch_dtype(x))


def renorm(x: torch.Tensor, p: float, dim: int, maxnorm: float) -> torch.Tensor:
    others = [d for d in range(x.dim()) if d != dim % x.dim()]
    work = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    length = torch.linalg.vector_norm(work, p, others, keepdim=True)
    factor = torch.where(length > maxnorm, maxnorm / (length + 1e-7), torch.ones_like(length))
    return x * factor.to(x.dtype)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.amax.default: amax,
    aten.amin.default: amin,
    aten.min.default: min_all,
    aten.min.dim: min_dim,
    aten.aminmax.default: aminmax,
    aten.prod.default: prod,
    aten.prod.dim_int: prod_dim,
    aten.any.dims: any_dims,
    aten.all.dim: all_dims,
    aten.all.dims: all_dims,
    aten._is_all_true.default: by_torch(is_all_true),
    aten._is_any_true.default: by_torch(is_any_true),
    aten.var.correction: var,
    aten.var_mean.correction: var_mean,
    aten.std_mean.correction: std_mean,
    aten.norm.Scalar: by_torch(norm),
    aten.norm.ScalarOpt_dim: by_torch(norm),
    aten.norm.ScalarOpt_dim_dtype: by_torch(norm),
    aten.norm.ScalarOpt_dtype: by_torch(norm_of_dtype),
    aten.dist.default: by_torch(dist),
    aten.renorm.default: by_torch(renorm),
    aten.nansum.default: by_torch(nansum),
    aten.count_nonzero.default: by_torch(count_nonzero),
    aten.count_nonzero.dim_IntList: by_torch(count_nonzero),
    aten.trace.default: by_torch(trace),
    aten.cumprod.default: cumprod,
    aten.logcumsumexp.default: logcumsumexp,
    aten.cummax.default: cummax,
    aten.cummin.default: cummin,
    aten.kthvalue.default: by_torch(kthvalue),
    aten.median.default: by_torch(median),
    aten.median.dim: by_torch(median_dim),
    aten.histc.default: histc,
}
