"""Elementwise comparison, logic, bits, and tests for special values."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.pointwise import binary, in_int64, unary
from npu_fused_graph.engine.registry import kernel

binary("Equal", torch.eq)
binary("NotEqual", torch.ne)
binary("Greater", torch.gt)
binary("GreaterEqual", torch.ge)
binary("Less", torch.lt)
binary("LessEqual", torch.le)

binary("LogicalAnd", torch.logical_and)
binary("LogicalOr", torch.logical_or)
unary("LogicalNot", torch.logical_not)

binary("BitwiseAnd", torch.bitwise_and)
binary("BitwiseOr", torch.bitwise_or)
binary("BitwiseXor", torch.bitwise_xor)

unary("IsInf", torch.isinf)
unary("IsNan", torch.isnan)
unary("IsFinite", torch.isfinite)


@kernel("Invert")
def invert(x: Tensor) -> Tensor:
    try:
        return torch.bitwise_not(x)
    except NotImplementedError:
        return in_int64(torch.bitwise_not, x)


@kernel("RightShift", same_dtype=("x", "y"))
def right_shift(x: Tensor, y: Tensor) -> Tensor:
    """Arithmetic for signed x."""
    try:
        return torch.bitwise_right_shift(x, y)
    except NotImplementedError:
        return in_int64(torch.bitwise_right_shift, x, y)


@kernel("LeftShift", same_dtype=("x", "y"))
def left_shift(x: Tensor, y: Tensor) -> Tensor:
    try:
        return torch.bitwise_left_shift(x, y)
    except NotImplementedError:
        return in_int64(torch.bitwise_left_shift, x, y)


@kernel("ApproximateEqual", same_dtype=("x1", "x2"))
def approximate_equal(x1: Tensor, x2: Tensor, *, tolerance: float = 1e-5) -> Tensor:
    return torch.lt(torch.abs(torch.sub(x1, x2)), tolerance)
