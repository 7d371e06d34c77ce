"""Real ranks that do not agree, or of which one is refused: nobody hangs, nobody returns a result silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import npu_fused_graph as nfg
from tests.ranks import Outcome, run_ranks, values

pytestmark = [pytest.mark.xdist_group("bad_grouped"), pytest.mark.slow]

WAIT = 3
"""NFG_TIMEOUT of the ranks: how long one waits for another that never comes."""


def half(*shape: int, value: float = 1.0) -> Tensor:
    return torch.full(shape, value, dtype=torch.float16)


def split(group_list: list[int], k: int = 8, n: int = 4) -> dict[str, Any]:
    """split_item 1 with as many groups as numbers, all of the same width, so that totals are equal."""
    weight = [half(k, n) for _ in group_list]
    return {"x": [half(group_list[-1], 8)], "weight": weight, "group_list": group_list, "split_item": 1}


def joined(group_list: list[int]) -> dict[str, Any]:
    return split(group_list) | {"split_item": 3}


def apart(rows: list[int], split_item: int = 0) -> dict[str, Any]:
    return {"x": [half(m, 8) for m in rows], "weight": [half(8, 4) for _ in rows], "split_item": split_item}


DISAGREEMENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "3 and 7 rows against 7 and 3": (split([3, 10]), split([7, 10])),
    "a group without rows first or last": (split([0, 7]), split([7, 7])),
    "a group without rows more": (split([3, 3, 10]), split([3, 10])),
    "another place of the group without rows": (split([0, 3, 10]), split([3, 3, 10])),
    "one result of the same shape": (joined([3, 10]), joined([7, 10])),
    "one result, a group without rows": (joined([0, 7]), joined([7, 7])),
    "separate x, equal totals": (apart([3, 7]), apart([7, 3])),
    "separate x, one result of the same shape": (apart([3, 7], 2), apart([7, 3], 2)),
    "other totals": (split([3, 10]), split([3, 11])),
    "half as many columns": (split([3, 10]), split([3, 10], n=2)),
}
"""Arguments of rank 0 and of rank 1, each valid by itself."""

Report = list[tuple[str, Any]]
"""Of each call: class and text of its exception, shapes and values of its results."""


Run = Callable[..., Any]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "k": (split([3, 10], k=7), "weight[0]: expected k=8 rows, as x[0] has columns, got 7 rows"),
    "group_list": (
        split([3, 10]) | {"group_list": [3, 9]},
        "group_list: expected numbers that do not decrease and end with x's 10 rows, got [3, 9]",
    ),
}
"""Arguments that are refused, and why."""


def _eager(rank: int) -> tuple[Report, Report]:
    groups = _groups(len(DISAGREEMENTS) + 1 + len(REFUSED))
    run = nfg.npu_grouped_mat_mul_all_reduce
    return _disagree(rank, run, groups), _one_is_refused(rank, run, groups)


def _compiled(rank: int) -> tuple[Report, Report]:
    run = torch.compile(
        nfg.npu_grouped_mat_mul_all_reduce, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True
    )
    return _disagree(rank, run, _groups(len(DISAGREEMENTS) + 1)), _take_turns(rank)


def _groups(count: int) -> list[str]:
    """A call that fails ends its group, so each has its own."""
    return [dist.new_group([0, 1]).group_name for _ in range(count)]


def _disagree(rank: int, run: Run, groups: list[str]) -> Report:
    """The last call is one that works."""
    report = []
    for call in [*(pair[rank] for pair in DISAGREEMENTS.values()), split([3, 3, 10])]:
        torch._dynamo.reset()
        report.append(_outcome(run, call | {"hcomm": groups.pop()}))
        dist.barrier()
    return report


def _one_is_refused(rank: int, run: Run, groups: list[str]) -> Report:
    """Rank 1 is refused, and lives on until rank 0 has given up."""
    report = []
    for wrong, _ in REFUSED.values():
        arguments = wrong if rank == 1 else split([3, 10])
        report.append(_outcome(run, arguments | {"hcomm": groups.pop()}))
        dist.barrier()
    return report


def _take_turns(rank: int) -> Report:
    """Two graphs that differ in their constants alone; in the end rank 0 runs the wrong one."""
    backend = nfg.get_npu_backend()

    def first(x: Tensor, weight: list[Tensor]) -> list[Tensor]:
        return nfg.npu_grouped_mat_mul_all_reduce([x], weight, "0", group_list=[3, 10], split_item=3)

    def second(x: Tensor, weight: list[Tensor]) -> list[Tensor]:
        return nfg.npu_grouped_mat_mul_all_reduce([x], weight, "0", group_list=[7, 10], split_item=3)

    graphs = [torch.compile(f, backend=backend, dynamic=False, fullgraph=True) for f in (first, second)]
    turns = [0, 1, 0, 1, 0, 1 if rank == 0 else 0]
    weight = [half(8, 4), half(8, 4, value=2.0)]
    return [_outcome(graphs[turn], {"x": half(10, 8), "weight": weight}) for turn in turns]


def _outcome(run: Callable[..., Any], arguments: dict[str, Any]) -> tuple[str, Any]:
    error, result = "", None
    try:
        with torch.no_grad():
            result = [(list(y.shape), sorted(set(y.flatten().tolist()))) for y in run(**arguments)]
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    return error, result


@pytest.fixture(scope="module")
def eager() -> list[tuple[Report, Report]]:
    return values(run_ranks(_eager, 2, limit=90, timeout=WAIT))


@pytest.fixture(scope="module")
def compiled() -> list[tuple[Report, Report]]:
    return values(run_ranks(_compiled, 2, limit=200, timeout=60))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_ranks_with_different_groups(mode: str, request: pytest.FixtureRequest) -> None:
    for rank, (report, _) in enumerate(request.getfixturevalue(mode)):
        *failures, good = report
        for name, (error, result) in zip(DISAGREEMENTS, failures, strict=True):
            where = f"rank {rank}, {name}"
            assert result is None, where
            assert "CommunicationError" in error, f"{where}: {error}"
            assert "[comm]" in error, f"{where}: {error}"
        error, result = good
        assert not error
        # a sum of 8 ones on each of 2 ranks
        assert result == [([3, 4], [16.0]), ([0, 4], []), ([7, 4], [16.0])], "another group still works"


@pytest.mark.slow
def test_compiled_graphs_that_differ_in_group_list_alone(compiled: list[tuple[Report, Report]]) -> None:
    """Ranks that compared their shapes once do not compare them again; that must not hide which graph they run."""
    for _, (*agreed, (error, result)) in compiled:
        assert agreed == [("", [([10, 4], [16.0, 32.0])])] * 5
        assert result is None
        assert "CommunicationError" in error


def test_one_rank_is_refused_and_lives_on(eager: list[tuple[Report, Report]]) -> None:
    (_, good), (_, bad) = eager
    for (_, text), (error, result) in zip(REFUSED.values(), bad, strict=True):
        assert result is None
        assert error.startswith(f"InvalidArgumentError: [grouped_mat_mul_all_reduce] {text}")
    for error, result in good:
        assert result is None
        assert error.startswith("CommunicationError: [comm]")


def _ends(rank: int, name: str, is_compiled: bool) -> list[list[int]]:
    run: Run = nfg.npu_grouped_mat_mul_all_reduce
    if is_compiled:
        run = torch.compile(run, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
    arguments = REFUSED[name][0] if rank == 1 else split([3, 10])
    with torch.no_grad():
        return [list(y.shape) for y in run(**arguments, hcomm="0")]


@pytest.mark.parametrize(
    ("name", "is_compiled"), [("k", False), pytest.param("group_list", True, marks=pytest.mark.slow)]
)
def test_one_rank_is_refused_and_ends(name: str, is_compiled: bool) -> None:
    good, bad = run_ranks(_ends, 2, name, is_compiled, limit=120, timeout=WAIT)
    assert f"[grouped_mat_mul_all_reduce] {REFUSED[name][1]}" in bad.error
    assert "InvalidArgumentError" in bad.error
    assert "CommunicationError" in good.error
    for outcome in (good, bad):
        ended_with_an_error(outcome)


def ended_with_an_error(outcome: Outcome) -> None:
    assert outcome.value is None
    assert outcome.exit_code == 1, "it ended by itself"
