"""A script with an operator of its own and its GE type, which knows nothing of a CPU. Two ranks. Argument: a port."""

import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchair
from torchair import ge

torch.library.define("mine::scaled", "(Tensor x, float by) -> Tensor")
torch.library.impl("mine::scaled", "Meta", lambda x, by: torch.empty_like(x))


@torchair.register_fx_node_ge_converter(torch.ops.mine.scaled.default)
def convert_scaled(x, by, meta_outputs=None):
    return ge.custom_op("MyScaled", inputs={"x": x}, attrs={"by": ge.attr.Float(by)}, outputs=["y"])


def run(rank, port):
    torch.npu.set_device(rank)
    dist.init_process_group("hccl", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{port}")
    model = torch.compile(lambda x: torch.ops.mine.scaled(x, 3.0) + 1, backend="npu", dynamic=False)
    result = model(torch.full((2,), 1.0 + rank).npu())
    dist.all_reduce(result)
    sys.stdout.write(f"{result.tolist()}\n")


if __name__ == "__main__":
    mp.spawn(run, args=(int(sys.argv[1]),), nprocs=2)
