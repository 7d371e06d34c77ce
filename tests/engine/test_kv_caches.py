"""Kernels that write KV caches or states: in the caller's memory, only what they are told to; what they refuse."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from npu_fused_graph.engine import compile_graph, registered_types
from npu_fused_graph.errors import ExecutionError, UnsupportedOpError
from npu_fused_graph.testing import assert_close
from tests.engine.allocations import Allocations
from tests.engine.op_case import Make, OpCase, build_graph

SAMPLES: dict[str, OpCase] = {
    case.id(): case
    for module in ("rope_cases", "mla_cases", "scatter_cases", "delta_rule_cases")
    for case in importlib.import_module(f"tests.engine.cases.{module}").CASES
}
CACHES = {
    "KvRmsNormRopeCache": ("k_cache", "ckv_cache"),
    "QkvRmsNormRopeCache": ("k_cache", "v_cache"),
    "ScatterPaKvCache": ("key_cache", "value_cache"),
    "RecurrentGatedDeltaRule": ("state",),
    **dict.fromkeys(("MlaProlog", "MlaPrologV2", "MlaPrologV3"), ("kv_cache", "kr_cache")),
}
WITH_CACHES = [name for name, case in SAMPLES.items() if case.ge_type in CACHES]
OWN = ("BSND", "TND")
"""Cache modes whose caches are as long as the tokens: written whole."""
WRITERS = [name for name in WITH_CACHES if SAMPLES[name].attrs.get("cache_mode") not in OWN]


def lengthened(case: OpCase, cache: Tensor) -> Tensor:
    """With a hundred times as many blocks, or places per batch."""
    if case.attrs.get("cache_mode") == "Norm" and case.ge_type == "KvRmsNormRopeCache":
        return torch.zeros(*cache.shape[:2], 100 * cache.shape[2], cache.shape[3], dtype=cache.dtype)
    return torch.zeros(100 * cache.shape[0], *cache.shape[1:], dtype=cache.dtype)


@pytest.mark.parametrize("name", WRITERS)
def test_caches_are_the_callers_and_their_length_costs_nothing(name: str) -> None:
    """What is written into them goes there by index, and nothing that grows with them is allocated."""
    case = SAMPLES[name]
    names, kernel = CACHES[case.ge_type], registered_types()[case.ge_type]
    attrs = {key: value for key, value in case.attrs.items() if key not in kernel.ignored}
    inputs = case.inputs(Make(case.dtypes[0]))
    long = {key: lengthened(case, value) if key in names else value for key, value in inputs.items()}
    largest = []
    for given in (inputs, long):
        before = [given[key].clone() for key in names]
        with Allocations([given[key] for key in names]) as seen:
            results = kernel.fn(**given, **attrs)
        assert seen.writers == {"aten::index_put_"}
        largest.append(seen.largest)
        for key, old, result in zip(names, before, (results[case.outputs.index(key)] for key in names), strict=True):
            assert result is given[key]
            assert not old.numel() or not torch.equal(result, old)
    assert largest[0] == largest[1]


@pytest.mark.parametrize("alpha", [None, torch.tensor([0.5])])
@pytest.mark.parametrize("mode", ["PA_BSND", "TND"])
def test_a_cache_in_tiles_holds_int8_the_rope_part_and_scales(alpha: Tensor | None, mode: str) -> None:
    """Bytes of a row: elements, rope part in bfloat16, a float32 scale per tile; clipped to alpha of the largest."""
    sample = "MlaPrologV3-1-1-0-TND-7"
    case, tile = SAMPLES[sample], 32
    inputs = case.inputs(Make("bfloat16"))
    plain = case.expected(
        **{k: v.double() if v is not None and v.is_floating_point() else v for k, v in inputs.items()}
    )
    latent, rope = plain[2].flatten(0, -2), plain[3].flatten(0, -2)
    index = torch.tensor([17, 0, -1, 31])
    lead = (4,) if mode == "TND" else (2, 16)
    width = latent.shape[-1] + 2 * rope.shape[-1] + 4 * (latent.shape[-1] // tile)
    cache = torch.full((*lead, 1, width), 99, dtype=torch.int8)
    inputs |= {"kv_cache": cache, "kr_cache": torch.zeros(0, dtype=torch.bfloat16), "k_nope_clip_alpha": alpha}
    inputs["cache_index"] = None if mode == "TND" else index
    attrs = case.attrs | {
        "kv_cache_quant_mode": 3, "ckvkr_repo_mode": 1, "quant_scale_repo_mode": 1, "tile_size": tile,
        "cache_mode": mode,
    }  # fmt: skip
    registered_types()["MlaPrologV3"].fn(**inputs, **attrs)
    rows = cache.view(-1, width)
    if mode == "PA_BSND":
        untouched = [i for i in range(32) if i not in (0, 17, 31)]
        assert (rows[untouched] == 99).all()
        rows, latent, rope = rows[[17, 0, 31]], latent[[0, 1, 3]], rope[[0, 1, 3]]
    values, turned, scales = rows.split(
        (latent.shape[-1], 2 * rope.shape[-1], width - latent.shape[-1] - 2 * rope.shape[-1]), -1
    )
    tiles = latent.unflatten(-1, (-1, tile))
    most = tiles.abs().amax(-1, keepdim=True) * (1 if alpha is None else 0.5)
    assert_close(scales.contiguous().view(torch.float32), most.squeeze(-1) / 127)
    assert_close(turned.contiguous().view(torch.bfloat16), rope)
    exact = tiles.clamp(-most, most) / (most / 127)
    assert (values.unflatten(-1, (-1, tile)) - exact).abs().max() <= 0.5 + 1e-4


REFUSED = [
    ("KvRmsNormRopeCache-Norm-1", {"v": torch.ones(2, 1, 3, 8)}, {}, "v: expected the input left out"),
    ("KvRmsNormRopeCache-Norm-1", {}, {"cache_mode": "PA_BSND"}, "cache_mode"),
    ("KvRmsNormRopeCache-Norm-1", {"kv": torch.ones(2, 1, 3, 90).half()}, {}, r"kv: expected 32 \+ 64 elements"),
    ("KvRmsNormRopeCache-Norm-1", {"c_kv_scale": torch.ones(32)}, {}, "ckv_cache: expected int8 with a scale"),
    ("KvRmsNormRopeCache-PA_BNSD-Kc-kv-1", {"k_rope_scale": None}, {}, "k_cache: expected int8 with a scale"),
    ("KvRmsNormRopeCache-PA-1", {"index": torch.tensor([0, 1, 2, 3, 4, 128])}, {}, "out of bounds"),
    ("MlaProlog-1-0-0-PA_BSND-2", {"quant_scale_ckv": torch.ones(1)}, {}, "quant_scale_ckv: expected none next to bf"),
    ("MlaProlog-1-2-0-PA_NZ-3", {"quant_scale_ckv": torch.ones(1)}, {}, "quant_scale_ckv: expected none next to token"),
    ("MlaProlog-1-2-0-PA_NZ-3", {"dequant_scale_x": None}, {}, "dequant_scale_x: expected a scale next to int8"),
    ("MlaProlog-1-0-0-PA_BSND-2", {"weight_dq": torch.ones(64, 48).to(torch.int8)}, {}, "weight_dq: expected torch.bf"),
    ("MlaProlog-2-1-2-PA_NZ-3", {"quant_scale_ckr": None}, {}, "quant_scale_ckr: expected one next to"),
    (
        "MlaProlog-2-1-2-PA_NZ-3",
        {"kv_cache": torch.zeros(3, 16, 1, 64).bfloat16()},
        {},
        "kv_cache: expected torch.int8",
    ),
    ("MlaPrologV2-1-2-1-PA_NZ-3", {"quant_scale_ckv": torch.ones(1, 64)}, {}, "quant_scale_ckv: expected one element"),
    ("MlaProlog-1-0-0-PA_BSND-2", {}, {"cache_mode": "PA_BLK_NZ"}, "cache_mode"),
    ("MlaPrologV3-2-0-0-PA_BSND-5", {}, {"weight_quant_mode": 3}, "weight_quant_mode"),
    ("MlaPrologV3-2-0-0-PA_BSND-5", {}, {"weight_quant_mode": 2}, "weight_quant_mode: expected 0"),
    ("MlaPrologV3-2-0-0-PA_BSND-5", {}, {"kv_cache_quant_mode": 3}, "kv_cache_quant_mode: expected 0"),
    ("MlaPrologV3-2-0-0-PA_BSND-5", {}, {"query_quant_mode": 1}, "query_quant_mode: expected 0"),
    ("MlaPrologV3-2-0-0-PA_BSND-5", {}, {"ckvkr_repo_mode": 1}, "ckvkr_repo_mode: expected 0"),
    ("MlaPrologV3-2-0-0-PA_BSND-5", {}, {"quant_scale_repo_mode": 1}, "quant_scale_repo_mode: expected 0"),
    ("MlaPrologV3-2-0-0-PA_BSND-5", {"cache_index": None}, {}, "cache_index: expected one"),
    ("MlaPrologV3-2-0-0-PA_BSND-5", {}, {"cache_mode": "TND"}, "kv_cache: expected TND"),
    ("MlaPrologV3-1-0-0-PA_BLK_NZ-6", {"actual_seq_len": None}, {}, "actual_seq_len: expected one"),
    (
        "MlaPrologV3-1-2-0-PA_BSND-5",
        {},
        {"kv_cache_quant_mode": 3, "cache_mode": "PA_NZ"},
        "cache_mode: expected PA_BSND",
    ),
    ("QkvRmsNormRopeCache", {}, {"cache_mode": "PA"}, "cache_mode"),
    ("QkvRmsNormRopeCache", {}, {"head_nums": [2, 2, 2]}, "head_nums: expected 448 / 64 heads in all"),
    ("QkvRmsNormRopeCache", {"v_scale": torch.ones(2, 64)}, {}, "v_cache: expected int8 with a scale"),
    ("RecurrentGatedDeltaRule-1-1-1-g", {"beta": torch.ones(3, 4)}, {}, "expected inputs of one dtype"),
    ("GatherPaKvCache-lengths", {"seq_lens": torch.tensor([1, 5])}, {}, "seq_lens: expected those of 3 sequences"),
    ("GatherPaKvCache-lengths", {}, {"cache_mode": "BNSD"}, "cache_mode"),
    (
        "KvRmsNormRopeCache-PA_NZ-kv-1",
        {"k_cache": torch.zeros(4, 32, 1, 40).half()},
        {},
        "k_cache: expected a multiple of 16",
    ),
]


@pytest.mark.parametrize(("sample", "inputs", "attrs", "text"), REFUSED)
def test_what_is_not_covered_is_refused_by_name(
    sample: str, inputs: dict[str, Any], attrs: dict[str, Any], text: str
) -> None:
    case = SAMPLES[sample]
    case = OpCase(case.ge_type, case.inputs, case.expected, case.attrs | attrs, case.outputs, case.dtypes)
    graph, data = build_graph(case, case.inputs(Make(case.dtypes[0])) | inputs)
    with pytest.raises((UnsupportedOpError, ExecutionError), match=f"{case.ge_type}.*{text}"):
        compile_graph(graph).run(data)


def test_float32_is_refused() -> None:
    case = SAMPLES["KvRmsNormRopeCache-PA-1"]
    graph, data = build_graph(case, case.inputs(Make("float32")))
    with pytest.raises(ExecutionError, match="kv: expected float16 or bfloat16"):
        compile_graph(graph).run(data)
