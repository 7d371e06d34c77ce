"""AttentionWorkerCombine: an attention rank adds up what the experts of its tokens answered.

Source: CANN's public sources of the operator; torch_npu's schema.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.ops.attention_worker_scheduler import take_answers, wait_for_answers
from npu_fused_graph.ops.schedule_context import INPUT, attention_context, is_a_context
from npu_fused_graph.spec import AttrSpec, CallFacts, Constraint, DTypeRow, OpSpec, TensorSpec

DTYPES = (torch.float16, torch.bfloat16)
"""By token_dtype."""


def _h1_numbers(spec: OpSpec, call: CallFacts) -> None:
    """hidden_size is positive, token_dtype and need_schedule 0 or 1, K at most 64."""
    attrs, scales = call.attrs, call.tensors["expert_scales"]
    assert scales is not None
    for name, value, low, high in (
        ("hidden_size", attrs["hidden_size"], 1, 2**31 - 1), ("token_dtype", attrs["token_dtype"], 0, 1),
        ("need_schedule", attrs["need_schedule"], 0, 1), ("expert_scales.shape[1]", scales.shape[1], 1, 64),
    ):  # fmt: skip
        if not low <= value <= high:
            raise argument_error(spec.stem, name, f"{low} to {high}", value, "See the operator's text.")


def _h2_dtypes(spec: OpSpec, call: CallFacts) -> None:
    """expert_scales is float32, layer_id int32."""
    for name, dtype in (("expert_scales", "float32"), ("layer_id", "int32")):
        facts = call.tensors[name]
        assert facts is not None
        if facts.dtype != dtype:
            raise argument_error(spec.stem, name, f"dtype {dtype}", facts.dtype, "Convert it.")


SPEC = OpSpec(
    stem="attention_worker_combine",
    ge_type="AttentionWorkerCombine",
    torch_name="npu_attention_worker_combine",
    signature=("schedule_context", "expert_scales", "layer_id", "hidden_size", "*", "token_dtype", "need_schedule"),
    inputs=(
        INPUT,
        TensorSpec("expert_scales", ("BS K",), contiguous="any", doc="weights of a token's routed experts"),
        TensorSpec("layer_id", ("layers",), contiguous="any"),
    ),
    outputs=(TensorSpec("y"), TensorSpec("next_layer_id")),
    attrs=(
        AttrSpec("hidden_size", "Int", 0, is_required=True),
        AttrSpec("token_dtype", "Int", 0, doc="0 float16, 1 bfloat16"),
        AttrSpec("need_schedule", "Int", 0, doc="1: wait for the answers first"),
    ),
    rows=tuple(
        DTypeRow(
            dtype,
            {
                "schedule_context": "int8", "expert_scales": "float32", "layer_id": "int32", "y": dtype,
                "next_layer_id": "int32",
            },
        )
        for dtype in ("float16", "bfloat16")
    ),
    doc="The answers of the experts of each token, weighted and added up.",
    source="torch_npu's npu_attention_worker_combine",
    constraints=(Constraint("F0", is_a_context), Constraint("H1", _h1_numbers), Constraint("H2", _h2_dtypes)),
    chips=("Ascend910_93",),
    has_effects=True,
)  # fmt: skip


def npu_attention_worker_combine(
    schedule_context: Tensor,
    expert_scales: Tensor,
    layer_id: Tensor,
    hidden_size: int,
    *,
    token_dtype: int = 0,
    need_schedule: int = 0,
) -> tuple[Tensor, Tensor]:
    """Add up what the FFN ranks answered for each token.

    ``y = sum of answer_k * expert_scales_k over k, + answer of the shared expert``

    schedule_context: of an attention rank, whose records are H elements of K + 1 experts. expert_scales: (BS, K)
    float32; with S > 1 shared experts pass K + S - 1 columns, ones for the shared ones but the last. layer_id: (1,)
    int32. hidden_size: H. token_dtype: 0 float16, 1 bfloat16. need_schedule 0: of the micro batch the scheduler took;
    1: waits for the next one and takes it.

    Returns y (BS, H), added up in float32 and rounded once, and layer_id + 1. Rows of tokens that were not sent are
    whatever stands there. Raises InvalidArgumentError, and CommunicationError when an FFN rank has ended or does not
    answer within ``NFG_TIMEOUT`` seconds.
    """
    arguments = {
        "schedule_context": schedule_context, "expert_scales": expert_scales, "layer_id": layer_id,
        "hidden_size": hidden_size, "token_dtype": token_dtype, "need_schedule": need_schedule,
    }  # fmt: skip
    check_types(SPEC, arguments)
    result: tuple[Tensor, Tensor] = torch.ops.npu_fused_graph.npu_attention_worker_combine(**arguments)
    return result


def fake(expert_scales: Tensor, layer_id: Tensor, hidden_size: int, token_dtype: int) -> tuple[Tensor, Tensor]:
    """Results of the right shapes, uninitialised."""
    y = expert_scales.new_empty(expert_scales.size(0), hidden_size, dtype=DTYPES[token_dtype])
    return y, torch.empty_like(layer_id, memory_format=torch.contiguous_format)


def reference(
    schedule_context: Tensor,
    expert_scales: Tensor,
    layer_id: Tensor,
    hidden_size: int,
    token_dtype: int,
    need_schedule: int,
) -> tuple[Tensor, Tensor]:
    """The operator on CPU."""
    context = attention_context(SPEC.stem, schedule_context)
    tables, (tokens, k) = context.tables, expert_scales.shape
    for name, got, held, cure in (
        ("expert_scales.shape[0]", tokens, tables.tokens, "micro_batch_size of the context."),
        ("expert_scales.shape[1]", k, tables.slots - 1, "selected_expert_num of the context counts one shared expert."),
        (
            "hidden_size",
            2 * hidden_size,
            tables.record_size,
            "the context's ffn_to_attn_token_size is 2 * hidden_size.",
        ),
    ):
        if got != held:
            raise argument_error(SPEC.stem, name, str(held), got, f"Make it agree: {cure}")
    micro_batch = int(context.fields["micro_batch_id"])
    if need_schedule:
        micro_batch = context.next_micro_batch
        if not wait_for_answers(SPEC.stem, context):
            y, next_layer = fake(expert_scales, layer_id, hidden_size, token_dtype)
            return y.zero_(), next_layer.copy_(layer_id)
    records = tables.records(context.window, micro_batch, 2 * hidden_size)
    total = torch.zeros(tokens, hidden_size)
    for j in range(k + 1):
        answers = torch.from_numpy(records[:, j].copy().view(numpy.int16)).view(DTYPES[token_dtype])
        part = answers.view(tokens, hidden_size).float()
        total += part * expert_scales[:, j : j + 1] if j < k else part
    if need_schedule:
        take_answers(context)
    return total.to(DTYPES[token_dtype]), layer_id + 1
