"""What every kind of rank gives an operator: processes and threads alike."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from npu_fused_graph.comm import ProcessGroupRank, Rank, communicator
from npu_fused_graph.comm.links import Links
from npu_fused_graph.comm.threads import LocalGroup
from npu_fused_graph.errors import CommunicationError
from tests.ranks import run_ranks, values


def _used(me: Rank) -> list[Any]:
    """Sums with either rounding, a gather of two, and a byte written into every other window."""
    x = torch.tensor([2048.0 if me.rank == 0 else 1.0]).half()
    found: list[Any] = [total.item() for mode in ("once", "seq") for total in me.sums([x], mode)]  # type: ignore[arg-type]
    found.append(
        [[x.tolist() for x in xs] for xs in me.gather([torch.full((2,), me.rank), torch.tensor([7 + me.rank])])]
    )
    windows = me.register_windows(4 + me.rank)
    assert me.windows is windows
    found.append([windows.memory(r).nbytes for r in range(me.size)])
    me.barrier()
    for peer in windows.peers:
        windows.memory(peer)[me.rank] = 10 * me.rank + peer
    me.barrier()
    found.append(windows.own.tolist())
    return found


def _wanted(size: int, rank: int) -> list[Any]:
    once = {2: 2048.0, 4: 2052.0}[size]  # float16 has even numbers only: 2049 and 2051, each a tie
    rows = [[[r, r], [7 + r]] for r in range(size)]
    own = [10 * r + rank if r != rank and r < size else 0 for r in range(4 + rank)]
    return [once, 2048.0, rows, [4 + r for r in range(size)], own]


@pytest.mark.parametrize("size", [2, 4])
def test_threads(size: int) -> None:
    assert LocalGroup(size).run(_used) == [_wanted(size, rank) for rank in range(size)]


def _by_torch(rank: int) -> list[Any]:
    """A device's rank, on gloo: sums, gathers of two that are not contiguous, and no windows."""
    me = ProcessGroupRank(dist.group.WORLD)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).t() + rank
    found: list[Any] = [me.rank, me.size, me.all_reduce(x).tolist(), x[0, 1].item()]
    found.append([[part.tolist() for part in parts] for parts in me.gather([x, torch.tensor([rank])])])
    with pytest.raises(CommunicationError, match=r"\[comm\] windows: expected ranks on CPU"):
        me.register_windows(4)
    return found


def test_a_process_group_of_torch() -> None:
    rows = [[[[1.0 + r, 3.0 + r], [2.0 + r, 4.0 + r]], [r]] for r in range(2)]
    wanted = [[r, 2, [[3.0, 7.0], [5.0, 9.0]], 3.0 + r, rows] for r in range(2)]
    assert values(run_ranks(_by_torch, 2)) == wanted


def _narrow(rank: int) -> list[list[int]]:
    """Sums of dtypes gloo cannot reduce: whole numbers wrap around, truth is either."""
    found = []
    for dtype in (torch.int16, torch.uint16, torch.uint32, torch.bool):
        largest = 1 if dtype is torch.bool else torch.iinfo(dtype).max
        x = torch.tensor([largest, rank]).to(dtype)
        total = communicator("0").all_reduce(x)
        assert total.dtype is dtype
        found.append([int(value) for value in total])
    return found


def test_sums_of_narrow_whole_numbers() -> None:
    wanted = [[-2, 1], [2**16 - 2, 1], [2**32 - 2, 1], [1, 1]]
    assert values(run_ranks(_narrow, 2)) == [wanted, wanted]


def _vouched_for(rank: int) -> tuple[list[int], int]:
    """Sums of two collectives of a known run and one more, and how many of these compared themselves."""
    here, compared = communicator("0"), 0
    lines = ["sum = all_reduce"] * 2
    known = here.begin(lines, 7, 0)
    assert here.begin(lines, 7, known) == known
    agree = Links.agree

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal compared
        compared += 1
        return agree(*args, **kwargs)

    with mock.patch.object(Links, "agree", counted):
        sums = [int(here.all_reduce(torch.tensor(rank + i))) for i in range(3)]
    return sums, compared


def test_what_the_beginning_vouched_for_is_not_compared_again() -> None:
    assert values(run_ranks(_vouched_for, 2)) == [([1, 3, 5], 1)] * 2


def test_what_a_rank_alone_gathers_is_its_own(one_rank: None) -> None:
    x = torch.ones(2)
    ((gathered,),) = communicator("0").gather([x])
    gathered.zero_()
    assert x.tolist() == [1, 1]


def _as_process(rank: int) -> list[Any]:
    found = _used(communicator("0"))
    communicator("0").release_windows()
    gc.collect()
    opened = [Path("/proc/self/fd") / fd for fd in os.listdir("/proc/self/fd")]
    links = [os.readlink(fd) for fd in opened if fd.is_symlink()]
    assert not [link for link in links if "npu_window" in link], "a window goes with its tensors"
    return found


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes(size: int) -> None:
    assert values(run_ranks(_as_process, size)) == [_wanted(size, rank) for rank in range(size)]
