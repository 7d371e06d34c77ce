"""Calls of operators with inputs made from a seed, many of them as one graph, and how their results are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from npu_fused_graph.testing import TOLERANCE, assert_close

FLOATS = ("float32", "float16", "bfloat16")


class Make:
    """Makes inputs of the dtype under test. ``make(2, 3)``: small values of any sign, no ties, no zeros."""

    def __init__(self, dtype: str, seed: int = 0) -> None:
        self.dtype = getattr(torch, dtype)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, low: float = -3.0, high: float = 3.0) -> Tensor:
        """Uniform in [low, high); whole numbers (never 0) for integer dtypes; coin flips for bool."""
        x = torch.rand(shape, generator=self.generator, dtype=torch.float64) * (high - low) + low
        if self.dtype is torch.bool:
            return x > (low + high) / 2
        if not self.dtype.is_floating_point:
            x = x.round()
            x = torch.where(x == 0, torch.ones_like(x), x)
        return x.to(self.dtype)

    def ints(self, *shape: int, low: int, high: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Whole numbers in [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator).to(dtype)


class Call:
    """Arguments of one call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs


@dataclass(frozen=True)
class Sample:
    """One call of ``op``. build(make) gives its arguments in the dtype under test.

    wide: also compare with the same call on float64 inputs; off where a rounding changes the answer, or where float64
    is not supported. exact: eager must be met bit for bit. scale: multiplies the tolerance: about the number of
    roundings in the chain, or the growth of the sums in it.
    """

    op: Any
    build: Callable[[Make], Call]
    dtypes: tuple[str, ...] = FLOATS
    name: str = ""
    wide: bool = True
    exact: bool = False
    scale: float = 1.0

    def id(self) -> str:
        return f"{self.op}-{self.name}" if self.name else str(self.op)


class OpCalls(torch.nn.Module):
    """Calls of ops as one function of all their tensors: one compilation covers many samples and their dtypes.

    Written out as a torch.fx graph: Dynamo has nothing but the calls to trace, and their numbers are constants even
    with dynamic=True.
    """

    def __init__(self, calls: list[tuple[Any, Call]]) -> None:
        super().__init__()
        graph = torch.fx.Graph()
        leaves = [pytree.tree_flatten((call.args, call.kwargs)) for _, call in calls]
        self.tensors = [x for items, _ in leaves for x in items if isinstance(x, torch.Tensor)]
        inputs = iter([graph.placeholder(f"x{i}") for i in range(len(self.tensors))])
        results = []
        for (op, _), (items, spec) in zip(calls, leaves, strict=True):
            filled = [next(inputs) if isinstance(x, torch.Tensor) else x for x in items]
            results.append(graph.call_function(op, *pytree.tree_unflatten(filled, spec)))
        graph.output(results)
        self._calls = torch.fx.GraphModule(self, graph)

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self._calls(*tensors)


BATCH = 10
"""Samples that share a graph."""


def batches_of(samples: list[Sample]) -> list[list[Sample]]:
    """Batches in which no op comes twice, so that each sample's own op is seen to be converted."""
    batches: list[list[Sample]] = []
    for sample in samples:
        room = (b for b in batches if len(b) < BATCH and all(other.op != sample.op for other in b))
        batch = next(room, None)
        if batch is None:
            batches.append(batch := [])
        batch.append(sample)
    return batches


def compare(actual: Any, expected: Any, sample: Sample, dtype: str, *, is_eager: bool = True) -> None:
    """Raise AssertionError unless the results agree. is_eager: expected are eager's, which have the same dtypes."""
    results, wanted = pytree.tree_leaves(actual), pytree.tree_leaves(expected)
    _require(len(results) == len(wanted), f"{dtype}: expected {len(wanted)} results, got {len(results)}")
    for result, want in zip(results, wanted, strict=True):
        _require(result.shape == want.shape, f"{dtype}: expected shape {want.shape}, got {result.shape}")
        if result.is_complex():
            result, want = torch.view_as_real(result), torch.view_as_real(want.resolve_conj())
        same = not is_eager or result.dtype == want.dtype
        _require(same, f"{dtype}: expected a result of {want.dtype}, got {result.dtype}")
        if is_eager and sample.exact:
            _require(torch.equal(result, want), f"{dtype}: expected eager's bits, got others")
        elif is_eager or result.dtype in TOLERANCE:
            assert_close(result, want, scale=sample.scale, message=dtype)


def _require(is_so: bool, text: str) -> None:
    if not is_so:
        raise AssertionError(text)


def widened(call: Call) -> Call:
    """The same call on float64."""
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, (call.args, call.kwargs)
    )
    return Call(*args, **kwargs)


def check_values(sample: Sample, calls: list[Call], results: list[Any]) -> None:
    """calls, results: one for each of the sample's dtypes from the first on, or for fewer of them."""
    for call, dtype, result in zip(calls, sample.dtypes[: len(calls)], results, strict=True):
        compare(result, sample.op(*call.args, **call.kwargs), sample, dtype)
        if sample.wide and getattr(torch, dtype).is_floating_point:
            wide = widened(call)
            compare(result, sample.op(*wide.args, **wide.kwargs), sample, dtype, is_eager=False)
