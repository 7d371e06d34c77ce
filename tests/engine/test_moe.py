"""What the routing kernels do not cover is refused when a graph loads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from npu_fused_graph.engine import compile_graph
from npu_fused_graph.errors import ExecutionError, UnsupportedOpError
from tests.engine.graphs import graph_of, node

X, EXPERTS = torch.ones(2, 4), torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)
INIT: dict[str, Any] = {"expert_num": 2}
PADDED = INIT | {"drop_pad_mode": 1, "expert_capacity": 1}
GATE: dict[str, Any] = {"k": 2}
REFUSED = [
    ("MoeInitRoutingV3", INIT | {"quant_mode": 2}, "quant_mode: expected -1 or 0 or 1, got 2"),
    ("MoeInitRoutingV3", INIT | {"row_idx_type": 2}, "row_idx_type: expected 0 or 1, got 2"),
    ("MoeInitRoutingV3", {}, "active_expert_range: expected the first expert and the one behind the last"),
    ("MoeInitRoutingV3", PADDED | {"row_idx_type": 1}, "row_idx_type: expected 0 with drop_pad_mode=1, got 1"),
    ("MoeInitRoutingV3", PADDED | {"active_expert_range": [1, 2]}, r"active_expert_range: expected \[0, 2\] with"),
    (
        "MoeInitRoutingV3",
        PADDED | {"expert_tokens_num_flag": True, "expert_tokens_num_type": 2},
        "expert_tokens_num_type: expected 0 or 1 with drop_pad_mode=1, got 2",
    ),
    ("MoeGatingTopK", GATE | {"renorm": 1}, "renorm: expected 0, got 1"),
    ("MoeGatingTopK", GATE | {"norm_type": 2}, "norm_type: expected 0 or 1, got 2"),
    ("MoeReRouting", {"idx_type": 1}, "idx_type: expected 0, got 1"),
    ("MoeReRouting", {"expert_token_num_type": 0}, "expert_token_num_type: expected 1, got 0"),
]
INPUTS = {
    "MoeInitRoutingV3": ("x", "expert_idx"),
    "MoeGatingTopK": ("x",),
    "MoeReRouting": ("tokens", "expert_token_num_per_rank"),
}


@pytest.mark.parametrize(("ge_type", "attrs", "text"), REFUSED)
def test_attributes(ge_type: str, attrs: dict[str, Any], text: str) -> None:
    data = dict(zip(INPUTS[ge_type], (X, EXPERTS), strict=False))
    op = node("op", ge_type, {name: name for name in data}, ("a", "b", "c", "d"), **attrs)
    with pytest.raises(UnsupportedOpError, match=rf"\[engine\] {ge_type}\.{text}"):
        compile_graph(graph_of(data, [op], ["op:0"]))


def test_static_quantisation_needs_a_scale() -> None:
    data = {"x": X, "expert_idx": EXPERTS}
    op = node("op", "MoeInitRoutingV3", {name: name for name in data}, ("a", "b", "c", "d"), **INIT, quant_mode=0)
    with pytest.raises(ExecutionError, match="scale: expected one with quant_mode=0, got None"):
        compile_graph(graph_of(data, [op], ["op:0"])).run([X, EXPERTS])


def test_experts_by_token_number_are_refused() -> None:
    data = {"x": X, "input_ids": torch.zeros(2, dtype=torch.int64), "tid2eid": EXPERTS}
    op = node("op", "MoeGatingTopK", {name: name for name in data}, ("y", "expert_idx", "out"), **GATE)
    with pytest.raises(UnsupportedOpError, match=r"MoeGatingTopK\.input_ids: expected the input left out"):
        compile_graph(graph_of(data, [op], ["op:0"]))
