"""Uneven collectives, and those of models after patch_for_hcom, on two ranks of torchrun: a JSON file per rank."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch_npu
import torchair

import npu_fused_graph as nfg

dist.init_process_group("hccl")
rank, size = dist.get_rank(), dist.get_world_size()
torch_npu.npu.set_device(rank)
npu = torch_npu.distributed
said = {}


def error_of(fn, *args, **kwargs):
    try:
        fn(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def gathered(x):
    out = x.new_empty(3, 2)
    npu.all_gather_into_tensor_uneven(out, x, [1, 2])
    return out


def scattered(x):
    out = x.new_empty(rank + 1, 2)
    npu.reduce_scatter_tensor_uneven(out, x, [1, 2])
    return out


mine, whole = torch.full((rank + 1, 2), rank + 1.0).npu(), torch.arange(6.0).view(3, 2).npu() + rank
for name, fn, x, expected in (
    ("gather", gathered, mine, [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]),
    ("scatter", scattered, whole, [[[1.0, 3.0]], [[5.0, 7.0], [9.0, 11.0]]][rank]),
):
    compiled = torch.compile(fn, backend="npu", fullgraph=True, dynamic=False)
    said[name] = [fn(x).tolist() == expected, compiled(x).tolist() == expected]
work = npu.reduce_scatter_tensor_uneven(mine, whole, [1, 2], op=dist.ReduceOp.MAX, async_op=True)
said["asynchronous"] = work.wait() and mine.tolist() == [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]][rank]
said["sizes"] = error_of(npu.reduce_scatter_tensor_uneven, mine, whole, [1, 1])
said["mean"] = error_of(npu.reduce_scatter_tensor_uneven, mine, whole, [1, 2], op=dist.ReduceOp.AVG)

torchair.patch_for_hcom()
import torchair.ge_concrete_graph.ge_converter.experimental.patch_for_hcom_allreduce  # noqa: E402


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8, bias=False)
        self.gamma = torch.nn.Parameter(torch.ones(8))

    def forward(self, x, residual):
        y = self.linear(x)
        dist.all_reduce(y)
        normed, _, added = torch_npu.npu_add_rms_norm(y, residual, self.gamma, 1e-6)
        parts = torch.empty(2 * x.shape[0], 8, dtype=x.dtype)
        dist.all_gather_into_tensor(parts, normed)
        out = torch.empty_like(parts)
        dist.all_to_all_single(out, parts)
        dist.broadcast(out, 0)
        return out, added


torch.manual_seed(rank)
model = Model().half().npu().eval()
x, residual = torch.randn(2, 8).half().npu(), torch.ones(2, 8).half().npu()
with torch.no_grad():
    eager = model(x, residual)
    compiled = torch.compile(model, backend=torchair.get_npu_backend(), fullgraph=True, dynamic=False)(x, residual)
    said["patched"] = [torch.allclose(a, b, atol=1e-2) for a, b in zip(eager, compiled, strict=True)]
    (site,) = nfg.explain(model, x, residual).sites
said["line"] = site.source.rpartition("/")[2]
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(said))
dist.destroy_process_group()
