"""FFNToAttention: an FFN rank answers the attention ranks whose tokens it computed.

Source: CANN's public sources of the operator; torch_npu's schema.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from npu_fused_graph.comm import Rank
from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.ops._communicating import named_communicator, one_device
from npu_fused_graph.ops.attention_to_ffn_constraints import BUFFER, check_buffer, check_static
from npu_fused_graph.ops.window_tables import AttentionTables
from npu_fused_graph.spec import AttrSpec, CallFacts, Constraint, DTypeRow, OpSpec, TensorSpec

_IDS = ("session_ids", "micro_batch_ids", "token_ids", "expert_offsets")
_CHUNK = 64
"""Rows that are copied at a time."""


def _e1_dtypes(spec: OpSpec, call: CallFacts) -> None:
    """x is float16 or bfloat16, ids and attn_rank_table are int32, actual_token_num int64 of one element."""
    for tensor in spec.tensors:
        for name, facts in call.facts(tensor):
            allowed = list(dict.fromkeys(row.dtypes[tensor.name] for row in spec.rows))
            if facts.dtype not in allowed:
                raise argument_error(spec.stem, name, f"dtype {' or '.join(allowed)}", facts.dtype, "Convert it.")


def _e2_sizes(spec: OpSpec, call: CallFacts) -> None:
    """H is 1024 to 8192; table shapes [1, BS, KS] and [1, BS, KS, HS] agree; BS is 1 to 512, HS H to 8320."""
    x, info, data = call.tensors["x"], call.attrs["token_info_table_shape"], call.attrs["token_data_shape"]
    assert x is not None
    for name, got, length in (("token_info_table_shape", info, 3), ("token_data_shape", data, 4)):
        if len(got) != length:
            raise argument_error(spec.stem, name, f"{length} numbers", got, "See the operator's text.")
    hidden = x.shape[1]
    for name, value, low, high in (
        ("x.shape[1]", hidden, 1024, 8192), ("world_size", call.attrs["world_size"], 2, 768),
        ("token_info_table_shape[0]", info[0], 1, 64), ("token_info_table_shape[1]", info[1], 1, 512),
        ("token_info_table_shape[2]", info[2], 1, 64), ("token_data_shape[3]", data[3], hidden, 8320),
    ):  # fmt: skip
        if not low <= value <= high:
            raise argument_error(spec.stem, name, f"{low} to {high}", value, "See the operator's text.")
    if info != data[:3]:
        raise argument_error(
            spec.stem, "token_data_shape", f"{info} and HS, as token_info_table_shape", data, "Make the tables agree."
        )


def _e3_table(spec: OpSpec, call: CallFacts) -> None:
    """attn_rank_table has at most world_size - 1 ranks."""
    table, most = call.tensors["attn_rank_table"], call.attrs["world_size"] - 1
    if table is not None and not 1 <= table.shape[0] <= most:
        raise argument_error(
            spec.stem, "attn_rank_table", f"1 to {most} ranks", table.shape[0], "One rank per session."
        )


def _e4_buffer(spec: OpSpec, call: CallFacts) -> None:
    """The attention tables fit into HCCL_BUFFSIZE MiB (default 200)."""
    tables = AttentionTables(*call.attrs["token_data_shape"])
    check_buffer(spec.stem, "token_data_shape", tables.info_size + tables.records_size)


SPEC = OpSpec(
    stem="ffn_to_attention",
    ge_type="FFNToAttention",
    torch_name="npu_ffn_to_attention",
    signature=(
        "x", *_IDS, "actual_token_num", "group", "world_size", "token_info_table_shape", "token_data_shape", "*",
        "attn_rank_table",
    ),
    inputs=(
        TensorSpec("x", ("Y H",), contiguous="any", doc="results of the tokens of npu_ffn_worker_batching"),
        *(TensorSpec(name, ("Y",), contiguous="any") for name in _IDS),
        TensorSpec("actual_token_num", ("1",), contiguous="any", doc="rows of x that count"),
        TensorSpec("attn_rank_table", ("A",), "optional", contiguous="any", doc="rank of each session"),
    ),
    outputs=(),
    attrs=(
        AttrSpec("group", "String", doc="communicator"),
        AttrSpec("world_size", "Int"),
        AttrSpec("token_info_table_shape", "ListInt", doc="[M, BS, KS]"),
        AttrSpec("token_data_shape", "ListInt", doc="[M, BS, KS, HS]"),
    ),
    rows=tuple(
        DTypeRow(
            dtype,
            {"x": dtype, **dict.fromkeys(_IDS, "int32"), "actual_token_num": "int64", "attn_rank_table": "int32"},
        )
        for dtype in ("float16", "bfloat16")
    ),
    doc="Results of an FFN rank into the windows of the attention ranks the tokens came from.",
    source="torch_npu's npu_ffn_to_attention",
    constraints=(
        Constraint("E0", check_static), Constraint("E1", _e1_dtypes), Constraint("E5", one_device),
        Constraint("E6", named_communicator), Constraint("E2", _e2_sizes), Constraint("E3", _e3_table),
        Constraint("E4", _e4_buffer),
    ),
    group_sizes=range(2, 769),
    chips=("Ascend910_93",),
    is_one_sided=True,
    has_effects=True,
    environment=(BUFFER,),
)  # fmt: skip


def npu_ffn_to_attention(
    x: Tensor,
    session_ids: Tensor,
    micro_batch_ids: Tensor,
    token_ids: Tensor,
    expert_offsets: Tensor,
    actual_token_num: Tensor,
    group: str,
    world_size: int,
    token_info_table_shape: list[int],
    token_data_shape: list[int],
    *,
    attn_rank_table: Tensor | None = None,
) -> None:
    """Answer the attention ranks: each row of ``x`` goes to the token it was computed for.

    x: (Y, H) float16 or bfloat16; the others as npu_ffn_worker_batching returned them: (Y,) int32, actual_token_num
    (1,) int64, which says how many rows count. token_info_table_shape [M, BS, KS], token_data_shape [M, BS, KS, HS], HS
    in elements. CANN's kernel takes M = 1 only. attn_rank_table: (A,) int32, the rank of each session; without it
    session s is rank s of ``group``. Returns None. Raises InvalidArgumentError, CommunicationError when an attention
    rank was killed or no windows were registered.
    """
    arguments = {
        "x": x, "session_ids": session_ids, "micro_batch_ids": micro_batch_ids, "token_ids": token_ids,
        "expert_offsets": expert_offsets, "actual_token_num": actual_token_num, "group": group,
        "world_size": world_size, "token_info_table_shape": token_info_table_shape,
        "token_data_shape": token_data_shape, "attn_rank_table": attn_rank_table,
    }  # fmt: skip
    check_types(SPEC, arguments)
    torch.ops.npu_fused_graph.npu_ffn_to_attention(**arguments)


def fake() -> None:
    """No results."""


def reference(
    x: Tensor,
    session_ids: Tensor,
    micro_batch_ids: Tensor,
    token_ids: Tensor,
    expert_offsets: Tensor,
    actual_token_num: Tensor,
    rank: Rank,
    token_data_shape: Sequence[int],
    *,
    attn_rank_table: Tensor | None = None,
) -> None:
    """The operator on CPU: all records of a rank, then its flags."""
    windows, count = rank.windows, int(actual_token_num[0])
    if not 0 <= count <= len(x):
        raise argument_error(SPEC.stem, "actual_token_num", f"0 to {len(x)}", count, "Pass what batching returned.")
    tables = AttentionTables(*token_data_shape)
    sizes = (tables.micro_batches, tables.tokens, tables.slots)
    sessions, *places = (ids[:count].numpy() for ids in (session_ids, micro_batch_ids, token_ids, expert_offsets))
    limits = (len(attn_rank_table) if attn_rank_table is not None else rank.size, *sizes)
    for name, ids, limit in zip(_IDS, (sessions, *places), limits, strict=True):
        if count and not (int(ids.min()) >= 0 and int(ids.max()) < limit):
            wrong = int(ids[(ids < 0) | (ids >= limit)][0])
            raise argument_error(SPEC.stem, name, f"0 to {limit - 1}", wrong, "Pass what batching returned.")
    ranks = sessions if attn_rank_table is None else attn_rank_table.numpy()[sessions]
    answered = numpy.unique(ranks).tolist()
    for r in answered:
        if r not in windows.peers:
            raise argument_error(
                SPEC.stem, "session_ids" if attn_rank_table is None else "attn_rank_table",
                f"attention ranks with registered windows, {list(windows.peers)} of the group", r,
                "Pass the rank of each session as attn_rank_table.",
            )  # fmt: skip
        size = windows.memory(r).nbytes
        if size < tables.size:
            raise argument_error(
                SPEC.stem, "token_data_shape", f"tables of at most {size} bytes, the window of {windows.name(r)}",
                f"{tables.size} bytes", "Register a larger window there.",
            )  # fmt: skip
    windows.check_there(SPEC.stem, answered)
    flat = numpy.ravel_multi_index(places, sizes)
    rows = x.contiguous().view(torch.uint8).numpy().view(numpy.dtype((numpy.void, 2 * x.size(1))))[:, 0]
    for r in answered:
        mine = numpy.flatnonzero(ranks == r)
        window = windows.memory(r)
        records = tables.all_records(window, 2 * x.size(1))
        for first in range(0, len(mine), _CHUNK):
            part = mine[first : first + _CHUNK]
            records[flat[part]] = rows[part]
        tables.flags(window).reshape(-1)[flat[mine]] = 1
