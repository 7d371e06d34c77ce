"""Helpers of the elementwise kernels: registration of one-function kernels, unsigned integers, constant scalars."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.registry import KernelFn, kernel
from npu_fused_graph.errors import UnsupportedOpError

Op = Callable[..., Tensor]
BINARY = ("x1", "x2")
UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})
HALF = frozenset({torch.float16, torch.bfloat16})

_WRAPPING: frozenset[Op] = frozenset(
    {
        torch.add,
        torch.sub,
        torch.mul,
        torch.square,
        torch.neg,
        torch.eq,
        torch.ne,
        torch.bitwise_and,
        torch.bitwise_or,
        torch.bitwise_xor,
        torch.bitwise_not,
        torch.bitwise_left_shift,
    }
)
"""Functions whose int64 result has the right low bits whatever the sign bit means."""


def in_int64(op: Op, x: Tensor, *rest: Any) -> Tensor:
    """``op`` for uint16/32/64, which torch cannot compute with: in int64, the result cast back.

    Call it from ``except NotImplementedError``; the error goes on for any other dtype.
    """
    dtype = x.dtype
    if dtype not in UNSIGNED:
        raise  # noqa: PLE0704
    wide = [arg.to(torch.int64) if isinstance(arg, Tensor) else arg for arg in (x, *rest)]
    if dtype is torch.uint64 and op not in _WRAPPING:
        for arg in wide:
            if isinstance(arg, Tensor) and bool((arg < 0).any()):
                name = getattr(op, "__name__", "kernel")
                raise UnsupportedOpError(f"[engine] {name}: expected uint64 values below 2**63, got a larger one.")
    result = op(*wide)
    return result.to(dtype) if result.dtype is torch.int64 else result


def unary(ge_type: str, op: Op) -> None:
    """Register ``op`` as the kernel of a type with one input x and no attribute."""

    def call(x: Tensor) -> Tensor:
        return op(x)

    kernel(ge_type, specialise=lambda consts, attrs: op)(call)


def binary(ge_type: str, op: Op, *, same_dtype: Iterable[str] = BINARY) -> None:
    """Register ``op`` as the kernel of a type with inputs x1 and x2 and no attribute."""

    def call(x1: Tensor, x2: Tensor) -> Tensor:
        try:
            return op(x1, x2)
        except NotImplementedError:
            return in_int64(op, x1, x2)

    kernel(ge_type, same_dtype=same_dtype)(call)


def widened(formula: Op) -> Op:
    """``formula`` of x in float32 where x is of half precision, rounded once at the end. Integers give float32."""

    @functools.wraps(formula)
    def call(x: Tensor) -> Tensor:
        if x.dtype in HALF:
            return formula(x.float()).to(x.dtype)
        return formula(x if x.is_floating_point() or x.is_complex() else x.float())

    return call


def scalar(consts: dict[str, Any], name: str) -> Any:
    """The number in the constant input ``name``; None when it is no 0-d constant."""
    value = consts.get(name)
    return value.item() if isinstance(value, Tensor) and value.dim() == 0 else None


def with_value(op: Op, value: float) -> KernelFn:
    """``op(x, value)`` in the dtype of x, rounded as torch rounds with a Python number.

    Handed over as a 0-d tensor, because torch would wrap a number into a new one at every call.
    """
    number: float | int = int(value) if float(value).is_integer() and abs(value) < 1 << 53 else value
    wrapped = torch.tensor(number, dtype=torch.int64 if isinstance(number, int) else torch.float64)

    def call(x: Tensor) -> Tensor:
        result = op(x, wrapped if x.dim() else number)
        return result if result.dtype is x.dtype else result.to(x.dtype)

    return call
