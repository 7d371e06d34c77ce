"""Two ranks of which the first waits for the other in a collective, forever. Argument: a free port."""

import os
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(rank, port):
    torch.npu.set_device(rank)
    dist.init_process_group("hccl", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{port}")
    dist.barrier()
    sys.stdout.write(f"rank {rank} {os.getpid()}\n")
    sys.stdout.flush()
    if rank == 1:
        time.sleep(3600)
    dist.all_reduce(torch.ones(1).npu())


if __name__ == "__main__":
    mp.spawn(run, args=(int(sys.argv[1]),), nprocs=2)
