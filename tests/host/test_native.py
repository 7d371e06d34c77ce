"""The stand-ins for TorchAir's native modules."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from npu_fused_graph import load_torchair
from npu_fused_graph.host.native import IrRegistry, TorchNpuGraphBase, build_modules
from npu_fused_graph.ops import specs

FUSED = "MatmulAllReduceAddRmsNorm"


@pytest.fixture(scope="module")
def registry(torchair_folder: Path) -> IrRegistry:
    return IrRegistry(torchair_folder, {spec.ge_type: spec.ir_def() for spec in specs()})


def test_registered_ir_of_a_type_of_cann(registry: IrRegistry) -> None:
    # REG_OP(Add) and REG_OP(Cumsum) as the operator documentation has them
    assert registry.get_registered_ir_def("Add") == (
        "SUCCESS",
        [("x1", "required"), ("x2", "required")],
        [("y", "required")],
        [],
    )
    assert registry.get_registered_ir_def("Cumsum") == (
        "SUCCESS",
        [("x", "required"), ("axis", "required")],
        [("y", "required")],
        [("exclusive", "VT_BOOL"), ("reverse", "VT_BOOL")],
    )
    assert registry.get_registered_ir_def("ConcatV2")[1] == [("x", "dynamic"), ("concat_dim", "required")]


def test_registered_ir_of_our_type(registry: IrRegistry) -> None:
    status, inputs, outputs, attrs = registry.get_registered_ir_def(FUSED)
    assert status == "SUCCESS"
    # requirement: x1, x2, bias, residual, gamma, then the three optional quantisation inputs, in GE order
    assert inputs == [
        ("x1", "required"),
        ("x2", "required"),
        ("bias", "optional"),
        ("residual", "required"),
        ("gamma", "required"),
        ("antiquant_scale", "optional"),
        ("antiquant_offset", "optional"),
        ("dequant_scale", "optional"),
    ]
    assert [kind for _, kind in outputs] == ["required", "required"]
    assert {("group", "VT_STRING"), ("epsilon", "VT_FLOAT"), ("is_trans_b", "VT_BOOL")} <= set(attrs)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attrs", "answer"),
    [
        ("Cumsum", [], ["reverse"], ""),
        ("Add", [], [], ""),
        (FUSED, ["bias", "dequant_scale"], ["epsilon"], ""),
        (
            "Cumsum",
            [],
            ["backwards"],
            "optype Cumsum unsupported optional attr [backwards], please upgrade cann version.",
        ),
        ("Add", ["x3", "x4"], [], "optype Add unsupported optional input [x3, x4], please upgrade cann version."),
        (
            FUSED,
            ["bias", "y2"],
            ["ep", "group"],
            f"optype {FUSED} unsupported optional input [y2], optional attr [ep], please upgrade cann version.",
        ),
        (
            "NobodyKnowsThis",
            [],
            [],
            "OperatorFactory find optype NobodyKnowsThis failed, maybe you need upgrade cann version.",
        ),
    ],
)
def test_check_cann_compat(
    registry: IrRegistry, op_type: str, inputs: list[str], attrs: list[str], answer: str
) -> None:
    assert registry.check_cann_compat(op_type, inputs, attrs) == answer


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((torch.ones(1), [], None), "not a list or tuple"),
        (([torch.ones(1), None], [], None), "element 1 is None"),
        (([1], [], None), "element 0 is not a Tensor"),
        (([], [None, "x"], None), "element 1 is not a Tensor"),
        (([], torch.ones(1), None), "not a list or tuple"),
        (([torch.ones(1)], [None], None), "Executor is not initialized."),
    ],
)
def test_run_errors(arguments: tuple[object, object, None], text: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(text)):
        TorchNpuGraphBase("g").run(arguments)


def test_graph_that_was_not_loaded() -> None:
    with pytest.raises(RuntimeError, match=r"Executor is not initialized\. Graph g must be loaded before it runs"):
        TorchNpuGraphBase("g").compile()
    with pytest.raises(RuntimeError, match="element 0 is None"):
        TorchNpuGraphBase("g").auto_tune(([None], None))
    assert TorchNpuGraphBase("g").summary() == ""


def test_errors_keep_their_text_through_torchair() -> None:
    load_torchair()
    from torchair.core._backend import TorchNpuGraph

    with pytest.raises(RuntimeError, match="element 0 is None"):
        TorchNpuGraph("g").run([None])


def test_modules_have_every_symbol_torchair_asks_for(registry: IrRegistry, torchair_folder: Path) -> None:
    modules = build_modules(registry)
    assert set(modules) == {f"torchair.core.{n}" for n in ("_torchair", "_npu_graph_executor", "_npu_utils")}
    asked: dict[str, set[str]] = {name.rpartition(".")[2]: set() for name in modules}
    for path in torchair_folder.rglob("*.py"):
        for module, symbol in re.findall(r"\b(_torchair|_npu_utils|_npu_graph_executor)\.(\w+)", path.read_text()):
            asked[module].add(symbol)
    assert len(asked["_torchair"]) > 8
    for name, module in modules.items():
        missing = {s for s in asked[name.rpartition(".")[2]] if not hasattr(module, s)}
        assert missing == set()


def test_export_writes_the_file(registry: IrRegistry, tmp_path: Path) -> None:
    module = build_modules(registry)["torchair.core._torchair"]
    module.export(b"model", {"export_path_dir": str(tmp_path / "a" / "b"), "export_name": "x.air"})
    assert (tmp_path / "a" / "b" / "x.air").read_bytes() == b"model"


def test_what_needs_hardware_says_so(registry: IrRegistry) -> None:
    module: ModuleType = build_modules(registry)["torchair.core._torchair"]
    with pytest.raises(RuntimeError, match=r"\[host\] llm_datadist: expected an NPU"):
        module.as_torch_tensors((1,), 0, [0])
    assert module.GetSocName() == ""
    assert module.CheckAclnnAvaliable("aclnnAdd") is False
