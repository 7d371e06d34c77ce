"""Every kernel of the engine: its signature against the REG_OP text, its values against plain torch."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from npu_fused_graph.engine import registered_types
from npu_fused_graph.ir.reg_op import IrAttr, IrDef, read_ir_defs
from tests.engine import cases
from tests.engine.op_case import FLOATS, OTHER_RESULT_DTYPE, OpCase, has_another_float, run_case

BY_FAMILY: dict[str, list[OpCase]] = {
    module.name.removesuffix("_cases"): importlib.import_module(f"{cases.__name__}.{module.name}").CASES
    for module in pkgutil.iter_modules(cases.__path__)
}
ALL_CASES = [case for family in BY_FAMILY.values() for case in family]
OF_INFERENCE = {
    "packed_attention", "quant_attention", "sparse_attention", "moe", "moe_init_routing", "mla", "rope", "delta_rule",
    "quant_matmul", "grouped_moe", "dequant_swiglu", "sampling",
}  # fmt: skip
"""Families of which a case runs often in its first dtype only."""


@pytest.fixture(scope="session")
def ir_defs(torchair_folder: Path) -> dict[str, IrDef]:
    return read_ir_defs(torchair_folder)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(
            case,
            dtype,
            id=f"{case.id()}-{dtype}",
            marks=[pytest.mark.slow] if family in OF_INFERENCE and dtype != case.dtypes[0] else [],
        )
        for family, of_family in BY_FAMILY.items()
        for case in of_family
        for dtype in case.dtypes
    ],
)
def test_values(case: OpCase, dtype: str) -> None:
    run_case(case, dtype)


@pytest.mark.parametrize("ge_type", sorted(OTHER_RESULT_DTYPE))
def test_other_result_dtype(ge_type: str) -> None:
    cases = [(case, dtype) for case in ALL_CASES if case.ge_type == ge_type for dtype in case.dtypes if dtype in FLOATS]
    assert any(has_another_float(case, dtype) for case, dtype in cases), (
        f"no case of {ge_type} has a result in another floating-point dtype than its inputs': OTHER_RESULT_DTYPE of "
        "tests/engine/op_case.py must not name it"
    )


def test_every_kernel_has_a_case() -> None:
    covered = {case.ge_type for case in ALL_CASES}
    elsewhere = {name for name in registered_types() if name.startswith("Hcom")} | ELSEWHERE
    elsewhere.add("DistributeBarrier")  # needs ranks: with the Hcom types in test_collectives.py
    elsewhere |= {"MatmulAllReduce", "MatmulReduceScatter", "AllGatherMatmul"}  # ranks: test_matmul_collective.py
    elsewhere |= {name for name in registered_types() if name.startswith("MoeDistribute")}  # test_moe_distribute.py
    # ranks: test_matmul_collective.py
    elsewhere |= {"MatmulAllReduce", "MatmulReduceScatter", "MatmulReduceScatterV2", "AllGatherMatmul"}
    assert set(registered_types()) - covered - elsewhere == set()


ELSEWHERE = {
    "MatmulAllReduceAddRmsNorm", "InplaceMatmulAllReduceAddRmsNorm", "GroupedMatMulAllReduce", "AttentionToFFN",
    "FFNToAttention", "FfnWorkerScheduler", "AttentionWorkerScheduler", "FfnWorkerBatching", "AttentionWorkerCombine",
}  # fmt: skip
"""Types whose IR is a SPEC of ours and whose values are tested in a file of their own."""

NOT_IN_REG_OP = {
    "MatMulV3", "BatchMatMulV3", "GatherPaKvCache", "LightningIndexer", "QuantLightningIndexer", "SparseFlashAttention",
    "KvQuantSparseFlashAttention",
}  # fmt: skip
"""Types that TorchAir's texts do not describe; a SPEC of ours is their IR, or CANN's header."""

NOT_IN_TEXT = {
    "TopKV2": {"sort_policy"}, "FlashAttentionScore": {"pse_type"}, "FlashAttentionScoreGrad": {"pse_type"},
    "MoeFinalizeRoutingV2": {"k"},
    "WeightQuantBatchMatmulV2": {"antiquant_group_size", "dtype"},
    "DynamicQuantV2": {"is_symmetrical", "quant_mode", "dst_type_max"},
}  # fmt: skip
"""Attributes that TorchAir writes although the type's text does not have them."""


@pytest.mark.parametrize("ge_type", sorted(registered_types()))
def test_signature_is_the_ir(ge_type: str, ir_defs: dict[str, IrDef]) -> None:
    kernel = registered_types()[ge_type]
    if ge_type in ELSEWHERE | NOT_IN_REG_OP:
        pytest.skip("no REG_OP text of TorchAir has it; those that are SPECs of ours: test_fused_kernels.py")
    ir = ir_defs[ge_type]
    assert [(p.name, p.kind) for p in kernel.inputs] == [(p.name, p.kind) for p in ir.inputs]
    names = {a.name for a in kernel.attrs}
    assert names | kernel.ignored == {a.name for a in ir.attrs} | NOT_IN_TEXT.get(ge_type, set())
    by_name = {a.name: a for a in ir.attrs}
    for attr in kernel.attrs:
        if attr.name in NOT_IN_TEXT.get(ge_type, ()):
            continue
        if by_name[attr.name].default is None:
            assert attr.required, attr.name
        else:
            assert not attr.required, attr.name
            assert _default(by_name[attr.name]) == _comparable(attr.default, attr.is_dtype), attr.name
    assert set(kernel.mutates) <= {p.name for p in ir.outputs}


def _default(attr: IrAttr) -> object:
    text = (attr.default or "").strip()
    if attr.type == "VT_BOOL":
        return text.lower() == "true"
    if attr.type == "VT_STRING":
        return text.strip("\"'")
    if attr.type.startswith("VT_LIST"):
        return [float(n) for n in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]
    if text.startswith("DT_") or attr.type == "VT_DATA_TYPE":
        return text
    return float(text.rstrip("f"))


def _comparable(value: object, is_dtype: bool) -> object:
    if is_dtype or value is None:
        from npu_fused_graph.ir.dtypes import BY_NAME

        name = str(value).removeprefix("torch.")
        return BY_NAME[name].reg_op if name in BY_NAME else "DT_UNDEFINED"
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [float(v) for v in value]
    return float(value)  # type: ignore[arg-type]
