"""Scaled dot product attention as aten has it on CPU tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import (
    ge,
    ints,
    is_tensor,
    opmath,
    reshape,
    sizes,
    to,
    torch_dtype,
    typed,
    unsupported,
)

aten = torch.ops.aten

ONLY_ON_A_CPU = "_nfg_only_on_a_cpu"
"""An attribute of GE tensors: the operator does not exist on a device, so none of TorchAir's defects may show in it."""


def flash_attention_for_cpu(
    query: Any,
    key: Any,
    value: Any,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Any = None,
    scale: float | None = None,
) -> Any:
    """(attention, logsumexp), rounded where the CPU kernel rounds.

    That kernel multiplies half inputs with float32 sums, scales and masks in float32, rounds exp(score - maximum) to
    the inputs' dtype, multiplies it with the values and divides by the float32 sum last. Query heads that share a
    key head are stacked along the sequence, so keys and values are not repeated.
    """
    if dropout_p:
        raise unsupported(
            "_scaled_dot_product_flash_attention_for_cpu", "dropout_p", "0", dropout_p, "Call model.eval()."
        )
    dtype = torch_dtype(query)
    work = opmath(dtype)
    batch, heads, rows, _ = sizes(query)
    _, groups, columns, depth = sizes(key)
    stacked = [batch, groups, -1]
    is_shared = str(query.symsize[1]) != str(key.symsize[1])
    if scale is None:
        scale = ge.Rsqrt(to(depth, work)) if is_tensor(depth) else 1 / math.sqrt(depth)

    q = to(query, work)
    q = reshape(q, [*stacked, depth]) if is_shared else q
    scores = ge.BatchMatMul(q, to(key, work), adj_x2=True)
    scores = reshape(scores, [batch, heads, rows, columns]) if is_shared else scores
    scores = ge.Mul(scores, scale if is_tensor(scale) else to(scale, work))
    scores = _masked(scores, attn_mask, work)
    if is_causal:
        scores = ge.SelectV2(_causal(rows, columns), scores, to(-math.inf, work))

    last = ints([-1])
    top = ge.ReduceMax(scores, last, keep_dims=True)
    top = ge.Maximum(top, to(torch.finfo(work).min, work))  # a row that sees nothing: exp(-inf - -inf) is nan
    weights = typed(ge.Exp(ge.Sub(scores, top)), work)
    total = ge.ReduceSum(weights, last, keep_dims=True)
    rounded = to(to(weights, dtype), work)
    rounded = reshape(rounded, [*stacked, columns]) if is_shared else rounded
    summed = ge.BatchMatMul(rounded, to(value, work))
    summed = reshape(summed, [batch, heads, rows, sizes(value)[-1]]) if is_shared else summed
    floor = ge.Maximum(total, to(torch.finfo(work).tiny, work))
    attention = typed(ge.RealDiv(summed, floor), work)
    logsumexp = typed(ge.Squeeze(ge.Add(top, ge.Log(total)), axis=[3]), work)
    result = to(attention, dtype)
    setattr(result, ONLY_ON_A_CPU, True)
    return result, logsumexp


def _masked(scores: Any, mask: Any, work: torch.dtype) -> Any:
    if mask is None:
        return scores
    if torch_dtype(mask) is torch.bool:
        return ge.SelectV2(mask, scores, to(-math.inf, work))
    return ge.Add(scores, to(mask, work))


def _causal(rows: Any, columns: Any) -> Any:
    """True where a query may look: aligned at the top left, as aten has it."""

    def line(stop: Any, axis: int) -> Any:
        numbers = ge.Range(to(0, torch.int64), to(stop, torch.int64), to(1, torch.int64))
        return typed(ge.Unsqueeze(numbers, axes=[axis]), torch.int64)

    return ge.GreaterEqual(line(rows, 1), line(columns, 0))


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: flash_attention_for_cpu
}
