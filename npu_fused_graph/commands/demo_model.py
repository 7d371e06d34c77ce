"""The demo's model: a tensor-parallel Llama-style decoder in plain torch. It knows nothing of this package."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.to(torch.promote_types(x.dtype, torch.float32))
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)


class RowParallel(nn.Linear):
    """Each rank holds a slice of the input features and contributes a partial sum."""

    def __init__(self, in_features: int, out_features: int, tp: int) -> None:
        super().__init__(in_features // tp, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        dist.all_reduce(y)
        return y


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, tp: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads // tp, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim // tp, bias=False)
        self.o_proj = RowParallel(dim, dim, tp)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) * self.head_dim**-0.5 + mask, -1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, s, -1))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, tp: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, tp)
        self.attention_norm, self.mlp_norm = RMSNorm(dim), RMSNorm(dim)
        self.gate_up = nn.Linear(dim, 4 * dim // tp, bias=False)
        self.down_proj = RowParallel(2 * dim, dim, tp)

    def forward(self, x: Tensor, mask: Tensor, normed: Tensor, next_norm: nn.Module) -> tuple[Tensor, Tensor]:
        x = x + self.attention(normed, mask)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        x = x + self.down_proj(F.silu(gate) * up)
        return x, next_norm(x)


class Decoder(nn.Module):
    def __init__(self, layers: int = 4, dim: int = 256, heads: int = 8, vocab: int = 512, tp: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(Layer(dim, heads, tp) for _ in range(layers))
        self.norm = RMSNorm(dim)
        self.pool = RowParallel(tp * dim, dim, tp)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        s = tokens.shape[1]
        x = self.embed(tokens)
        mask = torch.full((s, s), float("-inf"), dtype=x.dtype).triu(1)
        norms = [layer.attention_norm for layer in self.layers[1:]] + [self.norm]
        normed = self.layers[0].attention_norm(x)  # type: ignore[operator]
        for layer, next_norm in zip(self.layers, norms, strict=True):
            x, normed = layer(x, mask, normed, next_norm)
        pooled = self.pool(normed) * 0.5 + x  # scaled before the add: legally impossible to fuse
        return normed, self.norm(pooled)
