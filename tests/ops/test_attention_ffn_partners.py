"""The operators that answer npu_attention_to_ffn: states of windows and contexts before and after, by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph import comm
from npu_fused_graph.errors import CommunicationError, InvalidArgumentError
from npu_fused_graph.ops.schedule_context import ScheduleContextHolder
from tests.ops.constraint_table import FORM, in_fake_mode
from tests.passes.capture import fake_group

EMPTY, TAKEN = 2147483647, 0x7F7F7F7F

SIGNATURES = {
    "npu_ffn_to_attention": "x, session_ids, micro_batch_ids, token_ids, expert_offsets, actual_token_num, group, "
    "world_size, token_info_table_shape, token_data_shape, *, attn_rank_table=None",
    "ffn_worker_scheduler_": "self, *, sync_group_size=1, execute_mode=0",
    "ffn_worker_scheduler": "self, *, sync_group_size=1, execute_mode=0",
    "attention_worker_scheduler_": "self",
    "attention_worker_scheduler": "self",
    "npu_ffn_worker_batching": "schedule_context, expert_num, max_out_shape, *, token_dtype=0, "
    "need_schedule=0, layer_num=0",
    "npu_attention_worker_combine": "schedule_context, expert_scales, layer_id, hidden_size, *, token_dtype=0, "
    "need_schedule=0",
}
"""As torch_npu's schemas have them."""


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_signatures(name: str) -> None:
    parameters = inspect.signature(getattr(nfg, name)).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    assert str(inspect.Signature(bare)) == f"({SIGNATURES[name]})"


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[comm.Communicator]:
    """Rank 0 of 4, alone."""
    monkeypatch.setenv("NFG_TIMEOUT", "0.2")
    with fake_group(4):
        yield comm.communicator("0")


def ffn(rank: comm.Communicator, sessions: int, micro_batches: int, tokens: int, slots: int, record: int) -> Any:
    """A holder of an FFN rank, and its window's int32 words [A, M, 2 + BS * KS] and bytes behind."""
    info = 4 * sessions * micro_batches * (2 + tokens * slots)
    base = (info + 511) // 512 * 512
    windows = rank.register_windows(base + sessions * micro_batches * tokens * slots * record + 512, [1, 2, 3])
    own = windows.own
    holder = ScheduleContextHolder(
        0, sessions, micro_batches, tokens, slots, 9, record, 2048, own.data_ptr(), own.numel()
    )
    words = own.numpy()[:info].view(numpy.int32).reshape(sessions, micro_batches, -1)
    return holder, words, own.numpy()[base:]


def field(holder: ScheduleContextHolder, offset: int, dtype: str = "<u4") -> int:
    return int(holder.get_schedule_context_tensor().numpy()[offset : offset + 8].view(dtype)[0])


def out(holder: ScheduleContextHolder, offset: int, count: int) -> list[int]:
    """What stands behind the address at ``offset`` of the context: in the holder's workspace."""
    workspace = holder._workspace
    assert workspace is not None
    first = field(holder, offset, "<u8") - workspace.data_ptr()
    found: list[int] = workspace.numpy()[first : first + 4 * count].view(numpy.int32).tolist()
    return found


# -- the holder --------------------------------------------------------------------------------------------------------


def test_a_holder_lays_the_context_out_as_documented(rank: comm.Communicator) -> None:
    holder, words, _ = ffn(rank, 2, 3, 4, 5, 1024)
    own = rank.windows.own
    assert [field(holder, at) for at in range(0, 28, 4)] == [2, 3, 4, 5, 9, 1024, 2048]
    assert (field(holder, 28), field(holder, 128)) == (0, 1), "schedule_mode, run_flag"
    info = 4 * 2 * 3 * 22
    assert field(holder, 384, "<u8") == own.data_ptr()
    assert field(holder, 392, "<u8") == info
    assert field(holder, 400, "<u8") == own.data_ptr() + 1024
    assert field(holder, 408, "<u8") == own.numel() - 1024
    assert [field(holder, at, "<u8") for at in (520, 536, 552, 568)] == [8, 8, 8, 4 * 2 * 4 * 5]
    assert all(field(holder, at, "<u8") % 512 == 0 for at in (512, 528, 544, 560))
    assert (words[:, :, :2] == 0).all()
    assert (words[:, :, 2:] == EMPTY).all()
    assert holder.get_schedule_context_tensor().shape == (1024,)
    assert "ffn info:" in holder.get_schedule_context_info()
    holder.stop_schedule()
    assert field(holder, 128) == 0


