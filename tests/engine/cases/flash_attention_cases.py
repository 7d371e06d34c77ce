"""FlashAttentionScore and FlashAttentionScoreGrad against softmax written out in float64, and its autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.engine.op_case import Make, OpCase

B, N, D = 2, 4, 16
LAYOUTS = ("BSH", "SBH", "BNSD", "BSND", "TND")
DTYPES = ("float16", "bfloat16")


def laid_out(x: Tensor, layout: str) -> Tensor:
    """A (B, N, S, D) tensor in a layout; TND one sequence behind the other."""
    return {
        "BNSD": lambda: x,
        "BSND": lambda: x.transpose(1, 2),
        "BSH": lambda: x.transpose(1, 2).flatten(2),
        "SBH": lambda: x.permute(2, 0, 1, 3).flatten(2),
        "TND": lambda: x.transpose(1, 2).flatten(0, 1),
    }[layout]().contiguous()


def heads_first(x: Tensor, layout: str, depth: int) -> Tensor:
    """Back; TND as one batch."""
    return {
        "BNSD": lambda: x,
        "BSND": lambda: x.transpose(1, 2),
        "BSH": lambda: x.unflatten(-1, (-1, depth)).transpose(1, 2),
        "SBH": lambda: x.unflatten(-1, (-1, depth)).permute(1, 2, 0, 3),
        "TND": lambda: x.transpose(0, 1)[None],
    }[layout]()


def hidden_pairs(sq: int, sk: int, mask: Tensor | None, mode: int, pre: int, post: int) -> Tensor:
    """bool, as CANN's documents say it of each sparse mode."""
    i, j = torch.arange(sq)[:, None], torch.arange(sk)
    if mask is None:
        return torch.zeros(sq, sk, dtype=torch.bool)
    shown = {
        0: (j - i <= post) & (i - j <= pre),
        1: torch.ones(sq, sk, dtype=torch.bool),
        2: j <= i,
        3: j <= i + sk - sq,
        4: (j - i - (sk - sq) <= post) & (i + (sk - sq) - j <= pre),
    }[mode]
    return ~shown if mode > 1 else ~shown | (mask != 0)


def unpacked(bits: Tensor, *shape: int) -> Tensor:
    flat = np.unpackbits(bits.numpy(), bitorder="little")[: int(np.prod(shape))]
    return torch.from_numpy(flat.astype(np.float64)).view(shape)


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, bits: Tensor | None, a: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """(maxima, sums, attention) of (B, N, S, D) in float64."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scale = a.get("scale_value", 1.0)
    x = q @ k.mT
    if bias is not None and a.get("pse_type", 1) == 1:
        x = x + bias
    x = x * scale
    if bias is not None and a.get("pse_type", 1) == 0:
        x = x + bias
    pre, post = a.get("pre_tockens", 2**31 - 1), a.get("next_tockens", 2**31 - 1)
    x = x.masked_fill(hidden_pairs(x.shape[2], x.shape[3], mask, a.get("sparse_mode", 0), pre, post), -torch.inf)
    top = x.amax(-1)
    e = torch.exp(x - top.masked_fill(top == -torch.inf, 0.0)[..., None])
    total = e.sum(-1)
    p = e / total.masked_fill(total == 0, 1.0)[..., None]
    if bits is not None and a.get("keep_prob", 1.0) < 1:
        p = p * unpacked(bits, *p.shape) / a["keep_prob"]
    return top, total, p @ v


def in_layout(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, mask: Tensor | None, bits: Tensor | None,
    q_ends: Tensor | None, kv_ends: Tensor | None, a: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(softmax_max, softmax_sum, attention) as GE lays them out."""
    layout, depth = a["input_layout"], D
    q, k, v = (heads_first(x, layout, depth) for x in (query, key, value))
    if layout != "TND":
        top, total, out = attention(q, k, v, bias, mask, bits, a)
        return top[..., None].expand(*top.shape, 8), total[..., None].expand(*top.shape, 8), laid_out(out, layout)
    assert q_ends is not None
    assert kv_ends is not None
    parts, starts = [], (0, 0)
    for ends in zip(q_ends.tolist(), kv_ends.tolist(), strict=True):
        rows, columns = (slice(a, b) for a, b in zip(starts, ends, strict=True))
        if rows.start < rows.stop:
            parts.append(attention(q[:, :, rows], k[:, :, columns], v[:, :, columns], None, mask, None, a))
        starts = ends
    top, total, out = (torch.cat([p[i] for p in parts], 2) for i in range(3))
    return *(x[0].t()[..., None].expand(-1, -1, 8) for x in (top, total)), laid_out(out, layout)


