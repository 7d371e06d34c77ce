"""Our aten converters: values against eager and float64, need, and legality of the GE ops they emit."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import npu_fused_graph as nfg
from npu_fused_graph.testing import TOLERANCE, assert_close
from tests.converters.aten_samples import SAMPLES, Call, Sample
from tests.engine.op_case import Make

aten = torch.ops.aten


@pytest.fixture(scope="module")
def backend() -> Callable[..., Any]:
    return nfg.get_npu_backend()


def as_function(op: Any, call: Call) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """``op`` as a function of the tensors of ``call``, and these tensors."""
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def call_op(*values: torch.Tensor) -> Any:
        filled = list(leaves)
        for place, value in zip(places, values, strict=True):
            filled[place] = value
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return op(*args, **kwargs)

    return call_op, tensors


def run_compiled(fn: Callable[..., Any], tensors: list[torch.Tensor], backend: Any, *, dynamic: bool = False) -> Any:
    torch._dynamo.reset()
    with torch.no_grad():
        return torch.compile(fn, backend=backend, dynamic=dynamic, fullgraph=True)(*tensors)


def compare(actual: Any, expected: Any, sample: Sample, *, same_dtype: bool = True) -> None:
    results, wanted = pytree.tree_leaves(actual), pytree.tree_leaves(expected)
    assert len(results) == len(wanted)
    for result, want in zip(results, wanted, strict=True):
        assert result.shape == want.shape
        assert not same_dtype or result.dtype == want.dtype
        if sample.exact and same_dtype:
            assert torch.equal(result, want), (result, want)
        elif same_dtype or result.dtype in TOLERANCE:
            assert_close(result, want, scale=sample.scale)


def widened(call: Call) -> Call:
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, (call.args, call.kwargs)
    )
    return Call(*args, **kwargs)


def cases(samples: list[Sample]) -> list[Any]:
    return [pytest.param(s, d, id=f"{s.id()}-{d}") for s in samples for d in s.dtypes]


@pytest.mark.parametrize(("sample", "dtype"), cases(SAMPLES))
def test_values(sample: Sample, dtype: str, backend: Any) -> None:
    call = sample.build(Make(dtype))
    fn, tensors = as_function(sample.op, call)
    result = run_compiled(fn, tensors, backend)
    compare(result, fn(*tensors), sample)
    if sample.wide and getattr(torch, dtype).is_floating_point:
        wide, wide_tensors = as_function(sample.op, widened(call))
        compare(result, wide(*wide_tensors), sample, same_dtype=False)
