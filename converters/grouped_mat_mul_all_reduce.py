"""What GE has differently for GroupedMatMulAllReduce: matrices only, and a bias that is always there."""

from __future__ import annotations

from npu_fused_graph.converters.fused import Lowering


def prepare(call: Lowering) -> None:
    """Stacked weights apart; one tensor without elements in place of no bias."""
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge import DataType

    inputs, facts = call.inputs, call.facts.lists
    if len(facts["weight"][0].shape) == 3:
        inputs["weight"] = ge.Unpack(inputs["weight"][0], num=len(inputs["group_list"] or ()), axis=0)
    if not inputs["bias"]:
        is_half = facts["x"][0].dtype == "float16"
        inputs["bias"] = [ge.Const([], dtype=DataType.DT_FLOAT16 if is_half else DataType.DT_FLOAT)]
