"""Activations."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch._C import _nn

from npu_fused_graph.engine.kernels.pointwise import Op, in_int64, scalar, unary, widened
from npu_fused_graph.engine.registry import KernelFn, kernel

unary("Sigmoid", torch.sigmoid)
unary("Relu6", _nn.relu6)
unary("Mish", _nn.mish)
unary("HardSwish", _nn.hardswish)
unary("LogSigmoid", _nn.log_sigmoid)
unary("Softplus", _nn.softplus)
unary("Softsign", torch.nn.functional.softsign)
unary("Selu", torch.selu)
# CANN's Gelu is the tanh form. TorchAir emits it for both variants of aten.gelu and drops `approximate`, so the
# exact form serves the default of torch; the other one has GeluV2.
unary("Gelu", _nn.gelu)
unary("FastGelu", widened(lambda x: x * torch.sigmoid(1.702 * x)))


@kernel("Relu")
def relu(x: Tensor) -> Tensor:
    try:
        return torch.relu(x)
    except NotImplementedError:
        return in_int64(torch.relu, x)


def _gelu_form(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn:
    return functools.partial(_nn.gelu, approximate=attrs["approximate"])


@kernel("GeluV2", allowed={"approximate": ("none", "tanh")}, specialise=_gelu_form)
def gelu_v2(x: Tensor, *, approximate: str = "none") -> Tensor:
    return _nn.gelu(x, approximate=approximate)


def _swish_of(scale: float) -> Op:
    return _nn.silu if scale == 1 else widened(lambda x: x * torch.sigmoid(scale * x))


@kernel("Swish", specialise=lambda consts, attrs: _swish_of(attrs["scale"]))
def swish(x: Tensor, *, scale: float = 1.0) -> Tensor:
    return _swish_of(scale)(x)


def _hard_sigmoid_of(alpha: float, beta: float) -> Op:
    line = widened(lambda x: torch.clamp(alpha * x + beta, 0, 1))
    if abs(alpha - 1 / 6) > 1e-7 or beta != 0.5:
        return line
    # the slope of torch's hardsigmoid, which has no integer form
    return lambda x: _nn.hardsigmoid(x) if x.is_floating_point() else line(x)


@kernel("HardSigmoid", specialise=lambda consts, attrs: _hard_sigmoid_of(attrs["alpha"], attrs["beta"]))
def hard_sigmoid(input_x: Tensor, *, alpha: float = 0.16666666, beta: float = 0.5) -> Tensor:
    return _hard_sigmoid_of(alpha, beta)(input_x)


@kernel("SoftplusV2")
def softplus_v2(x: Tensor, *, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    return _nn.softplus(x, beta, threshold)


@kernel("LeakyRelu")
def leaky_relu(x: Tensor, *, negative_slope: float = 0.0) -> Tensor:
    return _nn.leaky_relu(x, negative_slope)


@kernel("Elu")
def elu(x: Tensor, *, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    return _nn.elu(x, alpha, scale, input_scale)


@kernel("CeluV2")
def celu_v2(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.celu(x, alpha)


@kernel("HardShrink")
def hard_shrink(input_x: Tensor, *, lambd: float = 0.5) -> Tensor:
    return torch.hardshrink(input_x, lambd)


@kernel("SoftShrink")
def soft_shrink(input_x: Tensor, *, lambd: float = 0.5) -> Tensor:
    return _nn.softshrink(input_x, lambd)


def _threshold_by_constants(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    bound = scalar(consts, "threshold")
    if bound is None:
        return None
    number = scalar(consts, "value")
    if number is not None:
        return lambda x, threshold, value: torch.threshold(x, bound, number)
    return lambda x, threshold, value: (
        torch.threshold(x, bound, 0) if value is None else threshold_v2(x, threshold, value)
    )


@kernel("ThresholdV2", specialise=_threshold_by_constants)
def threshold_v2(x: Tensor, threshold: Tensor, value: Tensor | None = None) -> Tensor:
    """x where it is above threshold, else value (0)."""
    result = torch.where(x <= threshold, 0 if value is None else value, x)
    return result.to(x.dtype)


@kernel("ThresholdV2D")
def threshold_v2_d(x: Tensor, *, threshold: float, value: float) -> Tensor:
    return torch.threshold(x, threshold, value)


@kernel("PRelu")
def p_relu(x: Tensor, weight: Tensor) -> Tensor:
    """A 1-d weight belongs to dim 1 of x; any other shape broadcasts (aten._prelu_kernel arrives so)."""
    if weight.dim() == 1 and x.dim() > 1:
        return torch.prelu(x, weight)
    return torch._prelu_kernel(x, weight)


@kernel("GLU")
def glu(x: Tensor, *, dim: int = -1) -> Tensor:
    return _nn.glu(x, dim)
