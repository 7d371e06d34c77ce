"""FlashAttentionScore: what the engine refuses, each with its text; what nobody reads is not computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from npu_fused_graph import flash
from npu_fused_graph.engine import compile_graph
from npu_fused_graph.errors import NpuFusedGraphError
from tests.engine.cases import flash_attention_cases as cases
from tests.engine.op_case import Make, OpCase, build_graph


def run(ge_type: str, name: str, inputs: dict[str, Any], attrs: dict[str, Any]) -> list[Tensor]:
    """A variant of the cases, changed."""
    make, outputs = (
        (cases.forward_inputs, cases.OUTPUTS)
        if ge_type == "FlashAttentionScore"
        else (cases.gradient_inputs, cases.GRADIENTS)
    )
    case = OpCase(
        ge_type, lambda m: make(name, m) | inputs, lambda **_: [], cases.attributes(name) | attrs, outputs, ("float16",)
    )
    graph, data = build_graph(case, case.inputs(Make("float16")))
    return compile_graph(graph).run(data)


def half(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float16)


MASK = torch.zeros(24, 24, dtype=torch.bool)
BITS = torch.zeros(8, dtype=torch.uint8)
LENGTHS = {"actual_seq_qlen": torch.tensor([24]), "actual_seq_kvlen": torch.tensor([24])}
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "layout": ("BNSD", {}, {"input_layout": "BNSD_BSND"}, "input_layout"),
    **{f"sparse_mode {mode}": ("BNSD", {}, {"sparse_mode": mode}, "sparse_mode") for mode in (5, 6, 7, 8)},
    **{f"pse_type {kind}": ("BNSD", {}, {"pse_type": kind}, "pse_type") for kind in (2, 3)},
    "prefix": ("BNSD", {"prefix": torch.tensor([3, 4])}, {}, "prefix"),
    "padding_mask": ("BNSD", {"padding_mask": half(24, 24)}, {}, "padding_mask"),
    "dtypes": ("BNSD", {"value": torch.ones(2, 4, 24, 16).bfloat16()}, {}, "value"),
    "heads": ("BNSD", {}, {"head_num": 3}, "head_num: expected 4, query's N axis, got 3"),
    "heads of BSH": ("BSH", {}, {"head_num": 5}, "head_num: expected a divisor of H, 64, got 5"),
    "heads of key": (
        "BNSD", {"key": half(2, 3, 24, 16), "value": half(2, 3, 24, 16)}, {},
        "heads of key that divide query's",
    ),
    "columns of key": (
        "BSH", {"key": half(2, 24, 40), "value": half(2, 24, 40)}, {},
        "key: expected a multiple of head_dim 16",
    ),
    "batch": (
        "BNSD", {"key": half(1, 4, 24, 16), "value": half(1, 4, 24, 16)}, {},
        "query, key, value: expected one batch",
    ),
    "head_dim of value": ("BNSD", {"value": half(2, 4, 24, 32)}, {}, "value: expected head_dim 16, got (16, 32)"),
    "lengths": ("BNSD", LENGTHS, {}, "actual_seq_qlen: expected none unless the layout is TND, got 'BNSD'"),
    "no lengths": ("TND", {"actual_seq_qlen": None}, {}, "actual_seq_qlen, actual_seq_kvlen: expected growing ends"),
    "short lengths": ("TND", {"actual_seq_qlen": torch.tensor([5, 5, 40])}, {}, "up to 48 and 80"),
    "shrinking lengths": ("TND", {"actual_seq_qlen": torch.tensor([9, 5, 48])}, {}, "growing ends of sequences"),
    "mask of another size": (
        "BNSD", {"atten_mask": MASK[:, :8]}, {},
        "atten_mask: expected [24, 24] or [2 or 1, 4 or 1, 24, 24]",
    ),
    "mask with TND": ("TND", {"atten_mask": MASK}, {}, "and no TND"),
    "triangle of another size": ("BNSD", {"atten_mask": MASK}, {"sparse_mode": 2}, "the upper triangle of 2048 x 2048"),
    "no triangle": (
        "BNSD", {"atten_mask": torch.zeros(2048, 2048, dtype=torch.bool)}, {"sparse_mode": 3},
        "the upper triangle of 2048",
    ),
    "limits that hide more": (
        "BNSD", {"atten_mask": MASK}, {"next_tockens": 0},
        "a mask that hides all that pre_tockens and next_tockens hide",
    ),
    "bias of one head": (
        "BNSD", {"bias": half(1, 1, 24, 24)}, {"pse_type": 0},
        ": expected [2 or 1, 4, 24 or 1, 24], and no TND",
    ),
    "bias with TND": ("TND", {"bias": half(1, 4, 24, 24)}, {}, "and no TND"),
    "no bits": (
        "BNSD", {}, {"keep_prob": 0.5},
        "drop_mask: expected at least 576 bytes with keep_prob, and no TND, got None",
    ),
    "few bits": ("BNSD", {"drop_mask": BITS}, {"keep_prob": 0.5}, "drop_mask: expected at least 576 bytes"),
    "dropout with TND": ("TND", {"drop_mask": BITS}, {"keep_prob": 0.5}, "and no TND"),
}  # fmt: skip


@pytest.mark.parametrize("ge_type", ["FlashAttentionScore", "FlashAttentionScoreGrad"])
@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(name: str, ge_type: str) -> None:
    variant, inputs, attrs, text = REFUSED[name]
    bias = "real_shift" if ge_type == "FlashAttentionScore" else "pse_shift"
    inputs = {bias if key == "bias" else key: x for key, x in inputs.items()}
    with pytest.raises(NpuFusedGraphError) as caught:
        run(ge_type, variant, inputs, attrs)
    assert ge_type in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"softmax_max": None}, "softmax_max: expected what the forward operator gave, got None"),
        ({"attention_in": None}, "attention_in: expected what the forward operator gave, got None"),
        ({"softmax_sum": torch.ones(2, 4, 24, 1)}, "softmax_sum: expected (2, 4, 24, 8), got (2, 4, 24, 1)"),
        ({"softmax_in": half(1)}, "softmax_in"),
    ],
)
def test_gradients_without_what_the_forward_gave(change: dict[str, Any], text: str) -> None:
    with pytest.raises(NpuFusedGraphError) as caught:
        run("FlashAttentionScoreGrad", "BNSD", change, {})
    assert text in str(caught.value)


def test_statistics_that_nobody_reads_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(flash, "row_statistics", nobody)
    case = OpCase(
        "FlashAttentionScore", lambda m: cases.forward_inputs("BNSD", m), lambda **_: [], cases.attributes("BNSD"),
        cases.OUTPUTS,
    )  # fmt: skip
    graph, data = build_graph(case, case.inputs(Make("float16")))
    sink = graph.nodes["NetOutput"]
    del sink.inputs[:3]
    (out,) = compile_graph(graph).run(data)
    assert torch.isfinite(out).all()
    sink.inputs.append(type(sink.inputs[0])(sink.inputs[0].desc, type(sink.inputs[0].source)("op", 0)))
    with pytest.raises(NpuFusedGraphError):
        compile_graph(graph).run(data)
