"""Building blocks of row-parallel residual blocks: every spelling the pass must recognise, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn


def llama_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def torch_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.size(-1),), weight, eps)


def all_reduce_in_place(x: Tensor) -> Tensor:
    dist.all_reduce(x)
    return x


def all_reduce_functional(x: Tensor) -> Tensor:
    return funcol.all_reduce(x, "sum", dist.group.WORLD)


NORMS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"llama": llama_norm, "torch": torch_norm}
REDUCES: dict[str, Callable[[Tensor], Tensor]] = {"in_place": all_reduce_in_place, "functional": all_reduce_functional}


class Block(nn.Module):
    """x -> linear -> all-reduce -> + residual -> norm; returns (norm, sum or nothing)."""

    def __init__(
        self,
        linear: str = "linear",
        reduce: str = "in_place",
        norm: str = "llama",
        *,
        residual_first: bool = True,
        returns_sum: bool = True,
        eps: float = 1e-6,
        k: int = 16,
        n: int = 32,
        dtype: torch.dtype = torch.float16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def rand(*shape: int) -> nn.Parameter:
            return nn.Parameter((torch.randn(shape, generator=generator) * k**-0.5).to(dtype))

        self.weight = rand(n, k) if linear.startswith("linear") else rand(k, n)
        self.bias = rand(n) if linear in ("linear_bias", "addmm") else None
        self.gamma = rand(n)
        self.linear, self.reduce, self.norm = linear, REDUCES[reduce], NORMS[norm]
        self.residual_first, self.returns_sum, self.eps = residual_first, returns_sum, eps

    def product(self, x: Tensor) -> Tensor:
        if self.linear.startswith("linear"):
            return F.linear(x, self.weight, self.bias)
        if self.linear == "mm":
            return torch.mm(x.reshape(-1, x.size(-1)), self.weight).reshape(*x.shape[:-1], -1)
        if self.linear == "addmm":
            return torch.addmm(self.bias, x.reshape(-1, x.size(-1)), self.weight).reshape(*x.shape[:-1], -1)
        return torch.matmul(x, self.weight)

    def forward(self, x: Tensor, residual: Tensor) -> Any:
        reduced = self.reduce(self.product(x))
        total = residual + reduced if self.residual_first else reduced + residual
        out = self.norm(total, self.gamma, self.eps)
        return (out, total) if self.returns_sum else out
