"""npu_mm_all_reduce_add_rms_norm -> MatmulAllReduceAddRmsNorm."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import distributed as dist

from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm import SPEC


def register() -> None:
    import torchair

    overloads = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm
    torchair.register_fx_node_ge_converter(overloads.default)(_converter(is_stored_transposed=False))
    torchair.register_fx_node_ge_converter(overloads.transposed_x2)(_converter(is_stored_transposed=True))


def _converter(*, is_stored_transposed: bool) -> Callable[..., Any]:
    from torchair.ge import attr, custom_op

    def convert(
        x1: Any,
        x2: Any,
        residual: Any,
        gamma: Any,
        hcom: str,
        *,
        reduce_op: str = "sum",
        epsilon: float = 1e-06,
        bias: Any = None,
        antiquant_scale: Any = None,
        antiquant_offset: Any = None,
        dequant_scale: Any = None,
        antiquant_group_size: int = 0,
        comm_turn: int = 0,
        meta_outputs: Any = None,
    ) -> Any:
        weight, is_trans_b = (x2, True) if is_stored_transposed else untransposed(x2)
        return custom_op(
            SPEC.ge_type,
            inputs={
                "x1": x1,
                "x2": weight,
                "bias": bias,
                "residual": residual,
                "gamma": gamma,
                "antiquant_scale": antiquant_scale,
                "antiquant_offset": antiquant_offset,
                "dequant_scale": dequant_scale,
            },
            outputs=["y", "norm_out"],
            attrs={
                "group": attr.Str(ge_group(hcom)),
                "reduce_op": attr.Str(reduce_op),
                "is_trans_a": attr.Bool(False),
                "is_trans_b": attr.Bool(is_trans_b),
                "comm_turn": attr.Int(comm_turn),
                "antiquant_group_size": attr.Int(antiquant_group_size),
                "epsilon": attr.Float(epsilon),
            },
        )

    return convert


def untransposed(x2: Any) -> tuple[Any, bool]:
    """(weight, is_trans_b): the operand of a 2-D Transpose node instead of its result.

    The kernel reads a transposed weight in place; a Transpose in front of it would copy the weight at every step.
    The Transpose of a direct call is left without a reader, and GE drops it; our pass calls the overload that takes
    the stored weight, so there is none.
    """
    from torchair.ge._ge_graph import Tensor

    node = x2.node
    if node.type != "Transpose" or not node.input_desc:
        return x2, False
    source = _find_op(node.input[0])
    perm = _find_op(node.input[1])
    if perm.type != "Const" or bytes(perm.attr["value"].t.data) != _SWAPPED:
        return x2, False
    return Tensor(source, int(node.input[0].rpartition(":")[2])), True


_SWAPPED = (1).to_bytes(8, "little") + (0).to_bytes(8, "little")
"""The permutation [1, 0] as int64."""


def _find_op(edge: str) -> Any:
    """The op an edge comes from. A weight is a graph input, a permutation was emitted just before its Transpose."""
    from torchair.ge._ge_graph import get_default_ge_graph

    name = edge.rpartition(":")[0]
    graph = get_default_ge_graph()
    for op in chain(graph.indexed_inputs.values(), reversed(graph.op)):
        if op.name == name:
            return op
    raise AssertionError(f"{name} feeds a Transpose but is not in the graph")


def ge_group(hcom: str) -> str:
    """The name GE knows a communicator by; a c10d group name is translated as TorchAir does, others pass through."""
    from torch.distributed import distributed_c10d as c10d
    from torchair._ge_concrete_graph.hcom_utils import get_group_name_and_record

    if not dist.is_initialized():
        return hcom
    for group in c10d._world.pg_map:
        if group.group_name == hcom:
            ranks = c10d.get_process_group_ranks(group)
            name: str = get_group_name_and_record(c10d._get_group_tag(group), ranks, len(ranks))
            return name
    return hcom
