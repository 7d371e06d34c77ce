"""Softmax attention over a few sequences of one padded batch, and which keys a query sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from npu_fused_graph.engine.registry import unsupported

SPARSE_MODES = (0, 1, 2, 3, 4)
_UNLIMITED = 2**31 - 1
FEW_ROWS = 16
"""Up to so many queries a sequence, all heads that share a key are one matrix product: decoding."""


def hidden_4d(mask: Tensor, q_len: int, kv_len: int, ge_type: str) -> Tensor:
    """The mask as bool [B or 1, 1 or N, Sq, Skv], True = hidden; a 2-D mask of one query is [B, Skv]."""
    if mask.dim() == 2:
        mask = mask[:, None, None] if q_len == 1 else mask[None, None]
    elif mask.dim() == 3:
        mask = mask[:, None]
    if mask.shape[-1] < kv_len or mask.shape[-2] < q_len:
        raise unsupported(ge_type, "atten_mask", f"at least {q_len} x {kv_len}", tuple(mask.shape))
    return mask[..., :q_len, :kv_len] != 0


@dataclass(frozen=True)
class Sight:
    """Query i sees key j for -before <= j - i <= after, unless ``hidden`` [B or 1, 1 or N, Sq, Skv] says no.

    from_the_end: i and j count from the bottom right corner of each sequence instead of the top left.
    """

    hidden: Tensor | None = None
    before: int = _UNLIMITED
    after: int = _UNLIMITED
    from_the_end: bool = False

    @staticmethod
    def of(mode: int, hidden: Tensor | None, pre_tokens: int, next_tokens: int) -> Sight:
        """By sparse_mode: 0 mask and band from the top left (no mask: all); 1 mask; 2 causal from the top left;
        3 causal from the bottom right; 4 band from the bottom right.
        """
        match mode:
            case 0 if hidden is not None:
                return Sight(hidden, pre_tokens, next_tokens)
            case 0 | 1:
                return Sight(hidden)
            case 2:
                return Sight(after=0)
            case 3:
                return Sight(after=0, from_the_end=True)
        return Sight(None, pre_tokens, next_tokens, from_the_end=True)

    def is_causal(self, q_lengths: Sequence[int], kv_lengths: Sequence[int]) -> bool:
        """Whether it is the plain triangle of equally long queries and keys."""
        even = len({*q_lengths, *kv_lengths}) == 1
        return even and self.hidden is None and self.after == 0 and self.before >= q_lengths[0]

    def seen(self, members: Sequence[int], q_lengths: Sequence[int], kv_lengths: Sequence[int]) -> Tensor | None:
        """Which padded keys each padded query of ``members`` sees, [b or 1, 1 or N, Sq, Skv]; None = all.

        q_lengths, kv_lengths: of the members.
        """
        rows, columns = max(q_lengths), max(kv_lengths)
        found: Tensor | None = None
        if self.hidden is not None:
            hidden = self.hidden[torch.tensor(members)] if self.hidden.shape[0] > 1 else self.hidden
            found = ~hidden[..., :rows, :columns]
        shifts = [kv - q if self.from_the_end else 0 for q, kv in zip(q_lengths, kv_lengths, strict=True)]
        if columns - 1 - min(shifts) > self.after or rows - 1 + max(shifts) > self.before:
            ahead = torch.arange(columns) - torch.arange(rows).unsqueeze(1)
            ahead = ahead - torch.tensor(shifts if len(set(shifts)) > 1 else shifts[:1]).view(-1, 1, 1, 1)
            band = (ahead <= self.after) & (ahead >= -self.before)
            found = band if found is None else found & band
        if len(set(kv_lengths)) > 1:
            valid = torch.arange(columns) < torch.tensor(kv_lengths).view(-1, 1, 1, 1)
            found = valid if found is None else found & valid
        return found


def attention(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, shift: Tensor | None, sink: Tensor | None,
    *, scale: float, width: int, causal: bool, with_lse: bool, exact: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(softmax(scale q k^T + shift) v, log-sum-exp [b, Sq, N] if asked for); rows that see nothing give 0 and inf.

    q: [b, Sq, N, D]; k, v: [b, Skv, KV heads, D or Dv], of v the first ``width`` columns count. sink: one more logit
    per head, with a value of 0. causal: the triangle of as many queries as keys, instead of ``seen``.

    Scores, their maximum and their sum are float32. The cube of A2 and A3 multiplies 16-bit operands: weights, not yet
    divided by their sum, are rounded to the type of v, products add up in float32 and the result is rounded once. So
    does torch's flash attention; with a log-sum-exp, a sink or ``exact`` it runs in float32 and rounds nothing.
    """
    rows, heads = q.shape[1:3]
    groups = heads // k.shape[2]
    if (missing := k.shape[-1] - v.shape[-1]) != 0:  # torch's flash attention wants one head size
        q, k, v = pad(q, (0, max(-missing, 0))), pad(k, (0, max(-missing, 0))), pad(v, (0, max(missing, 0)))
    kv_heads = k.shape[2]
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    folded = groups > 1 and rows <= FEW_ROWS
    if folded:
        q = (q if rows == 1 else q.transpose(1, 2)).reshape(q.shape[0], kv_heads, groups * rows, q.shape[3])
    else:
        q = q.transpose(1, 2)
    mask = seen
    if shift is not None:
        mask = shift if seen is None else shift.masked_fill(~seen, float("-inf"))
    if folded and mask is not None:
        mask = _folded(mask, groups, rows)
    lse: Tensor | None = None
    if with_lse or exact or sink is not None:
        # the operator itself, which hands out the log-sum-exp and reads dense rows
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q.float(), k.float(), v.float()))
        if groups > 1 and not folded:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if mask is not None and mask.dtype is torch.bool:
            mask = torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=None if mask is None else mask.float(), scale=scale
        )
    else:
        out = scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
        )
    if folded:
        out = out.reshape(out.shape[0], heads, rows, out.shape[3])
        lse = lse if lse is None else lse.reshape(lse.shape[0], heads, rows)
    if lse is not None:
        if sink is not None:
            out = out * torch.sigmoid(lse - sink.float().unsqueeze(-1)).unsqueeze(-1)
        if seen is not None:
            lse = lse.masked_fill(~seen.any(-1), float("inf"))
        lse = lse.transpose(1, 2)
    out = out.transpose(1, 2)
    return (out if out.shape[-1] == width else out[..., :width]), lse


def _folded(mask: Tensor, groups: int, rows: int) -> Tensor:
    """[b or 1, 1 or N, Sq or 1, Skv] for queries [b, N / groups, groups * Sq, D]."""
    if mask.shape[1] > 1:
        own: Tensor = mask.unflatten(1, (-1, groups)).flatten(2, 3)
        return own
    return mask.unsqueeze(2).expand(-1, -1, groups, rows, -1).flatten(2, 3)
