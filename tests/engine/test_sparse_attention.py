"""Sparse attention: what it allocates, parts of the queries, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from npu_fused_graph.engine import compile_graph, registered_types
from npu_fused_graph.engine.kernels import sparse_attention
from npu_fused_graph.errors import ExecutionError, UnsupportedOpError
from tests.engine.allocations import Allocations
from tests.engine.cases.sparse_attention_cases import CASES
from tests.engine.op_case import Make, OpCase, build_graph, run_case

SAMPLES = {case.id(): case for case in CASES}
PAGED = ("key", "value", "key_rope", "key_dequant_scale")


@pytest.mark.parametrize("name", [name for name in SAMPLES if "PA_BSND" in name])
def test_blocks_of_no_sequence_cost_nothing(name: str) -> None:
    case = SAMPLES[name]
    inputs = case.inputs(Make(case.dtypes[0]))
    long = dict(inputs)
    for key in PAGED:
        if inputs.get(key) is not None:
            long[key] = torch.cat((inputs[key], inputs[key].new_zeros(500, *inputs[key].shape[1:])))
    largest, results = [], []
    for given in (inputs, long):
        caches = [given[key] for key in PAGED if given.get(key) is not None]
        with Allocations(caches) as seen:
            found = registered_types()[case.ge_type].fn(**given, **case.attrs)
        largest.append(seen.largest)
        results.append([found] if isinstance(found, Tensor) else list(found))
    assert largest[0] == largest[1]
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("name", SAMPLES)
def test_queries_in_parts_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_attention, "_AT_ONCE", 1)
    run_case(SAMPLES[name], "float16")


REFUSED = [
    ("LightningIndexer-BSND-BSND-4", {}, {"pre_tokens": 3}, "pre_tokens"),
    ("LightningIndexer-BSND-BSND-4", {}, {"sparse_mode": 1}, "sparse_mode"),
    ("LightningIndexer-BSND-BSND-4", {}, {"layout_query": "BNSD"}, "layout_query"),
    ("LightningIndexer-BSND-BSND-4", {"key": torch.ones(2, 7, 2, 16).half()}, {}, "key: expected keys of one head"),
    ("LightningIndexer-TND-PA_BSND-3", {"block_table": None}, {}, "block_table: expected one"),
    (
        "LightningIndexer-TND-PA_BSND-3",
        {"actual_seq_lengths_key": None},
        {},
        "actual_seq_lengths_key: expected lengths",
    ),
    ("LightningIndexer-TND-PA_BSND-3", {"actual_seq_lengths_query": None}, {}, "lengths_query: expected lengths"),
    ("LightningIndexer-TND-PA_BSND-3", {"actual_seq_lengths_key": torch.tensor([1])}, {}, "_key: expected 2 sequences"),
    ("QuantLightningIndexer-TND-PA_BSND-3", {"query": torch.ones(5, 3, 16).half()}, {}, "query: expected torch.int8"),
    ("QuantLightningIndexer-TND-PA_BSND-3", {}, {"key_quant_mode": 1}, "key_quant_mode"),
    ("SparseFlashAttention-TND-PA_BSND", {"query_rope": None}, {}, "query_rope: expected query_rope and key_rope"),
    ("SparseFlashAttention-TND-PA_BSND", {"sinks": torch.ones(3)}, {}, "sinks: expected the input left out"),
    ("SparseFlashAttention-TND-PA_BSND", {}, {"attention_mode": 0}, "attention_mode"),
    ("KvQuantSparseFlashAttention-TND-PA_BSND", {}, {"tile_size": 4}, r"key: expected int8 with 16 \+ 16 \+ 16"),
    ("KvQuantSparseFlashAttention-TND-PA_BSND", {}, {"quant_scale_repo_mode": 0}, "quant_scale_repo_mode"),
]


@pytest.mark.parametrize(("sample", "inputs", "attrs", "text"), REFUSED)
def test_what_is_not_covered_is_refused_by_name(
    sample: str, inputs: dict[str, Any], attrs: dict[str, Any], text: str
) -> None:
    case = SAMPLES[sample]
    case = OpCase(case.ge_type, case.inputs, case.expected, case.attrs | attrs, case.outputs, case.dtypes)
    graph, data = build_graph(case, case.inputs(Make("float16")) | inputs)
    with pytest.raises((UnsupportedOpError, ExecutionError), match=f"{case.ge_type}.*{text}"):
        compile_graph(graph).run(data)
