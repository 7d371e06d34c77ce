"""Attention of transformers' models: fused at every site, in prefill and in training; what is refused, and why."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npu_fused_graph as nfg
from npu_fused_graph.host import native
from npu_fused_graph.passes import FusionSite

pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo, of Bloom
VOCABULARY = 64
LAYERS = 2


def model_of(family: str, implementation: str) -> nn.Module:
    import transformers as t

    torch.manual_seed(0)
    decoder = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    gpt = {"vocab_size": VOCABULARY, "n_layer": LAYERS, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    builders: dict[str, Any] = {
        "Llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**decoder, attn_implementation=implementation)),
        "Qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**decoder, attn_implementation=implementation)),
        "GPT-2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(
                **gpt, n_embd=64, n_positions=1024, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                attn_implementation=implementation,
            )
        ),
        "Bloom": lambda: t.BloomForCausalLM(t.BloomConfig(**gpt, hidden_size=64, attn_implementation=implementation)),
    }  # fmt: skip
    model: nn.Module = builders[family]()
    return model


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(3))


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


SITES = [
    ("Llama", "sdpa", False, "fused"), ("Llama", "sdpa", True, "fused"), ("Llama", "eager", False, "fused"),
    ("Llama", "eager", True, "row_may_be_hidden"), ("Qwen2", "sdpa", False, "fused"), ("Qwen2", "sdpa", True, "fused"),
    ("Qwen2", "eager", False, "fused"), ("GPT-2", "sdpa", False, "fused"), ("GPT-2", "sdpa", True, "fused"),
    ("GPT-2", "eager", False, "fused"), ("GPT-2", "eager", True, "row_may_be_hidden"),
    ("Bloom", "eager", False, "fused"), ("Bloom", "eager", True, "row_may_be_hidden"),
]  # fmt: skip
FAST = {("Llama", "sdpa", False), ("Bloom", "eager", False)}


@pytest.mark.parametrize(
    ("family", "implementation", "is_padded", "verdict"),
    [
        pytest.param(*row, marks=() if row[:3] in FAST else pytest.mark.slow, id="-".join(map(str, row)))
        for row in SITES
    ],
)
def test_prefill_of_1024_tokens(family: str, implementation: str, is_padded: bool, verdict: str) -> None:
    """With default options; logits as near to float32 as eager ones."""
    model = model_of(family, implementation).half().eval()
    ids, found = tokens(2, 1024), []
    given: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    seen = torch.ones_like(ids)
    if is_padded:
        seen[1, 700:] = 0
        given["attention_mask"] = seen
    torch._dynamo.reset()
    backend = nfg.get_npu_backend(on_sites=found.extend)
    with torch.no_grad():
        got = torch.compile(model, backend=backend, dynamic=False)(**given).logits
        eager = model(**given).logits
        exact = copy.deepcopy(model).float()(**given).logits
    torch._dynamo.reset()
    assert [site.reason or "fused" for site in found] == [verdict] * LAYERS
    is_seen = seen.bool()
    assert error(got[is_seen], exact[is_seen]) < 1.2 * error(eager[is_seen], exact[is_seen]) + 1e-4


def one_step(model: nn.Module, run: Any, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    logits = run(input_ids=ids, use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize(
    ("family", "implementation"),
    [
        ("Llama", "sdpa"), *(pytest.param(*row, marks=pytest.mark.slow) for row in (
            ("Llama", "eager"), ("Qwen2", "sdpa"), ("GPT-2", "eager"), ("GPT-2", "sdpa"), ("Bloom", "eager"),
        )),
    ],
)  # fmt: skip
def test_a_training_step(family: str, implementation: str) -> None:
    """bfloat16; loss and every gradient as near to float32 as eager training's; both nodes in the graphs."""
    model = model_of(family, implementation).bfloat16()
    model.config.attention_dropout = 0.0  # type: ignore[union-attr]
    ids = tokens(2, 256)
    exact = one_step(wide := copy.deepcopy(model).float(), wide, ids)
    eager = {k: v.clone() for k, v in one_step(model, model, ids).items()}
    sites: list[FusionSite] = []
    graphs: list[Any] = []
    torch._dynamo.reset()
    native.graph_listeners.append(graphs.append)
    run = torch.compile(model, backend=nfg.get_npu_backend(min_rows=0, on_sites=sites.extend), dynamic=False)
    got = one_step(model, run, ids)
    native.graph_listeners.remove(graphs.append)
    torch._dynamo.reset()
    assert [site.reason or "fused" for site in sites if site.op == "flash_attention_score"] == ["fused"] * LAYERS
    types = [n.type for e in graphs for n in e.graph.nodes.values() if n.type.startswith("FlashAttention")]
    assert types == ["FlashAttentionScore"] * LAYERS + ["FlashAttentionScoreGrad"] * LAYERS
    assert got.keys() == exact.keys()
    for name, wanted in exact.items():
        assert error(got[name], wanted) < 1.3 * error(eager[name], wanted) + 2e-3, name
