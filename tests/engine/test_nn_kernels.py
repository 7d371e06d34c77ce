"""What the op table cannot say: equality with eager, refused forms, writes in place, paths of lesser CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from npu_fused_graph.engine import compile_graph, registry
from npu_fused_graph.engine.kernels import matmul
from npu_fused_graph.errors import ExecutionError, UnsupportedOpError
from tests.engine.cases import (
    attention_cases,
    conv_cases,
    dequant_swiglu_cases,
    grad_cases,
    grouped_cases,
    grouped_moe_cases,
    matmul_cases,
    moe_cases,
    nn_cases,
    norm_cases,
    quant_cases,
    quant_matmul_cases,
)
from tests.engine.op_case import FLOATS, Make, OpCase, build_graph, run_case


def _run(ge_type: str, inputs: dict[str, Any], outputs: tuple[str, ...] = ("y",), **attrs: Any) -> list[Tensor]:
    graph, data = build_graph(OpCase(ge_type, lambda m: inputs, torch.add, attrs, outputs), inputs)
    return compile_graph(graph).run(data)


def test_a_product_is_seen_by_who_looks_on() -> None:
    """By a dispatch mode (2 x 4 x 3 x 5 operations counted) and by the profiler."""
    inputs = {"x1": torch.ones(4, 3), "x2": torch.ones(3, 5)}
    with FlopCounterMode(display=False) as counted:
        _run("MatMul", inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        _run("MatMul", inputs)
    assert counted.get_total_flops() == 120
    assert [event.name for event in profiled.events()].count("aten::mm") == 1


# -- eager equality --------------------------------------------------------------------------------------

aten = torch.ops.aten
ROWS = {"strides": [1, 1, 1, 2], "pads": [1, 1, 0, 0], "data_format": "NCHW"}
EAGER: list[tuple[str, Callable[[Make], dict[str, Any]], Callable[..., Any], dict[str, Any], int]] = [
    ("MatMul", lambda m: {"x1": m(33, 65), "x2": m(65, 17)}, lambda x1, x2: x1 @ x2, {}, 1),
    ("MatMul", lambda m: {"x1": m(1, 128), "x2": m(96, 128)}, lambda x1, x2: x1 @ x2.t(), {"transpose_x2": True}, 1),
    (
        "MatMulV2",
        lambda m: {"x1": m(33, 65), "x2": m(65, 17), "bias": m(17)},
        lambda x1, x2, bias: bias.addmm(x1, x2),
        {},
        1,
    ),
    ("BatchMatMul", lambda m: {"x1": m(4, 33, 65), "x2": m(4, 65, 17)}, lambda x1, x2: x1.bmm(x2), {}, 1),
    ("SoftmaxV2", lambda m: {"x": m(9, 67)}, lambda x: x.softmax(-1), {}, 1),
    ("LogSoftmaxV2", lambda m: {"logits": m(9, 67)}, lambda logits: logits.log_softmax(-1), {}, 1),
    (
        "LayerNormV4",
        lambda m: {"x": m(9, 67), "normalized_shape": torch.tensor([67]), "gamma": m(67), "beta": m(67)},
        lambda x, normalized_shape, gamma, beta: torch.native_layer_norm(x, [67], gamma, beta, 1e-5),
        {},
        3,
    ),
    (
        "GroupNormV2",
        lambda m: {"x": m(2, 6, 9, 5), "gamma": m(6), "beta": m(6)},
        lambda x, gamma, beta: torch.native_group_norm(x, gamma, beta, 2, 6, 45, 3, 1e-5),
        {"num_groups": 3},
        3,
    ),
    (
        "BNInfer",
        lambda m: {k: m(3) for k in ("scale", "offset", "mean")} | {"variance": m(3, low=1), "x": m(2, 3, 9, 5)},
        lambda scale, offset, mean, variance, x: aten._native_batch_norm_legit_no_training(
            x, scale, offset, mean, variance, 0.1, 1e-5
        )[0],
        {"epsilon": 1e-5},
        1,
    ),
    (
        "Conv2D",
        lambda m: {"x": m(2, 4, 9, 8), "filter": m(6, 4, 3, 2), "bias": m(6)},
        lambda x, filter, bias: torch.conv2d(x, filter, bias, [1, 2], [1, 0]),
        ROWS,
        1,
    ),
    (
        "MaxPoolWithArgmaxV3",
        lambda m: {"x": m(2, 4, 9, 8)},
        lambda x: torch.nn.functional.max_pool2d(x, 3, 2, 1, return_indices=True),
        {"ksize": [3, 3], "strides": [2, 2], "pads": [1, 1], "dtype": 9},
        2,
    ),
    (
        "AdaptiveAvgPool2d",
        lambda m: {"x": m(2, 4, 9, 8)},
        lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 3),
        {"output_size": [3, 3]},
        1,
    ),
    ("TanhGrad", lambda m: {"y": m(67), "dy": m(67)}, lambda y, dy: aten.tanh_backward(dy, y), {}, 1),
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("ge_type", "make", "eager", "attrs", "count"), EAGER, ids=[row[0] for row in EAGER])
def test_equals_eager_bit_for_bit(
    ge_type: str, make: Any, eager: Any, attrs: dict[str, Any], count: int, dtype: str
) -> None:
    inputs = make(Make(dtype))
    if inputs[next(iter(inputs))].dtype in matmul.WIDENED and ge_type in (
        "MatMul",
        "MatMulV2",
        "BatchMatMul",
        "Conv2D",
    ):
        pytest.skip("this CPU multiplies such halves in float32")
    wanted = eager(**inputs)
    results = _run(ge_type, inputs, tuple(f"y{i}" for i in range(count)), **attrs)
    for result, expected in zip(results, [wanted] if count == 1 else wanted, strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_grouped_matmul_equals_aten_grouped_mm(dtype: str) -> None:
    m = Make(dtype)
    x, weight, ends = m(9, 16), m(3, 16, 8), torch.tensor([2, 2, 9])
    inputs = {"x": [x], "weight": [weight], "group_list": ends}
    result = _run("GroupedMatmul", inputs, ("y0",), split_item=3, group_type=0)[0]
    assert torch.equal(result, torch._grouped_mm(x, weight, offs=ends.int()))


# -- CPUs without products of halves ---------------------------------------------------------------------

PRODUCTS = [*matmul_cases.CASES, *grouped_cases.CASES, *conv_cases.CASES]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_in_float32_where_the_cpu_has_no_half_products(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every = frozenset({torch.float16, torch.bfloat16})
    for name in ("matmul", "conv"):
        monkeypatch.setattr(f"npu_fused_graph.engine.kernels.{name}.WIDENED", every)
    for case in PRODUCTS:
        if dtype in case.dtypes:
            run_case(case, dtype)


@pytest.mark.parametrize("depth", [7, 1024, 1025])
def test_int8_products_are_exact_where_torch_saturates(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_EXACT_INT_MM", False)
    left = torch.full((3, depth), -128, dtype=torch.int8)
    right = torch.full((depth, 2), -128, dtype=torch.int8)
    right[0] = 1
    wanted = torch.full((3, 2), (depth - 1) * 16384 - 128, dtype=torch.int32)
    assert torch.equal(_run("MatMulV2", {"x1": left, "x2": right})[0], wanted)


def test_wide_half_product_rounds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "WIDENED", frozenset({torch.float16}))
    m = Make("float16")
    x1, x2, bias = m(24, 64), m(64, 24), m(24)
    wanted = (x1.float() @ x2.float() + bias.float()).half()
    assert torch.equal(_run("MatMulV2", {"x1": x1, "x2": x2, "bias": bias})[0], wanted)


# -- writes in place -------------------------------------------------------------------------------------


def test_rotary_embedding_writes_into_the_callers_tensors() -> None:
    m = Make("float16")
    inputs = {"query": m(2, 3, 4, 8), "key": m(2, 3, 2, 8), "cos": m(2, 3, 1, 8), "sin": m(2, 3, 1, 8)}
    query, key = inputs["query"].clone(), inputs["key"].clone()
    results = _run("ApplyRotaryPosEmb", inputs, ("query", "key"))
    for before, after, result in zip((query, key), (inputs["query"], inputs["key"]), results, strict=True):
        assert not torch.equal(after, before)
        assert torch.equal(after, result)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_touches_running_statistics_only_in_training(training: bool) -> None:
    m = Make("float32")
    inputs = {"x": m(4, 3, 2, 2), "weight": m(3), "bias": m(3), "running_mean": m(3), "running_var": m(3, low=1)}
    before = inputs["running_mean"].clone()
    _run("BatchNormV3", inputs, norm_cases.FIVE, is_training=training)
    assert torch.equal(inputs["running_mean"], before) is not training


# -- refused forms ---------------------------------------------------------------------------------------

SAMPLES = {
    case.id(): case
    for module in (
        matmul_cases,
        grouped_cases,
        grouped_moe_cases,
        dequant_swiglu_cases,
        quant_matmul_cases,
        norm_cases,
        nn_cases,
        conv_cases,
        attention_cases,
        moe_cases,
        quant_cases,
        grad_cases,
    )
    for case in module.CASES
}
UNSUPPORTED_ATTRS = [
    ("MatMulV2", "offset_x", 1),
    ("MatMulV3", "offset_x", 1),
    ("BatchMatMulV2", "offset_x", 1),
    ("BatchMatMulV3", "offset_x", 1),
    ("GroupedMatmul-no_groups", "act_type", 3),
    ("GroupedMatmul-no_groups", "group_type", 1),
    ("SoftmaxV2", "axes", [0, 1]),
    ("LogSoftmaxV2", "axes", [0, 1]),
    ("GroupNorm", "is_training", False),
    ("GroupNormV2", "is_training", False),
    ("RotaryPositionEmbedding", "mode", 3),
    ("ApplyRotaryPosEmb", "layout", 5),
    ("ApplyRotaryPosEmb", "rotary_mode", "spiral"),
    ("MaxPoolWithArgmaxV1", "dtype", 4),
    ("MaxPoolWithArgmaxV3", "data_format", "NHWC"),
    ("AvgPoolV2", "padding_mode", "SAME"),
    ("AvgPoolV2", "pads", [1, 0, 0, 0]),
    ("AvgPoolV2", "data_format", "NHWC"),
    ("ResizeNearestNeighborV2", "align_corners", True),
    ("Conv2D", "data_format", "NHWC"),
    ("Conv2D", "offset_x", 1),
    ("Conv2DTranspose", "pads", [1, 0, 0, 0]),
    ("FusedInferAttentionScore-mask", "sparse_mode", 5),
    ("FusedInferAttentionScore-mask", "input_layout", "SH"),
    ("FusedInferAttentionScore-mask", "pse_type", 1),
    ("PromptFlashAttention", "input_layout", "SH"),
    ("QuantBatchMatmulV3", "dtype", 0),
    ("QuantBatchMatmulV4", "group_size", 128),
    ("TransposeBatchMatMul", "perm_y", [0, 1, 2]),
    ("DynamicQuant", "dst_type", 3),
    ("DynamicQuantV2", "quant_mode", "pertensor"),
    ("DynamicBlockQuant", "row_block_size", 128),
    ("DequantSwigluQuant-dynamic", "activate_dim", 0),
    ("DequantSwigluQuant-dynamic", "swiglu_mode", 4),
    ("GroupedMatmulFinalizeRouting-counts_shared", "group_list_type", 2),
    ("GroupedMatmulSwigluQuantV2-ends", "quant_mode", 1),
    ("AscendQuantV2", "round_mode", "up"),
    ("AscendQuantV2", "axis", 0),
    ("MoeFinalizeRoutingV2", "drop_pad_mode", 4),
    ("HardSigmoidGrad", "alpha", 0.2),
    ("SigmoidGrad", "complex_conj", True),
    ("TanhGrad", "complex_conj", True),
    ("AvgPoolV2Grad", "data_format", "NHWC"),
    ("ResizeNearestNeighborV2Grad", "align_corners", True),
]


@pytest.mark.parametrize(("sample", "name", "value"), UNSUPPORTED_ATTRS)
def test_unsupported_attribute_fails_the_load_by_name(sample: str, name: str, value: Any) -> None:
    case = SAMPLES[sample]
    case = OpCase(case.ge_type, case.inputs, case.expected, case.attrs | {name: value}, case.outputs, case.dtypes)
    graph, _ = build_graph(case, case.inputs(Make(case.dtypes[0])))
    with pytest.raises(UnsupportedOpError, match=rf"{case.ge_type}.*{name}"):
        compile_graph(graph)


UNSUPPORTED_INPUTS = [
    ("MatMulV2-large_float_bias", "offset_w"),
    ("Conv2D", "offset_w"),
    ("TransposeBatchMatMul", "bias"),
    ("QuantBatchMatmulV4", "y_scale"),
    ("GroupedMatmulSwigluQuantV2-ends", "bias"),
    ("FusedInferAttentionScore-bsh", "quant_scale1"),
    ("FusedInferAttentionScore-bsh", "q_start_idx"),
    ("PromptFlashAttention", "deq_scale1"),
    ("IncreFlashAttention", "dequant_scale1"),
]


@pytest.mark.parametrize(("sample", "name"), UNSUPPORTED_INPUTS)
def test_unsupported_input_is_refused_by_name(sample: str, name: str) -> None:
    case = SAMPLES[sample]
    inputs = case.inputs(Make(case.dtypes[0])) | {name: torch.ones(1)}
    with pytest.raises(UnsupportedOpError, match=rf"{case.ge_type}\.{name}: expected the input left out"):
        _run(case.ge_type, inputs, case.outputs, **case.attrs)


@pytest.mark.parametrize(("k", "groups", "most"), [(9, {}, 8), (0, {}, 8), (3, {"k_group": 1, "group_count": 4}, 2)])
def test_no_more_experts_are_chosen_than_there_are(k: int, groups: dict[str, int], most: int) -> None:
    with pytest.raises(ExecutionError, match=rf"MoeGatingTopK\.k: expected 1 to {most}"):
        _run("MoeGatingTopK", {"x": torch.rand(2, 8)}, ("y", "expert_idx", "out"), k=k, **groups)


def test_triangle_modes_want_their_mask() -> None:
    case = SAMPLES["FusedInferAttentionScore-bsh"]
    with pytest.raises(ExecutionError, match="atten_mask: expected a mask with sparse_mode 3"):
        _run(case.ge_type, case.inputs(Make("float16")), case.outputs, **case.attrs | {"sparse_mode": 3})


def test_transposed_convolution_checks_the_shape_it_was_given() -> None:
    case = SAMPLES["Conv2DTranspose-all_attributes"]
    inputs = case.inputs(Make("float32")) | {"input_size": torch.tensor([2, 6, 9, 3], dtype=torch.int32)}
    with pytest.raises(ExecutionError, match=r"Conv2DTranspose\.input_size"):
        _run(case.ge_type, inputs, case.outputs, **case.attrs)


@pytest.mark.parametrize(("mode", "size", "factor"), [(0, 5, 2), (1, 3, 2), (2, 6, 4), (0, 1, 2)])
def test_rotations_want_whole_pairs(mode: int, size: int, factor: int) -> None:
    x = torch.ones(1, 2, 1, size)
    text = f"expected a head size that is a multiple of {factor} in mode .*, got {size}"
    with pytest.raises(ValueError, match=text):
        registry.find("RotaryPositionEmbedding").fn(x, x, x, mode=mode)
