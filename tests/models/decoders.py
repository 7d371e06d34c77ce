"""Decoders written by hand in the two styles large-model code uses for tensor parallelism, cut down to what matters.

Each rank makes the full weights from one seed and keeps its part, so one process with size=1, which communicates
nothing, computes what all ranks together must.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, HEADS, HEAD_DIM, FFN, LAYERS = 64, 4, 16, 128, 3


class _ReduceFromModelParallelRegion(torch.autograd.Function):
    """Megatron-LM's: the sum over ranks forward, in place; nothing backward."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor) -> Tensor:
        dist.all_reduce(partial)
        return partial

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def _reduce_megatron(partial: Tensor) -> Tensor:
    reduced: Tensor = _ReduceFromModelParallelRegion.apply(partial.contiguous())
    return reduced


def _reduce_functional(partial: Tensor) -> Tensor:
    return funcol.all_reduce(partial, "sum", dist.group.WORLD)


class _Weights:
    """The shards of one rank."""

    def __init__(self, rank: int, size: int, dtype: torch.dtype) -> None:
        self.rank, self.size, self.dtype = rank, size, dtype
        self.generator = torch.Generator().manual_seed(0)

    def column(self, rows: int, k: int) -> nn.Parameter:
        """(rows / size, k): the rank's outputs."""
        return self._shard(self._full(rows, k), 0)

    def row(self, n: int, k: int) -> nn.Parameter:
        """(n, k / size): the rank's inputs."""
        return self._shard(self._full(n, k), 1)

    def gamma(self) -> nn.Parameter:
        return nn.Parameter((1 + torch.randn(HIDDEN, generator=self.generator) / 8).to(self.dtype))

    def _full(self, n: int, k: int) -> Tensor:
        return (torch.randn(n, k, generator=self.generator) * k**-0.5).to(self.dtype)

    def _shard(self, full: Tensor, dim: int) -> nn.Parameter:
        return nn.Parameter(full.chunk(self.size, dim)[self.rank].contiguous())


class ColumnParallelLinear(nn.Module):
    def __init__(self, weights: _Weights, n: int, k: int) -> None:
        super().__init__()
        self.weight = weights.column(n, k)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class RowParallelLinear(nn.Module):
    def __init__(self, weights: _Weights, n: int, k: int, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = weights.row(n, k)
        self.reduce = reduce if weights.size > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        partial = F.linear(x, self.weight)
        return partial if self.reduce is None else self.reduce(partial)


class Attention(nn.Module):
    """Dim 0 is the sequence, the last one the features; what is in between is the batch."""

    def __init__(self, weights: _Weights, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.qkv_proj = ColumnParallelLinear(weights, HEADS * 3 * HEAD_DIM, HIDDEN)
        self.o_proj = RowParallelLinear(weights, HIDDEN, HEADS * HEAD_DIM, reduce)

    def forward(self, x: Tensor) -> Tensor:
        by_head = self.qkv_proj(x).view(x.shape[0], -1, 3 * HEAD_DIM)
        q, k, v = (part.transpose(0, 1) for part in by_head.chunk(3, -1))
        scores = torch.bmm(q, k.transpose(1, 2)) * HEAD_DIM**-0.5
        context = torch.bmm(scores.float().softmax(-1).to(v.dtype), v)
        return self.o_proj(context.transpose(0, 1).reshape(*x.shape[:-1], -1))


class Mlp(nn.Module):
    def __init__(self, weights: _Weights, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up_proj = ColumnParallelLinear(weights, FFN, HIDDEN)
        self.down_proj = RowParallelLinear(weights, HIDDEN, FFN, reduce)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(F.silu(self.up_proj(x)))
        return down


class MegatronNorm(nn.Module):
    """Converts to float32 twice, casts back, then scales."""

    def __init__(self, weights: _Weights, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = weights.gamma(), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() * torch.rsqrt((x.float() ** 2).mean(-1, keepdim=True) + self.eps)
        return wide.type_as(x) * self.weight


class MegatronLayer(nn.Module):
    """norm -> attention -> dropout -> add, norm -> MLP -> dropout -> add."""

    def __init__(self, weights: _Weights) -> None:
        super().__init__()
        self.input_norm, self.post_attention_norm = MegatronNorm(weights), MegatronNorm(weights)
        self.attention = Attention(weights, _reduce_megatron)
        self.mlp = Mlp(weights, _reduce_megatron)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.dropout(self.attention(self.input_norm(x)), p=0.1, training=self.training)
        return x + F.dropout(self.mlp(self.post_attention_norm(x)), p=0.1, training=self.training)


class Megatron(nn.Module):
    """Activations (sequence, batch, hidden), or (sequence, hidden)."""

    def __init__(self, weights: _Weights) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MegatronLayer(weights) for _ in range(LAYERS))
        self.final_norm = MegatronNorm(weights)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        normed: Tensor = self.final_norm(x)
        return normed


class VllmNorm(nn.Module):
    """Adds the residual itself, in the model's dtype, and hands the sum on."""

    def __init__(self, weights: _Weights, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = weights.gamma(), eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = x if residual is None else x + residual
        wide = total.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return wide.to(total.dtype) * self.weight, total


class VllmLayer(nn.Module):
    def __init__(self, weights: _Weights) -> None:
        super().__init__()
        self.input_norm, self.post_attention_norm = VllmNorm(weights), VllmNorm(weights)
        self.attention = Attention(weights, _reduce_functional)
        self.mlp = Mlp(weights, _reduce_functional)

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        x, residual = self.input_norm(x, residual)
        x, residual = self.post_attention_norm(self.attention(x), residual)
        return self.mlp(x), residual


class Vllm(nn.Module):
    """Activations (tokens, hidden); the residual travels beside them from layer to layer."""

    def __init__(self, weights: _Weights) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VllmLayer(weights) for _ in range(LAYERS))
        self.final_norm = VllmNorm(weights)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor | None = None
        for layer in self.layers:
            x, residual = layer(x, residual)
        normed: Tensor = self.final_norm(x, residual)[0]
        return normed


DECODERS: dict[str, tuple[Callable[[_Weights], nn.Module], tuple[int, ...]]] = {
    "megatron_3d": (Megatron, (8, 2, HIDDEN)),
    "megatron_2d": (Megatron, (16, HIDDEN)),
    "vllm": (Vllm, (16, HIDDEN)),
}
"""Style -> (class, shape of the activations)."""


def build_decoder(name: str, rank: int, size: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """(rank's part of the model in eval mode, its input) with seeded weights."""
    make, shape = DECODERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return make(_Weights(rank, size, dtype)).eval(), x.to(dtype)
