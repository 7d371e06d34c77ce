"""Normalisations. Statistics are float32 whatever the dtype of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.dtypes import FLOATS, HALVES
from npu_fused_graph.engine.registry import Ints, kernel, unsupported

Triple = tuple[Tensor, Tensor, Tensor]


def _suited(x: Tensor, *parameters: Tensor | None) -> list[Any]:
    """Scales, shifts and statistics in the one dtype torch takes next to x: that of x, or float32 next to a half x."""
    dtype = x.dtype
    if dtype.itemsize == 2 and any(p is not None and p.dtype is torch.float32 for p in parameters):
        dtype = torch.float32
    return [p if p is None or p.dtype is dtype else p.to(dtype) for p in parameters]


@kernel("LayerNormV4")
def layer_norm_v4(
    x: Tensor,
    normalized_shape: Ints,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
) -> Triple:
    weight, bias = _suited(x, gamma, beta)
    return torch.native_layer_norm(x, normalized_shape, weight, bias, epsilon)


def _layer_norm(
    ge_type: str, x: Tensor, gamma: Tensor, beta: Tensor, norm_axis: int, params_axis: int, epsilon: float
) -> Triple:
    shape = x.shape[norm_axis % x.dim() :]
    if gamma.shape != x.shape[params_axis % x.dim() :]:
        raise unsupported(
            ge_type, "begin_params_axis", f"the axis where gamma {tuple(gamma.shape)} begins", params_axis
        )
    if gamma.shape == shape:
        weight, bias = _suited(x, gamma, beta)
        return torch.native_layer_norm(x, shape, weight, bias, epsilon)
    y, mean, rstd = torch.native_layer_norm(x.float(), shape, None, None, epsilon)
    return (y * gamma + beta).to(x.dtype), mean, rstd


@kernel("LayerNormV3")
def layer_norm_v3(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    begin_norm_axis: int = 0,
    begin_params_axis: int = 0,
    epsilon: float = 1e-5,
) -> Triple:
    return _layer_norm("LayerNormV3", x, gamma, beta, begin_norm_axis, begin_params_axis, epsilon)


@kernel("LayerNorm")
def layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    begin_norm_axis: int = 0,
    begin_params_axis: int = 0,
    epsilon: float = 1e-7,
) -> Triple:
    """As LayerNormV3, with the variance as third result."""
    y, mean, rstd = _layer_norm("LayerNorm", x, gamma, beta, begin_norm_axis, begin_params_axis, epsilon)
    dims = list(range(begin_norm_axis % x.dim(), x.dim()))
    return y, mean, x.float().var(dims, correction=0, keepdim=True).to(rstd.dtype)


def _group_norm(x: Tensor, gamma: Tensor, beta: Tensor, num_groups: int, eps: float) -> Triple:
    n, c = x.shape[0], x.shape[1]
    area = x[0, 0].numel() if n and c else 0
    weight, bias = _suited(x, gamma, beta)
    return torch.native_group_norm(x, weight, bias, n, c, area, num_groups, eps)


@kernel("GroupNormV2", ignored=("data_format",), dense=True, allowed={"is_training": (True,)})
def group_norm_v2(
    x: Tensor, gamma: Tensor, beta: Tensor, *, num_groups: int, eps: float = 1e-5, is_training: bool = True
) -> Triple:
    """Channels are axis 1: TorchAir leaves data_format at NHWC and sets the layout aside."""
    return _group_norm(x, gamma, beta, num_groups, eps)


@kernel("GroupNorm", ignored=("data_format",), dense=True, allowed={"is_training": (True,)})
def group_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, *, num_groups: int, eps: float = 1e-4, is_training: bool = True
) -> Triple:
    """As GroupNormV2, with the variance as third result."""
    y, mean, rstd = _group_norm(x, gamma, beta, num_groups, eps)
    variance = x.reshape(x.shape[0], num_groups, -1).float().var(-1, correction=0)
    return y, mean, variance.to(rstd.dtype)


@kernel("BNInfer")
def bn_infer(x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float) -> Tensor:
    scale, offset, mean, variance = _suited(x, scale, offset, mean, variance)
    return torch.native_batch_norm(x, scale, offset, mean, variance, False, 0.0, epsilon)[0]


@kernel("BatchNormV3", mutates=("running_mean", "running_var"))
def batch_norm_v3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    is_training: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Training updates the running statistics in place; inference leaves them and has no batch statistics."""
    dtype = running_mean.dtype
    y, mean, rstd = torch.native_batch_norm(
        x, weight.to(dtype), bias.to(dtype), running_mean, running_var, is_training, momentum, epsilon
    )
    return y, running_mean, running_var, mean, rstd


