"""FlashAttentionScoreGrad in GE's form: maxima and sums of the softmax from their logarithm."""

from __future__ import annotations

from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import ge, ints, to, typed
from npu_fused_graph.converters.flash_attention_score import BLOCK, prepare_scores, sizes_of_query
from npu_fused_graph.converters.fused import Lowering

_LARGEST = 3e38


def prepare(call: Lowering) -> None:
    """P = exp(score - max) / sum: the log-sum-exp in place of the maximum, and a sum of 1.

    Where a query sees no key it is -inf; a huge number in its place makes every weight 0.
    """
    b, n, s = sizes_of_query(call)
    prepare_scores(call, bias="pse_shift")
    lse = call.beside["softmax_lse"]
    is_empty = typed(ge.Less(lse, to(-_LARGEST, torch.float32)), torch.bool)
    top = typed(ge.SelectV2(is_empty, to(_LARGEST, torch.float32), lse), torch.float32)
    column = typed(ge.Unsqueeze(top, axes=[3]), torch.float32)
    shape = ints([b, n, s, BLOCK])
    call.inputs["softmax_max"] = typed(ge.BroadcastTo(column, shape), torch.float32)
    call.inputs["softmax_sum"] = typed(ge.Fill(shape, to(1.0, torch.float32)), torch.float32)


def finish(call: Lowering, outputs: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(outputs[name] for name in ("dq", "dk", "dv"))
