"""FlashAttentionScore and its gradient, in the layouts BSH, SBH, BNSD, BSND and TND.

What they do not cover is refused: docs/flash_attention.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from npu_fused_graph import flash
from npu_fused_graph.engine.registry import Ints, kernel, unsupported

LAYOUTS = ("BSH", "SBH", "BNSD", "BSND", "TND")
SPARSE_MODES = (0, 1, 2, 3, 4)
_COMPRESSED = 2048
"""Edge of the triangle that stands for a mask of any size in sparse modes 2, 3 and 4."""
_REPEATED = 8
"""How often each number stands in softmax_max and softmax_sum: a block of 32 bytes."""
_UNFED = ("padding_mask", "prefix")
_IGNORED = ("inner_precise",)


class Call(NamedTuple):
    """What forward and backward have in common. ge_type: for texts."""

    ge_type: str
    layout: str
    heads: int
    scale: float
    keep_prob: float
    pre_tokens: int
    next_tokens: int
    sparse_mode: int
    pse_type: int
    pse: Tensor | None
    drop_mask: Tensor | None
    mask: Tensor | None
    q_lengths: list[int] | None
    kv_lengths: list[int] | None

    def heads_first(self, x: Tensor, heads: int) -> Tensor:
        """[B, N, S, D] of a tensor with B, S and heads; TND as one batch."""
        if self.layout == "TND":
            return x.transpose(0, 1).unsqueeze(0)
        if self.layout in ("BSH", "SBH"):
            if x.shape[2] % heads:
                raise unsupported(self.ge_type, "head_num", f"a divisor of H, {x.shape[2]}", heads)
            x = x.unflatten(-1, (heads, -1))
            return x.transpose(1, 2) if self.layout == "BSH" else x.permute(1, 2, 0, 3)
        return x.transpose(1, 2) if self.layout == "BSND" else x

    def operands(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """query, key and value as [B, N, S, D]. In BSH and SBH the heads of key have the width of query's."""
        q = self.heads_first(query, self.heads)
        if q.shape[1] != self.heads:
            raise unsupported(self.ge_type, "head_num", f"{q.shape[1]}, query's N axis", self.heads)
        kv_heads = self.heads
        if self.layout in ("BSH", "SBH"):
            if key.shape[2] % q.shape[3]:
                raise unsupported(self.ge_type, "key", f"a multiple of head_dim {q.shape[3]} columns", key.shape[2])
            kv_heads = key.shape[2] // q.shape[3]
        k, v = self.heads_first(key, kv_heads), self.heads_first(value, kv_heads)
        if k.shape[1] < 1 or self.heads % k.shape[1] or v.shape[:3] != k.shape[:3] or q.shape[0] != k.shape[0]:
            got = f"{list(query.shape)}, {list(key.shape)}, {list(value.shape)}"
            raise unsupported(self.ge_type, "query, key, value", "one batch, and heads of key that divide query's", got)
        if not q.shape[3] == k.shape[3] == v.shape[3]:
            raise unsupported(self.ge_type, "value", f"head_dim {q.shape[3]}", (k.shape[3], v.shape[3]))
        return q, k, v

    def parts(self, q_len: int, kv_len: int) -> Iterator[tuple[slice, slice]]:
        """Where the sequences of TND lie; of other layouts all of query and all of key."""
        if self.layout != "TND":
            if self.q_lengths is not None or self.kv_lengths is not None:
                raise unsupported(self.ge_type, "actual_seq_qlen", "none unless the layout is TND", self.layout)
            yield slice(0, q_len), slice(0, kv_len)
            return
        q_ends, kv_ends = self.q_lengths or [], self.kv_lengths or []
        ends = [[0, *q_ends], [0, *kv_ends]]
        fits = len(q_ends) == len(kv_ends) and [e[-1] for e in ends] == [q_len, kv_len]
        if not fits or any(a > b for e in ends for a, b in pairwise(e)):
            expected = f"growing ends of sequences, up to {q_len} and {kv_len}"
            raise unsupported(self.ge_type, "actual_seq_qlen, actual_seq_kvlen", expected, (q_ends, kv_ends))
        for i in range(len(q_ends)):
            yield slice(ends[0][i], ends[0][i + 1]), slice(ends[1][i], ends[1][i + 1])

    def scores(self, q: Tensor, kv_len: int) -> flash.Scores:
        """Of one sequence. q: [B, N, S, D]."""
        batch, _, q_len, _ = q.shape
        bias = self._bias(batch, q_len, kv_len)
        factor = self.scale if self.pse_type == 1 else 1.0
        return flash.Scores(self.scale, self._hidden(batch, q_len, kv_len), bias, factor, self._keep(q, kv_len))

    def _bias(self, batch: int, q_len: int, kv_len: int) -> Tensor | None:
        pse = self.pse
        if pse is None:
            return None
        fits = pse.dim() == 4 and pse.shape[0] in (1, batch) and pse.shape[1] == self.heads
        if self.layout == "TND" or not fits or pse.shape[2] not in (1, q_len) or pse.shape[3] != kv_len:
            expected = f"[{batch} or 1, {self.heads}, {q_len} or 1, {kv_len}], and no TND"
            raise unsupported(self.ge_type, "real_shift", expected, tuple(pse.shape))
        return pse

    def _keep(self, q: Tensor, kv_len: int) -> flash.Keep | None:
        if self.keep_prob == 1:
            return None
        needed = (q.shape[0] * q.shape[1] * q.shape[2] * kv_len + 7) // 8
        if self.layout == "TND" or self.drop_mask is None or self.drop_mask.numel() < needed:
            got = None if self.drop_mask is None else tuple(self.drop_mask.shape)
            raise unsupported(self.ge_type, "drop_mask", f"at least {needed} bytes with keep_prob, and no TND", got)
        return flash.PackedKeep(self.keep_prob, self.drop_mask, q.shape[2])

    def _hidden(self, batch: int, q_len: int, kv_len: int) -> flash.Hidden:
        """Without a mask everything is seen, whatever sparse_mode and the limits say, as documented.

        sparse_mode 0: mask and limits, which must agree; 1: mask; 2: causal from the top left corner, 3: from the
        bottom right, 4: limits from the bottom right, each with a triangle in the mask's place.
        """
        mask = self.mask
        if mask is None:
            return flash.Hidden()
        if self.sparse_mode > 1:
            self._check_triangle(mask)
            shift = kv_len - q_len if self.sparse_mode > 2 else 0
            limits = (self.pre_tokens, self.next_tokens) if self.sparse_mode == 4 else (q_len + kv_len, 0)
            return flash.Hidden(None, flash.Band(*limits, shift))
        shapes = ((q_len, kv_len), *((b, n, q_len, kv_len) for b in (1, batch) for n in (1, self.heads)))
        if self.layout == "TND" or tuple(mask.shape) not in shapes:
            expected = f"[{q_len}, {kv_len}] or [{batch} or 1, {self.heads} or 1, {q_len}, {kv_len}], and no TND"
            raise unsupported(self.ge_type, "atten_mask", expected, tuple(mask.shape))
        mask = mask if mask.dim() == 4 else mask[None, None]
        band = flash.Band(self.pre_tokens, self.next_tokens)
        if self.sparse_mode == 1 or (band.before >= q_len - 1 and band.ahead >= kv_len - 1):
            return flash.Hidden(mask)
        self._check_agreement(mask, band)
        return flash.Hidden(mask, band)

    def _check_triangle(self, mask: Tensor) -> None:
        square = mask.reshape(mask.shape[-2:]) if mask.numel() == _COMPRESSED**2 else mask
        if square.shape != (_COMPRESSED, _COMPRESSED) or not torch.equal(
            square != 0, torch.ones_like(square).triu(1) != 0
        ):
            expected = f"the upper triangle of {_COMPRESSED} x {_COMPRESSED} with sparse_mode {self.sparse_mode}"
            raise unsupported(self.ge_type, "atten_mask", expected, f"another mask, {tuple(mask.shape)}")

    def _check_agreement(self, mask: Tensor, band: flash.Band) -> None:
        """A device leaves out what lies beyond the limits by whole tiles, and looks at the mask in the others."""
        q_len, kv_len = mask.shape[-2:]
        for start in range(0, q_len, 256):
            rows = slice(start, min(start + 256, q_len))
            distance = torch.arange(kv_len) - torch.arange(rows.start, rows.stop).unsqueeze(1)
            beyond = (distance > band.ahead) | (distance < -band.before)
            if (beyond & (mask[..., rows, :] == 0)).any():
                expected = "a mask that hides all that pre_tockens and next_tockens hide"
                raise unsupported(self.ge_type, "atten_mask", expected, f"limits {tuple(band[:2])} that hide more")


