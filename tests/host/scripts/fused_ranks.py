"""Requirement 002's operator on two ranks in several forms, eager and compiled. Argument: a free port."""

import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch_npu
import torchair
from mindspeed.ops.npu_mm_all_reduce_add_rms_norm import npu_mm_all_reduce_add_rms_norm
from mindspeed.ops.npu_mm_all_reduce_add_rms_norm_ import npu_mm_all_reduce_add_rms_norm_


def run(rank, port):
    torch_npu.npu.set_device(rank)
    dist.init_process_group("hccl", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{port}")
    group = dist.distributed_c10d._get_default_group()
    hcom = group._get_backend(torch.device("npu")).get_hccl_comm_name(rank)
    x1 = torch.randn(2, 4, 32, dtype=torch.float16).npu()
    x2 = torch.randn(16, 32, dtype=torch.float16).npu().t()
    residual, gamma = torch.randn(2, 4, 16, dtype=torch.float16).npu(), torch.randn(16, dtype=torch.float16).npu()
    bias = torch.randn(16, dtype=torch.float16).npu()

    y, norm_out = npu_mm_all_reduce_add_rms_norm(x1, x2, residual, gamma, hcom, "sum", 1e-5, bias)

    class Model(torch.nn.Module):
        def forward(self, x1, residual):
            return npu_mm_all_reduce_add_rms_norm(x1, x2, residual, gamma, hcom=hcom, epsilon=1e-5, bias=bias)

    model = torch.compile(Model(), backend=torchair.get_npu_backend(), dynamic=False, fullgraph=True)
    with torch.no_grad():
        compiled = model(x1, residual)
    assert all(x.is_npu for x in (y, norm_out, *compiled))
    assert torch.equal(compiled[0], y) and torch.equal(compiled[1], norm_out)

    integers = [torch.randint(-128, 128, shape, dtype=torch.int8).npu() for shape in ((8, 32), (32, 16))]
    scale = torch_npu.npu_trans_quant_param(torch.full((16,), 0.001).npu())
    npu_mm_all_reduce_add_rms_norm(*integers, residual, gamma, hcom, dequant_scale=scale)

    before = residual.cpu()
    in_place, _ = npu_mm_all_reduce_add_rms_norm_(x1, x2, residual, gamma, hcom)
    assert in_place is residual and not torch.equal(before, residual)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(run, args=(int(sys.argv[1]),), nprocs=2)
