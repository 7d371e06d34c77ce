"""The schedule context: 1024 bytes in which FFN and attention workers keep where they are, as CANN lays them out.

A context holds addresses. They are followed only into windows of this process and into buffers a holder of this module
made, so a context from elsewhere is refused instead of read.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from npu_fused_graph.comm import Windows
from npu_fused_graph.comm.windows import Bytes, holding
from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops.declarations import declarations
from npu_fused_graph.ops.window_tables import NOTHING, AttentionTables, FfnTables, aligned
from npu_fused_graph.spec import CallFacts, OpSpec, TensorSpec

SIZE = 1024
FFN, ATTENTION = 0, 1

_FIELDS: dict[str, tuple[int, str]] = {
    "session_num": (0, "u4"), "micro_batch_num": (4, "u4"), "micro_batch_size": (8, "u4"),
    "selected_expert_num": (12, "u4"), "expert_num": (16, "u4"), "attn_to_ffn_token_size": (20, "u4"),
    "ffn_to_attn_token_size": (24, "u4"), "schedule_mode": (28, "i4"), "run_flag": (128, "i4"),
    "attention_info": (256, "u8"), "attention_info_size": (264, "u8"), "attention_data": (272, "u8"),
    "attention_data_size": (280, "u8"), "micro_batch_id": (288, "u4"), "ffn_info": (384, "u8"),
    "ffn_info_size": (392, "u8"), "ffn_data": (400, "u8"), "ffn_data_size": (408, "u8"), "polling_index": (416, "u8"),
    "layer_ids": (512, "u8"), "layer_ids_size": (520, "u8"), "session_ids": (528, "u8"),
    "session_ids_size": (536, "u8"),
    "micro_batch_ids": (544, "u8"), "micro_batch_ids_size": (552, "u8"), "expert_ids": (560, "u8"),
    "expert_ids_size": (568, "u8"), "out_num": (576, "u4"),
}  # fmt: skip
_LAYOUT = numpy.dtype(
    {
        "names": list(_FIELDS), "formats": [f"<{kind}" for _, kind in _FIELDS.values()],
        "offsets": [offset for offset, _ in _FIELDS.values()], "itemsize": SIZE,
    }
)  # fmt: skip
_OUT = ("layer_ids", "session_ids", "micro_batch_ids", "expert_ids")

INPUT = TensorSpec("schedule_context", ("bytes",), contiguous="any", doc="1024 bytes, see ScheduleContextHolder")


def is_a_context(spec: OpSpec, call: CallFacts) -> None:
    """The context is int8 and has at least 1024 bytes."""
    name = spec.inputs[0].python_name
    facts = call.tensors[name]
    assert facts is not None
    if facts.dtype != "int8" or facts.shape[0] < SIZE:
        raise argument_error(
            spec.stem, name, "a context, int8 of 1024 elements", f"{facts.dtype} {list(facts.shape)}",
            "Pass holder.get_schedule_context_tensor().",
        )  # fmt: skip


class ScheduleContextHolder:
    """A context, and the buffers the FFN scheduler fills; what torch_npu._afd.create_schedule_context_holder returns.

    schedule_mode: 0 for an FFN rank, 1 for an attention rank. Sizes: A sessions, M micro batches of BS tokens, KS
    experts of a token, shared ones too; expert_num: of all. Token sizes are bytes of a record in an FFN window and in
    an attention window, multiples of 512. The window of the rank's own role is an address and size inside one that was
    registered, ``windows.own.data_ptr()``; its tables are emptied. Raises InvalidArgumentError.
    """

    def __init__(
        self,
        schedule_mode: int,
        session_num: int,
        micro_batch_num: int,
        micro_batch_size: int,
        selected_expert_num: int,
        expert_num: int,
        attn_to_ffn_token_size: int,
        ffn_to_attn_token_size: int,
        ffn_window: int = 0,
        ffn_window_size: int = 0,
        attention_window: int = 0,
        attention_window_size: int = 0,
    ) -> None:
        counts = {
            "session_num": session_num, "micro_batch_num": micro_batch_num, "micro_batch_size": micro_batch_size,
            "selected_expert_num": selected_expert_num, "expert_num": expert_num,
        }  # fmt: skip
        for name, count in counts.items():
            if not 0 < count < 2**31:
                raise _error(name, "1 to 2147483647", count, "Count them.")
        for name, size in (
            ("attn_to_ffn_token_size", attn_to_ffn_token_size), ("ffn_to_attn_token_size", ffn_to_attn_token_size),
        ):  # fmt: skip
            if size % 512 or not 0 <= size < 2**32:
                raise _error(name, "a multiple of 512 bytes below 2**32", size, "Round the record up.")
        if schedule_mode not in (FFN, ATTENTION):
            raise _error("schedule_mode", "0 (FFN) or 1 (attention)", schedule_mode, "There is no other.")
        is_ffn = schedule_mode == FFN
        role = "ffn" if is_ffn else "attention"
        address, size = (ffn_window, ffn_window_size) if is_ffn else (attention_window, attention_window_size)
        tables: FfnTables | AttentionTables
        if is_ffn:
            tables = FfnTables(
                session_num, micro_batch_num, micro_batch_size, selected_expert_num, attn_to_ffn_token_size, 1
            )
        else:
            tables = AttentionTables(
                micro_batch_num, micro_batch_size, selected_expert_num, ffn_to_attn_token_size // 2
            )
        info = aligned(tables.info_size)
        if tables.info_size >= 2**63 or size <= info:
            raise _error(
                f"{role}_window_size", f"more than {info} bytes, the info table", size, "Register a larger window."
            )
        if size < tables.size:
            raise _error(
                f"{role}_window_size", f"at least {tables.size} bytes, both tables", size, "Register a larger window."
            )
        found = holding(address, size)
        if found is None:
            raise _error(
                f"{role}_window", f"the address of {size} bytes of a window registered by this process", hex(address),
                "Pass windows.own.data_ptr() and its size.",
            )  # fmt: skip
        self.windows, window = found
        self.is_stopped = False
        self._tensor = torch.zeros(SIZE, dtype=torch.int8)
        self._workspace: Tensor | None = None
        fields = _fields(self._tensor)
        for name, value in (counts | {
            "attn_to_ffn_token_size": attn_to_ffn_token_size, "ffn_to_attn_token_size": ffn_to_attn_token_size,
            "schedule_mode": schedule_mode, "run_flag": 1, f"{role}_info": address,
            f"{role}_info_size": tables.info_size, f"{role}_data": address + info, f"{role}_data_size": size - info,
        }).items():  # fmt: skip
            fields[name] = value
        if isinstance(tables, FfnTables):
            words = tables.info(window)
            words[:, :, 2:] = NOTHING
            words[:, :, :2] = 0
            self._make_out_buffers(fields, tables)
        else:
            tables.flags(window)[:] = 0
            fields["micro_batch_id"] = micro_batch_num - 1
        _holders[address] = self

    def _make_out_buffers(self, fields: Any, tables: FfnTables) -> None:
        rows = tables.sessions
        sizes = dict.fromkeys(_OUT, 4 * rows) | {"expert_ids": 4 * rows * tables.tokens * tables.slots}
        starts, end = {}, 0
        for name, size in sizes.items():
            starts[name], end = end, end + aligned(size)
        self._workspace = torch.zeros(end + 512, dtype=torch.int8)
        first = aligned(self._workspace.data_ptr())
        for name, size in sizes.items():
            fields[name], fields[f"{name}_size"] = first + starts[name], size

    def get_schedule_context_tensor(self) -> Tensor:
        """The context, int8 of 1024 elements; operators write it."""
        return self._tensor

    def stop_schedule(self) -> None:
        """Workers that wait return, and find nothing; also those that work on a copy of the context."""
        self.is_stopped = True
        _fields(self._tensor)["run_flag"] = 0

    def get_schedule_context_info(self) -> str:
        """What the context holds, for logs."""
        fields = _fields(self._tensor)
        role = "ffn" if fields["schedule_mode"] == FFN else "attention"
        shown = {name: int(fields[name]) for name in _FIELDS}
        common = [name for name, (offset, _) in _FIELDS.items() if offset < 256]
        own = [name for name, (offset, _) in _FIELDS.items() if (256 <= offset < 384) == (role == "attention")]
        own = [name for name in own if name not in common]
        lines = [("common info", common), (f"{role} info", own)]
        return "\n".join(f"{title}: {', '.join(f'{n} {shown[n]}' for n in names)}" for title, names in lines)


_holders: weakref.WeakValueDictionary[int, ScheduleContextHolder] = weakref.WeakValueDictionary()
"""By the address of the info table, which every copy of a context has."""


def _fields(tensor: Tensor) -> Any:
    """The fields of a context: reading and writing them reads and writes the tensor."""
    return tensor[:SIZE].numpy().view(_LAYOUT)[0]


def _error(parameter: str, expected: str, got: object, cure: str) -> Exception:
    return argument_error("schedule_context", parameter, expected, got, cure)


# -- what operators read of it ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FfnContext:
    """Of an FFN rank. fields: by name, live. layers to experts: what the scheduler found, a row per session."""

    fields: Any
    holder: ScheduleContextHolder
    windows: Windows
    window: Bytes
    tables: FfnTables
    layers: NDArray[numpy.int32]
    sessions: NDArray[numpy.int32]
    micro_batches: NDArray[numpy.int32]
    experts: NDArray[numpy.int32]

    @property
    def is_running(self) -> bool:
        return _is_running(self.fields, self.holder)

    def rank_of(self, session: int) -> list[int]:
        """The attention rank that sends as ``session``, if one has."""
        windows = self.windows
        sent = [rank for rank, known in declarations(windows, windows.rank).items() if known.session == session]
        return sent or [rank for rank in windows.peers if windows.ready(rank)[0] and windows.ready(rank)[1] == session]


@dataclass(frozen=True, slots=True)
class AttentionContext:
    """Of an attention rank."""

    fields: Any
    holder: ScheduleContextHolder
    windows: Windows
    window: Bytes
    tables: AttentionTables

    @property
    def is_running(self) -> bool:
        return _is_running(self.fields, self.holder)

    @property
    def next_micro_batch(self) -> int:
        return (int(self.fields["micro_batch_id"]) + 1) % self.tables.micro_batches


def _opened(stem: str, tensor: Tensor, mode: int) -> tuple[Any, dict[str, int]]:
    fields = _fields(tensor)
    names = ("session_num", "micro_batch_num", "micro_batch_size", "selected_expert_num")
    counts = {name: int(fields[name]) for name in names}
    role = "ffn" if mode == FFN else "attention"
    if int(fields["schedule_mode"]) != mode:
        raise argument_error(
            stem, "schedule_context", f"one of schedule_mode {mode}", int(fields["schedule_mode"]),
            f"Make it with create_schedule_context_holder({mode}, ...): this is an {role} rank's operator.",
        )  # fmt: skip
    for name, count in counts.items():
        if not count:
            raise argument_error(stem, f"schedule_context.{name}", "at least 1", 0, "Make the context with a holder.")
    return fields, counts


def _is_running(fields: Any, holder: ScheduleContextHolder) -> bool:
    """A stop reaches copies of the context, too, and none of them forgets it."""
    if holder.is_stopped:
        fields["run_flag"] = 0
    return int(fields["run_flag"]) == 1


def _holder(stem: str, fields: Any, role: str) -> ScheduleContextHolder:
    address = int(fields[f"{role}_info"])
    found = _holders.get(address)
    if found is None:
        raise argument_error(
            stem, f"schedule_context.{role}_info", "the tables of a living holder of this process", hex(address),
            "Keep the holder as long as its context is used.",
        )  # fmt: skip
    return found


def _window(stem: str, fields: Any, role: str, size: int) -> tuple[Windows, Bytes]:
    """The memory from the info table on, of ``size`` bytes."""
    address = int(fields[f"{role}_info"])
    found = holding(address, size)
    if found is None:
        raise argument_error(
            stem, f"schedule_context.{role}_info", f"{size} bytes of a window that is registered", hex(address),
            "Make a new holder when windows are registered again.",
        )  # fmt: skip
    if int(fields[f"{role}_data"]) != address + aligned(int(fields[f"{role}_info_size"])):
        raise argument_error(
            stem, f"schedule_context.{role}_data", "the next 512 bytes behind the info table",
            hex(int(fields[f"{role}_data"])), "Make the context with a holder.",
        )  # fmt: skip
    return found


def ffn_context(stem: str, tensor: Tensor) -> FfnContext:
    """Raises InvalidArgumentError for a context that is no FFN rank's, whose addresses are not this process's, or whose
    tables are not those that attention ranks send for.
    """
    fields, counts = _opened(stem, tensor, FFN)
    sessions, micro_batches, tokens, slots = counts.values()
    tables = FfnTables(sessions, micro_batches, tokens, slots, int(fields["attn_to_ffn_token_size"]), 1)
    holder = _holder(stem, fields, "ffn")
    windows, window = _window(stem, fields, "ffn", tables.size)
    if int(fields["polling_index"]) >= tables.micro_batches:
        raise argument_error(
            stem, "schedule_context.polling_index", f"0 to {tables.micro_batches - 1}", int(fields["polling_index"]),
            "Make the context with a holder.",
        )  # fmt: skip
    _check_senders(stem, windows, tables)
    outs = {name: _out(stem, fields, name, holder) for name in _OUT}
    experts = outs["expert_ids"].reshape(tables.sessions, -1)
    return FfnContext(
        fields, holder, windows, window, tables, outs["layer_ids"], outs["session_ids"], outs["micro_batch_ids"],
        experts,
    )  # fmt: skip


def _check_senders(stem: str, windows: Windows, tables: FfnTables) -> None:
    for rank, known in declarations(windows, windows.rank).items():
        sent = known.tables
        for name, held, theirs in (
            ("session_num", tables.sessions, sent.sessions),
            ("micro_batch_num", tables.micro_batches, sent.micro_batches),
            ("micro_batch_size", tables.tokens, sent.tokens),
            ("selected_expert_num", tables.slots, sent.slots),
            ("attn_to_ffn_token_size", tables.record_size, sent.record_size),
        ):
            if held != theirs:
                raise argument_error(
                    stem, f"schedule_context.{name}", f"{theirs}, as {windows.name(rank)} sends", held,
                    "Make tables and contexts of one plan; HS counts elements, the context bytes.",
                )  # fmt: skip


def _out(stem: str, fields: Any, name: str, holder: ScheduleContextHolder) -> NDArray[numpy.int32]:
    address, size = int(fields[name]), int(fields[f"{name}_size"])
    workspace = holder._workspace
    assert workspace is not None
    first = address - workspace.data_ptr()
    if not first >= 0 or first + size > workspace.numel() or first % 4:
        raise argument_error(
            stem, f"schedule_context.{name}", "a buffer of its holder", hex(address), "Make the context with a holder."
        )
    found: NDArray[numpy.int32] = workspace.numpy()[first : first + size].view(numpy.int32)
    return found


def attention_context(stem: str, tensor: Tensor) -> AttentionContext:
    """Raises InvalidArgumentError for a context of no attention rank, or whose addresses are not this process's."""
    fields, counts = _opened(stem, tensor, ATTENTION)
    _, micro_batches, tokens, slots = counts.values()
    tables = AttentionTables(micro_batches, tokens, slots, int(fields["ffn_to_attn_token_size"]) // 2)
    holder = _holder(stem, fields, "attention")
    windows, window = _window(stem, fields, "attention", tables.size)
    if int(fields["micro_batch_id"]) >= tables.micro_batches:
        raise argument_error(
            stem, "schedule_context.micro_batch_id", f"0 to {tables.micro_batches - 1}", int(fields["micro_batch_id"]),
            "Make the context with a holder.",
        )  # fmt: skip
    return AttentionContext(fields, holder, windows, window, tables)
