"""Reductions GE's collectives do not have are refused with a cure, while the graph is compiled."""

from __future__ import annotations

from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import Converter, register_converters, stock
from npu_fused_graph.errors import UnsupportedOpError

_KNOWN = ("sum", "min", "max", "product")


def _checked(op: Any) -> Converter:
    def convert(x: Any, reduce_op: str, *args: Any, **kwargs: Any) -> Any:
        if reduce_op.lower() not in _KNOWN:
            cure = (
                "Sum and divide by the number of ranks."
                if reduce_op.lower() == "avg"
                else "Gather the tensors and reduce them locally."
            )
            raise UnsupportedOpError(f"[{op}] reduce_op: expected {', '.join(_KNOWN)}, got {reduce_op!r}. {cure}")
        return stock(op, x, reduce_op, *args, **kwargs)

    return convert


def register() -> None:
    register_converters(
        {
            op: _checked(op)
            for library in (torch.ops._c10d_functional, torch.ops.c10d_functional)
            for op in (library.all_reduce.default, library.reduce_scatter_tensor.default)
        }
    )