def test_a_holder_of_an_attention_rank(rank: comm.Communicator) -> None:
    windows = rank.register_windows(512 + 2 * 3 * 2 * 2048, [1, 2, 3])
    windows.own.fill_(1)
    holder = ScheduleContextHolder(
        1, 1, 2, 3, 2, 9, 2048, 2048, attention_window=windows.own.data_ptr(), attention_window_size=windows.own.numel()
    )
    assert windows.own[: 4 * 12].tolist() == [0] * 48, "flags"
    assert windows.own[48] == 1, "and nothing else"
    assert field(holder, 288) == 1, "the micro batch before the first, of 2"
    assert [field(holder, at, "<u8") for at in (264, 280)] == [48, windows.own.numel() - 512]
    assert "attention info:" in holder.get_schedule_context_info()


HOLDERS: list[tuple[dict[str, int], str]] = [
    ({"session_num": 0}, "session_num: expected 1 to 2147483647, got 0"),
    ({"micro_batch_num": 0}, "micro_batch_num: expected 1 to 2147483647, got 0"),
    ({"micro_batch_size": 0}, "micro_batch_size: expected 1 to 2147483647, got 0"),
    ({"selected_expert_num": 0}, "selected_expert_num: expected 1 to 2147483647, got 0"),
    ({"expert_num": 0}, "expert_num: expected 1 to 2147483647, got 0"),
    ({"schedule_mode": 2}, "schedule_mode: expected 0 (FFN) or 1 (attention), got 2"),
    (
        {"attn_to_ffn_token_size": 1023},
        "attn_to_ffn_token_size: expected a multiple of 512 bytes below 2**32, got 1023",
    ),
    ({"ffn_to_attn_token_size": 400}, "ffn_to_attn_token_size: expected a multiple of 512 bytes below 2**32, got 400"),
    ({"ffn_window_size": 511}, "ffn_window_size: expected more than 512 bytes, the info table, got 511"),
    (
        {"session_num": 2**31 - 1, "micro_batch_num": 2**31 - 1, "micro_batch_size": 2**31 - 1},
        "ffn_window_size: expected",
    ),
    (
        {"ffn_window": 4096},
        "ffn_window: expected the address of 1024 bytes of a window registered by this process, got 0x",
    ),
    (
        {"ffn_window": 0},
        "ffn_window: expected the address of 1024 bytes of a window registered by this process, got 0x0",
    ),
    ({"schedule_mode": 1}, "attention_window_size: expected more than 512 bytes, the info table, got 0"),
]


@pytest.mark.parametrize(("change", "text"), HOLDERS)
def test_wrong_holders(change: dict[str, int], text: str, rank: comm.Communicator) -> None:
    own = rank.register_windows(1024, [1]).own
    good = {
        "schedule_mode": 0, "session_num": 1, "micro_batch_num": 1, "micro_batch_size": 1, "selected_expert_num": 1,
        "expert_num": 1, "attn_to_ffn_token_size": 512, "ffn_to_attn_token_size": 512, "ffn_window": own.data_ptr(),
        "ffn_window_size": 1024,
    }  # fmt: skip
    ScheduleContextHolder(**good)
    with pytest.raises(InvalidArgumentError) as caught:
        ScheduleContextHolder(**good | change)
    assert str(caught.value).startswith(f"[schedule_context] {text}")


# -- the schedulers ----------------------------------------------------------------------------------------------------


def full(words: Any) -> None:
    """Every session has sent every micro batch; numbers say which word they are, layers where they are from."""
    words[:, :, 0] = 1
    words[:, :, 1] = numpy.arange(words.shape[0] * words.shape[1]).reshape(words.shape[:2]) + 40
    words[:, :, 2:] = numpy.arange(words.shape[2] - 2)


