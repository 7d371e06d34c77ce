"""Normalisations. Statistics are float32 whatever the dtype of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
    """(normalised x, rstd) over the axes of gamma."""
    dims = tuple(range(-gamma.dim(), 0))
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    rstd = norm.square_().div_(gamma.numel()).add_(epsilon).rsqrt_()
    return (x * rstd).mul_(gamma).to(x.dtype), rstd


@kernel("RmsNorm")
def rms_norm(x: Tensor, gamma: Tensor, *, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    return rms_norm_of(x, gamma, epsilon)


_VECTOR_CORES = 40
"""Of an Ascend910B3: with no more rows than that each core has one."""


@kernel("AddRmsNorm", same_dtype=("x1", "x2"))
def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, *, epsilon: float = 1e-6) -> Triple:
    """(norm, rstd, sum) with the roundings of CANN's kernel on A2 and A3: the 16-bit norm is rounded before gamma, too.

    Of a bfloat16 sum the kernel for long rows takes the statistics, and that for rows of up to 12288 elements the whole
    norm, from the sum before it is rounded; short rows, few rows and float16 from the rounded one.
    """
    total = x1 + x2
    if total.dtype.itemsize > 2 or not total.numel():
        return (*rms_norm_of(total, gamma, epsilon), total)
    n = gamma.numel()
    wide = total.float()
    source, normalised = wide, wide
    if total.dtype is torch.bfloat16 and (n > 12288 or (n > 2000 and total.numel() // n > _VECTOR_CORES)):
        source = x1.float() + x2.float()
        normalised = wide if n > 12288 else source
    dims = tuple(range(-gamma.dim(), 0))
    rstd = source.square().sum(dims, keepdim=True).div_(n).add_(epsilon).rsqrt_()
    norm = (normalised * rstd).to(total.dtype)
    return (norm.float() * gamma.float()).to(total.dtype), rstd, total
