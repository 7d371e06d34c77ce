"""Faults inside a fused graph that the real TorchAir lowered: every surviving rank ends with rank, node and group."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.engine import registered_types, registry
from tests.passes.blocks import Block, llama_norm
from tests.ranks import Outcome, run_ranks

FUSED = "MatmulAllReduceAddRmsNorm"


class Two(torch.nn.Module):
    """Two fusable sites in a row, on any group."""

    def __init__(self, group: Any = None) -> None:
        super().__init__()
        self.first, self.second = Block("linear", k=32), Block("linear", k=32)
        self.group = group

    def forward(self, x: Tensor, residual: Tensor) -> Any:
        for block in (self.first, self.second):
            group = dist.group.WORLD if self.group is None else self.group
            residual = residual + funcol.all_reduce(block.product(x), "sum", group)
            x = llama_norm(residual, block.gamma, 1e-6)
        return x, residual


def _run(rank: int, rows: int = 4, group: Any = None, times: int = 1) -> int:
    sites: list[nfg.FusionSite] = []
    compiled = torch.compile(Two(group), backend=nfg.get_npu_backend(min_rows=0, on_sites=sites.extend), dynamic=False)
    with torch.no_grad():
        for _ in range(times):
            compiled(torch.ones(1, rows, 32).half(), torch.ones(1, rows, 32).half())
    assert all(site.is_fused for site in sites)
    return len(sites)


def _killed(rank: int, healthy_runs: int) -> int:
    if rank == 1:
        kernel, calls = registered_types()[FUSED], 0

        def dies_in_the_second_site(*inputs: Any, **attributes: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2 * healthy_runs + 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return kernel.fn(*inputs, **attributes)

        registry._KERNELS[FUSED] = replace(kernel, fn=dies_in_the_second_site)
    return _run(rank, times=healthy_runs + 1)


def _other_rows(rank: int) -> int:
    return _run(rank, rows=4 + rank)


def _other_group(rank: int) -> int:
    groups = [dist.new_group([0, 1]), dist.new_group([0, 1])]
    return _run(rank, group=groups[rank])


def _other_size(rank: int) -> int:
    pair = dist.new_group([2, 3])
    return _run(rank, group=pair if rank == 3 else None)


def _assert_failed(outcome: Outcome, node: str, *texts: str) -> None:
    assert outcome.exit_code == 1, outcome
    for text in (f"{node} ({FUSED} on group ", *texts):
        assert text in outcome.error, outcome.error


def test_a_rank_is_killed_inside_the_second_site() -> None:
    for healthy_runs in (0, 2):
        outcomes = run_ranks(_killed, 2, healthy_runs, limit=60, timeout=100)
        assert outcomes[1].exit_code == -signal.SIGKILL
        _assert_failed(outcomes[0], f"{FUSED}_1", "on rank 0 of 2", "rank 1")


@pytest.mark.slow
def test_ranks_have_other_shapes() -> None:
    for rank, outcome in enumerate(run_ranks(_other_rows, 2, limit=120)):
        _assert_failed(
            outcome,
            FUSED,
            f"on rank {rank} of 2",
            "float16[4, 32]",
            "float16[5, 32]",
            "expected all ranks to run the same",
        )


@pytest.mark.slow
def test_ranks_use_other_groups() -> None:
    for rank, outcome in enumerate(run_ranks(_other_group, 2, limit=120)):
        _assert_failed(outcome, FUSED, f"on rank {rank} of 2", f"rank {1 - rank} never used this group")


@pytest.mark.slow
def test_ranks_use_groups_of_other_sizes() -> None:
    for rank, outcome in enumerate(run_ranks(_other_size, 4, limit=120)):
        _assert_failed(outcome, FUSED, f"on rank {rank} of 4", "never used this group")
