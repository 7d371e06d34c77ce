"""Llama with a static KV cache: prefill and 16 decode steps, two graphs in all, equal to eager step by step."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.engine import Executable
from npu_fused_graph.host import native
from tests.models.zoo import build

STEPS = 16


def generate(model: Any, forward: Any, tokens: Tensor) -> list[Tensor]:
    """Greedy tokens are fixed beforehand, so that both runs see the same inputs."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=32)
    logits = [
        forward(
            input_ids=tokens[:, :4], past_key_values=cache, position_ids=torch.arange(4)[None], use_cache=True
        ).logits
    ]
    for step in range(STEPS):
        position = torch.tensor([[4 + step]])
        token = tokens[:, 4 + step : 5 + step].clone()
        logits.append(forward(input_ids=token, past_key_values=cache, position_ids=position, use_cache=True).logits)
    return logits


@pytest.mark.parametrize(
    ("attention", "dtype"),
    [
        ("sdpa", torch.float32),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("sdpa", torch.bfloat16), ("eager", torch.float32), ("eager", torch.bfloat16))
        ),
    ],
)
def test_decode_does_not_recompile(attention: str, dtype: torch.dtype) -> None:
    graphs: list[Executable] = []
    native.graph_listeners.append(graphs.append)
    torch._dynamo.reset()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, _ = build("llama", dtype, attention)
            tokens = torch.randint(0, 128, (1, 4 + STEPS), generator=torch.Generator().manual_seed(3))
            eager = generate(model, model, tokens)
            compiled = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
            results = generate(model, compiled, tokens)
    finally:
        native.graph_listeners.remove(graphs.append)
        torch._dynamo.reset()
    assert len(graphs) == 2, "one for the prefill, one for all decode steps"
    limit = {torch.float32: 2e-6, torch.bfloat16: 3e-2}[dtype]
    for step, (result, wanted) in enumerate(zip(results, eager, strict=True)):
        error = float((result.double() - wanted.double()).abs().max() / wanted.double().abs().max())
        assert error <= limit, (step, error)
