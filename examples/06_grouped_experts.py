"""Experts that are all-reduced one by one become one node; what explain says without and with grouping.

Run: python examples/06_grouped_experts.py
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import npu_fused_graph as nfg


class Experts(nn.Module):
    """One rank's slice of a mixture's experts; the weights are stored as (k, n)."""

    def __init__(self, hidden: int, inner: int, experts: int) -> None:
        super().__init__()
        self.up = nn.ParameterList(nn.Parameter(torch.randn(hidden, inner)) for _ in range(experts))
        self.down = nn.ParameterList(nn.Parameter(torch.randn(inner, hidden)) for _ in range(experts))

    def forward(self, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x)
        for i, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            y = F.silu(x @ up) @ down
            dist.all_reduce(y)
            total = total + y * scores[:, i : i + 1]
        return total


model = Experts(hidden=32, inner=16, experts=4).bfloat16()
inputs = torch.randn(10, 32).bfloat16(), torch.rand(10, 4).bfloat16()
for grouped in (False, True):
    report = nfg.explain(model, *inputs, world_size=4, grouped=grouped)
    (site,) = (s for s in report.sites if s.op == "grouped_mat_mul_all_reduce")
    print(f"grouped={grouped}: {site}")
