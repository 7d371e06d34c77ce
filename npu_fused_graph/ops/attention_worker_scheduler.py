"""AttentionWorkerScheduler: an attention rank waits until the FFN ranks have answered for a whole micro batch.

Source: CANN's public sources of the operator; torch_npu's schema.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.ops.schedule_context import INPUT, AttentionContext, attention_context, is_a_context
from npu_fused_graph.spec import Constraint, DTypeRow, OpSpec, TensorSpec

SPEC = OpSpec(
    stem="attention_worker_scheduler",
    ge_type="AttentionWorkerScheduler",
    torch_name="attention_worker_scheduler_",
    signature=("self",),
    inputs=(TensorSpec(INPUT.name, INPUT.dims, py="self", doc=INPUT.doc),),
    outputs=(TensorSpec(INPUT.name, py="self", like="self"),),
    attrs=(),
    rows=(DTypeRow("any", {"schedule_context": "int8"}),),
    doc="An attention rank waits until every token of the next micro batch was answered by every expert.",
    source="torch_npu's attention_worker_scheduler_",
    constraints=(Constraint("F0", is_a_context),),
    chips=("Ascend910_93",),
    has_effects=True,
)


def attention_worker_scheduler_(self: Tensor) -> Tensor:
    """Wait until the FFN ranks have answered for all tokens of the next micro batch, and take it.

    self: the context of an attention rank; its micro_batch_id becomes that micro batch, whose flags are emptied.
    Returns self. Raises InvalidArgumentError, and CommunicationError when an FFN rank has ended or does not answer
    within ``NFG_TIMEOUT`` seconds. After ``stop_schedule()`` nothing changes.
    """
    check_types(SPEC, {"self": self})
    result: Tensor = torch.ops.npu_fused_graph.attention_worker_scheduler_in_place(self)
    return result


def attention_worker_scheduler(self: Tensor) -> Tensor:
    """The same on a copy of the context, which is returned; the window is that of ``self``."""
    check_types(SPEC, {"self": self})
    result: Tensor = torch.ops.npu_fused_graph.attention_worker_scheduler_in_place.functional(self)
    return result


def reference(self: Tensor) -> Tensor:
    """The operator on CPU."""
    context = attention_context(SPEC.stem, self)
    if wait_for_answers(SPEC.stem, context):
        take_answers(context)
    return self


def wait_for_answers(stem: str, context: AttentionContext) -> bool:
    """Until all flags of the next micro batch are set; False if the schedule was stopped first."""
    micro_batch = context.next_micro_batch
    flags = context.tables.flags(context.window)[micro_batch]

    def late() -> tuple[str, list[int]]:
        missing = flags != 1
        ranks = context.windows.answering.get(micro_batch)
        waiting = sorted(set(ranks[missing[: len(ranks)]].tolist())) if ranks is not None else []
        return f"answers for {int(missing.any(1).sum())} tokens of micro batch {micro_batch}", waiting

    context.windows.wait(stem, lambda: bool((flags == 1).all()) or not context.is_running, late)
    return context.is_running


def take_answers(context: AttentionContext) -> None:
    """Empty the flags of the next micro batch, which becomes the current one."""
    micro_batch = context.next_micro_batch
    context.tables.flags(context.window)[micro_batch] = 0
    context.fields["micro_batch_id"] = micro_batch
    context.windows.answering.pop(micro_batch, None)