@kernel(
    "FlashAttentionScore",
    ignored=_IGNORED,
    allowed={"input_layout": LAYOUTS, "sparse_mode": SPARSE_MODES, "pse_type": (0, 1)},
    unfed=_UNFED,
    same_dtype=("query", "key", "value"),
)
def flash_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    real_shift: Tensor | None = None,
    drop_mask: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    prefix: Tensor | None = None,
    actual_seq_qlen: Ints | None = None,
    actual_seq_kvlen: Ints | None = None,
    q_start_idx: Tensor | None = None,
    kv_start_idx: Tensor | None = None,
    *,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 2147483647,
    next_tockens: int = 2147483647,
    head_num: int,
    input_layout: str,
    sparse_mode: int = 0,
    pse_type: int = 1,
    is_read: tuple[bool, ...] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The start indices belong to the pse types that are refused."""
    call = Call(
        "FlashAttentionScore", input_layout, head_num, scale_value, keep_prob, pre_tockens, next_tockens, sparse_mode,
        pse_type, real_shift, drop_mask, atten_mask, actual_seq_qlen, actual_seq_kvlen,
    )  # fmt: skip
    q, k, v = call.operands(query, key, value)
    out = torch.empty(query.shape, dtype=query.dtype)
    result = call.heads_first(out, head_num)
    sums = torch.empty(2, *q.shape[:3], dtype=torch.float32)
    for rows, columns in call.parts(q.shape[2], k.shape[2]):
        operands = q[:, :, rows], k[:, :, columns], v[:, :, columns]
        if not operands[0].numel():
            continue
        scores = call.scores(operands[0], operands[1].shape[2])
        flash.forward(*operands, scores, result[:, :, rows])
        if any(is_read[:2]):
            sums[0, :, :, rows], sums[1, :, :, rows] = flash.row_statistics(*operands[:2], scores)
    maxima, totals = (_blocks(x, input_layout) for x in sums)
    return maxima, totals, query.new_empty(0), out


def _blocks(x: Tensor, layout: str) -> Tensor:
    """[B, N, S] as CANN stores it: [B, N, S, 8], and [T, N, 8] for TND."""
    x = x[0].t() if layout == "TND" else x
    return x.unsqueeze(-1).repeat_interleave(_REPEATED, -1)


@kernel(
    "FlashAttentionScoreGrad",
    ignored=_IGNORED,
    allowed={"input_layout": LAYOUTS, "sparse_mode": SPARSE_MODES, "pse_type": (0, 1)},
    unfed=(*_UNFED, "softmax_in"),
    same_dtype=("query", "key", "value", "dy"),
)
def flash_attention_score_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    pse_shift: Tensor | None = None,
    drop_mask: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    softmax_max: Tensor | None = None,
    softmax_sum: Tensor | None = None,
    softmax_in: Tensor | None = None,
    attention_in: Tensor | None = None,
    prefix: Tensor | None = None,
    actual_seq_qlen: Ints | None = None,
    actual_seq_kvlen: Ints | None = None,
    q_start_idx: Tensor | None = None,
    kv_start_idx: Tensor | None = None,
    *,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 65536,
    next_tockens: int = 65536,
    head_num: int,
    input_layout: str,
    sparse_mode: int = 0,
    pse_type: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of pse_shift is a placeholder, as on a device."""
    ge_type = "FlashAttentionScoreGrad"
    for name, x in (("softmax_max", softmax_max), ("softmax_sum", softmax_sum), ("attention_in", attention_in)):
        if x is None:
            raise unsupported(ge_type, name, "what the forward operator gave", None)
    assert softmax_max is not None and softmax_sum is not None and attention_in is not None
    call = Call(
        ge_type, input_layout, head_num, scale_value, keep_prob, pre_tockens, next_tockens, sparse_mode, pse_type,
        pse_shift, drop_mask, atten_mask, actual_seq_qlen, actual_seq_kvlen,
    )  # fmt: skip
    q, k, v = call.operands(query, key, value)
    do, out = call.heads_first(dy, head_num), call.heads_first(attention_in, head_num)
    lse = _sums(softmax_max, softmax_sum, q, input_layout)
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype) for x in (query, key, value))
    views = [
        call.heads_first(x, like.shape[1]) for x, like in zip((dq, dk, dv), (q, k, v), strict=True)
    ]  # fmt: skip
    for rows, columns in call.parts(q.shape[2], k.shape[2]):
        operands = do[:, :, rows], q[:, :, rows], k[:, :, columns], v[:, :, columns]
        if operands[1].numel() and operands[2].numel():
            scores = call.scores(operands[1], operands[2].shape[2])
            found = flash.backward(*operands, out[:, :, rows], lse[:, :, rows], scores)
            for view, places, gradient in zip(views, (rows, columns, columns), found, strict=True):
                view[:, :, places] = gradient.to(view.dtype)
    return dq, dk, dv, query.new_empty(0)


def _sums(softmax_max: Tensor, softmax_sum: Tensor, q: Tensor, layout: str) -> Tensor:
    """The log-sum-exp [B, N, S]; -inf of a query without keys, whose maximum or sum says so."""
    batch, heads, q_len, _ = q.shape
    wanted = (q_len, heads, _REPEATED) if layout == "TND" else (batch, heads, q_len, _REPEATED)
    for name, x in (("softmax_max", softmax_max), ("softmax_sum", softmax_sum)):
        if tuple(x.shape) != wanted:
            raise unsupported("FlashAttentionScoreGrad", name, str(wanted), tuple(x.shape))
    top, total = softmax_max[..., 0], softmax_sum[..., 0]
    lse = top + total.log()
    return lse.t().unsqueeze(0) if layout == "TND" else lse
