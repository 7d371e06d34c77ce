"""A script as it is written for NPUs: it knows nothing of this package and runs unmodified on a laptop.

Run: npu-fused-graph run --record calls examples/05_npu_script.py, then npu-fused-graph replay calls
"""

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch_npu
import torchair
from mindspeed.ops.npu_mm_all_reduce_add_rms_norm import npu_mm_all_reduce_add_rms_norm


class Projection(torch.nn.Module):
    def __init__(self, k, n, hcom):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(k, n) / k**0.5)
        self.gamma = torch.nn.Parameter(torch.ones(n))
        self.hcom = hcom

    def forward(self, x, residual):
        return npu_mm_all_reduce_add_rms_norm(x, self.weight, residual, self.gamma, hcom=self.hcom, epsilon=1e-6)


def run(rank, world_size, port):
    torch_npu.npu.set_device(rank)
    dist.init_process_group("hccl", rank=rank, world_size=world_size, init_method=f"tcp://127.0.0.1:{port}")
    group = dist.distributed_c10d._get_default_group()
    hcom = group._get_backend(torch.device("npu")).get_hccl_comm_name(rank)
    model = Projection(64, 32, hcom).half().npu()
    x, residual = torch.randn(2, 8, 64).half().npu(), torch.zeros(2, 8, 32).half().npu()
    with torch.no_grad():
        eager, _ = model(x, residual)
        compiled = torch.compile(model, backend=torchair.get_npu_backend(), dynamic=False, fullgraph=True)
        y, _ = compiled(x, residual)
    print(f"rank {rank} on npu:{torch.npu.current_device()}: graph equals eager: {torch.equal(y, eager)}\n", end="")
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    mp.spawn(run, args=(2, port), nprocs=2)
