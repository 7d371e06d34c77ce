"""FlashAttentionScoreGrad: the gradients of attention, recomputed from query, key and the sums of the forward operator.

Source: requirement 003; CANN 8.1's prototype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph import flash
from npu_fused_graph.ops.flash_attention_score import (
    ALIBI_DOC,
    ATTRS,
    MASK_DOC,
    MASKS_AND_SEED,
    UNFED,
    heads_first,
    scores_of,
)
from npu_fused_graph.ops.flash_attention_score_constraints import GRADIENT_CONSTRAINTS
from npu_fused_graph.spec import AttrSpec, DTypeRow, OpSpec, TensorSpec

_LIMITS = {"pre_tockens", "next_tockens"}

SPEC = OpSpec(
    stem="flash_attention_score_grad",
    ge_type="FlashAttentionScoreGrad",
    torch_name="flash_attention_score_grad",
    function=None,
    signature=(
        "query", "key", "value", "dy", "softmax_lse", "attention_out", "alibi_mask", "drop_mask", "atten_mask",
        "drop_seed", "*", "scale_value", "keep_prob", "pre_tockens", "next_tockens", "head_num", "io_layout",
    ),
    inputs=(
        *(TensorSpec(name, contiguous="any") for name in ("query", "key", "value", "dy")),
        TensorSpec("pse_shift", kind="optional", py="alibi_mask", contiguous="any", doc=ALIBI_DOC),
        TensorSpec("drop_mask", kind="optional", doc="a bit per score, the lowest first; 1 = kept"),
        TensorSpec("padding_mask", kind="optional", py=None),
        TensorSpec("atten_mask", kind="optional", contiguous="any", doc=MASK_DOC),
        TensorSpec("softmax_max", kind="optional", py=None, doc="(B, N, S, 8)"),
        TensorSpec("softmax_sum", kind="optional", py=None, doc="(B, N, S, 8)"),
        TensorSpec("softmax_in", kind="optional", py=None),
        TensorSpec("attention_in", kind="optional", py="attention_out", contiguous="any"),
        *UNFED,
    ),
    outputs=(
        TensorSpec("dq", like="query"),
        TensorSpec("dk", like="key"),
        TensorSpec("dv", like="value"),
        TensorSpec("dpse", py=None, doc="empty"),
    ),
    beside_inputs=(TensorSpec("softmax_lse", contiguous="any", doc="(B, N, S), of the forward"), *MASKS_AND_SEED),
    attrs=tuple(AttrSpec(a.name, "Int", 65536) if a.name in _LIMITS else a for a in ATTRS),
    rows=tuple(
        DTypeRow(
            f"{half}, {mask} mask",
            {
                **dict.fromkeys(
                    (
                        "query", "key", "value", "dy", "pse_shift", "padding_mask", "softmax_in", "attention_in", "dq",
                        "dk", "dv", "dpse",
                    ),
                    half,
                ),
                "drop_mask": "uint8", "atten_mask": mask, "softmax_max": "float32", "softmax_sum": "float32",
                **dict.fromkeys([t.name for t in UNFED], "int64"),
            },
        )
        for half, mask in (("float16", "bool"), ("bfloat16", "uint8"))
    ),
    doc="The gradients of attention.",
    source="requirement 003 (AscendSpeed's document of flash_attention)",
    constraints=GRADIENT_CONSTRAINTS,
)  # fmt: skip


def reference(
    query: Tensor, key: Tensor, value: Tensor, dy: Tensor, softmax_lse: Tensor, attention_out: Tensor,
    alibi_mask: Tensor | None, drop_mask: Tensor | None, atten_mask: Tensor | None, drop_seed: Tensor | None,
    scale_value: float, keep_prob: float, pre_tockens: int, next_tockens: int, head_num: int, io_layout: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """By blocks, in float32, rounded once."""
    q, k, v, do, out = (heads_first(x, io_layout, head_num) for x in (query, key, value, dy, attention_out))
    scores = scores_of(
        q, alibi_mask, drop_mask, atten_mask, drop_seed, scale_value=scale_value, keep_prob=keep_prob,
        pre_tockens=pre_tockens, next_tockens=next_tockens,
    )  # fmt: skip
    results = tuple(torch.empty(query.shape, dtype=query.dtype) for _ in range(3))
    for result, gradient in zip(results, flash.backward(do, q, k, v, out, softmax_lse, scores), strict=True):
        heads_first(result, io_layout, head_num).copy_(gradient)
    dq, dk, dv = results
    return dq, dk, dv
