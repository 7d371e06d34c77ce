"""AttentionToFFN: the tokens of an attention rank go to the FFN ranks that hold their experts.

Source: requirement 004; CANN's public sources of the operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from npu_fused_graph.comm import Rank, Windows
from npu_fused_graph.errors import CommunicationError, argument_error
from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.ops.attention_to_ffn_constraints import BUFFER, CONSTRAINTS
from npu_fused_graph.ops.attention_to_ffn_routes import active_tokens, checked_id, routes_of
from npu_fused_graph.ops.attention_to_ffn_stores import Dispatch
from npu_fused_graph.ops.declarations import Declaration, agree
from npu_fused_graph.ops.window_tables import FLAG, AttentionTables, FfnTables, aligned
from npu_fused_graph.spec import AttrSpec, DTypeRow, OpSpec, TensorSpec

SPEC = OpSpec(
    stem="attention_to_ffn",
    ge_type="AttentionToFFN",
    torch_name="npu_attention_to_ffn",
    signature=(
        "x", "session_id", "micro_batch_id", "layer_id", "expert_ids", "expert_rank_table", "group", "world_size",
        "ffn_token_info_table_shape", "ffn_token_data_shape", "attn_token_info_table_shape", "moe_expert_num", "*",
        "scales", "active_mask", "quant_mode", "sync_flag", "ffn_start_rank_id",
    ),
    inputs=(
        TensorSpec("x", ("X BS H",), contiguous="any", doc="tokens"),
        TensorSpec("session_id", ("X",), contiguous="any", doc="of this attention rank"),
        TensorSpec("micro_batch_id", ("X",), contiguous="any"),
        TensorSpec("layer_id", ("X",), contiguous="any", doc="told to the FFN ranks"),
        TensorSpec("expert_ids", ("X BS K",), contiguous="any", doc="experts of each token"),
        TensorSpec(
            "expert_rank_table", ("L experts replicas",), contiguous="any",
            doc="per expert: n, then n times rank and number there",
        ),
        TensorSpec("scales", ("L experts H",), "optional", contiguous="any", doc="smooth factors of each expert"),
        TensorSpec("active_mask", ("X BS",), "optional", contiguous="any", doc="tokens to send, first ones first"),
    ),
    outputs=(),
    attrs=(
        AttrSpec("group", "String", doc="communicator"),
        AttrSpec("world_size", "Int"),
        AttrSpec("ffn_token_info_table_shape", "ListInt", doc="[A, M, 2 + BS * KS]"),
        AttrSpec("ffn_token_data_shape", "ListInt", doc="[A, M, BS, KS, HS]"),
        AttrSpec("attn_token_info_table_shape", "ListInt", doc="[M, BS, KS]"),
        AttrSpec("moe_expert_num", "Int"),
        AttrSpec("quant_mode", "Int", 0, doc="0: none, 2: int8, a scale for each token"),
        AttrSpec("sync_flag", "Int", 0, doc="0: all FFN ranks are told, 1: those that got tokens"),
        AttrSpec("ffn_start_rank_id", "Int", 0),
    ),
    rows=tuple(
        DTypeRow(
            dtype,
            {
                "x": dtype, "session_id": "int32", "micro_batch_id": "int32", "layer_id": "int32",
                "expert_ids": "int32", "expert_rank_table": "int32", "scales": "float32", "active_mask": "bool",
            },
        )
        for dtype in ("float16", "bfloat16")
    ),
    doc="Dispatch of a disaggregated MoE: tokens of an attention rank into windows of the FFN ranks of their experts.",
    source="requirement 004 (torch_npu's document of npu_attention_to_ffn)",
    constraints=CONSTRAINTS,
    group_sizes=range(2, 769),
    chips=("Ascend910_93",),
    is_one_sided=True,
    has_effects=True,
    environment=(BUFFER,),
)  # fmt: skip


def npu_attention_to_ffn(
    x: Tensor,
    session_id: Tensor,
    micro_batch_id: Tensor,
    layer_id: Tensor,
    expert_ids: Tensor,
    expert_rank_table: Tensor,
    group: str,
    world_size: int,
    ffn_token_info_table_shape: list[int],
    ffn_token_data_shape: list[int],
    attn_token_info_table_shape: list[int],
    moe_expert_num: int,
    *,
    scales: Tensor | None = None,
    active_mask: Tensor | None = None,
    quant_mode: int = 0,
    sync_flag: int = 0,
    ffn_start_rank_id: int = 0,
) -> None:
    """Send the tokens of an attention rank to the FFN ranks of their experts (requirement 004).

    Only attention ranks call it; the FFN ranks find the tokens in their windows, which all ranks of ``group`` have
    registered before. Sizes: BS tokens, 1 to 512, of H elements, 1024 to 8192; K experts of a token, 1 to 16; S shared
    experts, 0 to 4, which every token goes to; KS = K + S; A attention ranks, M micro batches.

    ======================= ============================= ==========================================================
    argument                shape, dtype                  meaning
    ======================= ============================= ==========================================================
    x                       (1, BS, H) float16, bfloat16  tokens
    session_id              (1,) int32                    which attention rank this is, 0 to A - 1
    micro_batch_id          (1,) int32                    0 to M - 1
    layer_id                (1,) int32                    told to the FFN ranks
    expert_ids              (1, BS, K) int32              0 to moe_expert_num - 1, different in a row
    expert_rank_table       (1, moe + S, R) int32         per expert n, then n pairs of a rank of the group and the
                                                          expert's number there; session s uses pair s % n; shared
                                                          experts are the last S rows
    scales                  (1, moe + S, H) float32       factors before quantisation, only with quant_mode 2
    active_mask             (1, BS) bool                  trues before falses; the trues are sent
    ======================= ============================= ==========================================================

    group: of 2 to 768 ranks, its c10d or HCCL name. world_size: its size. ffn_token_info_table_shape:
    [A, M, 2 + BS * KS]. ffn_token_data_shape: [A, M, BS, KS, HS]; HS is in elements of a record, at least H, with
    quant_mode 2 bytes and at least H rounded up to 32, plus 4. attn_token_info_table_shape: [M, BS, KS]. quant_mode: 0
    none, 2 int8 with one scale for each token and expert, ``value = int8 * scale``. sync_flag: 0 tells all FFN ranks
    that this micro batch is there, 1 those that got a token. ffn_start_rank_id: the first of the
    world_size - A FFN ranks.

    Waits until the FFN ranks have taken what an earlier call for the same session and micro batch left there. Returns
    None. Raises InvalidArgumentError for a broken constraint, CommunicationError when an FFN rank has ended or does not
    take within ``NFG_TIMEOUT`` seconds, or no windows were registered (inside torch.compile torch wraps them in
    exceptions of its own). Rows with an infinity or NaN become zeros with that as their scale.
    """
    arguments = {
        "x": x, "session_id": session_id, "micro_batch_id": micro_batch_id, "layer_id": layer_id,
        "expert_ids": expert_ids, "expert_rank_table": expert_rank_table, "group": group, "world_size": world_size,
        "ffn_token_info_table_shape": ffn_token_info_table_shape, "ffn_token_data_shape": ffn_token_data_shape,
        "attn_token_info_table_shape": attn_token_info_table_shape, "moe_expert_num": moe_expert_num,
        "scales": scales, "active_mask": active_mask, "quant_mode": quant_mode, "sync_flag": sync_flag,
        "ffn_start_rank_id": ffn_start_rank_id,
    }  # fmt: skip
    check_types(SPEC, arguments)
    torch.ops.npu_fused_graph.npu_attention_to_ffn(**arguments)


def fake() -> None:
    """No results."""


def reference(
    x: Tensor,
    session_id: Tensor,
    micro_batch_id: Tensor,
    layer_id: Tensor,
    expert_ids: Tensor,
    expert_rank_table: Tensor,
    rank: Rank,
    ffn_token_info_table_shape: Sequence[int],
    ffn_token_data_shape: Sequence[int],
    attn_token_info_table_shape: Sequence[int],
    moe_expert_num: int,
    *,
    scales: Tensor | None = None,
    active_mask: Tensor | None = None,
    quant_mode: int = 0,
    sync_flag: int = 0,
    ffn_start_rank_id: int = 0,
) -> None:
    """The operator on CPU: what is sent is decided, every rank it goes to is free, then it is written in order."""
    dispatch = prepared(
        session_id, micro_batch_id, layer_id, expert_ids, expert_rank_table, rank, ffn_token_info_table_shape,
        ffn_token_data_shape, attn_token_info_table_shape, moe_expert_num, active_mask=active_mask,
        quant_mode=quant_mode, sync_flag=sync_flag, ffn_start_rank_id=ffn_start_rank_id,
    )  # fmt: skip
    active = len(dispatch.routes.ranks)
    for store in dispatch.stores(x[0, :active], None if scales is None else scales[0], bool(quant_mode)):
        store.write()
    if active_mask is not None:
        for store in dispatch.inactive(active):
            store.write()


def prepared(
    session_id: Tensor,
    micro_batch_id: Tensor,
    layer_id: Tensor,
    expert_ids: Tensor,
    expert_rank_table: Tensor,
    rank: Rank,
    ffn_token_info_table_shape: Sequence[int],
    ffn_token_data_shape: Sequence[int],
    attn_token_info_table_shape: Sequence[int],
    moe_expert_num: int,
    *,
    active_mask: Tensor | None,
    quant_mode: int,
    sync_flag: int,
    ffn_start_rank_id: int,
) -> Dispatch:
    """All that must hold before anything is written, and has to be waited for; whoever writes may begin."""
    windows = rank.windows
    sessions, micro_batches, tokens, slots, record = ffn_token_data_shape
    ffn_ranks = range(ffn_start_rank_id, ffn_start_rank_id + rank.size - sessions)
    _check_windows(windows, rank, ffn_ranks)
    tables = FfnTables(sessions, micro_batches, tokens, slots, record, 1 if quant_mode else 2)
    flags = AttentionTables(*attn_token_info_table_shape)
    session = checked_id("session_id", session_id, sessions)
    micro_batch = checked_id("micro_batch_id", micro_batch_id, micro_batches)
    active = active_tokens(active_mask, tokens)
    routes = routes_of(
        expert_ids[0, :active].numpy(), expert_rank_table[0].numpy(), session, moe_expert_num, slots, ffn_ranks
    )
    told = sorted(set(routes.ranks.flatten().tolist())) if sync_flag else list(ffn_ranks)
    info, data = (tuple(shape) for shape in (ffn_token_info_table_shape, ffn_token_data_shape))
    own = Declaration(session, rank.size, moe_expert_num, ffn_start_rank_id, quant_mode, info, data)  # type: ignore[arg-type]
    agree(windows, ffn_ranks, own)
    _check_room(windows, tables, flags, told)
    dispatch = Dispatch(
        windows.memory, tables, flags, windows.rank, session, micro_batch, int(layer_id[0]), tuple(told), routes
    )
    _wait_for_room(windows, dispatch)
    windows.answering[micro_batch] = routes.ranks
    return dispatch


# -- what a call did, for records ----------------------------------------------------------------------------------


def window_sizes(
    size: int,
    ffn_token_data_shape: Sequence[int],
    attn_token_info_table_shape: Sequence[int],
    quant_mode: int,
    ffn_start_rank_id: int,
) -> tuple[list[int], list[int]]:
    """Which ranks of a group of ``size`` call the operator, and how many bytes each rank's window needs."""
    sessions, micro_batches, tokens, slots, record = ffn_token_data_shape
    ffn_ranks = range(ffn_start_rank_id, ffn_start_rank_id + size - sessions)
    far = FfnTables(sessions, micro_batches, tokens, slots, record, 1 if quant_mode else 2).size
    own = AttentionTables(*attn_token_info_table_shape).info_size
    return [r for r in range(size) if r not in ffn_ranks], [far if r in ffn_ranks else own for r in range(size)]


