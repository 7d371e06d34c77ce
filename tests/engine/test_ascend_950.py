"""Operators and element types that only an Ascend 950 has are refused by the name of the chip."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from npu_fused_graph.engine import compile_graph
from npu_fused_graph.engine.ascend_950 import OPERATORS
from npu_fused_graph.errors import ExecutionError, UnsupportedOpError
from tests.engine.op_case import Make, OpCase, build_graph, dtype_value

CURE = "Use a configuration with int8, int4 or 16-bit elements."


def compiled(ge_type: str, inputs: dict[str, Any], attrs: dict[str, Any]) -> Any:
    graph, data = build_graph(OpCase(ge_type, lambda m: inputs, torch.clone, attrs), inputs)
    return compile_graph(graph), data


@pytest.mark.parametrize("ge_type", sorted(OPERATORS))
def test_operators(ge_type: str) -> None:
    wanted = f"[engine] {ge_type}: expected an operator of Atlas A2 or A3, got one of Ascend 950 only "
    with pytest.raises(UnsupportedOpError, match=re.escape(wanted) + r"\((MX formats|8-bit floating point)\)\. "):
        compiled(ge_type, {"x": torch.ones(2)}, {})


@pytest.mark.parametrize(
    ("ge_type", "attribute", "value", "got"),
    [
        ("DynamicQuant", "dst_type", dtype_value("float8_e4m3fn"), "'float8_e4m3fn'"),
        ("DynamicQuant", "dst_type", 34, "'hifloat8'"),
        ("AscendQuantV2", "dst_type", 40, "'float4_e2m1'"),
        ("Quantize", "dtype", "torch.float8_e5m2", "'float8_e5m2'"),
    ],
)
def test_result_types(ge_type: str, attribute: str, value: Any, got: str) -> None:
    x = Make("float16")(2, 4)
    inputs = {"x": x} if ge_type == "DynamicQuant" else {"x": x, "scale": x[0]}
    if ge_type == "Quantize":
        inputs = {"x": x, "scales": x[0].float()}
    name = got.strip("'")
    wanted = rf"\[engine\] {ge_type}\.{attribute}: expected .*, got {got}\. Ascend 950 alone has {name}\. {CURE}"
    with pytest.raises(UnsupportedOpError, match=wanted):
        compiled(ge_type, inputs, {attribute: value})


def test_tensors() -> None:
    x = torch.ones(2, 4).to(torch.float8_e4m3fn)
    executable, data = compiled("GroupedMatmul", {"x": [x], "weight": [x.t()]}, {"group_type": -1})
    wanted = r"GroupedMatmul\.x: expected .*, got torch\.float8_e4m3fn \[2, 4\]\. Ascend 950 alone has float8_e4m3fn\. "
    with pytest.raises((ExecutionError, UnsupportedOpError), match=wanted):
        executable.run(data)
