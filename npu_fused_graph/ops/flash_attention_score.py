"""FlashAttentionScore: softmax(scale * Q K^T + alibi, masked) V without a matrix of all scores.

Source: requirement 003; CANN 8.1's prototype. The operator is a part of CANN's, with CANN's conventions; users call
``ascend_flash_attention``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npu_fused_graph import flash
from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops.flash_attention_score_constraints import CONSTRAINTS, sizes_of
from npu_fused_graph.spec import AttrSpec, DTypeRow, OpSpec, TensorSpec

NO_LIMIT = 2**31 - 1
"""Of pre_tockens and next_tockens."""

MASKS_AND_SEED = (
    TensorSpec("drop_seed", kind="optional", doc="int64 (2): seed and offset that dropout's pairs are drawn from"),
)
ATTRS = (
    AttrSpec("scale_value", "Float", 1.0),
    AttrSpec("keep_prob", "Float", 1.0, doc="of dropout"),
    AttrSpec("pre_tockens", "Int", NO_LIMIT, doc="with a mask: keys up to so many before the query are seen"),
    AttrSpec("next_tockens", "Int", NO_LIMIT, doc="and up to so many after it"),
    AttrSpec("head_num", "Int", doc="N"),
    AttrSpec("input_layout", "String", py="io_layout", doc="BNSD, BSH or SBH"),
    AttrSpec("inner_precise", "Int", 0, py=None, doc="2: rows that see no key may occur"),
    AttrSpec("sparse_mode", "Int", 0, py=None, doc="0: the mask and the band count"),
    AttrSpec("pse_type", "Int", 1, py=None, doc="0: alibi is added after scaling; 1: before, or there is none"),
)
MASK_DOC = "nonzero = hidden; query along the last axis but one, key along the last"
ALIBI_DOC = "added to the scaled scores"
UNFED = tuple(
    TensorSpec(name, kind="optional", py=None)
    for name in ("prefix", "actual_seq_qlen", "actual_seq_kvlen", "q_start_idx", "kv_start_idx")
)

SPEC = OpSpec(
    stem="flash_attention_score",
    ge_type="FlashAttentionScore",
    torch_name="flash_attention_score",
    function="ascend_flash_attention",
    signature=(
        "query", "key", "value", "alibi_mask", "drop_mask", "atten_mask", "drop_seed", "*", "scale_value", "keep_prob",
        "pre_tockens", "next_tockens", "head_num", "io_layout",
    ),
    inputs=(
        TensorSpec("query", contiguous="any", doc="BNSD: (B, N, S, D); BSH: (B, S, N * D); SBH: (S, B, N * D)"),
        TensorSpec("key", contiguous="any", doc="like query"),
        TensorSpec("value", contiguous="any", doc="like query"),
        TensorSpec("real_shift", kind="optional", py="alibi_mask", contiguous="any", doc=ALIBI_DOC),
        TensorSpec("drop_mask", kind="optional", doc="a bit per score, the lowest first; 1 = kept"),
        TensorSpec("padding_mask", kind="optional", py=None),
        TensorSpec("atten_mask", kind="optional", contiguous="any", doc=MASK_DOC),
        *UNFED,
    ),
    outputs=(
        TensorSpec("softmax_max", py=None, doc="(B, N, S, 8): a query's largest score, eight times"),
        TensorSpec("softmax_sum", py=None, doc="(B, N, S, 8): its sum of exp(score - softmax_max)"),
        TensorSpec("softmax_out", py=None, doc="empty"),
        TensorSpec("attention_out", like="query"),
    ),
    beside_inputs=MASKS_AND_SEED,
    beside_outputs=(TensorSpec("softmax_lse", doc="(B, N, S): softmax_max + ln(softmax_sum)"),),
    attrs=ATTRS,
    rows=tuple(
        DTypeRow(
            f"{half}, {mask} mask",
            {
                **dict.fromkeys(("query", "key", "value", "real_shift", "padding_mask"), half), "drop_mask": "uint8",
                "atten_mask": mask, **dict.fromkeys([t.name for t in UNFED], "int64"), "softmax_max": "float32",
                "softmax_sum": "float32", "softmax_out": half, "attention_out": half,
            },
        )
        for half, mask in (("float16", "bool"), ("bfloat16", "uint8"))
    ),
    doc="Attention.",
    source="requirement 003 (AscendSpeed's document of flash_attention)",
    constraints=CONSTRAINTS,
    backward="flash_attention_score_grad",
)  # fmt: skip


def heads_first(x: Tensor, io_layout: str, head_num: int) -> Tensor:
    """A (B, N, S, D) view."""
    if io_layout == "BNSD":
        return x
    heads: Tensor = x.unflatten(-1, (head_num, -1))
    return heads.transpose(1, 2) if io_layout == "BSH" else heads.permute(1, 2, 0, 3)


def scores_of(
    query: Tensor,
    alibi_mask: Tensor | None,
    drop_mask: Tensor | None,
    atten_mask: Tensor | None,
    drop_seed: Tensor | None,
    *,
    scale_value: float,
    keep_prob: float,
    pre_tockens: int,
    next_tockens: int,
) -> flash.Scores:
    """How the operator's scores come about. query: as (B, N, S, D)."""
    length = query.shape[2]
    hidden = flash.Hidden()
    if atten_mask is not None:
        is_limited = min(pre_tockens, next_tockens) < length - 1
        band = flash.Band(pre_tockens, next_tockens) if is_limited else None
        hidden = flash.Hidden(atten_mask if atten_mask.dim() == 4 else atten_mask[None, None], band)
    keep: flash.Keep | None = None
    if drop_mask is not None:
        keep = flash.PackedKeep(keep_prob, drop_mask, length)
    elif drop_seed is not None:
        seed, offset = drop_seed.tolist()
        keep = flash.SeededKeep(keep_prob, seed, offset)
    return flash.Scores(scale_value, hidden, alibi_mask, keep=keep)


