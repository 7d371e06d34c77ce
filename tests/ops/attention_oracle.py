"""Attention of requirement 003 in float64, written out with every score: what the operator is compared with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LIMITS = {torch.float16: 5e-4, torch.bfloat16: 4e-3}
"""Largest relative root mean square error on a CPU, by dtype."""


class Exact(NamedTuple):
    out: Tensor
    lse: Tensor
    weights: Tensor


def heads_first(x: Tensor, layout: str, heads: int) -> Tensor:
    """(B, N, S, D) of a tensor in a layout of the requirement."""
    if layout == "BNSD":
        return x
    if layout == "BSH":
        b, s, h = x.shape
        return x.reshape(b, s, heads, h // heads).permute(0, 2, 1, 3)
    s, b, h = x.shape
    return x.reshape(s, b, heads, h // heads).permute(1, 2, 0, 3)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """A (B, N, S, D) tensor in a layout, contiguous."""
    b, n, s, d = x.shape
    if layout == "BSH":
        return x.permute(0, 2, 1, 3).reshape(b, s, n * d)
    return x.permute(2, 0, 1, 3).reshape(s, b, n * d) if layout == "SBH" else x


def exact(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, mask: Tensor | None = None, pre: int = 2**31 - 1, post: int = 1,
    alibi: Tensor | None = None, keep: Tensor | None = None, keep_prob: float = 1.0,
) -> Exact:  # fmt: skip
    """q, k, v: (B, N, S, D). mask: mask[key, query], nonzero = hidden. keep: (B, N, S, S), 1 = kept."""
    q, k, v = (x.double() for x in (q, k, v))
    x = torch.einsum("bnid,bnjd->bnij", q, k) * scale
    if alibi is not None:
        x = x + (alibi[:, :, None] if alibi.dim() == 3 else alibi).double()
    if mask is not None:
        length = q.shape[2]
        i, j = torch.arange(length)[:, None], torch.arange(length)
        seen = (mask.reshape(length, length).t() == 0) & (j - i < post) & (i - j < pre)
        x = x.masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(x, -1)
    p = torch.where(
        (lse == -torch.inf)[..., None], 0.0, torch.exp(x - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    )
    weights = p if keep is None else p * keep / keep_prob
    return Exact(torch.einsum("bnij,bnjd->bnid", weights, v), lse, weights)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Root mean square of the differences over that of the numbers."""
    got, wanted = got.detach().double(), wanted.detach().double()
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-30))
