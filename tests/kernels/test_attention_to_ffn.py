"""The kernel of AttentionToFFN on the simulator: its real tiling, all ranks, every byte of every window."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from npu_fused_graph.errors import KernelError
from npu_fused_graph.sim.launch import USABLE_BYTES, Store
from tests.kernels.dispatch_case import (
    FORMS,
    check_local_memory,
    compare,
    counted,
    launch,
    random_dispatch,
    tiling,
)
from tests.ops.dispatch_model import call_of, dispatch, fresh, plan_of


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_forms_on_all_cores(form: int) -> None:
    plan, calls, windows, _ = random_dispatch(form)
    for seed in range(3):
        compare(plan, calls, windows, seed=seed, is_deferred=seed == 2, is_registered=seed != 1)


@pytest.mark.parametrize("first", range(100, 160, 20))
def test_random_dispatches(first: int) -> None:
    for seed in range(first, first + 20):
        plan, calls, windows, cores = random_dispatch(seed)
        compare(plan, calls, windows, cores=cores, seed=seed, is_deferred=seed % 3 == 1)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1300, 50))
def test_many_random_dispatches(first: int) -> None:
    for seed in range(first, first + 50):
        plan, calls, windows, cores = random_dispatch(seed)
        for order in range(3):
            compare(plan, calls, windows, cores=cores, seed=order, is_deferred=order == 2)


@pytest.mark.slow
def test_sixteen_ranks() -> None:
    """The sizes of the requirement: 11 attention and 5 FFN ranks, all cores of each."""
    for form in range(len(FORMS)):
        plan, calls, windows, _ = random_dispatch(form, world=(11, 5), tokens=8, k=4, experts=8, hidden=7168)
        compare(plan, calls, windows, seed=form)


LIMITS: dict[str, dict[str, int]] = {
    "one token": {"tokens": 1},
    "512 tokens": {"tokens": 512, "k": 2, "experts": 4, "shared": 1, "hidden": 1024},
    "no shared expert": {"shared": 0},
    "4 shared experts": {"shared": 4},
    "k of 16": {"k": 16, "experts": 40, "tokens": 30},
    "k of all": {"k": 5, "experts": 5},
    "1024 experts": {"experts": 1024, "k": 16},
    "H 8192": {"hidden": 8192, "tokens": 3},
    "H 1056, a multiple of 32 only": {"hidden": 1056},
    "H 1025, odd records": {"hidden": 1025},
}


@pytest.mark.parametrize("form", [0, 7, 10], ids=["plain", "hit ranks, quantised, masked", "scaled"])
@pytest.mark.parametrize("case", LIMITS)
def test_limits(case: str, form: int) -> None:
    plan, calls, windows, cores = random_dispatch(form, world=(2, 2), **LIMITS[case])
    compare(plan, calls, windows, cores=cores)


@pytest.mark.parametrize("tokens", [127, 128, 129, 255, 300, 511])
def test_masks_of_any_length(tokens: int) -> None:
    """The trues are counted 128 at a time."""
    plan, calls, windows, cores = random_dispatch(1, world=(2, 2), tokens=tokens, k=1, shared=0)
    compare(plan, calls, windows, cores=cores)


@pytest.mark.parametrize("form", [3, 7])
@pytest.mark.parametrize("active", ["none", "all"])
def test_masks_of_one_value(active: str, form: int) -> None:
    plan, calls, windows, _ = random_dispatch(form)
    for call in calls:
        call["active_mask"][:] = active == "all"
    compare(plan, calls, windows)


@pytest.mark.parametrize("form", [0, 2, 4])
def test_it_waits_until_what_was_sent_before_is_taken(form: int) -> None:
    """P11: a flag of 1, which the FFN rank clears after a while. Nothing is written before."""
    plan, calls, windows, _ = random_dispatch(form, world=(1, 2), tokens=3)
    call = calls[0]
    word = 4 * int(call["micro_batch_id"]) * (2 + plan.tokens * plan.slots)
    busy = {r: w.copy() for r, w in windows.items()}
    targets = {plan.rows[e][0][0] for e in range(len(plan.rows))}
    target = next(r for r in plan.ffn_ranks if r in targets)
    busy[target][word : word + 4] = [1, 0, 0, 0]
    with pytest.raises(KernelError, match=r"every core polls for what nobody does|deadlock") as caught:
        launch(plan, calls, busy, cores=2)
    assert "AwaitTaken" not in str(caught.value) and "attention_to_ffn.h:" in str(caught.value)
    compare(plan, calls, busy, cores=2, stores=[Store(300, target, word, 0)])


def test_it_waits_for_ranks_it_sends_nothing_to() -> None:
    """They are told of the micro batch, too, and may still hold the one before."""
    plan, calls, windows, _ = random_dispatch(0, world=(1, 3), tokens=1, k=1, experts=1, shared=0)
    word = 4 * int(calls[0]["micro_batch_id"]) * (2 + plan.tokens * plan.slots)
    idle = next(r for r in plan.ffn_ranks if r != plan.rows[0][0][0])
    windows[idle][word : word + 4] = [1, 0, 0, 0]
    with pytest.raises(KernelError, match=r"every core polls for what nobody does|deadlock"):
        launch(plan, calls, windows, cores=2)
    compare(plan, calls, windows, cores=2, stores=[Store(300, idle, word, 0)])


def test_what_is_left_undefined_is_left_alone() -> None:
    """Bytes between a record's end and the next one's begin, and records of other sessions and micro batches."""
    generator = numpy.random.default_rng(2)
    plan = plan_of(generator, sessions=2, ffn=2, is_quantised=True, micro_batches=3, hidden=1030, record=1200)
    how: dict[str, Any] = {"is_quantised": True, "has_scales": False, "is_async": False, "is_masked": False}
    calls = [call_of(plan, generator, s, dtype=torch.float16, **how) for s in range(2)]
    windows = fresh(plan, generator, is_quantised=True)
    got, _ = launch(plan, calls, windows, cores=5)
    changed = sum(int((got[r] != windows[r]).sum()) for r in got)
    sent = 2 * plan.tokens * plan.slots
    assert 0 < changed <= sent * (1030 + 4 + 4) + 2 * 2 * 8


def test_rows_that_are_no_numbers() -> None:
    """Their values become 0 and the scale tells: infinity, NaN."""
    plan, calls, windows, _ = random_dispatch(4, world=(1, 1), tokens=3, k=1, experts=1, shared=0, start=0)
    calls[0]["x"][0, 0, 7] = float("inf")
    calls[0]["x"][0, 2, 9] = float("nan")
    got, _ = launch(plan, calls, windows, cores=2)
    at = plan.data_at + int(calls[0]["micro_batch_id"]) * plan.tokens * plan.record
    scale_at = (plan.hidden + 31) // 32 * 32
    for token, is_right in ((0, numpy.isinf), (2, numpy.isnan)):
        record = got[0][at + token * plan.record :][: scale_at + 4]
        assert not record[: plan.hidden].any()
        assert is_right(record[scale_at:].copy().view(numpy.float32)[0])


def test_tiling() -> None:
    _, calls, _, _ = random_dispatch(7, world=(3, 2))
    tiled = tiling(calls[0])
    assert (tiled.block_dim, tiled.key, tiled.schedule_mode) == (48, 1003, 1)
    assert tiled.workspace_bytes == 16 * 2**20 + 48 * 8 * 4
    assert tiling(calls[0], "Ascend910_9362").block_dim == 40
    with pytest.raises(KernelError, match="a chip that is known"):
        tiling(calls[0], "Ascend310")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "three dimensions": ({"x": torch.zeros(1, 3).half()}, "x: expected 3 dimensions, got 2"),
    "absent": ({"expert_ids": None}, "expert_ids: expected a tensor, got none"),
    "one batch": ({"session_id": torch.zeros(2)}, "session_id: expected size 1 of the first dimension, got 2"),
    "tokens": (
        {"x": torch.zeros(1, 513, 1024).half()},
        "expected the same number of tokens, 1 to 512, got 513 and 4",
    ),
    "hidden": ({"x": torch.zeros(1, 4, 800).half()}, "x: expected 1024 to 8192 elements a token, got 800"),
    "experts": ({"moe_expert_num": 2000}, "expected 1 to 1024 experts, 1 to 16 of them a token, got 2000 and 3"),
    "table": ({"expert_rank_table": torch.zeros(1, 40, 5)}, "expected 6 rows and up to 4 of shared experts, got 40"),
    "scales": ({"scales": torch.zeros(1, 7, 2)}, "scales: expected shape [1, 7, 1024]"),
    "mask": ({"active_mask": torch.zeros(1, 9)}, "active_mask: expected shape [1, 4]"),
    "quant_mode": ({"quant_mode": 1}, "quant_mode: expected 0 or 2, got 1"),
    "scales without": ({"quant_mode": 0}, "scales: expected none with quant_mode 0"),
    "sync_flag": ({"sync_flag": 2}, "sync_flag: expected 0 or 1, got 2"),
    "world": ({"world_size": 769}, "world_size: expected 2 to 768, got 769"),
    "lists": ({"ffn_token_data_shape": [1, 2]}, "expected 3, 5 and 3 sizes, got 3, 2 and 3"),
    "workers": ({"ffn_token_info_table_shape": [4, 1, 18]}, "expected 1 to 3 attention workers"),
    "start": ({"ffn_start_rank_id": 3}, "ffn_start_rank_id: expected 0 to 2, got 3"),
    "words": ({"ffn_token_info_table_shape": [2, 1, 17]}, "expected 18 words a micro batch, got 17"),
    "data": ({"ffn_token_data_shape": [2, 1, 4, 5, 1100]}, "ffn_token_data_shape: expected [2, 1, 4, 4, ...]"),
    "own": ({"attn_token_info_table_shape": [2, 4, 4]}, "attn_token_info_table_shape: expected [1, 4, 4]"),
    "record": ({"ffn_token_data_shape": [2, 1, 4, 4, 1027]}, "expected at least 1028 elements a record, got 1027"),
    "width": ({"expert_rank_table": torch.zeros(1, 7, 2)}, "expected at least 3 words a row, got 2"),
    "group": ({"group": "g" * 128}, "group: expected a name of 1 to 127 bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tiling_refuses(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    generator = numpy.random.default_rng(0)
    plan = plan_of(
        generator, sessions=2, ffn=2, is_quantised=True, tokens=4, k=3, experts=6, shared=1, hidden=1024, micro_batches=1,
        record=1100, start=0,
    )  # fmt: skip
    call = call_of(
        plan, generator, 0, dtype=torch.float16, is_quantised=True, has_scales=True, is_async=False, is_masked=True
    )
    tiling(call)
    changed, text = REFUSED[case]
    with pytest.raises(KernelError) as caught:
        tiling({**call, **changed})
    assert str(caught.value).startswith("[attention_to_ffn] ") and text in str(caught.value)
    assert text in capfd.readouterr().err


@pytest.mark.parametrize(("is_quantised", "has_scales"), [(False, False), (True, False), (True, True)])
def test_figures(is_quantised: bool, has_scales: bool) -> None:
    """H 7168, 128 tokens, 8 of 64 experts and one shared: a row is loaded once by each core that sends it."""
    generator = numpy.random.default_rng(1)
    plan = plan_of(
        generator, sessions=1, ffn=4, is_quantised=is_quantised, tokens=128, k=8, experts=64, shared=1, hidden=7168,
        record=7680, micro_batches=1,
    )  # fmt: skip
    call = call_of(
        plan, generator, 0, dtype=torch.bfloat16, is_quantised=is_quantised, has_scales=has_scales, is_async=False,
        is_masked=False,
    )  # fmt: skip
    _, figures = launch(plan, [call], fresh(plan, generator, is_quantised=is_quantised))
    items = 128 * 9
    sent = 7168 + 4 if is_quantised else 2 * 7168
    least = 2 * 7168 * 128 + has_scales * items * 4 * 7168 + items * (sent + 4) + 8 * 4
    assert least < figures.bytes_in + figures.bytes_out + figures.bytes_far <= 1.05 * least
    assert max(figures.busiest.values()) >= 0.8 * figures.simulated_cycles


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_local_memory_is_what_the_tiling_counts_on(form: int) -> None:
    """For every form; a launch to all FFN ranks leaves out the words of who was hit."""
    for seed in (form, form + 3 * len(FORMS)):
        plan, calls, windows, cores = random_dispatch(seed)
        _, figures = launch(plan, calls, windows, cores=cores)
        check_local_memory(plan, calls[0], cores, figures)


@pytest.mark.parametrize("cores", [40, 48])
def test_the_largest_sizes_fit(cores: int) -> None:
    largest = counted(is_quantised=True, has_scales=True, tokens=512, hidden=8192, ffn_ranks=767, cores=cores)
    assert largest <= USABLE_BYTES


def test_only_what_is_written_goes_back_to_windows() -> None:
    """Other processes write their parts of a window meanwhile: a launch must not bring back what was there before."""
    plan, calls, windows, _ = random_dispatch(0, world=(2, 1))
    got, _ = launch(plan, calls, windows, cores=3, sessions=[0])
    wanted = {r: w.copy() for r, w in windows.items()}
    dispatch(wanted, plan, plan.attention_ranks[0], calls[0])
    for r, window in got.items():
        assert numpy.array_equal(window, wanted[r])
