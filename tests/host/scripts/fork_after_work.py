"""Ranks forked from a process that has used torch's threads; one crashes, the script does not look. Argument: port."""

import sys

import torch
import torch.distributed as dist
import torch_npu
from torch.multiprocessing import Process


def work(rank):
    torch_npu.npu.set_device(rank)
    dist.init_process_group("hccl", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{sys.argv[1]}")
    x = torch.full((512, 512), rank + 1.0).npu()
    dist.all_reduce(x)
    assert (x @ x)[0, 0] == 9 * 512
    if rank == 1:
        raise ValueError("rank 1 crashes")


if __name__ == "__main__":
    torch.randn(512, 512) @ torch.randn(512, 512)
    processes = [Process(target=work, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    print("run npu success.")
