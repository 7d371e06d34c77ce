"""Process groups that end and are made again."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import torch
import torch.distributed as dist

from npu_fused_graph.comm import communicator, groups
from tests.processes import free_port
from tests.ranks import run_ranks, values


def _sum_in_two_lives(rank: int, port: int, file: str) -> list[float]:
    turns = dist.FileStore(file, 2)
    dist.destroy_process_group()
    sums = []
    for life in range(2):
        if rank == 1:
            turns.get(f"rank 0 is in life {life}")  # else this rank may reach the store of the life before
        else:
            turns.set(f"rank 0 is in life {life}", "")
        dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{port}")
        sums.append(communicator("0").all_reduce(torch.tensor([rank + 1.0 + life])).item())
        dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return sums


def test_a_group_made_again_at_the_same_address_finds_no_store_of_the_old_one(tmp_path: Path) -> None:
    found = values(run_ranks(_sum_in_two_lives, 2, free_port(), str(tmp_path / "turns")))
    assert found == [[3.0, 5.0]] * 2


def test_the_end_of_a_group_is_no_matter_to_another() -> None:
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=2)
    try:
        ends, stays = dist.new_group([0, 1]), dist.new_group([0, 1])
        name = stays.group_name
        communicator(ends.group_name)
        kept = communicator(name)
        ended, ended_name = weakref.ref(ends), ends.group_name
        dist.destroy_process_group(ends)
        del ends
        gc.collect()
        assert ended() is None
        assert ended_name not in groups._by_name, "what is known of it, its store too, went with it"
        assert communicator(name) is kept
    finally:
        dist.destroy_process_group()
