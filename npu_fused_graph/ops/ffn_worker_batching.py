"""FfnWorkerBatching: the tokens an FFN rank was sent, sorted by expert.

Source: CANN's public sources of the operator; torch_npu's schema.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.ops.ffn_worker_scheduler import missing_sessions
from npu_fused_graph.ops.schedule_context import INPUT, FfnContext, ffn_context, is_a_context
from npu_fused_graph.ops.window_tables import FLAG, INVALID, NOTHING, NUMBERS
from npu_fused_graph.spec import AttrSpec, CallFacts, Constraint, DTypeRow, OpSpec, TensorSpec

DTYPES = (torch.float16, torch.bfloat16, torch.int8)
"""By token_dtype."""


def _g1_numbers(spec: OpSpec, call: CallFacts) -> None:
    """expert_num is 1 to 8192, layer_num 0 to expert_num, token_dtype 0 to 2, need_schedule 0 or 1."""
    attrs = call.attrs
    for name, low, high in (
        ("expert_num", 1, 8192), ("layer_num", 0, attrs["expert_num"]), ("token_dtype", 0, 2), ("need_schedule", 0, 1),
    ):  # fmt: skip
        if not low <= attrs[name] <= high:
            raise argument_error(spec.stem, name, f"{low} to {high}", attrs[name], "See the operator's text.")


def _g2_shape(spec: OpSpec, call: CallFacts) -> None:
    """max_out_shape is [A, BS, KS, H], all positive, A at most 1024, KS at most 64."""
    shape = call.attrs["max_out_shape"]
    if len(shape) != 4 or min(shape) < 1 or shape[0] > 1024 or shape[2] > 64:
        raise argument_error(
            spec.stem, "max_out_shape", "[A, BS, KS, H], positive, A at most 1024 and KS at most 64", shape,
            "As in the context.",
        )  # fmt: skip


def _g3_scale(spec: OpSpec, call: CallFacts) -> None:
    """With token_dtype 2, H is a multiple of 32: the scale stands there, behind the values."""
    hidden = call.attrs["max_out_shape"][3]
    if call.attrs["token_dtype"] == 2 and hidden % 32:
        raise argument_error(
            spec.stem, "max_out_shape[3]", "a multiple of 32 with token_dtype=2", hidden,
            "The operator reads the scale at byte H, npu_attention_to_ffn writes it at H rounded up to 32.",
        )  # fmt: skip


SPEC = OpSpec(
    stem="ffn_worker_batching",
    ge_type="FfnWorkerBatching",
    torch_name="npu_ffn_worker_batching",
    signature=("schedule_context", "expert_num", "max_out_shape", "*", "token_dtype", "need_schedule", "layer_num"),
    inputs=(INPUT,),
    outputs=tuple(
        TensorSpec(name)
        for name in (
            "y", "group_list", "session_ids", "micro_batch_ids", "token_ids", "expert_offsets", "dynamic_scale",
            "actual_token_num",
        )
    ),
    attrs=(
        AttrSpec("expert_num", "Int", doc="of this rank"),
        AttrSpec("max_out_shape", "ListInt", doc="[A, BS, KS, H]"),
        AttrSpec("token_dtype", "Int", 0, doc="0 float16, 1 bfloat16, 2 int8"),
        AttrSpec("need_schedule", "Int", 0, doc="1: wait for all sessions first"),
        AttrSpec("layer_num", "Int", 0),
    ),
    rows=tuple(
        DTypeRow(
            dtype,
            {
                "schedule_context": "int8", "y": dtype, "group_list": "int64", "session_ids": "int32",
                "micro_batch_ids": "int32", "token_ids": "int32", "expert_offsets": "int32",
                "dynamic_scale": "float32", "actual_token_num": "int64",
            },
        )
        for dtype in ("int8", "float16", "bfloat16")
    ),
    doc="The tokens an FFN rank was sent, sorted by expert, and where each came from.",
    source="torch_npu's npu_ffn_worker_batching",
    constraints=(
        Constraint("F0", is_a_context), Constraint("G1", _g1_numbers), Constraint("G2", _g2_shape),
        Constraint("G3", _g3_scale),
    ),
    chips=("Ascend910_93",),
    has_effects=True,
)  # fmt: skip

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def npu_ffn_worker_batching(
    schedule_context: Tensor,
    expert_num: int,
    max_out_shape: list[int],
    *,
    token_dtype: int = 0,
    need_schedule: int = 0,
    layer_num: int = 0,
) -> Batch:
    """Gather the tokens an FFN rank was sent, sorted by the number of their expert on this rank.

    schedule_context: of an FFN rank. max_out_shape: [A, BS, KS, H] as in the context; Y = A * BS * KS. token_dtype: 0
    float16, 1 bfloat16, 2 int8 with scales. need_schedule 0: of the sessions the scheduler took; 1: waits for the next
    micro batch of all sessions and takes it, for senders with sync_flag 0 only. expert_num: of this rank. layer_num: 0.

    Returns y (Y, H); group_list (expert_num, 2) int64, a row [expert, tokens] for each expert that got any, ascending,
    then zeros; session_ids, micro_batch_ids, token_ids, expert_offsets (Y,) int32, where each row of y came from;
    dynamic_scale (Y,) float32; actual_token_num (1,) int64. Rows from there on are zeros. Raises InvalidArgumentError,
    and CommunicationError when an attention rank has ended or does not send within ``NFG_TIMEOUT`` seconds.
    """
    arguments = {
        "schedule_context": schedule_context, "expert_num": expert_num, "max_out_shape": max_out_shape,
        "token_dtype": token_dtype, "need_schedule": need_schedule, "layer_num": layer_num,
    }  # fmt: skip
    check_types(SPEC, arguments)
    result: Batch = torch.ops.npu_fused_graph.npu_ffn_worker_batching(**arguments)
    return result


def fake(schedule_context: Tensor, expert_num: int, max_out_shape: Sequence[int], token_dtype: int) -> Batch:
    """Results of the right shapes, zeros."""
    sessions, tokens, slots, hidden = max_out_shape
    rows = sessions * tokens * slots
    zeros = schedule_context.new_zeros
    ids = [zeros(rows, dtype=torch.int32) for _ in range(4)]
    y = zeros(rows, hidden, dtype=DTYPES[token_dtype])
    group_list = zeros(expert_num, 2, dtype=torch.int64)
    first, second, third, fourth = ids
    scale, number = zeros(rows, dtype=torch.float32), zeros(1, dtype=torch.int64)
    return y, group_list, first, second, third, fourth, scale, number


def reference(
    schedule_context: Tensor, expert_num: int, max_out_shape: Sequence[int], token_dtype: int, need_schedule: int
) -> Batch:
    """The operator on CPU; tokens of one expert are in the order of sessions, tokens and slots."""
    context = ffn_context(SPEC.stem, schedule_context)
    _check_sizes(context, max_out_shape, token_dtype)
    results = fake(schedule_context, expert_num, max_out_shape, token_dtype)
    is_taken = False
    if need_schedule:
        sessions, micro_batches, numbers = _scheduled(context)
        is_taken = len(sessions) > 0
    else:
        taken = int(context.fields["out_num"])
        sessions, micro_batches = context.sessions[:taken], context.micro_batches[:taken]
        numbers = context.experts[:taken]
    flat = numpy.flatnonzero((numbers >= 0) & (numbers < INVALID))
    experts = numbers.reshape(-1)[flat]
    order = numpy.argsort(experts, kind="stable")
    flat, experts = flat[order], experts[order]
    found, counts = numpy.unique(experts, return_counts=True)
    if len(found) > expert_num:
        raise argument_error(
            SPEC.stem, "expert_num", f"at least the {len(found)} experts that tokens were sent to", expert_num,
            "Count the experts of this rank, shared ones too.",
        )  # fmt: skip
    _fill(context, results, flat, sessions, micro_batches, token_dtype)
    results[1][: len(found), 0] = torch.from_numpy(found)
    results[1][: len(found), 1] = torch.from_numpy(counts)
    results[7][0] = len(flat)
    if is_taken:
        _empty(context)
    return results


def _check_sizes(context: FfnContext, shape: Sequence[int], token_dtype: int) -> None:
    tables = context.tables
    if tables.micro_batches > 64:
        raise argument_error(
            SPEC.stem, "schedule_context.micro_batch_num", "1 to 64", tables.micro_batches, "Use fewer micro batches."
        )
    held = [tables.sessions, tables.tokens, tables.slots]
    if list(shape[:3]) != held:
        raise argument_error(
            SPEC.stem, "max_out_shape", f"[A, BS, KS] = {held}, as in the context", list(shape[:3]), "Make them agree."
        )
    needed = shape[3] + 4 if token_dtype == 2 else 2 * shape[3]
    if tables.record_size < needed:
        raise argument_error(
            SPEC.stem, "max_out_shape[3]", f"records of at most {tables.record_size} bytes, as in the context",
            f"{needed} bytes", "Make attn_to_ffn_token_size larger.",
        )  # fmt: skip


def _scheduled(context: FfnContext) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Sessions, micro batches and experts' numbers of the micro batch whose turn it is, once all have sent it."""
    micro_batch = int(context.fields["polling_index"])
    info = context.tables.info(context.window)[:, micro_batch]
    context.windows.wait(
        SPEC.stem, lambda: bool((info[:, FLAG] == 1).all()) or not context.is_running, lambda: missing_sessions(context)
    )
    count = context.tables.sessions if context.is_running else 0
    sessions = numpy.arange(count, dtype=numpy.int32)
    return sessions, numpy.full(count, micro_batch, numpy.int32), info[:count, NUMBERS:].copy()


