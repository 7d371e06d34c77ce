"""Two ranks that all-reduce in a graph; the second breaks before it comes again. Argument: a port, or by torchrun."""

import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def reduced(x):
    y = x + 1
    dist.all_reduce(y)
    return y * 2


def run(rank, init_method):
    torch.npu.set_device(rank)
    dist.init_process_group("hccl", rank=rank, world_size=2, init_method=init_method)
    model = torch.compile(reduced, backend="npu", dynamic=False)
    model(torch.ones(2).npu())
    if rank == 1:
        raise ValueError("rank 1 breaks")
    model(torch.ones(2).npu())


if __name__ == "__main__":
    if "RANK" in os.environ:
        run(int(os.environ["RANK"]), "env://")
    else:
        place = f"tcp://127.0.0.1:{sys.argv[1]}"
        processes = [mp.get_context("spawn").Process(target=run, args=(rank, place)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