def test_all_sessions_together(rank: comm.Communicator) -> None:
    holder, words, _ = ffn(rank, 2, 3, 6, 9, 512)
    full(words)
    context = holder.get_schedule_context_tensor()
    assert nfg.ffn_worker_scheduler_(context, sync_group_size=2) is context
    assert (field(holder, 576), field(holder, 416, "<u8")) == (2, 1), "out_num, polling_index"
    assert out(holder, 512, 2) == [40, 43], "layers"
    assert out(holder, 528, 2) == [0, 1], "sessions"
    assert out(holder, 544, 2) == [0, 0], "micro batches"
    assert out(holder, 560, 108) == list(range(54)) * 2, "experts' numbers"
    assert (words[:, 0, 2:] == TAKEN).all()
    assert words[:, 0, 0].tolist() == [0, 0]
    assert (words[:, 1:, 0] == 1).all(), "the others stay"
    nfg.ffn_worker_scheduler_(context, sync_group_size=2)
    assert (field(holder, 416, "<u8"), out(holder, 544, 2)) == (2, [1, 1])


def test_each_session_by_itself(rank: comm.Communicator) -> None:
    holder, words, _ = ffn(rank, 2, 3, 6, 9, 512)
    full(words)
    words[1, 0, 0] = 0
    nfg.ffn_worker_scheduler_(holder.get_schedule_context_tensor())
    assert (field(holder, 576), field(holder, 416, "<u8")) == (2, 0), "out_num, polling_index"
    assert out(holder, 528, 2) == [0, 1]
    assert out(holder, 544, 2) == [0, 1], "of each the lowest that is there"
    assert words[:, :, 0].tolist() == [[0, 1, 1], [0, 0, 1]]


def test_groups_of_sessions(rank: comm.Communicator) -> None:
    holder, words, _ = ffn(rank, 4, 2, 1, 2, 512)
    words[[0, 2, 3], 1, 0] = 1
    nfg.ffn_worker_scheduler_(holder.get_schedule_context_tensor(), sync_group_size=2)
    assert out(holder, 528, field(holder, 576)) == [2, 3], "session 1 is missing for the first group"


def test_one_session_may_send_any_micro_batch(rank: comm.Communicator) -> None:
    holder, words, _ = ffn(rank, 1, 3, 1, 2, 512)
    words[0, 2, 0] = 1
    nfg.ffn_worker_scheduler_(holder.get_schedule_context_tensor())
    assert (out(holder, 544, 1), words[0, 2, 0]) == ([2], 0)


def test_the_functional_form_leaves_the_context_alone(rank: comm.Communicator) -> None:
    holder, words, _ = ffn(rank, 1, 1, 1, 1, 512)
    full(words)
    context = holder.get_schedule_context_tensor()
    before = context.clone()
    new = nfg.ffn_worker_scheduler(context)
    assert torch.equal(context, before)
    assert int(new.numpy()[576:580].view("<u4")[0]) == 1
    assert words[0, 0, 0] == 0, "the window is one"


def attention(rank: comm.Communicator, micro_batches: int, tokens: int, slots: int, hidden: int) -> Any:
    """A holder of an attention rank, its flags [M, BS, KS] and float16 records [M, BS, KS, H]."""
    info = 4 * micro_batches * tokens * slots
    base = (info + 511) // 512 * 512
    own = rank.register_windows(base + micro_batches * tokens * slots * 2 * hidden, [1, 2, 3]).own
    holder = ScheduleContextHolder(
        1, 1, micro_batches, tokens, slots, 9, 512, 2 * hidden, attention_window=own.data_ptr(),
        attention_window_size=own.numel(),
    )  # fmt: skip
    flags = own.numpy()[:info].view(numpy.int32).reshape(micro_batches, tokens, slots)
    records = own.numpy()[base:].view(numpy.float16).reshape(micro_batches, tokens, slots, hidden)
    return holder, flags, records


def test_an_attention_rank_takes_a_whole_micro_batch(rank: comm.Communicator) -> None:
    holder, flags, _ = attention(rank, 2, 3, 2, 256)
    flags[0] = 1
    flags[1, 0] = 1
    context = holder.get_schedule_context_tensor()
    assert nfg.attention_worker_scheduler_(context) is context
    assert field(holder, 288) == 0
    assert flags.sum((1, 2)).tolist() == [0, 2]
    with pytest.raises(CommunicationError) as caught:
        nfg.attention_worker_scheduler_(context)
    assert "expected answers for 2 tokens of micro batch 1 within 0.2 s, got none." in str(caught.value)
    holder.stop_schedule()
    nfg.attention_worker_scheduler_(context)
    assert (field(holder, 288), flags[1].sum()) == (0, 2), "stopped: nothing changes"
    flags[1] = 1
    new = nfg.attention_worker_scheduler(context)
    assert new is not context


