"""The constraints of AttentionToFFN that facts of the call tell (C1 to C22, C28, C31), one function per numbered row.

C1, C3, C10 and C11 are shapes of the SPEC as well; what needs the values of tensors or the windows (C23 to C27, C29) is
asked by the reference.
"""

from __future__ import annotations

import os
from typing import Any

from npu_fused_graph.errors import argument_error, warn_once
from npu_fused_graph.ops._communicating import named_communicator, one_device
from npu_fused_graph.ops._cures import conversion
from npu_fused_graph.ops.window_tables import FfnTables, aligned
from npu_fused_graph.spec import CallFacts, Constraint, OpSpec

_LENGTHS = {"ffn_token_info_table_shape": 3, "ffn_token_data_shape": 5, "attn_token_info_table_shape": 3}
BUFFER = "HCCL_BUFFSIZE"
DEFAULT_BUFFER = 200
"""MiB, HCCL's own."""


def _size(call: CallFacts, tensor: str, axis: int) -> Any:
    facts = call.tensors[tensor]
    assert facts is not None
    return facts.shape[axis]


def _slots(call: CallFacts) -> int:
    """KS: routed and shared experts of a token."""
    shared = _size(call, "expert_rank_table", 1) - call.attrs["moe_expert_num"]
    return int(_size(call, "expert_ids", 2) + shared)


def _ffn_ranks(call: CallFacts) -> int:
    return int(call.attrs["world_size"] - call.attrs["ffn_token_data_shape"][0])


def _in_range(spec: OpSpec, name: str, value: Any, low: int, high: int, cure: str) -> None:
    if not low <= value <= high:
        raise argument_error(spec.stem, name, f"{low} to {high}", value, cure)


def check_static(spec: OpSpec, call: CallFacts) -> None:
    """The graph is static: all sizes are numbers while it is traced."""
    for tensor in spec.tensors:
        for name, facts in call.facts(tensor):
            if not all(isinstance(size, int) for size in facts.shape):
                raise argument_error(
                    spec.stem, name, "sizes that are fixed when the graph is traced", f"shape {list(facts.shape)}",
                    "Compile with dynamic=False.",
                )  # fmt: skip


def _c2_dtypes(spec: OpSpec, call: CallFacts) -> None:
    """x is float16 or bfloat16, ids and expert_rank_table are int32, scales float32, active_mask bool."""
    for tensor in spec.tensors:
        for name, facts in call.facts(tensor):
            allowed = list(dict.fromkeys(row.dtypes[tensor.name] for row in spec.rows))
            if facts.dtype not in allowed:
                cure = conversion(facts.dtype, "Convert it.")
                raise argument_error(spec.stem, name, f"dtype {' or '.join(allowed)}", facts.dtype, cure)


def _c3_one_group(spec: OpSpec, call: CallFacts) -> None:
    """X, the number of token groups, is 1."""
    x = _size(call, "x", 0)
    if x != 1:
        raise argument_error(
            spec.stem, "x", "one group of tokens, shape (1, BS, H)", f"{x} groups", "Make a call each."
        )


def _c4_tokens(spec: OpSpec, call: CallFacts) -> None:
    """BS is 1 to 512."""
    _in_range(spec, "x.shape[1]", _size(call, "x", 1), 1, 512, "Split the batch into micro batches.")


def _c5_hidden_size(spec: OpSpec, call: CallFacts) -> None:
    """H is 1024 to 8192."""
    _in_range(spec, "x.shape[2]", _size(call, "x", 2), 1024, 8192, "The kernel has no other hidden sizes.")


def _c7_experts(spec: OpSpec, call: CallFacts) -> None:
    """moe_expert_num is 1 to 1024."""
    _in_range(spec, "moe_expert_num", call.attrs["moe_expert_num"], 1, 1024, "Count routed experts only.")


def _c6_top_k(spec: OpSpec, call: CallFacts) -> None:
    """K is 1 to 16 and at most moe_expert_num."""
    k, most = _size(call, "expert_ids", 2), min(16, call.attrs["moe_expert_num"])
    _in_range(spec, "expert_ids.shape[2]", k, 1, most, "Choose fewer experts for a token.")


