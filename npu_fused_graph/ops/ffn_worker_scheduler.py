"""FfnWorkerScheduler: an FFN rank takes what attention ranks have sent, of whole groups of sessions.

Source: CANN's public sources of the operator; torch_npu's schema.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.ops.schedule_context import INPUT, FfnContext, ffn_context, is_a_context
from npu_fused_graph.ops.window_tables import FLAG, LAYER, NUMBERS
from npu_fused_graph.spec import AttrSpec, CallFacts, Constraint, DTypeRow, OpSpec, TensorSpec

TAKEN = 0x7F7F7F7F
"""What the operator leaves in place of experts' numbers."""


def _f1_execute_mode(spec: OpSpec, call: CallFacts) -> None:
    """execute_mode is 0."""
    if call.attrs["execute_mode"] != 0:
        raise argument_error(spec.stem, "execute_mode", "0", call.attrs["execute_mode"], "There is no other mode.")


SPEC = OpSpec(
    stem="ffn_worker_scheduler",
    ge_type="FfnWorkerScheduler",
    torch_name="ffn_worker_scheduler_",
    signature=("self", "*", "sync_group_size", "execute_mode"),
    inputs=(TensorSpec(INPUT.name, INPUT.dims, py="self", doc=INPUT.doc),),
    outputs=(TensorSpec(INPUT.name, py="self", like="self"),),
    attrs=(
        AttrSpec("sync_group_size", "Int", 1, doc="sessions that are taken together"),
        AttrSpec("execute_mode", "Int", 0),
    ),
    rows=(DTypeRow("any", {"schedule_context": "int8"}),),
    doc="An FFN rank takes what attention ranks have sent, once all sessions of a group have.",
    source="torch_npu's ffn_worker_scheduler_",
    constraints=(Constraint("F0", is_a_context), Constraint("F1", _f1_execute_mode)),
    chips=("Ascend910_93",),
    has_effects=True,
)


def ffn_worker_scheduler_(self: Tensor, *, sync_group_size: int = 1, execute_mode: int = 0) -> Tensor:
    """Wait for attention ranks and take what they sent: layers, sessions, micro batches and experts' numbers.

    self: the context of an FFN rank, which tells where they are put and how many sessions came. sync_group_size: G
    sessions are taken together, A % G == 0. With G == A the micro batches are taken in turn, each when all sessions
    have sent it; else of each group the lowest micro batch that all its sessions have sent, as soon as there is one.

    Returns self. Raises InvalidArgumentError, and CommunicationError when an attention rank has ended or nothing comes
    within ``NFG_TIMEOUT`` seconds. After ``stop_schedule()`` nothing is taken.
    """
    arguments = {"self": self, "sync_group_size": sync_group_size, "execute_mode": execute_mode}
    check_types(SPEC, arguments)
    result: Tensor = torch.ops.npu_fused_graph.ffn_worker_scheduler_in_place(**arguments)
    return result


def ffn_worker_scheduler(self: Tensor, *, sync_group_size: int = 1, execute_mode: int = 0) -> Tensor:
    """The same on a copy of the context, which is returned; windows and buffers are those of ``self``."""
    arguments = {"self": self, "sync_group_size": sync_group_size, "execute_mode": execute_mode}
    check_types(SPEC, arguments)
    result: Tensor = torch.ops.npu_fused_graph.ffn_worker_scheduler_in_place.functional(**arguments)
    return result


def reference(self: Tensor, sync_group_size: int = 1) -> Tensor:
    """The operator on CPU."""
    context = ffn_context(SPEC.stem, self)
    sessions = context.tables.sessions
    if not 1 <= sync_group_size <= sessions or sessions % sync_group_size:
        raise argument_error(
            SPEC.stem, "sync_group_size", f"a divisor of {sessions}, the sessions of the context", sync_group_size,
            "Pass 1 to take each session by itself, or all of them.",
        )  # fmt: skip
    context.fields["out_num"] = 0
    groups = sessions // sync_group_size
    # a session by itself may have skipped this rank: of what it has sent the next in turn is taken
    candidates = _any if groups > 1 else _in_turn if sessions > 1 else _next
    found: list[tuple[int, int]] = []

    def is_done() -> bool:
        found[:] = candidates(context, sync_group_size)
        return bool(found) or not context.is_running

    context.windows.wait(SPEC.stem, is_done, lambda: _missing(context, candidates is _in_turn, sync_group_size))
    if not context.is_running:
        return self
    if groups == 1:
        context.fields["polling_index"] = (found[0][1] + 1) % context.tables.micro_batches
    for group, micro_batch in found:
        for session in range(group * sync_group_size, (group + 1) * sync_group_size):
            _take(context, session, micro_batch)
    return self


def _in_turn(context: FfnContext, size: int) -> list[tuple[int, int]]:
    """(group, micro batch): the one group, if all have sent the micro batch whose turn it is."""
    micro_batch = int(context.fields["polling_index"])
    flags = context.tables.info(context.window)[:, micro_batch, FLAG]
    return [(0, micro_batch)] if (flags == 1).all() else []


def _next(context: FfnContext, size: int) -> list[tuple[int, int]]:
    """(0, micro batch): of the one session, the first from the one whose turn it is."""
    count, first = context.tables.micro_batches, int(context.fields["polling_index"])
    flags = context.tables.info(context.window)[0, :, FLAG]
    ready = [m for m in ((first + i) % count for i in range(count)) if flags[m] == 1]
    return [(0, ready[0])] if ready else []


def _any(context: FfnContext, size: int) -> list[tuple[int, int]]:
    """Of each group its lowest micro batch that all its sessions have sent."""
    flags = context.tables.info(context.window)[:, :, FLAG] == 1
    ready = flags.reshape(-1, size, context.tables.micro_batches).all(1)
    return [(group, int(row.argmax())) for group, row in enumerate(ready) if row.any()]


def _take(context: FfnContext, session: int, micro_batch: int) -> None:
    row = int(context.fields["out_num"])
    words = context.tables.info(context.window)[session, micro_batch]
    context.layers[row] = words[LAYER]
    context.sessions[row] = session
    context.micro_batches[row] = micro_batch
    context.experts[row] = words[NUMBERS:]
    words[NUMBERS:] = TAKEN
    words[FLAG] = 0
    context.fields["out_num"] = row + 1


def _missing(context: FfnContext, is_in_turn: bool, size: int) -> tuple[str, list[int]]:
    """What nobody has sent, and who would have to."""
    if not is_in_turn:
        peers = context.windows.peers
        left = [rank for rank in peers if context.windows.state(rank) == "left"]
        what = "a micro batch of any session" if size == 1 else f"a micro batch of all {size} sessions of any group"
        return what, left if len(left) == len(peers) else []
    return missing_sessions(context)


def missing_sessions(context: FfnContext) -> tuple[str, list[int]]:
    """Of the micro batch whose turn it is."""
    micro_batch = int(context.fields["polling_index"])
    flags = context.tables.info(context.window)[:, micro_batch, FLAG]
    late = [session for session in range(context.tables.sessions) if flags[session] != 1]
    ranks = [rank for session in late for rank in context.rank_of(session)]
    return f"micro batch {micro_batch} of session {', '.join(map(str, late))}", ranks
