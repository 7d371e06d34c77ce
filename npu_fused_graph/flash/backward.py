"""The gradient of attention, in float32: torch's kernel on half inputs is thirty times slower and rounds more."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from npu_fused_graph.flash.dropout import HEIGHT
from npu_fused_graph.flash.forward import NATIVE_HEIGHT, finite
from npu_fused_graph.flash.hidden import Biases
from npu_fused_graph.flash.scores import Scores, dense_along_head, work_dtype

_gradient: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Gradients(NamedTuple):
    """(B, N, Sq, D), and twice (B, N of key, Skv, D), in float32 or float64."""

    query: Tensor
    key: Tensor
    value: Tensor


def backward(
    dout: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scores: Scores
) -> Gradients:
    """Gradients from that of the attention. out, lse: what ``forward`` gave. There is none of a bias or a mask."""
    if not scores.is_plain:
        return _written_out(dout, query, key, value, out, lse, scores)
    work, heads, kv_heads = work_dtype(query), query.shape[1], key.shape[1]
    q, k, v, o, do = (dense_along_head(x.to(work)) for x in (query, key, value, out, dout))
    if heads != kv_heads:
        k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    sums = finite(lse)  # a score of -inf has the weight 0 then
    q_len, kv_len = q.shape[2], k.shape[2]
    hidden = scores.hidden
    if hidden.is_nothing or hidden.is_causal(q_len, kv_len):
        is_causal = not hidden.is_nothing
        found = Gradients(*_gradient(do, q, k, v, o, sums, 0.0, is_causal, scale=scores.scale))
    else:
        found = Gradients(torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v))
        biases = Biases(work)
        for tile in hidden.tiles(q_len, kv_len, NATIVE_HEIGHT):
            rows, keys = (slice(None), slice(None), tile.rows), (slice(None), slice(None), tile.keys)
            if tile.keys.start == tile.keys.stop:
                continue
            parts = _gradient(
                do[rows], q[rows], k[keys], v[keys], o[rows], sums[rows], 0.0, False,
                attn_mask=biases.of(tile), scale=scores.scale,
            )  # fmt: skip
            found.query[rows] = parts[0]
            found.key[keys] += parts[1]
            found.value[keys] += parts[2]
    if heads != kv_heads:
        return Gradients(found.query, *(x.unflatten(1, (kv_heads, -1)).sum(2) for x in found[1:]))
    return found


def _written_out(
    dout: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scores: Scores
) -> Gradients:
    batches, heads, q_len, _ = query.shape
    kv_len, group, work = key.shape[2], heads // key.shape[1], work_dtype(query)
    dq, dk, dv = (torch.zeros(x.shape, dtype=work) for x in (query, key, value))
    sums = finite(lse).unsqueeze(-1)
    for tile in scores.hidden.tiles(q_len, kv_len, HEIGHT):
        rows, keys = tile.rows, tile.keys
        if keys.start == keys.stop:
            continue
        for b in range(batches):
            for n in range(heads):
                g = n // group
                q, k, v = query[b, n, rows].to(work), key[b, g, keys].to(work), value[b, g, keys].to(work)
                do = dout[b, n, rows].to(work)
                p = scores.block(q, k, tile, b, n).sub_(sums[b, n, rows]).exp_()
                dp = torch.matmul(do, v.t())
                kept = p
                if scores.keep is not None:
                    factor = scores.keep.rows(b * heads + n, rows, kv_len)[:, keys] / scores.keep.probability
                    kept = p * factor
                    dp.mul_(factor)
                dv[b, g, keys].addmm_(kept.t(), do)
                delta = (do * out[b, n, rows].to(work)).sum(-1, keepdim=True)
                ds = dp.sub_(delta).mul_(p)
                dq[b, n, rows] = torch.matmul(ds, k).mul_(scores.scale)
                dk[b, g, keys].addmm_(ds.t(), q, alpha=scores.scale)
    return Gradients(dq, dk, dv)
