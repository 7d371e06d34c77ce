"""Samples for engine/kernels/attention.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.engine.op_case import Make, OpCase

HALVES = ("float16", "bfloat16")
Seen = Callable[[int, int, int], bool]


def _rows(
    q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Seen, pse: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Row by row over [B, N, S, D]; seen(batch, query, key). Rows that see nothing: zeros and +inf."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    lse = torch.full((*q.shape[:3], 1), math.inf, dtype=q.dtype)
    group = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            for i in range(q.shape[2]):
                keys = [j for j in range(k.shape[2]) if seen(b, i, j)]
                if not keys:
                    continue
                scores = (k[b, n // group, keys] * q[b, n, i]).sum(-1) * scale
                if pse is not None:
                    scores = scores + pse[b % pse.shape[0], n, i, keys]
                weights = scores.exp() / scores.exp().sum()
                out[b, n, i] = (weights.unsqueeze(-1) * v[b, n // group, keys]).sum(0)
                lse[b, n, i] = scores.exp().sum().log()
    return out, lse


def _to_bnsd(x: Tensor, layout: str, heads: int) -> Tensor:
    if layout == "BSH":
        x = x.reshape(*x.shape[:2], heads, x.shape[2] // heads)
    return x if layout == "BNSD" else x.permute(0, 2, 1, 3)


def _from_bnsd(x: Tensor, layout: str) -> Tensor:
    if layout == "BNSD":
        return x
    x = x.permute(0, 2, 1, 3)
    return x.flatten(2) if layout == "BSH" else x


def _everything(b: int, i: int, j: int) -> bool:
    return True


def _qkv(
    m: Make, layout: str, *, b: int = 2, n: int = 4, kv_n: int = 4, sq: int = 5, skv: int = 5
) -> tuple[Tensor, ...]:
    def one(heads: int, length: int) -> Tensor:
        return _from_bnsd(m(b, heads, length, 8, low=-1, high=1), layout).contiguous()

    return one(n, sq), one(kv_n, skv), one(kv_n, skv)


def fia(
    name: str,
    layout: str = "BNSD",
    seen: Any = _everything,
    *,
    attrs: dict[str, Any] | None = None,
    extra: Any = lambda m: {},
    n: int = 4,
    kv_n: int = 4,
    sq: int = 5,
    skv: int = 5,
    dtypes: tuple[str, ...] = HALVES,
) -> OpCase:
    """One FusedInferAttentionScore sample. seen(batch, query, key, **extra) says what each query sees."""
    attrs = {"num_heads": n, "scale": 0.3, "input_layout": layout, "num_key_value_heads": kv_n} | (attrs or {})
    source, _, target = layout.partition("_")

    def inputs(m: Make) -> dict[str, Any]:
        q, k, v = _qkv(m, source, n=n, kv_n=kv_n, sq=sq, skv=skv)
        return {"query": q, "key": [k], "value": [v]} | extra(m)

    def expected(query: Tensor, key: list[Tensor], value: list[Tensor], **rest: Any) -> list[Tensor]:
        q, k, v = _to_bnsd(query, source, n), _to_bnsd(key[0], source, kv_n), _to_bnsd(value[0], source, kv_n)
        pse = rest.pop("pse_shift", None)
        predicate = seen if not rest else (lambda b, i, j: seen(b, i, j, **rest))
        out, lse = _rows(q, k, v, attrs["scale"], predicate, pse)
        return [_from_bnsd(out, target or source), lse if attrs.get("softmax_lse_flag") else torch.empty(0)]

    return OpCase(
        "FusedInferAttentionScore",
        inputs,
        expected,
        attrs,
        outputs=("attention_out", "softmax_lse"),
        dtypes=dtypes,
        name=name,
    )


def _mask(m: Make, *shape: int) -> Tensor:
    """Hides half of the places, never the first key."""
    mask = m.ints(*shape, low=0, high=2).bool()
    mask[..., 0] = False
    return mask


def _triangle(m: Make) -> dict[str, Any]:
    return {"atten_mask": torch.ones(2048, 2048, dtype=torch.bool).triu(1)}


def _lengths(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


Q_LEN, KV_LEN = (3, 5), (4, 6)


def _right_down(b: int, i: int, j: int, **rest: Any) -> bool:
    return i < Q_LEN[b] and j < KV_LEN[b] and j - i <= KV_LEN[b] - Q_LEN[b]


def _band(b: int, i: int, j: int, **rest: Any) -> bool:
    return -1 <= j - i - 1 <= 0


LENGTHS = {"actual_seq_lengths": _lengths(*Q_LEN), "actual_seq_lengths_kv": _lengths(*KV_LEN)}

CASES = [
    fia("bsh", "BSH", attrs={"num_key_value_heads": 0}, dtypes=("float32", *HALVES)),
    fia("bsnd_grouped", "BSND", kv_n=2),
    fia("bnsd_to_bsnd", "BNSD_BSND", kv_n=1, skv=7),
    fia("lse", kv_n=2, attrs={"softmax_lse_flag": True}, dtypes=("float32", *HALVES)),
    fia("band_without_mask", attrs={"pre_tokens": 0, "next_tokens": 0}),
    fia(
        "mask",
        "BSH",
        lambda b, i, j, atten_mask: not atten_mask[i, j],
        extra=lambda m: {"atten_mask": _mask(m, 5, 5)},
    ),
    fia(
        "mask_and_band",
        seen=lambda b, i, j, atten_mask: not atten_mask[b, 0, i, j] and -2 <= j - i <= 1,
        extra=lambda m: {"atten_mask": torch.zeros(2, 1, 5, 5, dtype=torch.int8)},
        attrs={"pre_tokens": 2, "next_tokens": 1},
    ),
    fia(
        "all_mask",
        seen=lambda b, i, j, atten_mask: not atten_mask[b, i, j],
        extra=lambda m: {"atten_mask": _mask(m, 2, 5, 5).to(torch.uint8)},
        attrs={"sparse_mode": 1, "pre_tokens": 0, "next_tokens": 0},
    ),
    fia(
        "hidden_row",
        seen=lambda b, i, j, atten_mask: not atten_mask[i, j],
        extra=lambda m: {"atten_mask": torch.arange(5).view(5, 1).expand(5, 5).eq(2).contiguous()},
        attrs={"softmax_lse_flag": True, "inner_precise": 2},
    ),
    fia(
        "left_up",
        seen=lambda b, i, j, atten_mask: j <= i,
        extra=_triangle,
        attrs={"sparse_mode": 2, "pre_tokens": 1, "next_tokens": 3},
        skv=7,
    ),
    fia("right_down", seen=lambda b, i, j, atten_mask: j - i <= 2, extra=_triangle, attrs={"sparse_mode": 3}, skv=7),
    fia(
        "right_down_lengths",
        seen=_right_down,
        extra=lambda m: _triangle(m) | LENGTHS,
        attrs={"sparse_mode": 3, "softmax_lse_flag": True},
        skv=7,
    ),
    fia(
        "band",
        seen=_band,
        extra=_triangle,
        attrs={"sparse_mode": 4, "pre_tokens": 1, "next_tokens": 0},
        skv=6,
    ),
    fia(
        "lengths",
        "BSND",
        lambda b, i, j, **rest: i < Q_LEN[b] and j < KV_LEN[b],
        extra=lambda m: LENGTHS,
        skv=6,
    ),
    fia(
        "one_length",
        "BSH",
        lambda b, i, j, **rest: j < 3,
        extra=lambda m: {"actual_seq_lengths_kv": _lengths(3)},
    ),
    fia(
        "pse",
        seen=lambda b, i, j, atten_mask: not atten_mask[0, 0, i, j],
        extra=lambda m: {"pse_shift": m(1, 4, 5, 5), "atten_mask": _mask(m, 1, 1, 5, 5)},
    ),
    fia("pse_lse", extra=lambda m: {"pse_shift": m(2, 4, 5, 5)}, attrs={"softmax_lse_flag": True}),
    fia(
        "one_query",
        "BSH",
        lambda b, i, j, atten_mask: not atten_mask[b, j],
        extra=lambda m: {"atten_mask": _mask(m, 2, 7)},
        attrs={"next_tokens": 0, "pre_tokens": 0},
        sq=1,
        skv=7,
        kv_n=2,
    ),
    fia("no_keys", skv=0, attrs={"softmax_lse_flag": True}),
    fia("no_keys_no_lse", "BSH", skv=0),
    fia("no_queries", "BSND", sq=0),
    fia("one_query_triangle", seen=lambda b, i, j, atten_mask: True, extra=_triangle, attrs={"sparse_mode": 3}, sq=1),
    OpCase(
        "PromptFlashAttention",
        lambda m: dict(zip(("query", "key", "value"), _qkv(m, "BSH", kv_n=2, skv=6), strict=True)),
        lambda query, key, value: _from_bnsd(
            _rows(_to_bnsd(query, "BSH", 4), _to_bnsd(key, "BSH", 2), _to_bnsd(value, "BSH", 2), 0.5, _everything)[0],
            "BSH",
        ),
        {"num_heads": 4, "num_key_value_heads": 2, "scale_value": 0.5},
        outputs=("attention_out",),
        dtypes=HALVES,
    ),
    OpCase(
        "PromptFlashAttention",
        lambda m: (
            dict(zip(("query", "key", "value"), _qkv(m, "BNSD"), strict=True))
            | {"atten_mask": torch.ones(5, 5, dtype=torch.uint8).triu(2), "actual_seq_lengths": _lengths(3, 5)}
        ),
        lambda query, key, value, **rest: _rows(
            query, key, value, 1.0, lambda b, i, j: i < (3, 5)[b] and i - 2 <= j <= i + 1
        )[0],
        {"num_heads": 4, "num_key_value_heads": 0, "input_layout": "BNSD", "pre_tokens": 2, "next_tokens": 1},
        outputs=("attention_out",),
        dtypes=HALVES,
        name="band",
    ),
    OpCase(
        "PromptFlashAttention",
        lambda m: dict(zip(("query", "key", "value"), _qkv(m, "BSND"), strict=True)) | _triangle(m),
        lambda query, key, value, atten_mask: _from_bnsd(
            _rows(*(_to_bnsd(x, "BSND", 4) for x in (query, key, value)), 1.0, lambda b, i, j: j <= i)[0], "BSND"
        ),
        {"num_heads": 4, "num_key_value_heads": 0, "input_layout": "BSND", "sparse_mode": 2, "inner_precise": 0},
        outputs=("attention_out",),
        dtypes=HALVES,
        name="left_up",
    ),
    OpCase(
        "IncreFlashAttention",
        lambda m: dict(zip(("query", "key0", "value0"), _qkv(m, "BSH", kv_n=2, sq=1, skv=6), strict=True)),
        lambda query, key0, value0: _from_bnsd(
            _rows(_to_bnsd(query, "BSH", 4), _to_bnsd(key0, "BSH", 2), _to_bnsd(value0, "BSH", 2), 0.5, _everything)[0],
            "BSH",
        ),
        {"num_heads": 4, "num_key_value_heads": 2, "scale_value": 0.5},
        outputs=("attention_out",),
        dtypes=HALVES,
    ),
    OpCase(
        "IncreFlashAttention",
        lambda m: (
            dict(zip(("query", "key0", "value0"), _qkv(m, "BNSD", sq=1, skv=6), strict=True))
            | {"atten_mask": _mask(m, 2, 1, 1, 6), "actual_seq_lengths": _lengths(4, 6)}
        ),
        lambda query, key0, value0, atten_mask, actual_seq_lengths: _rows(
            query, key0, value0, 1.0, lambda b, i, j: j < (4, 6)[b] and not atten_mask[b, 0, 0, j]
        )[0],
        {"num_heads": 4, "num_key_value_heads": 0, "input_layout": "BNSD"},
        outputs=("attention_out",),
        dtypes=HALVES,
        name="mask_lengths",
    ),
]
