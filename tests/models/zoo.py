"""Small random-weight transformers models: the architectures users serve."""

from __future__ import annotations

from typing import Any

import torch

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

# architecture -> (configuration class, model class, configuration overrides)
DENSE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 16}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 16}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"pad_token_id": 0}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", {}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {}),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", {"head_dim": 16, "pad_token_id": 0}),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", {}),
    "falcon": ("FalconConfig", "FalconForCausalLM", {}),
    "bloom": ("BloomConfig", "BloomForCausalLM", {"n_layer": 2, "n_head": 4}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "opt": ("OPTConfig", "OPTForCausalLM", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bert": ("BertConfig", "BertModel", {}),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    ),
    "vit": ("ViTConfig", "ViTModel", {"image_size": 32, "patch_size": 8}),
}  # fmt: skip

MOE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", _MOE),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", _MOE | {"head_dim": 16}),
}

NO_SDPA = ("gemma2", "bloom")
"""Classes transformers itself refuses SDPA for (Gemma2: it warns and prefers eager)."""


def build(name: str, dtype: torch.dtype, attention: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """(model in eval mode, inputs) with seeded weights."""
    import transformers

    config_name, model_name, overrides = (DENSE | MOE)[name]
    config = getattr(transformers, config_name)(**_SIZES | overrides, attn_implementation=attention)
    config.use_cache = False
    torch.manual_seed(0)
    model = getattr(transformers, model_name)(config).eval().to(dtype)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 128, (2, 8), generator=generator)
    if name == "vit":
        return model, {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator).to(dtype)}
    if name == "t5":
        return model, {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)}
    return model, {"input_ids": tokens}


def first_output(result: Any) -> torch.Tensor:
    """Logits, or the last hidden state."""
    output: torch.Tensor = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return output
