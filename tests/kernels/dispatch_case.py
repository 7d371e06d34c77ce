"""Launches of AttentionToFFN on all attention ranks at once, beside FFN ranks that only have windows."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch

from npu_fused_graph.ops.attention_to_ffn import SPEC
from npu_fused_graph.sim.launch import Figures, Publication, RankLaunch
from npu_fused_graph.sim.operators import OperatorKernel, Tiling, kernel_of
from tests.kernels.built import entry
from tests.ops.dispatch_model import Plan, Window, call_of, dispatch, fresh, plan_of

CHIP = "Ascend910_9391"
DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}

FORMS = [
    (quantised, scaled, hit_ranks, masked)
    for quantised in (False, True)
    for scaled in ((False, True) if quantised else (False,))
    for hit_ranks in (False, True)
    for masked in (False, True)
]
"""is_quantised, has_scales, is_async, is_masked."""


@functools.lru_cache(maxsize=2)
def kernel(dtype: torch.dtype) -> OperatorKernel:
    return kernel_of(SPEC, {"x": DTYPES[dtype]})


def tiling(call: dict[str, Any], chip: str = CHIP, kernel_: OperatorKernel | None = None) -> Tiling:
    return (kernel_ or kernel(call["x"].dtype)).tiling(*_node(call), chip)


def _node(call: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and attributes."""
    return {t.name: call[t.name] for t in SPEC.inputs}, {a.name: call.get(a.name, "hccl_world") for a in SPEC.attrs}


def promises(plan: Plan, call: dict[str, Any]) -> list[Publication]:
    """What each FFN rank may rely on as soon as it sees the flag of this session and micro batch."""
    slot = int(call["session_id"]) * plan.micro_batches + int(call["micro_batch_id"])
    flag = 4 * slot * (2 + plan.tokens * plan.slots)
    size = plan.tokens * plan.slots * plan.record * (1 if call["quant_mode"] else 2)
    return [
        promise
        for rank in plan.ffn_ranks
        for promise in (
            Publication(rank, flag, flag + 8, 4 * plan.tokens * plan.slots),
            Publication(rank, flag, plan.data_at + slot * size, size),
        )
    ]


def launch(
    plan: Plan, calls: Sequence[dict[str, Any]], windows: dict[int, Window], *, cores: int | None = None,
    sessions: Sequence[int] | None = None, kernel_: OperatorKernel | None = None, **how: Any,
) -> tuple[dict[int, Window], Figures]:  # fmt: skip
    """The windows afterwards, and figures.

    cores: in place of all of the chip. sessions: that call, else all. kernel_: in place of ours.
    """
    memory = {r: torch.from_numpy(w.copy()) for r, w in windows.items()}
    ranks, public = [], []
    for r in range(plan.size):
        session = plan.attention_ranks.index(r) if r in plan.attention_ranks else None
        if session is None or (sessions is not None and session not in sessions):
            ranks.append(RankLaunch(window=memory[r]))
            continue
        call = calls[session]
        mine = (kernel_ or kernel(call["x"].dtype)).one_sided(*_node(call), CHIP, memory[r])
        ranks.append(replace(mine, block_dim=cores or mine.block_dim))
        public += promises(plan, call)
    figures = (kernel_ or kernel(calls[0]["x"].dtype)).launch(ranks, publications=public, **how)
    return {r: w.numpy() for r, w in memory.items()}, figures


def compare(plan: Plan, calls: Sequence[dict[str, Any]], windows: dict[int, Window], **how: Any) -> Figures:
    """Every byte of every window, against the model; what nobody defines stays as it was."""
    wanted = {r: w.copy() for r, w in windows.items()}
    for rank, call in zip(plan.attention_ranks, calls, strict=True):
        dispatch(wanted, plan, rank, call)
    got, figures = launch(plan, calls, windows, **how)
    different = {r: int((got[r] != wanted[r]).sum()) for r in wanted if not numpy.array_equal(got[r], wanted[r])}
    assert not different
    return figures


def counted(*, is_quantised: bool, has_scales: bool, tokens: int, hidden: int, ffn_ranks: int, cores: int) -> int:
    """Bytes of local memory that the tiling takes the kernel to need."""
    count = entry("tiling_bytes").library.bytes_of_attention_to_ffn
    count.restype = ctypes.c_uint64
    return int(
        count(
            ctypes.c_bool(is_quantised), ctypes.c_bool(has_scales), ctypes.c_uint64(tokens), ctypes.c_uint64(hidden),
            ctypes.c_uint64(ffn_ranks), ctypes.c_uint64(cores),
        )
    )  # fmt: skip


def check_local_memory(plan: Plan, call: dict[str, Any], cores: int, figures: Figures) -> None:
    """A launch to all FFN ranks leaves out the words of who was hit."""
    ranks = len(plan.ffn_ranks)
    hits = 0 if call["sync_flag"] else -(-ranks // 8) * 32
    assert figures.local_bytes + hits == counted(
        is_quantised=call["quant_mode"] == 2, has_scales=call["scales"] is not None, tokens=plan.tokens,
        hidden=plan.hidden, ffn_ranks=ranks, cores=cores,
    )  # fmt: skip


def random_dispatch(seed: int, **given: Any) -> tuple[Plan, list[dict[str, Any]], dict[int, Window], int]:
    """A plan, its calls, windows of noise, cores: from the seed, forms and types by turns."""
    generator = numpy.random.default_rng([18, seed])
    is_quantised, has_scales, is_async, is_masked = FORMS[seed % len(FORMS)]
    dtype = list(DTYPES)[seed // len(FORMS) % 2]
    sessions, ffn = given.pop("world", None) or (int(n) for n in generator.integers(1, 5, 2))
    plan = plan_of(generator, sessions=sessions, ffn=ffn, is_quantised=is_quantised, **given)
    calls = [
        call_of(
            plan, generator, session, dtype=dtype, is_quantised=is_quantised, has_scales=has_scales, is_async=is_async,
            is_masked=is_masked,
        )
        for session in range(sessions)
    ]  # fmt: skip
    return plan, calls, fresh(plan, generator, is_quantised=is_quantised), int(generator.integers(1, 49))
