"""Inference attention with 8-bit operands, prefixes and padding: float64 oracles after torch_npu's documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.host.npu_cases.base import HALVES, Case, Cases, int8, normal, positive, wide
from tests.host.npu_cases.packed_attention import BLOCK, one_sequence, pages_of

HEADS, KV_HEADS, WIDTH, ROOM = 4, 2, 32, 40
LENGTHS = (ROOM, 23)


def over(q: Tensor, k: np.ndarray, v: np.ndarray, lengths: Sequence[int] = LENGTHS) -> np.ndarray:
    """[B, S, N, D] of q [B, S, N, D] and float64 k, v [B, L, KV heads, D] up to their lengths."""
    return np.stack(
        [
            one_sequence(
                wide(q[b]).swapaxes(0, 1),
                *(x[b, :n].swapaxes(0, 1) for x in (k, v)),
                np.zeros((1, n), bool),
                0.25,
                None,
            )[0].swapaxes(0, 1)
            for b, n in enumerate(lengths)
        ]
    )


def int8_cache(operator: str, dtype: torch.dtype, kind: str, paged: bool = False) -> Case:
    """One query and an int8 cache in layout BSND. kind: of its scales."""
    q = normal(2, 1, HEADS, WIDTH, dtype=dtype)
    k, v = int8(2, ROOM, KV_HEADS, WIDTH, most=20), int8(2, ROOM, KV_HEADS, WIDTH, most=20)
    table = torch.tensor([[4, 1, 5], [0, 3, 2]], dtype=torch.int32)
    span = table.shape[1] * BLOCK if paged else ROOM
    if kind == "channels":
        scales = [positive(KV_HEADS, WIDTH, around=0.05, dtype=dtype) for _ in "kv"]
        offsets = [normal(KV_HEADS, WIDTH, dtype=dtype) for _ in "kv"]
    else:
        scales = [positive(2, span, around=0.05) for _ in "kv"]
        offsets = [normal(2, span) for _ in "kv"]
    values = []
    for x, scale, offset in zip((k, v), scales, offsets, strict=True):
        s, o = (wide(y) if kind == "channels" else wide(y)[:, :ROOM, None, None] for y in (scale, offset))
        values.append((wide(x) + o) * s)
    kwargs: dict[str, Any] = {"num_key_value_heads": KV_HEADS, "input_layout": "BSND"}
    v2 = operator.endswith("v2")
    if v2:
        kwargs |= {"num_query_heads": HEADS, "softmax_scale": 0.25, "actual_seq_kvlen": list(LENGTHS)}
        kwargs |= {"key_quant_mode": int(kind != "channels"), "value_quant_mode": int(kind != "channels")}
        for name, parts in (("scale", scales), ("offset", offsets)):
            kwargs |= {f"dequant_{name}_{part}": x for part, x in zip(("key", "value"), parts, strict=True)}
    else:
        incre = operator == "npu_incre_flash_attention"
        kwargs |= {"num_heads": HEADS, "scale_value" if incre else "scale": 0.25}
        kwargs["actual_seq_lengths" if incre else "actual_seq_lengths_kv"] = list(LENGTHS)
        kwargs |= {"antiquant_scale": torch.stack(scales), "antiquant_offset": torch.stack(offsets)}
        if not incre:
            kwargs["antiquant_mode"] = int(kind != "channels")
    args = [q, k, v]
    if paged:
        args = [q, *(pages_of([x[b, :n] for b, n in enumerate(LENGTHS)], "3-D", table) for x in (k, v))]
        kwargs |= {"block_table": table, "block_size": BLOCK}
    out = over(q, values[0], values[1])
    return Case(operator, args, ((out, dtype), None)[: 1 if operator == "npu_incre_flash_attention" else 2], kwargs)


def int8_latent() -> Case:
    """Query and latent cache int8, rope bfloat16: the weights are int8 as well."""
    lengths, width, rope = (20, 37), 64, 16
    q, q_rope = int8(2, HEADS, width, most=20), normal(2, HEADS, rope, dtype=torch.bfloat16, scale=20.0)
    latent = [int8(n, 1, width, most=20) for n in lengths]
    k_rope = [normal(n, 1, rope, dtype=torch.bfloat16, scale=20.0) for n in lengths]
    scales = positive(2, HEADS, around=0.05)
    table = torch.tensor([[4, 1, 0], [2, 3, 5]], dtype=torch.int32)
    out = np.empty((HEADS, 2, width))
    for b, n in enumerate(lengths):
        k, kr = wide(latent[b])[:, 0], wide(k_rope[b])[:, 0]
        scores = 0.25 * 0.0625 * wide(scales[b])[:, None] * (wide(q[b]) @ k.T + wide(q_rope[b]) @ kr.T)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        rounded = np.rint((127 * weights).astype(np.float16)).astype(np.float64) / 127
        out[:, b] = 0.125 * rounded @ k / weights.sum(-1, keepdims=True)
        assert n <= 512
    cache = pages_of(latent, "4-D", table)
    kwargs: dict[str, Any] = {
        "query_rope": q_rope, "key_rope": pages_of(k_rope, "NZ", table), "block_table": table, "block_size": BLOCK,
        "actual_seq_qlen": [1, 2], "actual_seq_kvlen": list(lengths), "num_query_heads": HEADS,
        "num_key_value_heads": 1, "softmax_scale": 0.25, "input_layout": "TND_NTD", "query_quant_mode": 3,
        "dequant_scale_query": scales, "dequant_scale_key": torch.tensor([0.0625]),
        "dequant_scale_value": torch.tensor([0.125]),
    }  # fmt: skip
    nz = cache.unflatten(3, (-1, 32)).transpose(2, 3).contiguous()
    return Case("attention_over_latent", [q, nz], ((out, torch.bfloat16), None), kwargs)


def padded(dtype: torch.dtype) -> Case:
    """Sequences at the right end; what is around them is NaN."""
    full = {"query": (3, HEADS), "key": (6, KV_HEADS), "value": (6, KV_HEADS)}
    own, behind = {"query": (3, 2), "key": (4, 5), "value": (4, 5)}, {"query": 0, "key": 1, "value": 1}
    parts = {}
    for name, (count, heads) in full.items():
        parts[name] = torch.full((2, count, heads, WIDTH), torch.nan, dtype=dtype)
        for b, n in enumerate(own[name]):
            end = count - behind[name]
            parts[name][b, end - n : end] = normal(n, heads, WIDTH, dtype=dtype)
    out = np.full((2, 3, HEADS, WIDTH), np.nan)
    for b, n in enumerate(own["query"]):
        q, k, v = (
            parts[name][b : b + 1, full[name][0] - behind[name] - own[name][b] : full[name][0] - behind[name]]
            for name in full
        )
        out[b, 3 - n :] = over(q, wide(k), wide(v), [own["key"][b]])[0]
    kwargs = {
        "num_heads": HEADS, "num_key_value_heads": KV_HEADS, "scale": 0.25, "input_layout": "BSND",
        "actual_seq_lengths": list(own["query"]), "actual_seq_lengths_kv": list(own["key"]),
        "query_padding_size": torch.tensor([0]), "kv_padding_size": torch.tensor([1]),
    }  # fmt: skip
    return Case("npu_fused_infer_attention_score", list(parts.values()), ((out, dtype), None), kwargs)


def with_prefix(dtype: torch.dtype) -> Case:
    q, k, v = (normal(2, n, heads, WIDTH, dtype=dtype) for n, heads in ((3, HEADS), (6, KV_HEADS), (6, KV_HEADS)))
    prefixes = [normal(1, 5, KV_HEADS, WIDTH, dtype=dtype) for _ in "kv"]
    all_k, all_v = (
        np.concatenate([wide(p)[:, :4].repeat(2, 0), wide(x)], 1) for p, x in zip(prefixes, (k, v), strict=True)
    )
    kwargs = {
        "num_heads": HEADS, "num_key_value_heads": KV_HEADS, "scale": 0.25, "input_layout": "BSND",
        "key_shared_prefix": prefixes[0], "value_shared_prefix": prefixes[1], "actual_shared_prefix_len": [4],
    }  # fmt: skip
    out = over(q, all_k, all_v, (10, 10))
    return Case("npu_fused_infer_attention_score", [q, k, v], ((out, dtype), None), kwargs)


def cases() -> Cases:
    fp16, bf16 = HALVES
    fused, fused_v2 = "npu_fused_infer_attention_score", "npu_fused_infer_attention_score_v2"
    incre = "npu_incre_flash_attention"
    yield "int8 channels", int8_cache(fused, fp16, "channels")
    yield "int8 tokens", int8_cache(fused, bf16, "tokens")
    yield "int8 channels", int8_cache(fused_v2, bf16, "channels")
    yield "int8 tokens, pages", int8_cache(fused_v2, fp16, "tokens", paged=True)
    yield "int8", int8_cache(incre, fp16, "channels")
    yield "int8, pages", int8_cache(incre, fp16, "channels", paged=True)
    yield "int8", int8_latent()
    yield "padding", padded(bf16)
    yield "prefix", with_prefix(fp16)
