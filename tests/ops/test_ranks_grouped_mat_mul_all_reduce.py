"""Real ranks: K is sharded, biases add up, and the results are those of the whole problem in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.ops import grouped_mat_mul_all_reduce as op
from npu_fused_graph.testing import assert_close
from tests.ops.gathering import Reducing
from tests.ops.grouped_exact import exact
from tests.ranks import run_ranks, values

K, ROWS = 64, (3, 0, 5)
"""K: of the whole problem; 8 ranks have 8 each. ROWS: of the groups."""
DTYPES = (torch.float16, torch.bfloat16)
BIASES = ("every rank", "rank 0", "none")
FORMS = (0, 1, 2, 3, "stacked")
"""split_item; "stacked": 3 with one (groups, k, n) weight."""
CASES = [(form, dtype, biases) for form in FORMS for dtype in DTYPES for biases in BIASES]
COMPILED = [CASES[6 * form + 3 * dtype + (form + dtype) % 3] for form in range(5) for dtype in range(2)]
"""Every form and dtype, with one kind of bias each."""

Case = tuple[Any, torch.dtype, str]


def whole(form: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The unsharded problem, without bias; the same on every rank."""
    generator = torch.Generator().manual_seed(FORMS.index(form))

    def floats(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    split_item = 3 if form == "stacked" else form
    columns = (6, 6, 6) if split_item in (2, 3) else (6, 3, 9)
    x = [floats(rows, K) for rows in ROWS]
    if split_item == 0:
        x[1] = floats(2, 1, 2, K)
    weight = [floats(K, n, scale=K**-0.5) for n in columns]
    is_split = split_item in (1, 3)
    return {
        "x": [torch.cat(x)] if is_split else x,
        "weight": [torch.stack(weight)] if form == "stacked" else weight,
        "group_list": [3, 3, 8] if is_split else None,
        "split_item": split_item,
    }


def bias_of(problem: dict[str, Any], biases: str, rank: int) -> list[Tensor] | None:
    """Of one rank; the operator adds it on every rank, so rank 0 alone has one and the others zeros."""
    if biases == "none":
        return None
    generator = torch.Generator().manual_seed(1000 + rank)
    dtype = torch.float16 if problem["x"][0].dtype is torch.float16 else torch.float32
    weights = list(problem["weight"][0]) if problem["weight"][0].dim() == 3 else problem["weight"]
    bias = [torch.randn(w.size(-1), generator=generator).to(dtype) for w in weights]
    return [torch.zeros_like(b) for b in bias] if biases == "rank 0" and rank else bias


def shard(case: Case, rank: int, ranks: int) -> dict[str, Any]:
    form, dtype, biases = case
    problem = whole(form, dtype)
    return problem | {
        "x": [x.chunk(ranks, -1)[rank].contiguous() for x in problem["x"]],
        "weight": [w.chunk(ranks, -2)[rank].contiguous() for w in problem["weight"]],
        "bias": bias_of(problem, biases, rank),
    }


def wanted(case: Case, ranks: int) -> list[Tensor]:
    form, dtype, biases = case
    problem = whole(form, dtype)
    added = [bias_of(problem, biases, rank) for rank in range(ranks)]
    total = None if biases == "none" else [torch.stack(parts).double().sum(0) for parts in zip(*added, strict=True)]
    return exact([problem | {"bias": total}])


def _sum(x: Tensor) -> Tensor:
    dist.all_reduce(x)
    return x


def _rank(rank: int, ranks: int, compiled: list[Case]) -> list[Any]:
    """Of each case (results of the operator, those of the graph before fusion), as numpy."""
    results = []
    with torch.no_grad():
        for case in CASES:
            part = shard(case, rank, ranks)
            fused = nfg.npu_grouped_mat_mul_all_reduce(**part, hcomm="0")
            assert all(y.dtype is case[1] for y in fused)
            unfused = op.decompose(**part, rank=Reducing(_sum))
            results.append([[y.float().numpy() for y in found] for found in (fused, unfused)])
            if case in compiled:
                torch._dynamo.reset()
                run = torch.compile(
                    nfg.npu_grouped_mat_mul_all_reduce, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True
                )
                for _ in range(2):  # in the second run the ranks have compared their graphs before
                    again = run(**part, hcomm="0")
                    assert all(torch.equal(a, b) for a, b in zip(again, fused, strict=True)), case
    return results


@pytest.mark.parametrize(
    ("ranks", "compiled"),
    [
        pytest.param(2, COMPILED, id="2"),
        pytest.param(4, COMPILED[3:5], id="4", marks=pytest.mark.slow),
        pytest.param(8, [], id="8", marks=pytest.mark.slow),
        pytest.param(8, COMPILED[-2:], id="8 compiled", marks=pytest.mark.slow),
    ],
)
def test_shards_and_biases_add_up_to_the_whole_problem(ranks: int, compiled: list[Case]) -> None:
    outcomes = values(run_ranks(_rank, ranks, ranks, compiled, limit=170, timeout=100))
    for i, case in enumerate(CASES):
        expected = wanted(case, ranks)
        for outcome in outcomes:
            for found, first in zip(outcome[i], outcomes[0][i], strict=True):
                assert len(found) == len(expected)
                for got, same, want in zip(found, first, expected, strict=True):
                    assert (got == same).all(), "every rank has the same"
                    # each rank rounds its part, gloo each sum of two; values are up to about 3 * sqrt(ranks)
                    assert_close(torch.from_numpy(got).to(case[1]), want, scale=ranks + 4, message=str(case))
        for got, want in zip(*outcomes[0][i], strict=True):
            fused = torch.from_numpy(got).to(case[1])
            assert_close(fused, torch.from_numpy(want).double(), scale=ranks + 2, message=str(case))


# -- ranks that differ ----------------------------------------------------------------------------------------


def _other_groups_on_rank_1(rank: int) -> None:
    """The same total shape, cut elsewhere: sums would land in rows of other groups."""
    x, weight = torch.ones(8, 4).half(), [torch.ones(4, 2).half()] * 2
    nfg.npu_grouped_mat_mul_all_reduce([x], weight, "0", group_list=[3 + 2 * rank, 8], split_item=3)


@pytest.mark.slow
def test_ranks_that_cut_x_differently_are_told() -> None:
    for outcome in run_ranks(_other_groups_on_rank_1, 2):
        assert "CommunicationError" in outcome.error
        assert "float16[3, 2] float16[5, 2]" in outcome.error
        assert "float16[5, 2] float16[3, 2]" in outcome.error


def _other_groups_in_a_graph(rank: int) -> None:
    x, weight = torch.ones(8, 4).half(), [torch.ones(4, 2).half()] * 2

    def model(x: Tensor, weight: list[Tensor]) -> list[Tensor]:
        return nfg.npu_grouped_mat_mul_all_reduce([x], weight, "0", group_list=[3 + 2 * rank, 8], split_item=3)

    run = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
    for _ in range(2):
        with torch.no_grad():
            run(x, weight)


@pytest.mark.slow
def test_graphs_that_cut_x_differently_are_told() -> None:
    """group_list is a constant of the graph, no attribute: only the shapes that are exchanged show it."""
    for outcome in run_ranks(_other_groups_in_a_graph, 2, limit=150, timeout=60):
        assert "float16[3, 2] float16[5, 2]" in outcome.error, outcome.trace
        assert "float16[5, 2] float16[3, 2]" in outcome.error
