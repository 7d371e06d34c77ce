"""Attention: float64 oracles after the formulas of torch_npu's documents (op-plugin)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.host.npu_cases.base import (
    HALVES,
    RANDOM,
    Case,
    Cases,
    normal,
    wide,
)

# -- attention -----------------------------------------------------------------------------------------------

TRIANGLE = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
"""What the sparse modes 2 and 3 want as atten_mask: True above the diagonal."""


def attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """(attention [B, N, Sq, D], log-sum-exp [B, N, Sq, 1]) from tensors with the heads first; hidden: [B, Sq, Skv]."""
    share = q.shape[1] // k.shape[1]
    out = np.empty(q.shape)
    lse = np.empty((*q.shape[:3], 1))
    for batch in range(q.shape[0]):
        for head in range(q.shape[1]):
            scores = scale * wide(q[batch, head]) @ wide(k[batch, head // share]).T
            scores[hidden[batch].numpy()] = -np.inf
            weights = np.exp(scores)
            total = weights.sum(-1, keepdims=True)
            out[batch, head] = weights @ wide(v[batch, head // share]) / total
            lse[batch, head] = np.log(total)
    return out, lse


def laid_out(x: Any, layout: str) -> Any:
    """[B, N, S, D] in ``layout``, for tensors and arrays."""
    if layout == "BNSD":
        return x
    x = x.transpose(1, 2) if isinstance(x, Tensor) else x.swapaxes(1, 2)
    return x if layout == "BSND" else x.reshape(*x.shape[:2], -1)


def attention_case(
    layout: str,
    dtype: torch.dtype,
    *,
    queries: int,
    keys: int,
    kv_heads: int = 0,
    mode: int = 0,
    mask: Tensor | None = None,
    band: tuple[int, int] | None = None,
    q_lengths: Sequence[int] | None = None,
    kv_lengths: Sequence[int] | None = None,
    with_lse: bool = False,
) -> Case:
    """Two sequences and four heads; q_lengths and kv_lengths are valid lengths, mask what mode 0 or 1 hides.

    band: pre_tokens and next_tokens, which only mode 0 heeds.
    """
    q = normal(2, 4, queries, 16, dtype=dtype, scale=2.0)
    k, v = (normal(2, kv_heads or 4, keys, 16, dtype=dtype) for _ in range(2))
    hidden = torch.zeros(2, queries, keys, dtype=torch.bool)
    kwargs: dict[str, Any] = {"num_heads": 4, "scale": 0.25, "input_layout": layout, "sparse_mode": mode}
    if kv_heads:
        kwargs["num_key_value_heads"] = kv_heads
    if mask is not None:
        kwargs["atten_mask"] = mask
        hidden |= mask.reshape(-1, queries, keys)
    row, column = torch.arange(queries)[:, None], torch.arange(keys)
    for batch in range(2):
        rows = queries if q_lengths is None else q_lengths[batch]
        valid = keys if kv_lengths is None else kv_lengths[batch]
        k[batch, :, valid:], v[batch, :, valid:] = 30.0, 30.0  # what is not valid would stand out
        hidden[batch, :, valid:] = True
        if band is not None and mode == 0:
            hidden[batch] |= (column < row - band[0]) | (column > row + band[1])
        if queries > 1 and mode > 1:
            hidden[batch] |= column > row + (valid - rows if mode == 3 else 0)
    if mode > 1:
        kwargs["atten_mask"] = TRIANGLE
    if band is not None:
        kwargs["pre_tokens"], kwargs["next_tokens"] = band
    if q_lengths is not None:
        kwargs["actual_seq_lengths"] = list(q_lengths)
    if kv_lengths is not None:
        kwargs["actual_seq_lengths_kv"] = list(kv_lengths)
    with np.errstate(invalid="ignore", divide="ignore"):  # padding rows may see nothing
        out, lse = attention(q, k, v, hidden, 0.25)
    for batch, rows in enumerate(q_lengths or ()):
        out[batch, :, rows:], lse[batch, :, rows:] = np.nan, np.nan
    for batch, valid in enumerate(kv_lengths or ()):
        k[batch, :, valid:], v[batch, :, valid:] = torch.nan, torch.nan  # a cache that was never written there
    if with_lse:
        kwargs["softmax_lse_flag"] = True
    inside, _, outside = layout.partition("_")
    args = [laid_out(t, inside).contiguous() for t in (q, k, v)]
    expected = ((laid_out(out, outside or inside), dtype), (lse, torch.float32) if with_lse else None)
    return Case("npu_fused_infer_attention_score", args, expected, kwargs)


def cases() -> Cases:
    fp16, bf16 = HALVES
    causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
    ragged = torch.from_numpy(RANDOM.random((2, 1, 5, 9)) < 0.4)
    ragged[..., 0] = False
    yield "BNSD", attention_case("BNSD", fp16, queries=6, keys=9)
    yield "BSH, GQA", attention_case("BSH", bf16, queries=6, keys=9, kv_heads=2)
    yield "BSND to heads first", attention_case("BNSD_BSND", fp16, queries=6, keys=6, kv_heads=1)
    yield "BSH, mode 0", attention_case("BSH", fp16, queries=6, keys=6, mask=causal)
    yield "BNSD, mode 0, band", attention_case("BNSD", bf16, queries=6, keys=6, mask=causal, band=(2, 0))
    yield "BNSD, mode 1", attention_case("BNSD", bf16, queries=5, keys=9, mode=1, mask=ragged, band=(1, 1))
    yield "BSH, mode 2", attention_case("BSH", bf16, queries=5, keys=9, mode=2, kv_heads=2)
    yield "BNSD, mode 3, GQA, lse", attention_case("BNSD", fp16, queries=5, keys=9, mode=3, kv_heads=2, with_lse=True)
    lengths = {"q_lengths": (3, 6), "kv_lengths": (7, 6)}
    yield "BSH, lengths", attention_case("BSH", fp16, queries=6, keys=9, **lengths)
    yield "BSND, mode 3, lengths", attention_case("BSND", bf16, queries=6, keys=9, mode=3, **lengths)
    yield "BNSD, lengths, lse", attention_case("BNSD", fp16, queries=6, keys=9, with_lse=True, **lengths)
    yield "BSH, one query", attention_case("BSH", fp16, queries=1, keys=9, kv_heads=2, kv_lengths=(4, 9))
    yield "BNSD, one query, mode 3", attention_case("BNSD", bf16, queries=1, keys=9, mode=3, kv_lengths=(4, 9))
