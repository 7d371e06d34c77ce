"""Small tools of kernels: refusing a form they do not cover, calling an aten operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.registry import KernelFn
from npu_fused_graph.errors import UnsupportedOpError

Specialise = Callable[[dict[str, Any], dict[str, Any]], KernelFn | None]


def unsupported(ge_type: str, name: str, expected: str, got: object) -> UnsupportedOpError:
    """The error for an input or attribute ``name`` that the kernel of ``ge_type`` does not cover."""
    return UnsupportedOpError(f"[engine] {ge_type}.{name}: expected {expected}, got {got!r}.")


def require(ge_type: str, **allowed: tuple[object, ...]) -> Specialise:
    """A ``specialise`` that only checks, at load, that each attribute has one of the values allowed for it."""

    def check(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
        for name, values in allowed.items():
            if attrs[name] not in values:
                raise unsupported(ge_type, name, " or ".join(map(repr, values)), attrs[name])
        return None

    return check


def refuse_fed(ge_type: str, **inputs: object) -> None:
    """Raise if one of these optional inputs is fed."""
    for name, value in inputs.items():
        if value is not None:
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise unsupported(ge_type, name, "the input left out", got)


def aten_op(name: str) -> Callable[..., Tensor]:
    """``torch.ops.aten.<name>.default``, resolved once."""
    op: Callable[..., Tensor] = getattr(torch.ops.aten, name).default
    return op


def aten_tuple_op(name: str) -> Callable[..., tuple[Tensor, ...]]:
    """As aten_op, for an operator with several results."""
    op: Callable[..., tuple[Tensor, ...]] = getattr(torch.ops.aten, name).default
    return op
