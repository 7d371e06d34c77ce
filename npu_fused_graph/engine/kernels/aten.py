"""Operators of aten as kernels call them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def aten_op(name: str) -> Callable[..., Tensor]:
    """``torch.ops.aten.<name>.default``, resolved once."""
    op: Callable[..., Tensor] = getattr(torch.ops.aten, name).default
    return op


def aten_tuple_op(name: str) -> Callable[..., tuple[Tensor, ...]]:
    """As aten_op, for an operator with several results."""
    op: Callable[..., tuple[Tensor, ...]] = getattr(torch.ops.aten, name).default
    return op
