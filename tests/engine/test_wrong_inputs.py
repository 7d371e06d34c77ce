"""Inputs of which a kernel would make numbers, and no device would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from npu_fused_graph.engine import compile_graph
from npu_fused_graph.errors import ExecutionError
from tests.engine.cases import attention_cases, quant_matmul_cases
from tests.engine.op_case import Make, OpCase, build_graph


def _run(ge_type: str, inputs: dict[str, Any], outputs: Sequence[str] = ("y",), **attrs: Any) -> list[Tensor]:
    graph, data = build_graph(OpCase(ge_type, lambda m: inputs, torch.add, attrs, tuple(outputs)), inputs)
    return compile_graph(graph).run(data)


def _half(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float16)


def _int32(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int32)


NORM, SUM = ("y", "rstd"), ("y", "rstd", "x")
FLOATS = "float16, bfloat16, float32 or float64"
WRONG: list[tuple[str, dict[str, Any], tuple[str, ...], dict[str, Any], str]] = [
    ("RmsNorm", {"x": _int32(2, 4), "gamma": _int32(4)}, NORM, {}, f"x: expected {FLOATS}, got int32"),
    ("RmsNorm", {"x": _half(2, 4), "gamma": _half(4).bfloat16()}, NORM, {}, "gamma: expected torch.float16, that of x"),
    ("RmsNorm", {"x": _half(2, 4), "gamma": torch.ones(1)}, NORM, {}, r"gamma: expected the last sizes of x, \[2, 4\]"),
    (
        "AddRmsNorm", {"x1": _half(2, 4), "x2": _half(1, 4), "gamma": _half(4)}, SUM, {},
        r"x2: expected the shape of x1, \[2, 4\], got \[1, 4\]",
    ),
    ("AddRmsNorm", {"x1": _half(2, 4), "x2": _half(2, 4), "gamma": _half(4).bfloat16()}, SUM, {}, "gamma: expected"),
    ("SwiGlu", {"x": _int32(2, 4)}, ("y",), {}, f"x: expected {FLOATS}, got int32"),
    (
        "MoeGatingTopKSoftmax", {"x": _int32(2, 4)}, ("y", "expert_idx", "row_idx"), {"k": 1}, f"x: expected {FLOATS}"
    ),
    (
        "MoeGatingTopKSoftmax", {"x": _half(2, 4)}, ("y", "expert_idx", "row_idx"), {"k": 5},
        "MoeGatingTopKSoftmax.k: expected 1 to 4, the experts, got 5",
    ),
    (
        "ScatterNdUpdate", {"var": _half(2, 4), "indices": torch.ones(1, 1), "updates": _half(1, 4)}, ("var",), {},
        "indices: expected int32 or int64, got float32",
    ),
    (
        "ApplyRotaryPosEmb", dict.fromkeys(("query", "key", "cos", "sin"), _half(3, 1, 1, 64)), ("query", "key"),
        {"layout": 4}, "query: expected 3 axes in layout 4",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("ge_type", "inputs", "outputs", "attrs", "text"), WRONG)
def test_wrong_inputs_are_named(
    ge_type: str, inputs: dict[str, Any], outputs: tuple[str, ...], attrs: dict[str, Any], text: str
) -> None:
    with pytest.raises(ExecutionError, match=text):
        _run(ge_type, inputs, outputs, **attrs)


GROUPS: list[tuple[list[int], int, str]] = [
    ([2, 4, 6, 9], 1, "expected sizes that are not negative, 9 in all at most"),
    ([4, -1, 4, 2], 1, "expected sizes that are not negative"),
    ([4, 2, 9, 9], 0, "expected ends that do not decrease, 9 in all at most"),
    ([0, 4, 4, 12], 0, "expected ends that do not decrease"),
    ([4, 9], 0, "expected 4 groups, as weights are given, got 2"),
    ([1, 4, 4, 5], 2, r"expected groups of 0 to 3, got \[1, 4\]"),
]


def _grouped(group_list: list[int], kind: int, weight: Tensor) -> dict[str, Any]:
    unused = {key: [torch.empty(0)] for key in ("bias", "scale", "offset", "antiquant_scale", "antiquant_offset")}
    return {"x": [_half(9, 8)], "weight": [weight], **unused, "group_list": torch.tensor(group_list)}


@pytest.mark.parametrize(("group_list", "kind", "text"), GROUPS)
def test_groups_lie_within_the_rows(group_list: list[int], kind: int, text: str) -> None:
    inputs = _grouped(group_list, kind, _half(4, 8, 2))
    with pytest.raises(ExecutionError, match=f"group_list: {text}"):
        _run("GroupedMatmul", inputs, split_item=3, group_type=0, group_list_type=kind, dtype=0)


def test_grouped_weights_have_the_dtype_of_the_rows() -> None:
    inputs = _grouped([2, 4, 6, 9], 0, _half(4, 8, 2).bfloat16())
    with pytest.raises(ExecutionError, match=r"weight: expected torch\.float16, the dtype of x"):
        _run("GroupedMatmul", inputs, split_item=3, group_type=0, group_list_type=0, dtype=0)


def test_a_mask_that_would_be_added_is_refused() -> None:
    case = next(case for case in attention_cases.CASES if case.ge_type == "FusedInferAttentionScore")
    inputs = case.inputs(Make("float16")) | {"atten_mask": _half(1, 1, 8, 8)}
    with pytest.raises(ExecutionError, match="atten_mask: expected bool, int8 or uint8, got float16"):
        _run(case.ge_type, inputs, case.outputs, **case.attrs)


def test_a_scale_per_token_is_one_per_row() -> None:
    case = next(c for c in quant_matmul_cases.CASES if "pertoken_scale" in c.inputs(Make(c.dtypes[0])))
    inputs = case.inputs(Make(case.dtypes[0])) | {"pertoken_scale": torch.ones(1)}
    with pytest.raises(ExecutionError, match=r"scale per token: expected \d+, one per row of x1, got 1"):
        _run(case.ge_type, inputs, case.outputs, **case.attrs)


@pytest.mark.parametrize("count", [2, 65])
def test_nothing_is_written_where_an_index_is_wrong(count: int) -> None:
    var = torch.zeros(100, 2)
    indices = torch.arange(count)[:, None] + torch.tensor(101 - count)
    with pytest.raises(ExecutionError, match=f"indices: expected an index of 0 to 99, got {101 - count} to 100"):
        _run("ScatterNdUpdate", {"var": var, "indices": indices, "updates": torch.ones(count, 2)}, ("var",))
    assert not var.any()


@pytest.mark.parametrize("renorm", [None, 0, 1])
def test_of_equal_experts_the_first_are_chosen(renorm: int | None) -> None:
    x = torch.tensor([[0, 1, 1, 1, 1, 0], [2, 1, 2, 1, 2, 2]]).half()
    attrs = {} if renorm is None else {"renorm": renorm, "output_softmax": False}
    outputs = ("y", "expert_idx", "row_idx" if renorm is None else "softmax_result")
    ge_type = "MoeGatingTopKSoftmax" + ("" if renorm is None else "V2")
    assert _run(ge_type, {"x": x}, outputs, k=3, **attrs)[1].tolist() == [[1, 2, 3], [0, 2, 4]]
