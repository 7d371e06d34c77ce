"""Kernels of our fused op types: the reference implementations, fed with the engine's communicator."""

from __future__ import annotations

from torch import Tensor

from npu_fused_graph.comm import communicator
from npu_fused_graph.engine.registry import kernel
from npu_fused_graph.errors import UnsupportedOpError
from npu_fused_graph.ir.graph import Node
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as mm_ar_norm


@kernel("MatmulAllReduceAddRmsNorm", ignored=("comm_turn",), pure=False)
def matmul_all_reduce_add_rms_norm(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    gamma: Tensor,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    *,
    group: str,
    reduce_op: str = "sum",
    is_trans_a: bool = False,
    is_trans_b: bool = False,
    antiquant_group_size: int = 0,
    epsilon: float = 1e-06,
    node: Node,
) -> tuple[Tensor, Tensor]:
    if is_trans_a or reduce_op != "sum" or antiquant_group_size:
        raise UnsupportedOpError(
            f"[engine] {node.name} ({node.type}): expected is_trans_a=False, reduce_op='sum', antiquant_group_size=0, "
            f"got {is_trans_a}, {reduce_op!r}, {antiquant_group_size}."
        )
    if antiquant_scale is not None or antiquant_offset is not None or dequant_scale is not None:
        raise UnsupportedOpError(
            f"[engine] {node.name} ({node.type}): expected the float scenario, got a quantised one."
        )
    weight = x2.t() if is_trans_b else x2
    return mm_ar_norm.reference(x1, weight, residual, gamma, communicator(group).all_gather, epsilon=epsilon, bias=bias)
