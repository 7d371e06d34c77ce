"""Attention as people write it: spellings, masks, layouts and dropouts, in plain torch. Verdicts: data/attention.csv.

A spelling is ``spell(case, q, k, v) -> (B, N, S, D)`` of tensors (B, N, S, D); a mask ``hide(case, scores) -> scores``
of (B, N, S, S) for what is written out, and an ``attn_mask`` for calls.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

B, N, S, D = 2, 4, 256, 32
SCALE = 1 / math.sqrt(D)
TABLE = Path(__file__).parent / "data" / "attention.csv"


class Case(nn.Module):
    """A spelling under a mask, in a layout, with a dropout. inputs: query, key, value; then what the mask takes."""

    def __init__(
        self, spelling: str, mask: str = "none", layout: str = "bnsd", dropout: str = "none",
        dtype: torch.dtype = torch.float16, sizes: tuple[int, int, int, int] = (B, N, S, D), seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.spell, self.hide, self.layout, self.dropout = SPELLINGS[spelling], MASKS[mask], layout, dropout
        self.is_call = spelling.startswith("call")
        generator = torch.Generator().manual_seed(seed)

        def rand(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.T, (b, n, s, d) = dtype, sizes
        self.sizes = sizes
        kv = n // 2 if "shared" in spelling else n
        shapes = {
            "bnsd": lambda heads: (b, heads, s, d), "bsh": lambda heads: (b, s, heads * d),
            "sbh": lambda heads: (s, b, heads * d), "bsnd": lambda heads: (b, s, heads, d),
        }  # fmt: skip
        self.qkv = [rand(*shapes[layout](heads)).to(dtype) for heads in (n, kv, kv)]
        self.extra: list[Tensor] = []
        if mask in ("padding min", "padding -inf", "padding fill min"):
            lengths = torch.tensor([s - 1, s // 2][:b])
            self.extra = [torch.arange(s) < lengths[:, None]]
        if mask in ("bias", "float input"):
            self.extra = [rand(b, 1, s, s).to(dtype)]
        if mask in ("bool input", "fill min by input"):
            self.extra = [(rand(s, s) > 0) | torch.eye(s, dtype=torch.bool)]
        if mask == "bias of heads":
            self.extra = [rand(1, n, s, s).to(dtype)]

    @property
    def inputs(self) -> list[Tensor]:
        return [*self.qkv, *self.extra]

    def heads(self, x: Tensor) -> Tensor:
        b, _, s, d = self.sizes
        if self.layout == "bsnd":
            return x.transpose(1, 2)
        if self.layout == "bsh":
            return x.view(b, s, -1, d).transpose(1, 2)
        return x.view(s, b, -1, d).permute(1, 2, 0, 3) if self.layout == "sbh" else x

    def back(self, x: Tensor) -> Tensor:
        if self.layout == "bsnd":
            return x.transpose(1, 2).contiguous()
        if self.layout == "bsh":
            return x.transpose(1, 2).reshape(*self.qkv[0].shape)
        return x.permute(2, 0, 1, 3).flatten(2) if self.layout == "sbh" else x

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *extra: Tensor) -> Tensor:
        self.given = extra
        return self.back(self.spell(self, *(self.heads(x) for x in (q, k, v))))

    # -- parts of a spelling ----------------------------------------------------------------------------------

    def weights(self, scores: Tensor) -> Tensor:
        return self.dropped(F.softmax(self.hide(self, scores), dim=-1))

    def dropped(self, p: Tensor) -> Tensor:
        if self.dropout == "none":
            return p
        if self.dropout == "p is 0":
            return F.dropout(p, p=0.0, training=True)
        return F.dropout(p, p=0.1, training=self.dropout == "training")

    def causal(self) -> Tensor:
        """True where query i sees key j."""
        s = self.sizes[2]
        return torch.ones(s, s, dtype=torch.bool).tril()


# -- spellings ----------------------------------------------------------------------------------------------------


def call(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = case.hide(case, None)
    p = 0.1 if case.dropout == "training" else 0.0
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=None if mask == "causal" else mask, dropout_p=p, is_causal=mask == "causal"
    )


def call_scaled(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = case.hide(case, None)
    return F.scaled_dot_product_attention(q, k, v, None if mask == "causal" else mask, 0.0, mask == "causal", scale=0.5)


def call_shared_heads(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = case.hide(case, None)
    is_causal = mask == "causal"
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=None if is_causal else mask, is_causal=is_causal, enable_gqa=True
    )


def multiplied(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.matmul(case.weights(torch.matmul(q, k.transpose(2, 3)) * SCALE), v)


def divided(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return case.weights((q @ k.mT) / math.sqrt(D)) @ v


def query_scaled(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return case.weights((q * SCALE) @ k.transpose(-1, -2)) @ v


def unscaled(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return case.weights(q @ k.permute(0, 1, 3, 2)).matmul(v)


def scaled_after_mask(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """T5-like libraries with the scale outside: it multiplies what was added, too."""
    scores = case.hide(case, q @ k.mT) * SCALE
    return scores.softmax(-1) @ v


def in_float32(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = case.hide(case, torch.matmul(q, k.mT) * SCALE)
    p = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(case.dropped(p), v)


def widened(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = case.hide(case, torch.matmul(q, k.mT) * SCALE)
    return torch.matmul(torch.softmax(scores.float(), -1).type_as(q), v)


def in_place(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.matmul(q, k.mT)
    scores *= SCALE
    scores = case.hide(case, scores)
    return torch.softmax(scores, dim=3) @ v


def repeated_shared_heads(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """repeat_kv of transformers."""
    b, n, s, d = q.shape
    k, v = (x[:, :, None].expand(b, x.shape[1], n // x.shape[1], s, d).reshape(b, n, s, d) for x in (k, v))
    return in_float32(case, q, k, v)


def interleaved_shared_heads(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return multiplied(case, q, *(torch.repeat_interleave(x, q.shape[1] // x.shape[1], dim=1) for x in (k, v)))


def einsum(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = case.weights(torch.einsum("bnid,bnjd->bnij", q, k) * SCALE)
    return torch.einsum("bnij,bnjd->bnid", p, v)


def einsum_of_rows(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads behind the sequence, as in (B, S, N, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    p = case.weights(torch.einsum("bqhd,bkhd->bhqk", q, k) * SCALE)
    return torch.einsum("bhqk,bkhd->bqhd", p, v).transpose(1, 2)


def batched(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads in the batch."""
    b, n, s, d = q.shape
    q, k, v = (x.reshape(b * n, s, d) for x in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)) * SCALE
    p = case.weights(scores.view(b, n, s, s)).view(b * n, s, s)
    return torch.bmm(p, v).view(b, n, s, d)