def fake(query: Tensor, head_num: int, io_layout: str) -> tuple[Tensor, Tensor]:
    """Results of the right shapes."""
    b, n, s, _ = sizes_of(tuple(query.shape), io_layout, head_num)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    return out, query.new_empty((b, n, s), dtype=torch.float32)


def reference(
    query: Tensor, key: Tensor, value: Tensor, alibi_mask: Tensor | None, drop_mask: Tensor | None,
    atten_mask: Tensor | None, drop_seed: Tensor | None, scale_value: float, keep_prob: float, pre_tockens: int,
    next_tockens: int, head_num: int, io_layout: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """By blocks, with sums in float32."""
    q, k, v = (heads_first(x, io_layout, head_num) for x in (query, key, value))
    scores = scores_of(
        q, alibi_mask, drop_mask, atten_mask, drop_seed, scale_value=scale_value, keep_prob=keep_prob,
        pre_tockens=pre_tockens, next_tockens=next_tockens,
    )  # fmt: skip
    out = torch.empty(query.shape, dtype=query.dtype)
    return out, flash.forward(q, k, v, scores, heads_first(out, io_layout, head_num))


def setup_context(
    ctx: Any, inputs: tuple[Tensor | None, ...], keyword_only_inputs: dict[str, Any], output: tuple[Tensor, Tensor]
) -> None:
    if ctx.needs_input_grad[3]:
        raise argument_error(
            SPEC.stem, "alibi_mask", "a tensor that needs no gradient (there is none for it)", "requires_grad=True",
            "Detach it.",
        )  # fmt: skip
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.attrs = keyword_only_inputs
    ctx.save_for_backward(*inputs, *output)


def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *inputs, out, lse = ctx.saved_tensors
    if dy is None:
        return (None,) * len(inputs)
    query, key, value, *masks = inputs
    gradients = torch.ops.npu_fused_graph.flash_attention_score_grad(
        query, key, value, dy, lse, out, *masks, **ctx.attrs
    )
    return (*gradients, *(None for _ in masks))
