"""Two CPU ranks compile a row-parallel block with both back ends; each site's verdict is printed, the result checked.

Run: torchrun --nproc-per-node 2 examples/03_two_ranks.py
"""

import torch
import torch.distributed as dist
from torch import nn

import npu_fused_graph as nfg


class Block(nn.Module):
    def __init__(self, k: int, n: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.proj, self.weight, self.eps = nn.Linear(k, n, bias=False), nn.Parameter(torch.ones(n)), eps

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.proj(x)
        dist.all_reduce(y)
        h = residual + y
        wide = h.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(h.dtype), h


def main() -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)  # each rank has its own slice of the weight and of the activations
    block = Block(64 // size, 32).half()
    x = torch.randn(2, 8, 64 // size).half()
    torch.manual_seed(100)  # the residual is the same everywhere
    residual = torch.randn(2, 8, 32).half()

    for mode in ("max-autotune", "npugraph_ex"):  # a GE graph, then a captured graph of calls that is replayed
        torch._dynamo.reset()
        with torch.no_grad():
            sites: list[nfg.FusionSite] = []
            backend = nfg.get_npu_backend(mode=mode, min_rows=0, on_sites=sites.extend)
            compiled = torch.compile(block, backend=backend, dynamic=False, fullgraph=True)
            compiled(x, residual)
            fused, eager = compiled(x, residual), block(x, residual)
        error = max(float((a - b).abs().max()) for a, b in zip(fused, eager))
        print(f"rank {rank}: {mode}: {sites[0]}; largest difference to eager {error:.1e}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
