"""npu_grouped_mat_mul_all_reduce -> GroupedMatMulAllReduce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from npu_fused_graph.converters.capability import require_ge_type
from npu_fused_graph.converters.hcom import ge_group
from npu_fused_graph.ops.grouped_mat_mul_all_reduce import SPEC
from npu_fused_graph.ops.registration import facts_of


def register() -> None:
    import torchair
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge import DataType, attr, custom_op

    def convert(
        x: Sequence[Any],
        weight: Sequence[Any],
        hcomm: str,
        *,
        bias: Sequence[Any] | None = None,
        group_list: Sequence[int] | None = None,
        split_item: int | None = 0,
        reduce_op: str = "sum",
        comm_turn: int = 0,
        meta_outputs: Any = None,
    ) -> Any:
        require_ge_type(SPEC)
        split_item, bias = split_item or 0, bias or []
        metas = {"x": [t.meta for t in x], "weight": [t.meta for t in weight], "bias": [t.meta for t in bias]}
        attributes = {
            "hcomm": hcomm, "group_list": group_list, "split_item": split_item, "reduce_op": reduce_op,
            "comm_turn": comm_turn,
        }  # fmt: skip
        SPEC.check(facts_of(SPEC, {**metas, **attributes}))
        groups = len(weight)
        if len(metas["weight"][0].shape) == 3:
            # CANN takes nothing but matrices
            groups = len(group_list or ())
            weight = ge.Unpack(weight[0], num=groups, axis=0)
        if not bias:
            # one tensor without elements is how CANN is told that there is none
            is_half = metas["x"][0].dtype is torch.float16
            bias = [ge.Const([], dtype=DataType.DT_FLOAT16 if is_half else DataType.DT_FLOAT)]
        results = custom_op(
            SPEC.ge_type,
            inputs={
                "x": list(x),
                "weight": list(weight),
                "bias": list(bias),
                "group_list": ge.Const(list(group_list), dtype=DataType.DT_INT64) if group_list else None,
            },
            outputs=[("y", 1 if split_item in (2, 3) else groups)],
            attrs={
                "splitItem": attr.Int(split_item),
                "group": attr.Str(ge_group(SPEC, hcomm)),
                "reduceOp": attr.Str(reduce_op),
                "commTurn": attr.Int(comm_turn),
            },
        )
        return results

    torchair.register_fx_node_ge_converter(torch.ops.npu_fused_graph.npu_grouped_mat_mul_all_reduce.default)(convert)