def _c8_table(spec: OpSpec, call: CallFacts) -> None:
    """expert_rank_table is of one layer and has a row per routed expert, then 0 to 4 of shared ones."""
    layers, rows, _ = (_size(call, "expert_rank_table", i) for i in range(3))
    experts = call.attrs["moe_expert_num"]
    if layers != 1:
        raise argument_error(
            spec.stem, "expert_rank_table", "the table of one layer, shape (1, experts, R)", f"{layers} layers",
            "Pass that layer's.",
        )  # fmt: skip
    _in_range(
        spec, "expert_rank_table.shape[1]", rows, experts, experts + 4, "A row per routed expert, then shared ones."
    )


def _c17_lists(spec: OpSpec, call: CallFacts) -> None:
    """The three table shapes have 3, 5 and 3 numbers."""
    for name, length in _LENGTHS.items():
        if len(call.attrs[name]) != length:
            raise argument_error(spec.stem, name, f"{length} numbers", call.attrs[name], "See the operator's text.")


def _c12_world_size(spec: OpSpec, call: CallFacts) -> None:
    """world_size is 2 to 768, and the size of the group."""
    _in_range(spec, "world_size", call.attrs["world_size"], 2, 768, "Pass the number of ranks of the group.")


def _c19_attention_ranks(spec: OpSpec, call: CallFacts) -> None:
    """A, the number of attention ranks, is 1 to world_size - 1."""
    most = call.attrs["world_size"] - 1
    sessions = call.attrs["ffn_token_info_table_shape"][0]
    _in_range(spec, "ffn_token_info_table_shape[0]", sessions, 1, most, "Count the attention ranks.")


def _c18_tables_agree(spec: OpSpec, call: CallFacts) -> None:
    """The table shapes name the same A, M, BS and KS, and M is at least 1."""
    info, data, own = (call.attrs[name] for name in _LENGTHS)
    tokens = _size(call, "x", 1)
    for name, got, wanted, what in (
        ("ffn_token_data_shape[0]", data[0], info[0], "A, as in ffn_token_info_table_shape"),
        ("ffn_token_data_shape[1]", data[1], info[1], "M, as in ffn_token_info_table_shape"),
        ("ffn_token_data_shape[2]", data[2], tokens, "BS, the tokens of x"),
        ("attn_token_info_table_shape[0]", own[0], info[1], "M, as in ffn_token_info_table_shape"),
        ("attn_token_info_table_shape[1]", own[1], tokens, "BS, the tokens of x"),
        ("attn_token_info_table_shape[2]", own[2], data[3], "KS, as in ffn_token_data_shape"),
    ):
        if got != wanted:
            raise argument_error(spec.stem, name, f"{wanted} ({what})", got, "Make the tables agree.")
    if info[1] < 1:
        raise argument_error(
            spec.stem, "ffn_token_info_table_shape[1]", "at least one micro batch", info[1], "Count the micro batches."
        )


def _c20_slots(spec: OpSpec, call: CallFacts) -> None:
    """KS is K plus the shared experts, and a slot of the info table has 2 + BS * KS words."""
    slots, tokens = _slots(call), _size(call, "x", 1)
    info, data = call.attrs["ffn_token_info_table_shape"], call.attrs["ffn_token_data_shape"]
    if data[3] != slots:
        shared = slots - _size(call, "expert_ids", 2)
        raise argument_error(
            spec.stem, "ffn_token_data_shape[3]",
            f"{slots} (K = {slots - shared} and {shared} shared experts)", data[3],
            "Shared experts are the rows of expert_rank_table behind moe_expert_num.",
        )  # fmt: skip
    if info[2] != 2 + tokens * slots:
        raise argument_error(
            spec.stem, "ffn_token_info_table_shape[2]", f"{2 + tokens * slots}, which is 2 + BS * KS", info[2],
            "A flag, the layer, then a number for each token and expert.",
        )  # fmt: skip


def _c9_replicas(spec: OpSpec, call: CallFacts) -> None:
    """A row of expert_rank_table has room for 1 replica to as many as there are FFN ranks."""
    width, most = _size(call, "expert_rank_table", 2), 2 * _ffn_ranks(call) + 1
    _in_range(spec, "expert_rank_table.shape[2]", width, 3, most, "A row is n, then n pairs of a rank and a number.")
    if width % 2 == 0:
        warn_once(
            f"[{spec.stem}] expert_rank_table: expected rows of an odd length, n and n pairs, got {width}. "
            "The last number of a row is never read."
        )


