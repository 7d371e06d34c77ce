"""Ranks of torchrun: each prints its rank, its device, what it draws, and what it draws after seeding by itself."""

import json
import os

import torch
import torch.distributed as dist

dist.init_process_group("hccl")
rank = dist.get_rank()
torch.npu.set_device(int(os.environ["LOCAL_RANK"]))
x = torch.ones(2).npu()
dist.all_reduce(x)
assert x.tolist() == [2, 2]
own = torch.randn(2, device="npu").tolist()
torch.manual_seed(1234)
seeded = torch.randn(2, device="npu").tolist()
line = json.dumps([rank, torch.npu.current_device(), own, seeded])
for turn in range(2):  # one after the other: lines of two processes may mix
    if turn == rank:
        print(line, flush=True)
    dist.barrier()
dist.destroy_process_group()
