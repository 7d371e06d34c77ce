"""Our aten converters: values against eager and float64, use, need, and legality of the GE ops they emit.

That TorchAir's own gelu converter has its defect is shown in tests/test_defects.py (T5).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

import npu_fused_graph as nfg
from npu_fused_graph.converters.aten import CONVERTERS
from npu_fused_graph.ir.reg_op import IrDef, read_ir_defs
from npu_fused_graph.testing import TOLERANCE, assert_close
from tests.converters.aten_samples import SAMPLES, TAKEN_APART, Call, Sample
from tests.converters.recorder import Emitted, recording
from tests.engine.op_case import Make

aten = torch.ops.aten


@pytest.fixture(scope="module")
def backend() -> Any:
    return nfg.get_npu_backend()


@pytest.fixture(scope="module")
def ir_defs(torchair_folder: Path) -> dict[str, IrDef]:
    return read_ir_defs(torchair_folder)


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class OpCalls:
    """Several calls of one op as one function of all their tensors: one compilation covers all dtypes."""

    def __init__(self, op: Any, calls: list[Call]) -> None:
        self.op = op
        leaves = [pytree.tree_flatten((call.args, call.kwargs)) for call in calls]
        self._leaves = [items for items, _ in leaves]
        self._specs = [spec for _, spec in leaves]
        self._places = [[i for i, x in enumerate(items) if isinstance(x, torch.Tensor)] for items in self._leaves]
        self.tensors = [items[i] for items, places in zip(self._leaves, self._places, strict=True) for i in places]

    def __call__(self, *tensors: torch.Tensor) -> list[Any]:
        results, start = [], 0
        for leaves, spec, places in zip(self._leaves, self._specs, self._places, strict=True):
            filled = list(leaves)
            for place in places:
                filled[place] = tensors[start]
                start += 1
            args, kwargs = pytree.tree_unflatten(filled, spec)
            results.append(self.op(*args, **kwargs))
        return results


def compiled(fn: Callable[..., Any], backend: Any, *, dynamic: bool = False) -> Callable[..., Any]:
    return torch.no_grad()(torch.compile(fn, backend=backend, dynamic=dynamic, fullgraph=True))


def compare(actual: Any, expected: Any, sample: Sample, dtype: str, *, is_eager: bool = True) -> None:
    results, wanted = pytree.tree_leaves(actual), pytree.tree_leaves(expected)
    assert len(results) == len(wanted)
    for result, want in zip(results, wanted, strict=True):
        assert result.shape == want.shape, dtype
        assert not is_eager or result.dtype == want.dtype, dtype
        if is_eager and sample.exact:
            assert torch.equal(result, want), dtype
        elif is_eager or result.dtype in TOLERANCE:
            assert_close(result, want, scale=sample.scale, message=dtype)


def widened(call: Call) -> Call:
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, (call.args, call.kwargs)
    )
    return Call(*args, **kwargs)


def check_values(sample: Sample, calls: list[Call], results: list[Any]) -> None:
    for call, dtype, result in zip(calls, sample.dtypes, results, strict=True):
        compare(result, sample.op(*call.args, **call.kwargs), sample, dtype)
        if sample.wide and getattr(torch, dtype).is_floating_point:
            wide = widened(call)
            compare(result, sample.op(*wide.args, **wide.kwargs), sample, dtype, is_eager=False)


BF16_OF_STOCK = {"Identity", "Maximum", "Minimum", "Muls", "ReverseV2", "Round", "Shape", "TensorMove"}
"""Types whose texts do not list bfloat16; TorchAir's own converters, which ours build on, emit them with it."""


def check_legal(emitted: Emitted, ir_defs: dict[str, IrDef]) -> None:
    """Every type exists in the REG_OP texts, takes the dtypes it got, and gives the dtypes its converter declared."""
    assert emitted.types - {"Data", "Const", "NetOutput"} <= set(ir_defs)
    for ge_type, name, dtype in emitted.inputs:
        inputs = {p.name: p for p in ir_defs[ge_type].inputs}
        legal = (inputs.get(name) or inputs[name.rstrip("0123456789")]).dtypes
        if not legal or legal == {"bool"}:  # "bool" alone: what is left of "BasicType(), DT_BOOL"
            continue
        allowed = str(dtype).removeprefix("torch.") in legal or (dtype is torch.bfloat16 and ge_type in BF16_OF_STOCK)
        assert allowed, (ge_type, name, dtype)
    assert not emitted.disagreements


@contextmanager
def used_converters() -> Iterator[set[Any]]:
    """The ops of ours whose converter ran inside."""
    used: set[Any] = set()
    originals = {op: op._ge_converter for op in CONVERTERS}

    def logged(op: Any, original: Any) -> Any:
        def convert(*args: Any, **kwargs: Any) -> Any:
            used.add(op)
            return original(*args, **kwargs)

        convert.require_meta = original.require_meta
        return convert

    try:
        for op, original in originals.items():
            op._ge_converter = logged(op, original)
        yield used
    finally:
        for op, original in originals.items():
            op._ge_converter = original


@pytest.mark.parametrize("sample", [pytest.param(s, id=s.id()) for s in SAMPLES])
def test_values(sample: Sample, backend: Any, ir_defs: dict[str, IrDef]) -> None:
    calls = [sample.build(Make(dtype)) for dtype in sample.dtypes]
    fn = OpCalls(sample.op, calls)
    with recording() as emitted, used_converters() as used:
        results = compiled(fn, backend)(*fn.tensors)
    assert sample.op in used
    check_values(sample, calls, results)
    check_legal(emitted, ir_defs)


@pytest.mark.parametrize("sample", [pytest.param(s, id=s.id()) for s in TAKEN_APART])
def test_taken_apart_by_torch(sample: Sample, backend: Any) -> None:
    assert sample.op not in CONVERTERS
    calls = [sample.build(Make(dtype)) for dtype in sample.dtypes]
    fn = OpCalls(sample.op, calls)
    check_values(sample, calls, compiled(fn, backend)(*fn.tensors))


STATIC_ONLY = {
    "_unsafe_masked_index": "",
}


@pytest.mark.parametrize("sample", [pytest.param(s, id=s.id()) for s in SAMPLES if s.name == ""])
def test_values_with_symbolic_sizes(sample: Sample, backend: Any) -> None:
    calls = [sample.build(Make(dtype)) for dtype in sample.dtypes]
    fn = OpCalls(sample.op, calls)
    check_values(sample, calls, compiled(fn, backend, dynamic=True)(*fn.tensors))