def delivered(
    x: Tensor,
    session_id: Tensor,
    micro_batch_id: Tensor,
    expert_ids: Tensor,
    expert_rank_table: Tensor,
    rank: Rank,
    ffn_token_data_shape: Sequence[int],
    moe_expert_num: int,
    *,
    active_mask: Tensor | None = None,
    quant_mode: int = 0,
    ffn_start_rank_id: int = 0,
) -> dict[str, Tensor]:
    """What a call that has returned left in the windows of FFN ranks: only what these do not change when they take it.

    n active tokens. targets int32 [n, KS]: ranks they went to; values [n, KS, H]: of x's dtype, or int8; with
    quant_mode 2 factors float32 [n, KS].
    """
    sessions, micro_batches, tokens, slots, record = ffn_token_data_shape
    tables = FfnTables(sessions, micro_batches, tokens, slots, record, 1 if quant_mode else 2)
    session, micro_batch, width = int(session_id[0]), int(micro_batch_id[0]), x.size(2)
    active = active_tokens(active_mask, tokens)
    ffn_ranks = range(ffn_start_rank_id, ffn_start_rank_id + rank.size - sessions)
    targets = routes_of(
        expert_ids[0, :active].numpy(), expert_rank_table[0].numpy(), session, moe_expert_num, slots, ffn_ranks
    ).ranks

    def collected(at: int, count: int, dtype: torch.dtype) -> Tensor:
        out = torch.empty(active, slots, count, dtype=dtype)
        rows = out.view(torch.uint8).numpy()
        for r in set(targets.flatten().tolist()):
            there = tables.records(rank.windows.memory(r), session, micro_batch, at, rows.shape[-1])[:active]
            numpy.copyto(rows.view(there.dtype)[..., 0], there, where=targets == r)
        return out

    found = {
        "targets": torch.from_numpy(targets.copy()),
        "values": collected(0, width, torch.int8 if quant_mode else x.dtype),
    }
    if quant_mode:
        found["factors"] = collected(aligned(width, 32), 1, torch.float32)[..., 0].contiguous()
    return found


