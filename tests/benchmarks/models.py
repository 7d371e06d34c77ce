"""The benchmark's models: transformers' Llama at fixed sizes, random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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


class _Decode(nn.Module):
    """One token against a static cache of 128 positions that is updated in place."""

    def __init__(self, model: Any, layers: int) -> None:
        super().__init__()
        from transformers import StaticCache

        self.model = model
        self.cache = StaticCache(config=model.config, max_cache_len=128)
        with torch.no_grad():
            model(input_ids=torch.arange(64).reshape(1, 64), past_key_values=self.cache, use_cache=True)

    def forward(self, token: Tensor, position: Tensor) -> Tensor:
        logits: Tensor = self.model(
            input_ids=token, past_key_values=self.cache, position_ids=position, use_cache=True
        ).logits
        return logits


def decode_step(layers: int) -> tuple[nn.Module, Callable[[], tuple[Any, ...]]]:
    """H=1024, one token at a time, float32."""
    model = _Decode(_llama(layers, 1024, torch.float32), layers)
    token, position = torch.tensor([[5]]), torch.tensor([[64]])
    return model, lambda: (token, position)