def test_schedulers_that_wait_are_told_for_whom(rank: comm.Communicator) -> None:
    holder, words, _ = ffn(rank, 2, 1, 1, 1, 512)
    words[0, 0, 0] = 1
    context = holder.get_schedule_context_tensor()
    with pytest.raises(CommunicationError, match=r"expected micro batch 0 of session 1 within 0\.2 s, got none"):
        nfg.ffn_worker_scheduler_(context, sync_group_size=2)
    words[0, 0, 0] = 0
    with pytest.raises(CommunicationError, match=r"expected a micro batch of any session within"):
        nfg.ffn_worker_scheduler_(context)
    holder.stop_schedule()
    nfg.ffn_worker_scheduler_(context)
    assert field(holder, 576) == 0


# -- batching ----------------------------------------------------------------------------------------------------------


def records_of(data: Any, count: int, record: int) -> Any:
    return data[: count * record].reshape(count, record)


@pytest.mark.parametrize("need_schedule", [0, 1])
def test_tokens_sorted_by_expert(need_schedule: int, rank: comm.Communicator) -> None:
    """4 sessions, ids of 2 experts, int8 records with scales: the stable order, worked out with plain loops."""
    sessions, tokens, slots, hidden, record = 4, 7, 3, 1024, 1536
    holder, words, data = ffn(rank, sessions, 1, tokens, slots, record)
    generator = numpy.random.default_rng(0)
    data[:] = generator.integers(0, 256, len(data), dtype=numpy.uint8).view(numpy.int8)
    scales = generator.random(sessions * tokens * slots).astype(numpy.float32)
    rows = records_of(data, len(scales), record)
    rows[:, hidden : hidden + 4] = scales.view(numpy.int8).reshape(-1, 4)
    ids = generator.choice([0, 1, EMPTY, TAKEN], (sessions, tokens * slots), p=[0.3, 0.3, 0.2, 0.2])
    words[:, 0, 2:] = ids
    words[:, 0, 0] = 1
    context = holder.get_schedule_context_tensor()
    if not need_schedule:
        nfg.ffn_worker_scheduler_(context, sync_group_size=4)
    results = nfg.npu_ffn_worker_batching(
        context, 3, [sessions, tokens, slots, hidden], token_dtype=2, need_schedule=need_schedule
    )
    y, groups, session_ids, micro_batch_ids, token_ids, offsets, dynamic_scale, number = results
    flat = ids.reshape(-1).tolist()
    wanted = [i for expert in (0, 1) for i, value in enumerate(flat) if value == expert]
    count = len(wanted)
    assert number.tolist() == [count]
    assert groups.tolist() == [[0, flat.count(0)], [1, flat.count(1)], [0, 0]]
    where = list(zip(session_ids.tolist(), token_ids.tolist(), offsets.tolist(), strict=True))
    assert where[:count] == [(i // 21, i % 21 // 3, i % 3) for i in wanted]
    assert y[:count].numpy().tolist() == [rows[i, :hidden].tolist() for i in wanted]
    assert dynamic_scale[:count].tolist() == [scales[i] for i in wanted]
    assert not any(x[count:].any() for x in (y, session_ids, token_ids, offsets, dynamic_scale))
    assert not micro_batch_ids.any()
    assert words[:, 0, 0].tolist() == [0] * 4
    assert (words[:, 0, 2:] == (EMPTY if need_schedule else TAKEN)).all()


def test_batching_takes_micro_batches_in_turn(rank: comm.Communicator) -> None:
    holder, words, data = ffn(rank, 1, 2, 1, 2, 2048)
    context = holder.get_schedule_context_tensor()
    rows = records_of(data, 4, 2048).view(numpy.float16)
    for step in range(3):
        micro_batch = step % 2
        rows[2 * micro_batch :][:2] = [[step + 1], [step + 10]]
        words[0, micro_batch, 2:] = [5, 3]
        words[0, micro_batch, 0] = 1
        y, groups, _, micro_batch_ids, _, offsets, _, number = nfg.npu_ffn_worker_batching(
            context, 2, [1, 1, 2, 1024], need_schedule=1
        )
        assert y[:, 0].tolist() == [step + 10, step + 1]
        assert (groups.tolist(), offsets.tolist(), number.tolist()) == ([[3, 1], [5, 1]], [1, 0], [2])
        assert micro_batch_ids.tolist() == [micro_batch] * 2
        assert field(holder, 416, "<u8") == (step + 1) % 2
    with pytest.raises(CommunicationError, match=r"expected micro batch 1 of session 0 within 0\.2 s, got none"):
        nfg.npu_ffn_worker_batching(context, 2, [1, 1, 2, 1024], need_schedule=1)
    holder.stop_schedule()
    assert nfg.npu_ffn_worker_batching(context, 2, [1, 1, 2, 1024], need_schedule=1)[7].tolist() == [0]


# -- combine -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("need_schedule", [0, 1])
def test_answers_are_added_up_in_order(need_schedule: int, rank: comm.Communicator) -> None:
    tokens, k, hidden = 5, 8, 1024
    holder, flags, records = attention(rank, 2, tokens, k + 1, hidden)
    generator = numpy.random.default_rng(1)
    records[:] = generator.standard_normal(records.shape)
    weights = generator.random((tokens, k)).astype(numpy.float32)
    flags[:] = 1
    context = holder.get_schedule_context_tensor()
    if not need_schedule:
        nfg.attention_worker_scheduler_(context)
    y, layer = nfg.npu_attention_worker_combine(
        context, torch.from_numpy(weights), torch.tensor([6], dtype=torch.int32), hidden, need_schedule=need_schedule
    )
    total = numpy.zeros((tokens, hidden), numpy.float32)
    for j in range(k):
        total = total + records[0, :, j].astype(numpy.float32) * weights[:, j : j + 1]
    total = total + records[0, :, k].astype(numpy.float32)
    assert numpy.array_equal(y.numpy(), total.astype(numpy.float16))
    assert layer.tolist() == [7]
    assert flags.sum((1, 2)).tolist() == [0, tokens * (k + 1)]
    assert field(holder, 288) == 0


# -- answers -----------------------------------------------------------------------------------------------------------


def answers(rank: comm.Communicator, rows: int, **changed: Any) -> dict[str, Any]:
    """A call of rank 0, an FFN rank, to attention ranks 1 to 3, of 2 micro batches of 4 tokens and 3 experts."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(3 * 2 * 4 * 3, generator=generator)[:rows].int()
    return {
        "x": torch.randn(rows, 1024, generator=generator).half(), "session_ids": places // 24,
        "micro_batch_ids": places % 24 // 12, "token_ids": places % 12 // 3, "expert_offsets": places % 3,
        "actual_token_num": torch.tensor([rows - 2]), "group": "0", "world_size": 4,
        "token_info_table_shape": [2, 4, 3], "token_data_shape": [2, 4, 3, 1100],
        "attn_rank_table": torch.tensor([1, 2, 3], dtype=torch.int32), **changed,
    }  # fmt: skip


def test_answers_stand_where_their_tokens_came_from(rank: comm.Communicator) -> None:
    windows = rank.register_windows(1 << 17, [1, 2, 3])
    call = answers(rank, 40)
    for peer in windows.peers:
        windows.memory(peer)[512:] = 7
    wanted = {peer: windows.memory(peer).copy() for peer in windows.peers}
    for i in range(38):
        session, m, t, j = (int(call[n][i]) for n in list(call)[1:5])
        place = (m * 4 + t) * 3 + j
        window = wanted[1 + session]
        window[512 + 2200 * place :][:2048] = call["x"][i].view(torch.uint8).numpy()
        window[4 * place :][:4] = [1, 0, 0, 0]
    assert nfg.npu_ffn_to_attention(**call) is None
    assert all((windows.memory(peer) == wanted[peer]).all() for peer in windows.peers)


def test_without_a_table_sessions_are_ranks(rank: comm.Communicator) -> None:
    windows = rank.register_windows(1 << 17, [1, 2, 3])
    call = answers(rank, 3, attn_rank_table=None, session_ids=torch.full((3,), 2, dtype=torch.int32))
    nfg.npu_ffn_to_attention(**call)
    assert [int(windows.memory(r)[:96].sum()) for r in (1, 2, 3)] == [0, 1, 0]


def ids(count: int, value: int = 0) -> Tensor:
    return torch.full((count,), value, dtype=torch.int32)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.zeros(6, 800).half()}, "x.shape[1]: expected 1024 to 8192, got 800"),
    ({"x": torch.zeros(6, 1024)}, "x: expected dtype float16 or bfloat16, got float32"),
    ({"session_ids": ids(5)}, "session_ids: expected shape (Y) with Y=6 from x, got shape [5]"),
    ({"token_ids": ids(6).long()}, "token_ids: expected dtype int32, got int64"),
    ({"actual_token_num": torch.tensor([1, 2])}, "actual_token_num: expected shape (1), got shape [2]"),
    ({"actual_token_num": torch.tensor([3], dtype=torch.int32)}, "actual_token_num: expected dtype int64, got int32"),
    ({"token_info_table_shape": [2, 513, 3]}, "token_info_table_shape[1]: expected 1 to 512, got 513"),
    ({"token_info_table_shape": [2, 4]}, "token_info_table_shape: expected 3 numbers, got [2, 4]"),
    ({"token_data_shape": [2, 4, 3]}, "token_data_shape: expected 4 numbers, got [2, 4, 3]"),
    ({"token_data_shape": [1, 4, 3, 1100]}, "token_data_shape: expected [2, 4, 3] and HS, as token_info_table_shape"),
    ({"token_data_shape": [2, 4, 3, 1000]}, "token_data_shape[3]: expected 1024 to 8320, got 1000"),
    ({"attn_rank_table": ids(4)}, "attn_rank_table: expected 1 to 3 ranks, got 4"),
    ({"world_size": 5}, "world_size: expected 4, the number of ranks of group '0', got 5"),
    ({"group": ""}, "group: expected a communicator name of 1 to 127 bytes, got ''"),
    ({"token_info_table_shape": [64, 512, 3], "token_data_shape": [64, 512, 3, 1100]},
     "token_data_shape: expected tables of at most 200 MiB (HCCL_BUFFSIZE), got 207 MiB"),
]  # fmt: skip
VALUES: list[tuple[dict[str, Any], str]] = [
    ({"actual_token_num": torch.tensor([7])}, "actual_token_num: expected 0 to 6, got 7"),
    ({"actual_token_num": torch.tensor([-1])}, "actual_token_num: expected 0 to 6, got -1"),
    ({"session_ids": ids(6, 3)}, "session_ids: expected 0 to 2, got 3"),
    ({"micro_batch_ids": ids(6, 2)}, "micro_batch_ids: expected 0 to 1, got 2"),
    ({"token_ids": ids(6, -1)}, "token_ids: expected 0 to 3, got -1"),
    ({"expert_offsets": ids(6, 3)}, "expert_offsets: expected 0 to 2, got 3"),
    ({"attn_rank_table": ids(3)},
     "attn_rank_table: expected attention ranks with registered windows, [1, 2, 3] of the group, got"),
    ({"token_info_table_shape": [9, 4, 3], "token_data_shape": [9, 4, 3, 1100]},
     "token_data_shape: expected tables of at most 131072 bytes, the window of rank 1, got 238112 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "text"), [*WRONG, *VALUES])
def test_wrong_answers(change: dict[str, Any], text: str, rank: comm.Communicator) -> None:
    windows = rank.register_windows(1 << 17, [1, 2, 3])
    call = answers(rank, 6) | change
    runs: list[Callable[..., Any]] = [nfg.npu_ffn_to_attention]
    if any(text == known for _, known in WRONG):
        runs.append(in_fake_mode(nfg.npu_ffn_to_attention))
    for run in runs:
        with pytest.raises(InvalidArgumentError, match=FORM) as caught:
            run(**call)
        assert str(caught.value).startswith(f"[ffn_to_attention] {text}"), str(caught.value)
    assert not any(windows.memory(peer).any() for peer in windows.peers)


# -- contexts that do not fit ------------------------------------------------------------------------------------------


def batching(context: Tensor, **changed: Any) -> Any:
    given: dict[str, Any] = {"expert_num": 2, "max_out_shape": [2, 4, 3, 256]} | changed
    return nfg.npu_ffn_worker_batching(context, **given)


CONTEXTS: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda c: batching(c[:1000]), "[ffn_worker_batching] schedule_context: expected a context, int8 of 1024 elements"),
    (
        lambda c: batching(c.short()),
        "[ffn_worker_batching] schedule_context: expected a context, int8 of 1024 elements",
    ),
    (
        lambda c: batching(torch.zeros_like(c)),
        "[ffn_worker_batching] schedule_context.session_num: expected at least 1",
    ),
    (lambda c: nfg.attention_worker_scheduler_(c), "[attention_worker_scheduler] schedule_context: expected one of"),
    (
        lambda c: nfg.ffn_worker_scheduler_(c, sync_group_size=3),
        "[ffn_worker_scheduler] sync_group_size: expected a div",
    ),
    (lambda c: nfg.ffn_worker_scheduler_(c, execute_mode=1), "[ffn_worker_scheduler] execute_mode: expected 0, got 1"),
    (lambda c: batching(c, expert_num=0), "[ffn_worker_batching] expert_num: expected 1 to 8192, got 0"),
    (lambda c: batching(c, token_dtype=3), "[ffn_worker_batching] token_dtype: expected 0 to 2, got 3"),
    (lambda c: batching(c, need_schedule=2), "[ffn_worker_batching] need_schedule: expected 0 to 1, got 2"),
    (lambda c: batching(c, layer_num=3), "[ffn_worker_batching] layer_num: expected 0 to 2, got 3"),
    (lambda c: batching(c, max_out_shape=[2, 4, 3]), "[ffn_worker_batching] max_out_shape: expected [A, BS, KS, H]"),
    (
        lambda c: batching(c, max_out_shape=[2, 4, 2, 256]),
        "[ffn_worker_batching] max_out_shape: expected [A, BS, KS] =",
    ),
    (
        lambda c: batching(c, max_out_shape=[2, 4, 3, 512]),
        "[ffn_worker_batching] max_out_shape[3]: expected records of",
    ),
    (
        lambda c: batching(c, token_dtype=2, max_out_shape=[2, 4, 3, 250]),
        "[ffn_worker_batching] max_out_shape[3]: expec",
    ),
]


@pytest.mark.parametrize(("run", "text"), CONTEXTS)
def test_contexts_that_do_not_fit(run: Callable[[Tensor], Any], text: str, rank: comm.Communicator) -> None:
    holder, _, _ = ffn(rank, 2, 1, 4, 3, 512)
    with pytest.raises(InvalidArgumentError, match=FORM) as caught:
        run(holder.get_schedule_context_tensor())
    assert str(caught.value).startswith(text), str(caught.value)


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        (384, "schedule_context.ffn_info: expected the tables of a living holder of this process, got 0x7"),
        (400, "schedule_context.ffn_data: expected the next 512 bytes behind the info table, got 0x7"),
        (560, "schedule_context.expert_ids: expected a buffer of its holder, got 0x7"),
        (416, "schedule_context.polling_index: expected 0 to 0, got 7"),
    ],
)
def test_addresses_are_not_followed_into_the_unknown(offset: int, text: str, rank: comm.Communicator) -> None:
    holder, _, _ = ffn(rank, 2, 1, 4, 3, 512)
    context = holder.get_schedule_context_tensor().clone()
    context.numpy()[offset : offset + 8].view("<u8")[0] = 7
    with pytest.raises(InvalidArgumentError) as caught:
        batching(context)
    assert str(caught.value).startswith(f"[ffn_worker_batching] {text}"), str(caught.value)


def test_a_context_outlives_neither_its_holder_nor_its_windows(rank: comm.Communicator) -> None:
    holder, words, _ = ffn(rank, 2, 1, 4, 3, 512)
    context = holder.get_schedule_context_tensor()
    del holder
    with pytest.raises(InvalidArgumentError, match="expected the tables of a living holder"):
        batching(context)
    del words


def test_a_context_of_windows_that_were_released(rank: comm.Communicator) -> None:
    holder, words, _ = ffn(rank, 2, 1, 4, 3, 512)
    rank.release_windows()
    with pytest.raises(InvalidArgumentError, match="expected 12800 bytes of a window that is registered"):
        batching(holder.get_schedule_context_tensor())
    del words


def test_tables_are_those_the_senders_declared(rank: comm.Communicator) -> None:
    """13 numbers: session, world size, experts, first FFN rank, quantisation, and the two table shapes."""
    holder, _, _ = ffn(rank, 2, 1, 4, 3, 512)
    context = holder.get_schedule_context_tensor()
    notes = rank.windows._control[0].notes
    good = [13, 0, 4, 2, 0, 0, 2, 1, 14, 2, 1, 4, 3, 256]
    for place, value, name in (
        (9, 3, "session_num: expected 3"), (10, 2, "micro_batch_num: expected 2"),
        (11, 5, "micro_batch_size: expected 5"),
        (12, 2, "selected_expert_num: expected 2"), (13, 512, "attn_to_ffn_token_size: expected 1024"),
        (5, 2, "attn_to_ffn_token_size: expected 256"),
    ):  # fmt: skip
        notes[2, : len(good)] = good
        notes[2, place] = value
        with pytest.raises(InvalidArgumentError) as caught:
            batching(context)
        assert f"schedule_context.{name}, as rank 2 sends, got " in str(caught.value)
    notes[2, : len(good)] = good
    assert batching(context)[7].tolist() == [0]


def test_a_stop_reaches_those_that_work_on_a_copy(rank: comm.Communicator) -> None:
    holder, words, _ = ffn(rank, 1, 1, 1, 1, 512)
    context = holder.get_schedule_context_tensor()
    copy = context.clone()
    holder.stop_schedule()
    words[0, 0, 0] = 1
    new = nfg.ffn_worker_scheduler(copy)
    assert [int(new.numpy()[at : at + 4].view("<i4")[0]) for at in (128, 576)] == [0, 0], "run_flag, out_num"
    assert words[0, 0, 0] == 1, "nothing is taken"


def test_a_stop_while_a_batch_is_taken_takes_it_whole(rank: comm.Communicator, monkeypatch: pytest.MonkeyPatch) -> None:
    from npu_fused_graph.ops import ffn_worker_batching as op

    holder, words, _ = ffn(rank, 1, 2, 1, 1, 2048)
    words[0, 0, :] = [1, 0, 5]
    original = op._fill
    monkeypatch.setattr(op, "_fill", lambda *args: (original(*args), holder.stop_schedule()))
    results = nfg.npu_ffn_worker_batching(holder.get_schedule_context_tensor(), 1, [1, 1, 1, 1024], need_schedule=1)
    assert (results[7].tolist(), words[0, 0, 0], field(holder, 416, "<u8")) == ([1], 0, 1)


def test_one_session_is_taken_in_turn(rank: comm.Communicator) -> None:
    """From the micro batch behind the last one, so that layers do not overtake each other."""
    holder, words, _ = ffn(rank, 1, 3, 1, 1, 512)
    context = holder.get_schedule_context_tensor()
    taken = []
    for ready in ([0, 1], [0], [], [0]):
        for micro_batch in ready:
            words[0, micro_batch, 0] = 1
        if (words[0, :, 0] == 1).any():
            nfg.ffn_worker_scheduler_(context)
            taken += out(holder, 544, 1)
    assert taken == [0, 1, 0, 0]


COMBINES: list[tuple[dict[str, Any], str]] = [
    ({"expert_scales": torch.ones(2, 2)}, "expert_scales.shape[0]: expected 3, got 2"),
    ({"expert_scales": torch.ones(3, 3)}, "expert_scales.shape[1]: expected 2, got 3"),
    ({"expert_scales": torch.ones(3, 65)}, "expert_scales.shape[1]: expected 1 to 64, got 65"),
    ({"expert_scales": torch.ones(3, 2).half()}, "expert_scales: expected dtype float32, got float16"),
    ({"hidden_size": 128}, "hidden_size: expected 512, got 256"),
    ({"hidden_size": 0}, "hidden_size: expected 1 to 2147483647, got 0"),
    ({"layer_id": torch.zeros(1)}, "layer_id: expected dtype int32, got float32"),
    ({"token_dtype": 2}, "token_dtype: expected 0 to 1, got 2"),
]


@pytest.mark.parametrize(("change", "text"), COMBINES)
def test_wrong_combines(change: dict[str, Any], text: str, rank: comm.Communicator) -> None:
    holder, _, _ = attention(rank, 1, 3, 3, 256)
    good = {"expert_scales": torch.ones(3, 2), "layer_id": ids(1), "hidden_size": 256}
    with pytest.raises(InvalidArgumentError, match=FORM) as caught:
        nfg.npu_attention_worker_combine(holder.get_schedule_context_tensor(), **good | change)
    assert str(caught.value).startswith(f"[attention_worker_combine] {text}"), str(caught.value)
