"""Attention: by torch's own kernel where it can do it, else written out by blocks of one head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.flash.dropout import HEIGHT
from npu_fused_graph.flash.hidden import Biases
from npu_fused_graph.flash.scores import Scores, dense_along_head, work_dtype

NATIVE_HEIGHT = 1024
"""Rows per call of torch's kernel: few calls, and a small part of a mask in float32."""

_attention: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def forward(query: Tensor, key: Tensor, value: Tensor, scores: Scores, out: Tensor) -> Tensor:
    """Write the attention into ``out`` (B, N, Sq, D); the log-sum-exp (B, N, Sq), in float32 or float64."""
    lse = torch.empty(query.shape[:3], dtype=work_dtype(query))
    if not scores.is_plain:
        _written_out(query, key, value, scores, out, lse)
        return lse
    query, key, value = (dense_along_head(x) for x in (query, key, value))
    q_len, kv_len = query.shape[2], key.shape[2]
    hidden = scores.hidden
    if hidden.is_nothing or hidden.is_causal(q_len, kv_len):
        result, found = _attention(query, key, value, 0.0, not hidden.is_nothing, scale=scores.scale)
        out.copy_(result)
        return lse.copy_(found)
    biases = Biases(lse.dtype)
    for tile in hidden.tiles(q_len, kv_len, NATIVE_HEIGHT):
        part, sums = out[:, :, tile.rows], lse[:, :, tile.rows]
        if tile.keys.start == tile.keys.stop:
            part.zero_()
            sums.fill_(float("-inf"))
            continue
        operands = query[:, :, tile.rows], key[:, :, tile.keys], value[:, :, tile.keys]
        result, found = _attention(*operands, 0.0, False, attn_mask=biases.of(tile), scale=scores.scale)
        part.copy_(result)
        sums.copy_(found)
        if tile.hidden is not None:  # of a query that sees nothing the kernel says 0
            sums.masked_fill_(tile.sees_nothing(), float("-inf"))
    return lse


def _written_out(query: Tensor, key: Tensor, value: Tensor, scores: Scores, out: Tensor, lse: Tensor) -> None:
    batches, heads, q_len, _ = query.shape
    kv_len, group, work = key.shape[2], heads // key.shape[1], lse.dtype
    for tile in scores.hidden.tiles(q_len, kv_len, HEIGHT):
        rows, keys = tile.rows, tile.keys
        for b in range(batches):
            for n in range(heads):
                if keys.start == keys.stop:
                    out[b, n, rows] = 0
                    lse[b, n, rows] = float("-inf")
                    continue
                k, v = key[b, n // group, keys].to(work), value[b, n // group, keys].to(work)
                x = scores.block(query[b, n, rows].to(work), k, tile, b, n)
                top = x.amax(-1, keepdim=True)
                total = x.sub_(finite(top)).exp_().sum(-1, keepdim=True)
                lse[b, n, rows] = (finite(top) + total.log()).squeeze(-1)
                divisor = total.masked_fill(total == 0, 1.0)
                if scores.keep is not None:
                    x.mul_(scores.keep.rows(b * heads + n, rows, kv_len)[:, keys])
                    divisor = divisor * scores.keep.probability
                out[b, n, rows] = (torch.matmul(x, v) / divisor).to(out.dtype)


def finite(top: Tensor) -> Tensor:
    """0 for the -inf of rows that see nothing, so that nothing is subtracted from it."""
    return top.masked_fill(top == float("-inf"), 0.0)


def row_statistics(query: Tensor, key: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    """The largest score of each query and its sum of exp(score - largest), each (B, N, Sq); -inf and 0 without a key.

    torch's kernel hands out only their logarithm, and of half inputs to four digits.
    """
    batches, heads, q_len, _ = query.shape
    group, work = heads // key.shape[1], work_dtype(query)
    largest = torch.full(query.shape[:3], float("-inf"), dtype=work)
    sums = torch.zeros_like(largest)
    for tile in scores.hidden.tiles(q_len, key.shape[2], HEIGHT):
        if tile.keys.start < tile.keys.stop:
            for b in range(batches):
                for n in range(heads):
                    k = key[b, n // group, tile.keys].to(work)
                    x = scores.block(query[b, n, tile.rows].to(work), k, tile, b, n)
                    top = x.amax(-1, keepdim=True)
                    largest[b, n, tile.rows] = top.squeeze(-1)
                    sums[b, n, tile.rows] = x.sub_(finite(top)).exp_().sum(-1)
    return largest, sums
