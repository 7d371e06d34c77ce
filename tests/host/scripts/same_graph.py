"""The GE graphs of a model with and without the stand-in: prints their texts. Runs in both kinds of process."""

import torch
import torch.distributed as dist

import npu_fused_graph as nfg
from npu_fused_graph.host import native
from npu_fused_graph.ir.text import to_text

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
graphs = []
native.graph_listeners.append(lambda executable: graphs.append(to_text(executable.graph)))


class Block(torch.nn.Module):
    """Attention, a row-parallel projection with its all-reduce, norm, a gated feed-forward part."""

    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(32, 96, bias=False)
        self.out = torch.nn.Linear(32, 32, bias=False)
        self.up = torch.nn.Linear(32, 64, bias=False)
        self.down = torch.nn.Linear(32, 32, bias=False)
        self.weight = torch.nn.Parameter(torch.ones(32))

    def norm(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    def forward(self, x, cache, position):
        q, k, v = self.qkv(self.norm(x)).view(2, 4, 3, 4, 8).permute(2, 0, 3, 1, 4)
        cache[:, :, position] = k
        reduced = self.out(torch.nn.functional.scaled_dot_product_attention(q, cache, v).transpose(1, 2).flatten(2))
        dist.all_reduce(reduced)
        x = x + reduced
        gate, up = self.up(self.norm(x)).chunk(2, -1)
        return x + self.down(torch.nn.functional.silu(gate) * up), torch.topk(x, 3)[1]


torch.manual_seed(0)
model = Block().half()
inputs = (torch.randn(2, 4, 32).half(), torch.zeros(2, 4, 4, 8).half(), torch.tensor([0, 1, 2, 3]))
compiled = torch.compile(model, backend=nfg.get_npu_backend(min_rows=0), dynamic=False, fullgraph=True)
with torch.no_grad():
    compiled(*inputs)
print("\n".join(graphs))
