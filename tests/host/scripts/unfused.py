"""Row-parallel blocks compiled by TorchAir's own backend: legal, legal with few rows, refused.

Prints whether the numbers are those of eager mode, and exactly those of a compilation that nobody looks at.
"""

import json
from unittest import mock

import torch
import torch.distributed as dist
import torch_npu
import torchair

from npu_fused_graph.host.standin import fusable

dist.init_process_group("hccl", store=dist.HashStore(), rank=0, world_size=1)


class Block(torch.nn.Module):
    def __init__(self, two_roundings):
        super().__init__()
        self.out, self.down = torch.nn.Linear(64, 96, bias=False), torch.nn.Linear(96, 96, bias=False)
        self.weight = torch.nn.Parameter(torch.ones(96))
        self.two_roundings = two_roundings

    def norm(self, x):
        if self.two_roundings:
            return torch_npu.npu_rms_norm(x, self.weight, 1e-6)[0]
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)

    def forward(self, x, residual):
        for linear in (self.out, self.down):
            y = linear(x)
            dist.all_reduce(y)
            residual = residual + y
            x = self.norm(residual)
        return x, residual


def same(rows, two_roundings=False):
    torch.manual_seed(0)
    model = Block(two_roundings).half().npu().eval()
    inputs = [torch.randn(rows, size).half().npu() for size in (64, 96)]
    with torch.no_grad():
        eager, looked_at = model(*inputs), compiled(model)(*inputs)
        with mock.patch.object(fusable, "candidates", return_value=()):
            torch._dynamo.reset()
            alone = compiled(model)(*inputs)
    is_close = all(torch.allclose(a, b, atol=4e-3) for a, b in zip(looked_at, eager, strict=True))
    return is_close and all(torch.equal(a, b) for a, b in zip(looked_at, alone, strict=True))


def compiled(model):
    return torch.compile(model, backend=torchair.get_npu_backend(), dynamic=False, fullgraph=True)


print(json.dumps([same(768), same(4), same(4, two_roundings=True)]))
x, w = torch.ones(4, 16).half().npu(), torch.ones(16, 16).half().npu()
name = dist.group.WORLD._get_backend(torch.device("npu")).get_hccl_comm_name(0)
torch_npu.npu_mm_all_reduce_base(x, w, name)  # eager: a graph of its own, but no site of a model
