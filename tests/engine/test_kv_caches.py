"""Kernels that write KV caches: in the caller's memory, only the rows they are told to; and what they refuse."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from npu_fused_graph.engine import compile_graph, registered_types
from npu_fused_graph.errors import ExecutionError, UnsupportedOpError
from tests.engine.op_case import Make, OpCase, build_graph

SAMPLES: dict[str, OpCase] = {
    case.id(): case
    for module in ("rope_cases",)
    for case in importlib.import_module(f"tests.engine.cases.{module}").CASES
}
CACHES = {"KvRmsNormRopeCache": ("k_cache", "ckv_cache")}
WRITERS = [name for name, case in SAMPLES.items() if case.ge_type in CACHES]


class Allocations(TorchDispatchMode):
    """Sizes of what operators allocate, and the operators that write into ``caches``."""

    def __init__(self, caches: list[Tensor]) -> None:
        super().__init__()
        self.caches = {cache.untyped_storage()._cdata for cache in caches}
        self.largest = 0
        self.writers: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if not isinstance(x, Tensor):
                continue
            if x.untyped_storage()._cdata not in self.caches:
                self.largest = max(self.largest, x.untyped_storage().nbytes())
            elif func._schema.is_mutable:
                self.writers.add(func._schema.name)
        return result


def lengthened(case: OpCase, cache: Tensor) -> Tensor:
    """With four thousand times as many blocks, or places per batch."""
    if case.attrs.get("cache_mode") == "Norm" and case.ge_type == "KvRmsNormRopeCache":
        return torch.zeros(*cache.shape[:2], 4000 * cache.shape[2], cache.shape[3], dtype=cache.dtype)
    return torch.zeros(4000 * cache.shape[0], *cache.shape[1:], dtype=cache.dtype)


@pytest.mark.parametrize("name", WRITERS)
def test_caches_are_the_callers_and_their_length_costs_nothing(name: str) -> None:
    """What is written into them goes there by index, and nothing that grows with them is allocated."""
    case = SAMPLES[name]
    names = CACHES[case.ge_type]
    inputs = case.inputs(Make(case.dtypes[0]))
    long = {key: lengthened(case, value) if key in names else value for key, value in inputs.items()}
    largest = []
    for given in (inputs, long):
        before = [given[key].clone() for key in names]
        with Allocations([given[key] for key in names]) as seen:
            results = registered_types()[case.ge_type].fn(**given, **case.attrs)
        assert seen.writers == {"aten::index_put_"}
        largest.append(seen.largest)
        for key, old, result in zip(names, before, (results[case.outputs.index(key)] for key in names), strict=True):
            assert result is given[key]
            assert not torch.equal(result, old)
    assert largest[0] == largest[1]


REFUSED = [
    ("KvRmsNormRopeCache-Norm-1", {"v": torch.ones(2, 1, 3, 8)}, {}, "v: expected the input left out"),
    ("KvRmsNormRopeCache-Norm-1", {}, {"cache_mode": "PA_BSND"}, "cache_mode"),
    ("KvRmsNormRopeCache-Norm-1", {"kv": torch.ones(2, 1, 3, 90).half()}, {}, r"kv: expected 32 \+ 64 elements"),
    ("KvRmsNormRopeCache-Norm-1", {"c_kv_scale": torch.ones(32)}, {}, "ckv_cache: expected int8 with a scale"),
    ("KvRmsNormRopeCache-PA_BNSD-Kc-kv-1", {"k_rope_scale": None}, {}, "k_cache: expected int8 with a scale"),
    ("KvRmsNormRopeCache-PA-1", {"index": torch.tensor([0, 1, 2, 3, 4, 128])}, {}, "out of bounds"),
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
    graph, data = build_graph(case, case.inputs(Make("float16")) | inputs)
    with pytest.raises((UnsupportedOpError, ExecutionError), match=f"{case.ge_type}.*{text}"):
        compile_graph(graph).run(data)


def test_float32_is_refused() -> None:
    case = SAMPLES["KvRmsNormRopeCache-PA-1"]
    graph, data = build_graph(case, case.inputs(Make("float32")))
    with pytest.raises(ExecutionError, match="kv: expected float16 or bfloat16"):
        compile_graph(graph).run(data)
