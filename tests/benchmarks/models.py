"""The benchmark's models: transformers' Llama at fixed sizes, random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _llama(layers: int, hidden: int, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().to(dtype)


class _Logits(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


def prefill(layers: int) -> tuple[nn.Module, Callable[[], tuple[Any, ...]]]:
    """H=256, 2 x 16 tokens, float16."""
    tokens = torch.arange(32).reshape(2, 16)
    return _Logits(_llama(layers, 256, torch.float16)), lambda: (tokens,)


class _DecodeLayer(nn.Module):
    """Pre-norm attention and SwiGLU for one token, against a cache of 128 positions that is updated in place."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.heads = hidden // 64
        self.attention_norm, self.mlp_norm = nn.RMSNorm(hidden, eps=1e-5), nn.RMSNorm(hidden, eps=1e-5)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.gate_up, self.down = (
            nn.Linear(hidden, 5 * hidden, bias=False),
            nn.Linear(5 * hidden // 2, hidden, bias=False),
        )
        self.register_buffer("keys", torch.randn(1, self.heads, 128, 64))
        self.register_buffer("values", torch.randn(1, self.heads, 128, 64))

    def forward(self, x: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).view(1, 1, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        self.keys.index_copy_(2, position, k)
        self.values.index_copy_(2, position, v)
        attended = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).reshape(1, 1, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class _Decode(nn.Module):
    def __init__(self, layers: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(1024, hidden)
        self.layers = nn.ModuleList(_DecodeLayer(hidden) for _ in range(layers))

    def forward(self, token: Tensor, position: Tensor) -> Tensor:
        x = self.embed(token)
        mask = (torch.arange(128) <= position)[None, None, None]
        for layer in self.layers:
            x = layer(x, position, mask)
        return x @ self.embed.weight.t()


def decode_step(layers: int) -> tuple[nn.Module, Callable[[], tuple[Any, ...]]]:
    """H=1024, one token at a time, float32."""
    torch.manual_seed(0)
    model = _Decode(layers, 1024).eval()
    token, position = torch.tensor([[5]]), torch.tensor([64])
    return model, lambda: (token, position)
