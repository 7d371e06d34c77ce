"""Cures in refusals can be followed: each is written down here as what the reader would do, and that call is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.errors import InvalidArgumentError
from tests.ops import grouped_constraint_cases as grouped
from tests.ops.constraint_cases import good, half, int8

pytestmark = pytest.mark.usefixtures("one_rank")


def words(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def integers(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


UNPACK = "Unpack it: unpack_quant_param(dequant_scale)[0].bfloat16()."
ONE_OR_EACH = "Pass one scale for all columns of x2, or one for each."
ROWS = "Pass one scale, one per column of x2, or one row of n per antiquant_group_size rows of x2."
INTO_INT32 = "Divide it by the unpacked scales, round, convert: it is added to the int32 products."
UNQUANTISED = "Pass it as it was before it was quantised."
HALF_SCALES = half(3, 16) + 1

# valid call, what is wrong with it, cure, what the reader passes then
FOLLOWED: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "packed for bfloat16": ("full_bf16", {"dequant_scale": words(16)}, UNPACK,
                            {"dequant_scale": nfg.unpack_quant_param(words(16))[0].bfloat16()}),
    "uint64 for bfloat16": ("full_bf16", {"dequant_scale": words(1, 16).view(torch.uint64)}, UNPACK,
                            {"dequant_scale": nfg.unpack_quant_param(words(1, 16))[0].bfloat16()}),
    "float32 for bfloat16": ("full_bf16", {"dequant_scale": torch.ones(16)}, "Convert it.",
                             {"dequant_scale": torch.ones(16).bfloat16()}),
    "int32 for bfloat16": ("full_bf16", {"dequant_scale": integers(16)}, "Pass the scales as bfloat16 numbers.",
                           {"dequant_scale": half(16).bfloat16()}),
    "float32 for float16": ("full", {"dequant_scale": torch.ones(16)},
                            "Pack it: npu_trans_quant_param(dequant_scale).",
                            {"dequant_scale": nfg.npu_trans_quant_param(torch.ones(16))}),
    "bfloat16 for float16": ("full", {"dequant_scale": half(16).bfloat16()},
                             "Pack it: npu_trans_quant_param(dequant_scale.float()).",
                             {"dequant_scale": nfg.npu_trans_quant_param(half(16).bfloat16().float())}),
    "int32 for float16": ("full", {"dequant_scale": integers(16)},
                          "Pass the float32 scales through npu_trans_quant_param.",
                          {"dequant_scale": nfg.npu_trans_quant_param(torch.ones(16))}),
    "too few dequant scales": ("full", {"dequant_scale": words(8)}, ONE_OR_EACH, {"dequant_scale": words(1)}),
    "no dequant scale": ("full", {"dequant_scale": words(0)}, ONE_OR_EACH, {"dequant_scale": words(16)}),
    "a column of dequant scales": ("full", {"dequant_scale": words(16, 1)}, "Reshape it.",
                                   {"dequant_scale": words(16, 1).reshape(1, 16)}),
    "one dequant scale in three dims": ("full", {"dequant_scale": words(1, 1, 1)}, "Reshape it.",
                                        {"dequant_scale": words(1, 1, 1).reshape(1)}),
    "too few antiquant scales": ("weight", {"antiquant_scale": half(15)}, ROWS, {"antiquant_scale": half(16)}),
    "a column of antiquant scales": ("weight", {"antiquant_scale": half(16, 1)}, "Reshape it.",
                                     {"antiquant_scale": half(16, 1).reshape(16)}),
    "a matrix of one antiquant scale": ("weight", {"antiquant_scale": half(1, 1)}, "Reshape it.",
                                        {"antiquant_scale": half(1)}),
    "groups without their size": ("weight", {"antiquant_scale": half(2, 16)},
                                  "For 2 groups of k=96 pass the antiquant_group_size they were made with (64).",
                                  {"antiquant_scale": half(2, 16), "antiquant_group_size": 64}),
    "groups of several sizes": ("weight", {"x1": half(2, 4, 960), "x2": int8(960, 16), "antiquant_scale": half(3, 16)},
                                "For 3 groups of k=960 pass the antiquant_group_size they were made with "
                                "(320 to 448).",
                                {"x1": half(2, 4, 960), "x2": int8(960, 16), "antiquant_scale": half(3, 16),
                                 "antiquant_group_size": 448}),
    "groups of two sizes": ("weight", {"x1": half(2, 4, 129), "x2": int8(129, 16), "antiquant_scale": half(2, 16)},
                            "For 2 groups of k=129 pass the antiquant_group_size they were made with (96 to 128).",
                            {"x1": half(2, 4, 129), "x2": int8(129, 16), "antiquant_scale": half(2, 16),
                             "antiquant_group_size": 128}),
    "groups no size makes": ("weight", {"antiquant_scale": half(5, 16)}, ROWS, {"antiquant_scale": half(1, 16)}),
    "groups of another size": ("group", {"antiquant_scale": half(2, 16)},
                               "For 2 groups of k=96 pass the antiquant_group_size they were made with (64).",
                               {"antiquant_scale": half(2, 16), "antiquant_group_size": 64}),
    "columns with a group size": ("group", {"antiquant_scale": half(1, 16)},
                                  "Leave antiquant_group_size out: these are scales per column.",
                                  {"antiquant_scale": half(1, 16), "antiquant_group_size": 0}),
    "groups transposed": ("group", {"antiquant_scale": HALF_SCALES.t()},
                          "Pass its transpose, antiquant_scale.t().", {"antiquant_scale": HALF_SCALES}),
    "groups flat": ("group", {"antiquant_scale": half(48)}, "Reshape it.",
                    {"antiquant_scale": half(48).reshape(3, 16)}),
    "groups of one row too many": ("group", {"antiquant_scale": half(5, 16)}, ROWS, {"antiquant_scale": half(3, 16)}),
    "packed antiquant scales": ("weight", {"antiquant_scale": words(16)}, UNQUANTISED, {"antiquant_scale": half(16)}),
    "float bias of int8 products": ("full_bf16", {"bias": half(16).bfloat16()}, INTO_INT32, {"bias": integers(16)}),
    "int64 bias of int8 products": ("full_bf16", {"bias": words(16)}, "Convert it.", {"bias": words(16).int()}),
    "int32 bias of float products": ("float", {"bias": integers(16)}, UNQUANTISED, {"bias": half(16)}),
    "float32": ("float", {"x1": torch.zeros(2, 4, 96), "x2": torch.zeros(96, 16)}, "Convert them.", {}),
    "float32 with int8": ("weight", {"x1": torch.zeros(2, 4, 96)}, "Convert x1.", {"x1": half(2, 4, 96)}),
    "float16 with int16": ("weight", {"x2": torch.zeros(96, 16, dtype=torch.int16)}, "Quantise x2 to int8.", {}),
    "int8 with float16": ("full", {"x2": half(96, 16)}, "Quantise x2 to int8, too, or leave x1 floating point.", {}),
    "int8 with int4": ("full", {"x2": integers(96, 2)}, "Quantise x2 to int8, too, or leave x1 floating point.", {}),
    "int32 with float16": ("float", {"x1": integers(2, 4, 96)},
                           "Leave x1 floating point, or quantise both to int8.", {}),
    "int8 residual": ("full", {"residual": int8(2, 4, 16)}, "They are never quantised.", {}),
    "float32 residual": ("full", {"residual": torch.zeros(2, 4, 16)}, "Convert them.", {}),
    "nothing": ("float", {"x1": None}, "Pass one.", {}),
}  # fmt: skip


def refused(fn: Any, **arguments: Any) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        fn(**arguments)
    return str(caught.value)


@pytest.mark.parametrize("name", list(FOLLOWED))
def test_cures_of_matmul_all_reduce_add_rms_norm(name: str) -> None:
    scenario, wrong, cure, right = FOLLOWED[name]
    op = nfg.npu_mm_all_reduce_add_rms_norm
    text = refused(op, **good(scenario) | wrong)
    assert text.partition(", got ")[2].partition(". ")[2] == cure, text
    y, _ = op(**good(scenario) | right)
    assert y.shape == (2, 4, 16)


def test_a_bias_divided_by_the_scales_is_the_bias() -> None:
    scale, bias = torch.tensor([0.5]), torch.arange(16.0)
    call = good("full") | {"x1": int8(2, 4, 96) + 1, "x2": int8(96, 16) + 1}
    call |= {"dequant_scale": nfg.npu_trans_quant_param(scale), "bias": (bias / scale).round().int()}
    assert torch.equal(nfg.npu_mm_all_reduce_add_rms_norm(**call)[0], (48 + bias).half().expand(2, 4, 16))


QUANTISED = "The operator takes no quantised tensors; dequantise it."
GROUPED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bias of another length": ("0", {"bias": [half(4), half(5)]}, "Make n equal in both."),
    "bias of one element": ("0", {"bias": [half(1), half(6)]}, "Make n equal in both."),
    "bias in two dims": ("0", {"bias": [half(1, 4), half(6)]}, "Reshape it."),
    "too few biases": ("0", {"bias": [half(4)]}, "Pass zeros where there is none."),
    "too many biases": ("0", {"bias": [half(4), half(6), half(6)]}, "Leave out those without a group."),
    "one x": ("0", {"x": [half(2, 8)]}, "To split one x by group_list use split_item 1 or 3."),
    "too many x": ("0", {"x": [half(2, 8)] * 3}, "Pass as many x as weights."),
    "int8 x": ("0", {"x": [int8(2, 3, 8), half(5, 16)]}, QUANTISED),
    "int8 weight": ("0", {"weight": [half(8, 4), int8(16, 6)]}, QUANTISED),
    "int32 bias": ("0 bfloat16", {"bias": [integers(4), torch.zeros(6)]}, QUANTISED),
    "float32 x": ("0", {"x": [torch.zeros(2, 3, 8), half(5, 16)]}, "Convert it."),
    "a hole": ("0", {"x": [half(2, 3, 8), None]}, "Pass one."),
}


@pytest.mark.parametrize("name", list(GROUPED))
def test_cures_of_grouped_mat_mul_all_reduce(name: str) -> None:
    kind, wrong, cure = GROUPED[name]
    text = refused(nfg.npu_grouped_mat_mul_all_reduce, **grouped.good(kind) | wrong)
    assert text.partition(", got ")[2].partition(". ")[2] == cure, text


def test_cures_of_the_packers() -> None:
    pack = nfg.npu_trans_quant_param
    assert refused(pack, scale=words(4)).endswith("got int64. If it is packed already, pass it on as it is.")
    assert refused(pack, scale=half(4)).endswith("got float16. Convert it.")
    assert refused(pack, scale=torch.ones(4), offset=words(4)).endswith("got int64. Convert it.")
    assert refused(pack, scale=torch.ones(4), offset=torch.ones(3)).endswith("Pass one offset, or one for each scale.")
    assert refused(pack, scale=torch.ones(4), offset=torch.ones(1, 4)).endswith("got shape [1, 4]. Reshape it.")
    assert refused(nfg.pack_int4, weight=half(4, 8)).endswith("got torch.float16[4, 8]. Quantise it to four bits.")
    assert refused(nfg.pack_int4, weight=int8(4, 7)).endswith("got torch.int8[4, 7]. Pad n with zeros.")
    assert refused(nfg.pack_int4, weight=int8(2, 4, 8)).endswith("Pass one matrix.")
    assert refused(nfg.pack_int4, weight=[1]).endswith("got list. Make it a tensor with torch.as_tensor.")