def alibi_of_bloom(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, n, s, d = q.shape
    slopes = torch.pow(torch.full((), 0.25), torch.arange(1, n + 1))
    alibi = (slopes[:, None, None] * torch.arange(s)).repeat(b, 1, 1).to(q.dtype)
    q, k, v = (x.reshape(b * n, s, d) for x in (q, k, v))
    scores = alibi.baddbmm(batch1=q, batch2=k.transpose(-1, -2), beta=1.0, alpha=SCALE)
    p = case.weights(scores.view(b, n, s, s)).view(b * n, s, s)
    return torch.bmm(p, v).view(b, n, s, d)


SPELLINGS: dict[str, Callable[..., Tensor]] = {
    "call": call, "call with a scale": call_scaled, "call with shared heads": call_shared_heads,
    "multiplied": multiplied, "divided": divided, "query scaled": query_scaled, "unscaled": unscaled,
    "scaled after mask": scaled_after_mask, "in float32": in_float32, "widened": widened, "in place": in_place,
    "repeated shared heads": repeated_shared_heads, "interleaved shared heads": interleaved_shared_heads,
    "einsum": einsum, "einsum of rows": einsum_of_rows, "batched": batched, "alibi of Bloom": alibi_of_bloom,
}  # fmt: skip


# -- masks --------------------------------------------------------------------------------------------------------


def least(x: Tensor) -> float:
    return torch.finfo(x.dtype).min


def visible_keys(case: Case) -> Tensor:
    """(B, 1, 1, S) of an input (B, S)."""
    return case.given[0][:, None, None, :]


def with_an_empty_row(case: Case) -> Tensor:
    return case.causal() & (torch.arange(case.sizes[2]) != 5)[:, None]


def window(case: Case) -> Tensor:
    i = torch.arange(case.sizes[2])
    return (i[:, None] - i < 64) & (i[:, None] >= i)


def added(seen: Tensor, dtype: torch.dtype, value: float) -> Tensor:
    return torch.where(seen, torch.zeros((), dtype=dtype), value)


WRITTEN: dict[str, Callable[[Case, Any], Any]] = {
    "none": lambda case, x: x,
    "where min": lambda case, x: torch.where(case.causal(), x, least(x)),
    "fill -inf": lambda case, x: x.masked_fill(~case.causal(), -math.inf),
    "fill min in place": lambda case, x: x.masked_fill_(~case.causal(), least(x)),
    "add min": lambda case, x: x + added(case.causal(), x.dtype, least(x))[None, None],
    "add min in place": lambda case, x: x.add_(added(case.causal(), x.dtype, least(x))),
    "add -inf": lambda case, x: x + torch.full((case.sizes[2],) * 2, -math.inf).triu(1).to(x.dtype),
    "add -10000": lambda case, x: x + (1.0 - case.causal().to(x.dtype)) * -10000.0,
    "window": lambda case, x: x + added(window(case), x.dtype, least(x)),
    "empty row min": lambda case, x: torch.where(with_an_empty_row(case), x, least(x)),
    "padding min": lambda case, x: x + added(case.causal() & visible_keys(case), x.dtype, least(x)),
    "padding fill min": lambda case, x: x.masked_fill(~visible_keys(case), least(x)),
    "padding -inf": lambda case, x: x.masked_fill(~visible_keys(case), -math.inf),
    "fill min by input": lambda case, x: torch.where(case.given[0], x, least(x)),
    "bias": lambda case, x: x + case.given[0],
    "bias of heads": lambda case, x: x + case.given[0],
    "alibi": lambda case, x: x + (torch.arange(case.sizes[2]) * -0.01).to(x.dtype),
}  # fmt: skip
CALLED: dict[str, Callable[[Case, Any], Any]] = {
    "none": lambda case, x: None,
    "is_causal": lambda case, x: "causal",
    "bool": lambda case, x: case.causal(),
    "bool window": lambda case, x: window(case)[None, None],
    "bool with an empty row": lambda case, x: with_an_empty_row(case),
    "float": lambda case, x: added(case.causal(), case.T, -math.inf),
    "bool input": lambda case, x: case.given[0],
    "float input": lambda case, x: case.given[0],
}  # fmt: skip
MASKS = {**CALLED, **WRITTEN}


def table() -> list[tuple[str, str, str]]:
    """(spelling, mask, verdict) of data/attention.csv: "fused", or the reason of the refusal; "-" does not exist."""
    with TABLE.open(newline="") as file:
        head, *rows = csv.reader(file)
    return [(row[0], mask, verdict) for row in rows for mask, verdict in zip(head[1:], row[1:], strict=True)]


def slope_of(x: Tensor) -> Tensor:
    """A gradient that is no constant."""
    return torch.linspace(-1, 1, x.numel()).view(x.shape).to(x.dtype)
