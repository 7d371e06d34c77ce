"""A rank without rows beside one with rows: both are told in that step, before later steps meet this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor

import npu_fused_graph as nfg
from tests.ranks import run_ranks, values

K, N = 8, 16
W, GAMMA = torch.eye(K, N).half(), torch.ones(N).half()


def _name(group: Any) -> str:
    return str(group.group_name)


def plain(x: Tensor, group: Any) -> Tensor:
    return nfg.npu_mm_all_reduce_add_rms_norm(x, W, torch.zeros(1, x.size(0), N).half(), GAMMA, _name(group))[0]


def in_place(x: Tensor, group: Any) -> Tensor:
    residual = torch.zeros(1, x.size(0), N).half()
    return nfg.npu_mm_all_reduce_add_rms_norm_(x, W, residual, GAMMA, _name(group))[0]


def grouped(x: Tensor, group: Any) -> Tensor:
    return nfg.npu_grouped_mat_mul_all_reduce([x, x], [W, W], _name(group))[1]


def bare(x: Tensor, group: Any) -> Tensor:
    return funcol.all_reduce(x @ W, "sum", group)


CALLS: dict[str, Callable[[Tensor, Any], Tensor]] = {f.__name__: f for f in (plain, in_place, grouped, bare)}


def _steps(rank: int, name: str, compiled: bool, dynamic: bool, rows: list[list[int]]) -> list[Any]:
    """What each step gave: the sum of its result, or the error. rows: of each step on each rank."""
    call, group = CALLS[name], dist.new_group([0, 1])
    if compiled:
        torch._dynamo.reset()
        call = torch.compile(call, backend=nfg.get_npu_backend(min_rows=0), dynamic=dynamic, fullgraph=True)
    found: list[Any] = []
    for of_ranks in rows:
        try:
            with torch.no_grad():
                found.append(call(torch.full((of_ranks[rank], K), 1.0 + len(found)).half(), group).float().sum().item())
        except Exception as error:
            found.append(str(error))
    return found


def _all(rank: int, name: str, compiled: bool) -> list[list[Any]]:
    uneven, idle, regained = [[0, 5], [5, 5]], [[0, 0], [5, 5]], [[5, 5], [0, 0], [5, 5], [0, 5]]
    found = [_steps(rank, name, compiled, False, rows) for rows in (uneven, idle, regained)]
    return [*found, *([_steps(rank, name, True, True, rows) for rows in (idle, regained)] if compiled else [])]


def _total(step: int) -> float:
    return 2.0 * 5 * K * (1 + step)


SLOW = ("plain", "in_place", "grouped")


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        pytest.param(name, compiled, marks=[pytest.mark.slow] if compiled and name in SLOW else [])
        for name in CALLS
        for compiled in (False, True)
        if compiled or name != "bare"  # torch.distributed's own collective: gloo compares nothing
    ],
)
def test_a_rank_without_rows(name: str, compiled: bool) -> None:
    for found in values(run_ranks(_all, 2, name, compiled, limit=60, timeout=10)):
        uneven, *others = found
        assert all(isinstance(x, str) for x in uneven), uneven
        assert "expected all ranks to run the same" in uneven[0] and "[0, 16]" in uneven[0], uneven[0]
        assert "expected a working group" in uneven[1], uneven[1]
        for idle, regained in zip(others[::2], others[1::2], strict=True):
            assert idle == [0.0, _total(1)]
            assert regained[:3] == [_total(0), 0.0, _total(2)]
            assert "expected all ranks to run the same" in regained[3] and "[0, 16]" in regained[3], regained[3]
