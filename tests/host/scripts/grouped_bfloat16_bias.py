"""AscendSpeed's function, which takes a bfloat16 bias, beside MindSpeed's, on two ranks. Argument: a free port."""

import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch_npu
import torchair
from ascendspeed.ops.grouped_mat_mul_all_reduce import ascend_grouped_mat_mul_all_reduce
from mindspeed.ops.npu_grouped_mat_mul_all_reduce import npu_grouped_mat_mul_all_reduce


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def run(rank, port):
    torch_npu.npu.set_device(rank)
    dist.init_process_group("hccl", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{port}")
    group = dist.distributed_c10d._get_default_group()
    hcomm = group._get_backend(torch.device("npu")).get_hccl_comm_name(rank)
    x = [torch.randn(rows, 16, dtype=torch.bfloat16).npu() for rows in (3, 5)]
    weight = [torch.randn(16, n, dtype=torch.bfloat16).npu() for n in (6, 6)]
    bias = [torch.randn(6, dtype=torch.bfloat16).npu() for _ in x]
    wide = [b.float() for b in bias]

    older = ascend_grouped_mat_mul_all_reduce(x, weight, hcomm, bias=bias)
    newer = npu_grouped_mat_mul_all_reduce(x, weight, hcomm, bias=wide)
    assert all(y.dtype is torch.bfloat16 for y in older)
    assert equal(older, newer)
    assert not equal(older, npu_grouped_mat_mul_all_reduce(x, weight, hcomm)), "the bias is there"
    assert all(b.dtype is torch.bfloat16 for b in bias), "the caller's list stays"
    refused = ""
    try:
        npu_grouped_mat_mul_all_reduce(x, weight, hcomm, bias=bias)
    except ValueError as error:
        refused = str(error)
    assert "bias[0]: expected float32 with bfloat16 x, got bfloat16" in refused, "requirement 001's dtypes"

    class Older(torch.nn.Module):
        def forward(self, x, weight, bias):
            return ascend_grouped_mat_mul_all_reduce(x, weight, hcomm, bias=bias)

    class Joined(torch.nn.Module):
        def forward(self, x, weight, bias):
            return npu_grouped_mat_mul_all_reduce([x], [weight], hcomm, bias=bias, group_list=[3, 8], split_item=3)

    with torch.no_grad():
        graph = torch.compile(Older(), backend=torchair.get_npu_backend(), dynamic=False, fullgraph=True)
        compiled = graph(x, weight, bias)
        assert equal(compiled, newer)
        graph = torch.compile(Joined(), backend=torchair.get_npu_backend(), dynamic=False, fullgraph=True)
        assert equal(graph(torch.cat(x), torch.stack(weight), wide), [torch.cat(newer)])
    if rank == 0:
        print("on the device:", [y.is_npu for y in (*older, *newer)], [y.is_npu for y in compiled])
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(run, args=(int(sys.argv[1]),), nprocs=2)
