"""8-bit queries, keys and values of inference attention, and its 8-bit results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.attention_tokens import Paged, Sequences
from npu_fused_graph.engine.registry import unsupported

CACHE_MODES = (0, 1, 2, 3, 4, 5)
"""Scales per channel or tensor, per token, per head, per token and head, and the last two in pages."""
WEIGHT_BLOCK = 512
"""Keys whose weights share one scale where both factors of a product are int8."""


@dataclass(frozen=True)
class Scales:
    """x = (int8 + offset) * scale."""

    scale: Tensor
    offset: Tensor | None
    mode: int
    name: str

    def of(self, part: Sequences, heads: int, ge_type: str) -> Dequantised:
        """The values of ``part``."""
        return Dequantised(
            part,
            self._along(part, self.scale, heads, ge_type),
            None if self.offset is None else self._along(part, self.offset, heads, ge_type),
        )

    def _along(self, part: Sequences, x: Tensor, heads: int, ge_type: str) -> Tensor | Sequences:
        if self.mode == 0 and x.numel() in (1, heads * part.width):
            return x.flatten() if x.numel() == 1 else x.reshape(heads, part.width)
        if self.mode == 2 and x.numel() == heads:
            return x.reshape(heads, 1)
        rows = len(part.lengths)
        if self.mode == 1 and not part.packed and x.dim() > 1 and x.numel() == rows * x.shape[-1]:
            return Sequences(x.reshape(rows, -1, 1, 1), part.starts, part.lengths)
        if self.mode == 3 and not part.packed and x.dim() > 2 and x.numel() == rows * heads * x.shape[-1]:
            return Sequences(x.reshape(rows, heads, -1, 1).transpose(1, 2), part.starts, part.lengths)
        if self.mode in (4, 5) and isinstance(part, Paged) and x.shape[-1] == part.block_size:
            pages = x.reshape(-1, part.block_size, 1) if self.mode == 4 else x.reshape(-1, heads, part.block_size, 1)
            return Paged(pages, part.starts, part.lengths, table=part.table, heads=1 if self.mode == 4 else heads)
        raise unsupported(ge_type, self.name, f"scales of mode {self.mode} for {heads} heads of {part.width}", x)


@dataclass(frozen=True)
class Dequantised:
    """Sequences of an int8 cache as float32.

    The kernels of A2 and A3 fold the scale of keys into the query and split it into several int8 terms, which comes to
    about 16 bits more than a 16-bit query has: nothing is rounded in between here.
    """

    part: Sequences
    scale: Tensor | Sequences
    offset: Tensor | Sequences | None

    @property
    def width(self) -> int:
        return self.part.width

    def take(self, members: Sequence[int]) -> Tensor:
        taken = self.part.take(members).float()
        if self.offset is not None:
            taken = taken + _of(self.offset, members)
        return taken * _of(self.scale, members)


def _of(x: Tensor | Sequences, members: Sequence[int]) -> Tensor:
    return (x if isinstance(x, Tensor) else x.take(members)).float()


def attention_int8(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, *, scale: float, width: int) -> Tensor:
    """As attention_scores.attention, but the weights are int8, as v is.

    The kernel of A2 and A3 takes the keys in blocks. In each the largest weight of a row becomes 127, the others are
    rounded to float16 and then to integers; the sum they are divided by is of the weights before that.
    """
    rows, heads, kv_heads = q.shape[1], q.shape[2], k.shape[2]
    q, k, v = (x.transpose(1, 2).float() for x in (q, k, v))
    q = q.unflatten(1, (kv_heads, -1))  # [b, KV heads, heads that share them, Sq, D]
    scores = torch.matmul(q, k.unsqueeze(2).mT) * scale
    if seen is not None:
        mask = seen.unflatten(1, (kv_heads, -1)) if seen.shape[1] > 1 else seen.unsqueeze(2)
        scores = scores.masked_fill(~mask, float("-inf"))
    columns = scores.shape[-1]
    scores = torch.nn.functional.pad(scores, (0, -columns % WEIGHT_BLOCK), value=float("-inf"))
    blocks = scores.unflatten(-1, (-1, WEIGHT_BLOCK))
    tops = blocks.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    top = tops.amax(-2, keepdim=True)
    total = torch.exp(blocks - top).sum((-1, -2)).unsqueeze(-1)
    weights = (torch.exp(blocks - tops) * 127).half().float().round_() * (torch.exp(tops - top) / 127)
    out = torch.matmul(weights.flatten(-2)[..., :columns], v[..., :width].unsqueeze(2)) / total
    seen_by = torch.isfinite(scores).any(-1, keepdim=True)
    return out.masked_fill(~seen_by, 0).reshape(-1, heads, rows, width).transpose(1, 2)


def rounded_to_int8(x: Tensor, scale: Tensor, offset: Tensor | None, ge_type: str) -> Tensor:
    """round(x * scale + offset), for one scale or one per head and column; x: [B, S, N, D]."""
    channels = x.shape[2] * x.shape[3]
    if scale.numel() not in (1, channels):
        raise unsupported(ge_type, "quant_scale2", f"1 or {channels} values", scale)

    def along(values: Tensor) -> Tensor:
        return values.float().flatten() if values.numel() == 1 else values.float().reshape(x.shape[2:])

    x = x * along(scale)
    x = x if offset is None else x + along(offset)
    return x.half().round_().clamp_(-128, 127).to(torch.int8)  # the kernel rounds to float16 first