def _c14_quantisation(spec: OpSpec, call: CallFacts) -> None:
    """quant_mode is 0 without scales, or 2 with or without them."""
    mode = call.attrs["quant_mode"]
    if mode not in (0, 2):
        raise argument_error(
            spec.stem, "quant_mode", "0 (none) or 2 (dynamic)", mode, "There is no static quantisation here."
        )
    if mode == 0 and call.tensors["scales"] is not None:
        raise argument_error(
            spec.stem, "scales", "None with quant_mode=0", "a tensor", "Leave it out, or pass quant_mode=2."
        )


def _c15_flags(spec: OpSpec, call: CallFacts) -> None:
    """sync_flag is 0 or 1; ffn_start_rank_id is a rank."""
    if call.attrs["sync_flag"] not in (0, 1):
        raise argument_error(
            spec.stem, "sync_flag", "0 or 1", call.attrs["sync_flag"],
            "Pass 0 to tell all FFN ranks of a micro batch, 1 to tell those that got tokens.",
        )  # fmt: skip
    _in_range(
        spec, "ffn_start_rank_id", call.attrs["ffn_start_rank_id"], 0, call.attrs["world_size"] - 1,
        "Pass the first FFN rank.",
    )  # fmt: skip


def _c16_ffn_ranks(spec: OpSpec, call: CallFacts) -> None:
    """The FFN ranks, world_size - A from ffn_start_rank_id on, are ranks of the group."""
    start, count, size = call.attrs["ffn_start_rank_id"], _ffn_ranks(call), call.attrs["world_size"]
    if start + count > size:
        raise argument_error(
            spec.stem, "ffn_start_rank_id", f"at most {size - count}, with {count} FFN ranks of {size}", start,
            "FFN ranks follow each other.",
        )  # fmt: skip


def _c21_record(spec: OpSpec, call: CallFacts) -> None:
    """HS is at least H; quantised at least H rounded up to 32, plus 4, in bytes."""
    hidden, record = _size(call, "x", 2), call.attrs["ffn_token_data_shape"][4]
    if not call.attrs["quant_mode"]:
        if record < hidden:
            raise argument_error(
                spec.stem, "ffn_token_data_shape[4]", f"at least {hidden} elements, H", record, "Records would overlap."
            )
        return
    least = aligned(hidden, 32) + 4
    if record < least:
        raise argument_error(
            spec.stem, "ffn_token_data_shape[4]", f"at least {least} bytes, H rounded up to 32 and a scale", record,
            f"Records would overlap. {aligned(hidden + 128)} is always enough, on a device too.",
        )  # fmt: skip


def _c22_buffer(spec: OpSpec, call: CallFacts) -> None:
    """The FFN tables fit into HCCL_BUFFSIZE MiB (default 200), and into the window that was registered."""
    sessions, micro_batches, tokens, slots, record = call.attrs["ffn_token_data_shape"]
    tables = FfnTables(sessions, micro_batches, tokens, slots, record, 1 if call.attrs["quant_mode"] else 2)
    check_buffer(spec.stem, "ffn_token_data_shape", tables.info_size + tables.records_size)


def check_buffer(stem: str, name: str, needed: int) -> None:
    """Raise InvalidArgumentError unless tables of ``needed`` bytes fit into HCCL_BUFFSIZE, counted as the device does.

    It leaves the gap between the tables out, and takes whole MiB and one more.
    """
    text = os.environ.get(BUFFER, str(DEFAULT_BUFFER))
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argument_error(stem, BUFFER, "a number of MiB", repr(text), "Unset it or fix it.")
    size = needed // 2**20 + 1
    if size > int(text):
        raise argument_error(
            stem, name, f"tables of at most {text} MiB ({BUFFER})", f"{size} MiB",
            f"Set {BUFFER} on all ranks, or send fewer tokens at a time.",
        )  # fmt: skip


CONSTRAINTS = tuple(
    Constraint(number, check)
    for number, check in (
        ("C28", check_static), ("C2", _c2_dtypes), ("C31", one_device), ("C13", named_communicator),
        ("C3", _c3_one_group), ("C4", _c4_tokens), ("C5", _c5_hidden_size), ("C7", _c7_experts), ("C6", _c6_top_k),
        ("C8", _c8_table), ("C17", _c17_lists), ("C12", _c12_world_size), ("C19", _c19_attention_ranks),
        ("C18", _c18_tables_agree), ("C20", _c20_slots), ("C9", _c9_replicas), ("C14", _c14_quantisation),
        ("C15", _c15_flags), ("C16", _c16_ffn_ranks), ("C21", _c21_record), ("C22", _c22_buffer),
    )
)  # fmt: skip