def expected(a: dict[str, Any]) -> Callable[..., Any]:
    def run(query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> tuple[Tensor, ...]:
        top, total, out = in_layout(
            query, key, value, rest.get("real_shift"), rest.get("atten_mask"), rest.get("drop_mask"),
            rest.get("actual_seq_qlen"), rest.get("actual_seq_kvlen"), a,
        )  # fmt: skip
        return top, total, torch.empty(0, dtype=torch.float64), out

    return run


def expected_gradients(a: dict[str, Any]) -> Callable[..., Any]:
    def run(query: Tensor, key: Tensor, value: Tensor, dy: Tensor, **rest: Any) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        out = in_layout(
            *leaves, rest.get("pse_shift"), rest.get("atten_mask"), rest.get("drop_mask"),
            rest.get("actual_seq_qlen"), rest.get("actual_seq_kvlen"), a,
        )[2]  # fmt: skip
        return (*torch.autograd.grad(out, leaves, dy), torch.empty(0, dtype=torch.float64))

    return run


def operands(m: Make, layout: str, sq: int, sk: int, heads: int) -> dict[str, Any]:
    low, high = -2.0, 2.0
    return {
        "query": laid_out(m(B, N, sq, D, low=low, high=high), layout),
        "key": laid_out(m(B, heads, sk, D, low=low, high=high), layout),
        "value": laid_out(m(B, heads, sk, D, low=low, high=high), layout),
    }


def causal(sq: int, sk: int) -> Tensor:
    return torch.ones(sq, sk).triu(1).bool()


def triangle(m: Make) -> Tensor:
    return torch.ones(2048, 2048, dtype=torch.uint8).triu(1)


def scattered(m: Make, *shape: int) -> Tensor:
    """Some hidden pairs, some queries that see nothing; the values are any but 0."""
    mask = (torch.rand(shape, generator=m.generator) < 0.3).to(torch.uint8) * 200
    mask[..., 3, :] = 1
    return mask


Rest = Callable[[Make], dict[str, Any]]
VARIANTS: dict[str, tuple[str, int, int, int, dict[str, Any], Rest]] = {
    **{layout: (layout, 24, 24, N, {}, lambda m: {}) for layout in LAYOUTS[:-1]},
    **{f"{layout}-shared-heads": (layout, 24, 40, 2, {}, lambda m: {}) for layout in LAYOUTS[:-1]},
    "mask": ("BNSD", 24, 40, N, {}, lambda m: {"atten_mask": scattered(m, 24, 40)}),
    "mask-of-batches": ("BSH", 24, 40, 1, {"sparse_mode": 1}, lambda m: {"atten_mask": scattered(m, B, 1, 24, 40)}),
    "mask-of-heads": ("SBH", 24, 24, N, {}, lambda m: {"atten_mask": scattered(m, B, N, 24, 24)}),
    "limits": (
        "BNSD", 24, 24, N, {"pre_tockens": 5, "next_tockens": 2},
        lambda m: {"atten_mask": ~(torch.ones(24, 24).tril(2).triu(-5).bool())},
    ),
    "limits-that-hide-nothing-more": ("BNSD", 24, 24, N, {"next_tockens": 0}, lambda m: {"atten_mask": causal(24, 24)}),
    "limits-without-mask": ("BNSD", 24, 24, N, {"pre_tockens": 5, "next_tockens": 2}, lambda m: {}),
    "causal": ("BSND", 24, 40, 2, {"sparse_mode": 2}, lambda m: {"atten_mask": triangle(m)}),
    "causal-from-the-end": ("BNSD", 24, 40, N, {"sparse_mode": 3}, lambda m: {"atten_mask": triangle(m)}),
    "causal-from-the-end-of-less": ("BNSD", 40, 24, N, {"sparse_mode": 3}, lambda m: {"atten_mask": triangle(m)}),
    "band": (
        "BNSD", 24, 40, N, {"sparse_mode": 4, "pre_tockens": 6, "next_tockens": 3},
        lambda m: {"atten_mask": triangle(m)[None, None]},
    ),
    "bias-first": ("BNSD", 24, 40, N, {}, lambda m: {"bias": m(B, N, 24, 40)}),
    "bias-last": ("BSH", 24, 24, N, {"pse_type": 0}, lambda m: {"bias": m(1, N, 1, 24)}),
    "dropout": (
        "BNSD", 24, 24, 2, {"keep_prob": 0.8},
        lambda m: {"drop_mask": m.ints(B * N * 24 * 24 // 8 + 5, low=0, high=256, dtype=torch.uint8)},
    ),
    "all": (
        "SBH", 24, 24, N, {"keep_prob": 0.5, "pse_type": 0, "next_tockens": 0},
        lambda m: {
            "drop_mask": m.ints(B * N * 24 * 24 // 8, low=0, high=256, dtype=torch.uint8), "bias": m(B, N, 24, 24),
            "atten_mask": causal(24, 24),
        },
    ),
    "bits-without-dropout": (
        "BNSD", 24, 24, 2, {},
        lambda m: {"drop_mask": m.ints(B * N * 24 * 24 // 8, low=0, high=256, dtype=torch.uint8)},
    ),
    "TND": ("TND", 24, 40, 2, {}, lambda m: ends([5, 5, 48], [30, 40, 80])),
    "TND-causal": (
        "TND", 24, 40, N, {"sparse_mode": 2}, lambda m: {**ends([0, 48], [10, 80]), "atten_mask": triangle(m)},
    ),
    "TND-from-the-end": (
        "TND", 24, 40, N, {"sparse_mode": 3}, lambda m: {**ends([20, 48], [30, 80]), "atten_mask": triangle(m)},
    ),
    "TND-band": (
        "TND", 24, 40, N, {"sparse_mode": 4, "pre_tockens": 6, "next_tockens": 3},
        lambda m: {**ends([20, 48], [30, 80]), "atten_mask": triangle(m)},
    ),
}  # fmt: skip
"""By name: layout, Sq, Skv, heads of key, attributes, other inputs."""


def ends(q: list[int], kv: list[int]) -> dict[str, Tensor]:
    return {"actual_seq_qlen": torch.tensor(q), "actual_seq_kvlen": torch.tensor(kv)}


INPUTS = (
    "query", "key", "value", "real_shift", "drop_mask", "padding_mask", "atten_mask", "prefix", "actual_seq_qlen",
    "actual_seq_kvlen", "q_start_idx", "kv_start_idx",
)  # fmt: skip
GRADIENT_INPUTS = (
    "query", "key", "value", "dy", "pse_shift", "drop_mask", "padding_mask", "atten_mask", "softmax_max", "softmax_sum",
    "softmax_in", "attention_in", *INPUTS[7:],
)  # fmt: skip
OUTPUTS = ("softmax_max", "softmax_sum", "softmax_out", "attention_out")
GRADIENTS = ("dq", "dk", "dv", "dpse")


def make(name: str, m: Make) -> dict[str, Any]:
    """Inputs of the forward operator, its bias as "bias"."""
    layout, sq, sk, heads, _, rest = VARIANTS[name]
    return {**operands(m, layout, sq, sk, heads), **rest(m)}


def attributes(name: str) -> dict[str, Any]:
    layout, *_, attrs, _ = VARIANTS[name]
    return {"head_num": N, "input_layout": layout, "scale_value": 0.3, **attrs}


def forward_inputs(name: str, m: Make) -> dict[str, Any]:
    made = make(name, m)
    made["real_shift"] = made.pop("bias", None)
    return {key: made.get(key) for key in INPUTS}


def gradient_inputs(name: str, m: Make) -> dict[str, Any]:
    made = make(name, m)
    bias = made.pop("bias", None)
    wide = [made[x].double() for x in ("query", "key", "value")]
    top, total, out = in_layout(
        *wide, None if bias is None else bias.double(), made.get("atten_mask"), made.get("drop_mask"),
        made.get("actual_seq_qlen"), made.get("actual_seq_kvlen"), attributes(name),
    )  # fmt: skip
    made |= {
        "pse_shift": bias, "dy": m(*made["query"].shape, low=-1.0, high=1.0), "attention_in": out.to(m.dtype),
        "softmax_max": top.float().contiguous(), "softmax_sum": total.float().contiguous(),
    }  # fmt: skip
    return {key: made.get(key) for key in GRADIENT_INPUTS}


CASES = [
    case
    for name in VARIANTS
    for attrs in [attributes(name)]
    for case in (
        OpCase(
            "FlashAttentionScore", lambda m, name=name: forward_inputs(name, m), expected(attrs), attrs, OUTPUTS,
            DTYPES, name=name,
        ),
        OpCase(
            "FlashAttentionScoreGrad", lambda m, name=name: gradient_inputs(name, m), expected_gradients(attrs), attrs,
            GRADIENTS, DTYPES, name=name,
        ),
    )
]  # fmt: skip