def rms_norm_of(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(normalised x, rstd) over the axes of gamma, rounded once."""
    if x.dtype is gamma.dtype:
        try:
            return torch._fused_rms_norm(x, gamma.shape, gamma, epsilon)
        except RuntimeError:
            _check_gamma(x, gamma)
            raise
    _check_gamma(x, gamma)
    wide = x.float()
    rstd = _rstd(wide, gamma, epsilon)
    return (wide * rstd).mul_(gamma).to(x.dtype), rstd


def _check_gamma(x: Tensor, gamma: Tensor) -> None:
    if gamma.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"gamma: expected {x.dtype}, that of x, or torch.float32, got {gamma.dtype}.")
    if gamma.shape != x.shape[x.dim() - gamma.dim() :]:
        raise ValueError(f"gamma: expected the last sizes of x, {list(x.shape)}, got {list(gamma.shape)}.")


@kernel("RmsNorm", dtypes={"x": FLOATS, "gamma": FLOATS})
def rms_norm(x: Tensor, gamma: Tensor, *, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    return rms_norm_of(x, gamma, epsilon)


_VECTOR_CORES = 40
"""Of an Ascend910B3: with no more rows than that each core has one."""


@kernel("AddRmsNorm", same_dtype=("x1", "x2"), dtypes={"x1": FLOATS, "gamma": FLOATS})
def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, *, epsilon: float = 1e-6) -> Triple:
    """(norm, rstd, sum) with the roundings of CANN's kernel on A2 and A3: the 16-bit norm is rounded before gamma, too.

    Of a bfloat16 sum the kernel for long rows takes the statistics, and that for rows of up to 12288 elements the whole
    norm, from the sum before it is rounded; short rows, few rows and float16 from the rounded one.
    """
    if x1.shape != x2.shape:
        raise ValueError(f"x2: expected the shape of x1, {list(x1.shape)}, got {list(x2.shape)}.")
    total = x1 + x2
    if total.dtype.itemsize > 2 or not total.numel():
        return (*rms_norm_of(total, gamma, epsilon), total)
    if gamma.dtype is not total.dtype:
        _check_gamma(total, gamma)
    n = gamma.numel()
    if total.dtype is torch.bfloat16 and (n > 12288 or (n > 2000 and total.numel() // n > _VECTOR_CORES)):
        exact = x1.float() + x2.float()
        rstd = _rstd(exact, gamma, epsilon)
        norm = ((total.float() if n > 12288 else exact) * rstd).to(total.dtype)
    else:
        norm, rstd = torch._fused_rms_norm(total, gamma.shape, None, epsilon)
    # the product of two 16-bit numbers is exact in float32: it is rounded once
    return (norm * gamma if gamma.dtype is norm.dtype else (norm.float() * gamma.float()).to(norm.dtype)), rstd, total


def _rstd(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    dims = tuple(range(-gamma.dim(), 0))
    return x.square().sum(dims, keepdim=True).div_(gamma.numel()).add_(epsilon).rsqrt_()


@kernel("AddRmsNormCast", same_dtype=("x1", "x2", "gamma"))
def add_rms_norm_cast(
    x1: Tensor, x2: Tensor, gamma: Tensor, *, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(norm in float32, norm, rstd, sum) with the roundings of CANN's kernel on A2 and A3, which are not AddRmsNorm's.

    float16: everything from the rounded sum, the norm rounded before gamma. bfloat16: from the sum before it is
    rounded, for rows of over 8704 elements the statistics only; the norm rounded after gamma. The norm in float32 is
    the rounded one, but of bfloat16 with few rows of up to 8704 elements that before its rounding.
    """
    if x1.dtype not in HALVES:
        raise unsupported("AddRmsNormCast", "x1", "float16 or bfloat16", x1.dtype)
    total = x1 + x2
    if x1.dtype is torch.float16 or not total.numel():
        rstd = _rstd(total.float(), gamma, epsilon)
        norm = ((total.float() * rstd).to(x1.dtype).float() * gamma.float()).to(x1.dtype)
        return norm.float(), norm, rstd, total
    exact = x1.float() + x2.float()
    is_split = gamma.numel() > 8704
    rstd = _rstd(exact, gamma, epsilon)
    wide = (total.float() if is_split else exact) * rstd * gamma.float()
    norm = wide.to(x1.dtype)
    has_few_rows = total.numel() // gamma.numel() <= _VECTOR_CORES
    return (wide if has_few_rows and not is_split else norm.float()), norm, rstd, total


@kernel("AddRmsNormDynamicQuant", same_dtype=("x1", "x2", "gamma"), allowed={"dst_type": (torch.int8,)})
def add_rms_norm_dynamic_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    smooth_scale1: Tensor | None = None,
    smooth_scale2: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    epsilon: float = 1e-6,
    output_mask: Sequence[bool] = (),
    dst_type: torch.dtype = torch.int8,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(quantised by the first scale, by the second, sum, scale 1, scale 2) as CANN's kernel on A2 and A3.

    Nothing is rounded between the 16-bit addends and int8. What the mask leaves out has the shape [1]; without one the
    second is given if both smooth scales are.
    """
    name = "AddRmsNormDynamicQuant"
    if x1.dtype not in HALVES:
        raise unsupported(name, "x1", "float16 or bfloat16", x1.dtype)
    smooth = (smooth_scale1, smooth_scale2)
    if len(output_mask) not in (0, 2) or (output_mask and not any(output_mask)):
        raise unsupported(name, "output_mask", "two flags, one of them true, or none", list(output_mask))
    may_have = output_mask or (True, smooth_scale1 is not None)
    for place, (scale, is_given) in enumerate(zip(smooth, may_have, strict=True), 1):
        if scale is not None and not is_given:
            raise unsupported(name, f"smooth_scale{place}", "none, as output_mask leaves its result out", "a tensor")
    is_wanted = output_mask or (True, smooth_scale2 is not None)
    exact = x1.float() + x2.float()
    norm = exact * _rstd(exact, gamma, epsilon) * gamma.float()
    if beta is not None:
        norm = norm + beta.float()
    quantised, scales = [], []
    for scale, is_given in zip(smooth, is_wanted, strict=True):
        if is_given:
            wide = norm if scale is None else norm * scale.float()
            factor = 127 / wide.abs().amax(-1, keepdim=True)
            quantised.append((wide * factor).round_().to(torch.int8))
            scales.append((1 / factor).squeeze(-1))
        else:
            quantised.append(torch.zeros(1, dtype=torch.int8))
            scales.append(torch.zeros(1))
    return quantised[0], quantised[1], exact.to(x1.dtype), scales[0], scales[1]
