"""Kernels of our fused op types: the reference implementations, fed with the engine's communicator.

What GE's shape inference or op definition would refuse is refused here too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from npu_fused_graph.comm import communicator
from npu_fused_graph.engine.kernels._checks import require
from npu_fused_graph.engine.registry import Ints, kernel
from npu_fused_graph.errors import InvalidArgumentError, UnsupportedOpError
from npu_fused_graph.ir.graph import Node
from npu_fused_graph.ops import grouped_mat_mul_all_reduce as grouped
from npu_fused_graph.ops import inplace_matmul_all_reduce_add_rms_norm as in_place
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as mm_ar_norm
from npu_fused_graph.ops import trans_quant_param_v2 as quant_param
from npu_fused_graph.ops.observers import ObservedCall, observed
from npu_fused_graph.ops.registration import facts_of

antiquantised = mm_ar_norm.antiquantised


@kernel("MatmulAllReduceAddRmsNorm", ignored=("comm_turn",), pure=False, dense=True, is_collective=True)
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
    if is_trans_a or reduce_op != "sum":
        raise _unsupported(node, "is_trans_a=False, reduce_op='sum'", f"{is_trans_a}, {reduce_op!r}")
    tensors = {
        "x1": x1, "x2": x2, "bias": bias, "residual": residual, "gamma": gamma, "antiquant_scale": antiquant_scale,
        "antiquant_offset": antiquant_offset, "dequant_scale": dequant_scale,
    }  # fmt: skip
    _check_dtypes(node, tensors)
    if is_trans_b:
        x2 = x2.t()
    if antiquant_scale is not None and antiquant_group_size:
        k, n = x2.shape
        groups = -(-k // antiquant_group_size)
        wanted = (n, groups) if is_trans_b else (groups, n)
        if antiquant_scale.shape != wanted:
            raise _unsupported(node, f"antiquant_scale {list(wanted)}", list(antiquant_scale.shape))
        if is_trans_b:
            antiquant_scale = antiquant_scale.t()
            antiquant_offset = None if antiquant_offset is None else antiquant_offset.t()
    peer = communicator(group)
    mm_ar_norm.SPEC.check_group(group, peer.size)
    op = in_place if node.type == in_place.SPEC.ge_type else mm_ar_norm
    arguments = {
        **tensors, "x2": x2, "antiquant_scale": antiquant_scale, "antiquant_offset": antiquant_offset,
    }  # fmt: skip
    attributes = {"epsilon": epsilon, "antiquant_group_size": antiquant_group_size}
    result: tuple[Tensor, Tensor] = observed(
        lambda: ObservedCall(
            op.SPEC, arguments, {"hcom": group, "reduce_op": reduce_op, **attributes, "comm_turn": 0}, peer.group,
            node.name,
        ),
        lambda: op.reference(**arguments, **attributes, rank=peer),
    )  # fmt: skip
    return result


kernel(
    "InplaceMatmulAllReduceAddRmsNorm",
    ignored=("comm_turn",),
    mutates=("residual",),
    pure=False,
    dense=True,
    is_collective=True,
)(matmul_all_reduce_add_rms_norm)


@kernel("GroupedMatMulAllReduce", ignored=("commTurn",), pure=False, dense=True, is_collective=True)
def grouped_mat_mul_all_reduce(
    x: list[Tensor],
    weight: list[Tensor],
    bias: list[Tensor],
    group_list: Ints | None = None,
    *,
    splitItem: int = 0,
    group: str,
    reduceOp: str = "sum",
    node: Node,
) -> tuple[list[Tensor]]:
    if any(w.dim() != 2 for w in weight):
        raise _unsupported(node, "weights (k, n)", [list(w.shape) for w in weight])
    lists = {"x": x, "weight": weight, "bias": [] if len(bias) == 1 and not bias[0].numel() else bias}
    tensors: dict[str, Any] = dict(lists)
    attributes = {
        "hcomm": group, "group_list": group_list, "split_item": splitItem, "reduce_op": reduceOp, "comm_turn": 0
    }  # fmt: skip
    try:
        grouped.SPEC.check(facts_of(grouped.SPEC, {**tensors, **attributes}))
    except InvalidArgumentError as error:
        raise UnsupportedOpError(f"[engine] {node.name} ({node.type}): {str(error).partition('] ')[2]}") from None
    peer = communicator(group)
    grouped.SPEC.check_group(group, peer.size)
    results: list[Tensor] = observed(
        lambda: ObservedCall(grouped.SPEC, tensors, attributes, peer.group, node.name),
        lambda: grouped.reference(**tensors, group_list=group_list, split_item=splitItem, rank=peer),
    )
    return (results,)


@kernel("TransQuantParamV2", specialise=require("TransQuantParamV2", round_mode=(0, 1)))
def trans_quant_param_v2(scale: Tensor, offset: Tensor | None = None, *, round_mode: int = 0, node: Node) -> Tensor:
    if scale.dtype.itemsize != 4 or not scale.is_floating_point():
        raise _unsupported(node, "a float32 scale", scale.dtype)
    result: Tensor = observed(
        lambda: ObservedCall(
            quant_param.SPEC, {"scale": scale, "offset": offset}, {"round_mode": round_mode}, None, node.name
        ),
        lambda: quant_param.reference(scale, offset, round_mode),
    )
    return result


_ROWS = [row.dtypes for row in mm_ar_norm.SPEC.rows]


def _check_dtypes(node: Node, tensors: dict[str, Tensor | None]) -> None:
    """Some column of the op definition must fit; int4 weights are held as int8."""
    dtypes = {name: str(x.dtype).removeprefix("torch.") for name, x in tensors.items() if x is not None}
    if not any(all(row[name] == dtype for name, dtype in dtypes.items()) for row in _ROWS):
        raise _unsupported(node, "a combination of dtypes in ge_op_protos/README.md", dtypes)


def _unsupported(node: Node, expected: str, got: Any) -> UnsupportedOpError:
    return UnsupportedOpError(f"[engine] {node.name} ({node.type}): expected {expected}, got {got}.")
