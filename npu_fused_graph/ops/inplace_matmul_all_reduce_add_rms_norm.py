"""InplaceMatmulAllReduceAddRmsNorm: MatmulAllReduceAddRmsNorm whose sum takes the place of the residual.

Source: requirement 002; MindSpeed's npu_mm_all_reduce_add_rms_norm_.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as base
from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.spec import TensorSpec

SPEC = replace(
    base.SPEC,
    stem="inplace_matmul_all_reduce_add_rms_norm",
    ge_type="InplaceMatmulAllReduceAddRmsNorm",
    torch_name="npu_mm_all_reduce_add_rms_norm_",
    outputs=(
        TensorSpec("residual", ("b s n",), like="residual", doc="the sum, in the residual's memory"),
        TensorSpec("norm_out", ("b s n",), like="residual", doc="the normalised sum"),
    ),
    rows=tuple(
        replace(row, dtypes={name: dtype for name, dtype in row.dtypes.items() if name != "y"})
        for row in base.SPEC.rows
    ),
    doc="MatmulAllReduceAddRmsNorm whose sum takes the place of the residual.",
)


def npu_mm_all_reduce_add_rms_norm_(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    gamma: Tensor,
    hcom: str,
    *,
    reduce_op: str = "sum",
    epsilon: float = 1e-06,
    bias: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    antiquant_group_size: int = 0,
    comm_turn: int = 0,
) -> tuple[Tensor, Tensor]:
    """:func:`npu_mm_all_reduce_add_rms_norm` that writes the sum into ``residual``.

    Arguments, scenarios and errors are the same. No other argument may share memory with residual: eager calls refuse
    it, a compiled graph cannot see it. Returns (residual, norm_out). In a GE graph the node works on a copy of residual
    (a TensorMove), so there the form saves no memory traffic over the plain one. Source: MindSpeed's in-place form of
    requirement 002.
    """
    arguments = {
        "x1": x1, "x2": x2, "residual": residual, "gamma": gamma, "hcom": hcom, "reduce_op": reduce_op,
        "epsilon": epsilon, "bias": bias, "antiquant_scale": antiquant_scale, "antiquant_offset": antiquant_offset,
        "dequant_scale": dequant_scale, "antiquant_group_size": antiquant_group_size, "comm_turn": comm_turn,
    }  # fmt: skip
    check_types(SPEC, arguments)
    result: tuple[Tensor, Tensor] = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm_in_place(**arguments)
    return result


exact = base.exact


@functools.wraps(base.reference)
def reference(**arguments: Any) -> tuple[Tensor, Tensor]:
    """As of MatmulAllReduceAddRmsNorm; a chunk of rows is read before it is written."""
    return base.reference(**arguments | {"y": arguments["residual"]})


@functools.wraps(base.decompose)
def decompose(**arguments: Any) -> tuple[Tensor, Tensor]:
    """As of MatmulAllReduceAddRmsNorm, then a copy into the residual."""
    y, norm_out = base.decompose(**arguments)
    return arguments["residual"].copy_(y), norm_out


def samples() -> Iterator[dict[str, Any]]:
    """Valid calls: those of MatmulAllReduceAddRmsNorm."""
    return base.samples()