def _empty(context: FfnContext) -> None:
    micro_batch = int(context.fields["polling_index"])
    info = context.tables.info(context.window)[:, micro_batch]
    info[:, NUMBERS:] = NOTHING
    info[:, FLAG] = 0
    context.fields["polling_index"] = (micro_batch + 1) % context.tables.micro_batches


def _fill(
    context: FfnContext,
    results: Batch,
    flat: numpy.ndarray,
    sessions: numpy.ndarray,
    micro_batches: numpy.ndarray,
    token_dtype: int,
) -> None:
    """flat: places in [taken, BS, KS], in the order of the results."""
    tables, count = context.tables, len(flat)
    row, token, slot = numpy.unravel_index(flat, (max(len(sessions), 1), tables.tokens, tables.slots))
    y, _, session_ids, micro_batch_ids, token_ids, expert_offsets, scales, _ = results
    for target, values in (
        (session_ids, sessions[row]), (micro_batch_ids, micro_batches[row]), (token_ids, token), (expert_offsets, slot),
    ):  # fmt: skip
        target[:count] = torch.from_numpy(values.astype(numpy.int32))
    width = y.element_size() * y.size(1)
    rows = y.view(torch.uint8).numpy().view(numpy.dtype((numpy.void, width)))[:, 0]
    words = scales.numpy().view(numpy.dtype((numpy.void, 4)))
    for i, (session, micro_batch) in enumerate(zip(sessions.tolist(), micro_batches.tolist(), strict=True)):
        at = numpy.flatnonzero(row == i)
        rows[at] = tables.records(context.window, session, micro_batch, 0, width)[token[at], slot[at]]
        if token_dtype == 2:
            words[at] = tables.records(context.window, session, micro_batch, y.size(1), 4)[token[at], slot[at]]