# -- what must hold before anything is written ---------------------------------------------------------------------


def _check_windows(windows: Windows, rank: Rank, ffn_ranks: range) -> None:
    """C27."""
    if rank.rank in ffn_ranks:
        raise argument_error(
            SPEC.stem, "ffn_start_rank_id",
            f"a call by an attention rank (FFN ranks are {ffn_ranks.start} to {ffn_ranks.stop - 1} of the group)",
            f"one by {windows.name(rank.rank)}", "FFN ranks read their windows.",
        )  # fmt: skip
    missing = [r for r in ffn_ranks if r not in windows.peers]
    if missing:
        raise argument_error(
            SPEC.stem, "group",
            f"windows registered with all FFN ranks, {ffn_ranks.start} to {ffn_ranks.stop - 1} of the group",
            f"peers {list(windows.peers)}", "Attention ranks name all FFN ranks as their peers, and these them.",
        )  # fmt: skip


def _check_room(windows: Windows, tables: FfnTables, flags: AttentionTables, told: Sequence[int]) -> None:
    """C22, for the windows there are."""
    for r, needed in (*((r, tables.size) for r in told), (windows.rank, flags.info_size)):
        size = windows.memory(r).nbytes
        if size < needed:
            raise argument_error(
                SPEC.stem, "ffn_token_data_shape" if r != windows.rank else "attn_token_info_table_shape",
                f"tables of at most {size} bytes, the window of {windows.name(r)}", f"{needed} bytes",
                "Register a larger window there.",
            )  # fmt: skip


def _wait_for_room(windows: Windows, dispatch: Dispatch) -> None:
    """Until no rank still holds an earlier call's table of this session and micro batch."""
    slots = {r: dispatch.slot(r) for r in dispatch.told}

    def full() -> list[int]:
        found = []
        for r, slot in slots.items():
            flag = int(slot[FLAG])
            if flag == 1:
                found.append(r)
            elif flag:
                raise CommunicationError(
                    f"[{SPEC.stem}] window: expected 0 or 1 as the flag of session {dispatch.session}, micro batch "
                    f"{dispatch.micro_batch} on {windows.name(r)}, got {flag}. Something else writes that window, "
                    "or its tables have other shapes there."
                )
        return found

    windows.check_there(SPEC.stem, dispatch.told)
    what = f"an empty table of session {dispatch.session}, micro batch {dispatch.micro_batch}"
    windows.wait(SPEC.stem, lambda: not full(), lambda: (what, full()))
