"""MindSpeed's operators: ``torch.ops.mindspeed.*`` with our implementations, and the functions that call them."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph import converters, ops
from npu_fused_graph.ops import inplace_matmul_all_reduce_add_rms_norm as in_place
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as mm_ar_norm
from npu_fused_graph.spec import OpSpec


def _call(spec: OpSpec, *args: Any, **kwargs: Any) -> Any:
    return getattr(torch.ops.npu_fused_graph, spec.torch_name)(*args, **kwargs)


def _define() -> Any:
    ops.register()
    library = torch.library.Library("mindspeed", "FRAGMENT")
    for spec in (mm_ar_norm.SPEC, in_place.SPEC):
        # MindSpeed's schemas name no results and declare no mutation
        library.define(f"{spec.torch_schema().rpartition(' -> ')[0].replace('(a!)', '')} -> (Tensor, Tensor)")
        library.impl(spec.torch_name, functools.partial(_call, spec), "CPU")
    library.impl(mm_ar_norm.SPEC.torch_name, functools.partial(_call, mm_ar_norm.SPEC), "Meta")
    if "torchair" in sys.modules:
        converters.register_all()  # it takes over operators that are defined late
    return library


_library = _define()


def npu_mm_all_reduce_add_rms_norm(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    gamma: Tensor,
    hcom: str,
    reduce_op: str = "sum",
    epsilon: float = 1e-06,
    bias: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    antiquant_group_size: int = 0,
    comm_turn: int = 0,
) -> tuple[Tensor, Tensor]:
    """See :func:`npu_fused_graph.npu_mm_all_reduce_add_rms_norm`."""
    result: tuple[Tensor, Tensor] = torch.ops.mindspeed.npu_mm_all_reduce_add_rms_norm(
        x1, x2, residual, gamma, hcom, reduce_op=reduce_op, epsilon=epsilon, bias=bias,
        antiquant_scale=antiquant_scale, antiquant_offset=antiquant_offset, dequant_scale=dequant_scale,
        antiquant_group_size=antiquant_group_size, comm_turn=comm_turn,
    )  # fmt: skip
    return result


def npu_mm_all_reduce_add_rms_norm_(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    gamma: Tensor,
    hcom: str,
    reduce_op: str = "sum",
    epsilon: float = 1e-06,
    bias: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    antiquant_group_size: int = 0,
    comm_turn: int = 0,
) -> tuple[Tensor, Tensor]:
    """See :func:`npu_fused_graph.npu_mm_all_reduce_add_rms_norm_`. Eager only: its schema declares no mutation."""
    result: tuple[Tensor, Tensor] = torch.ops.mindspeed.npu_mm_all_reduce_add_rms_norm_(
        x1, x2, residual, gamma, hcom, reduce_op=reduce_op, epsilon=epsilon, bias=bias,
        antiquant_scale=antiquant_scale, antiquant_offset=antiquant_offset, dequant_scale=dequant_scale,
        antiquant_group_size=antiquant_group_size, comm_turn=comm_turn,
    )  # fmt: skip
    return result
