"""npu_attention_to_ffn, flags included, against copies of the same bytes to the same places, and quantising in torch.

One thread, H=7168, K=8, one shared expert, windows of one process; every call finds its tables emptied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy
import pytest
import torch
import torch.distributed as dist

import npu_fused_graph as nfg
from npu_fused_graph import comm
from npu_fused_graph.ops.window_tables import FfnTables

HIDDEN, K, EXPERTS, SHARED = 7168, 8, 32, 1
SLOTS = K + SHARED


class Dispatch(NamedTuple):
    """call: the operator. scattered: one copy per FFN rank of as many bytes, from records that are ready. flat: one
    copy of them all to one place. in_torch: quantising all records in plain torch, then the scattered copies.
    """

    call: Callable[[], Any]
    scattered: Callable[[], Any]
    flat: Callable[[], Any]
    in_torch: Callable[[], Any]


@contextmanager
def dispatch(tokens: int, *, is_quantised: bool = False, has_scales: bool = False, ffn: int = 4) -> Iterator[Dispatch]:
    """Session 0 of 2 attention ranks and ``ffn`` FFN ranks."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    size = HIDDEN if is_quantised else 2 * HIDDEN
    record = HIDDEN + 512 if is_quantised else HIDDEN
    tables = FfnTables(2, 1, tokens, SLOTS, record, 1 if is_quantised else 2)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=ffn, world_size=ffn + 2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HCCL_BUFFSIZE", "2000")
            windows = comm.communicator("0").register_windows(tables.size, list(range(ffn)))
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(1, tokens, HIDDEN, generator=generator).bfloat16()
            ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:K] for _ in range(tokens)])
            table = torch.zeros(1, EXPERTS + SHARED, 3, dtype=torch.int32)
            table[..., 0] = 1
            table[0, :, 1] = torch.arange(EXPERTS + SHARED) % ffn
            table[0, :, 2] = torch.arange(EXPERTS + SHARED) // ffn
            scales = torch.rand(1, EXPERTS + SHARED, HIDDEN, generator=generator) + 0.5 if has_scales else None
            zero = torch.zeros(1, dtype=torch.int32)
            arguments = (
                x, zero, zero, zero, ids[None].int(), table, "0", ffn + 2, [2, 1, 2 + tokens * SLOTS],
                [2, 1, tokens, SLOTS, record], [1, tokens, SLOTS], EXPERTS,
            )  # fmt: skip
            flags = [tables.info(windows.memory(r))[0, 0] for r in range(ffn)]
            experts = torch.cat([ids, torch.full((tokens, SHARED), EXPERTS)], 1)
            ranks = table[0, :, 1][experts].numpy()
            views = [(tables.records(windows.memory(r), 0, 0, 0, size), ranks == r) for r in range(ffn)]
            ready = numpy.zeros((tokens * SLOTS, size), numpy.uint8)
            target = numpy.zeros_like(ready)

            def call() -> None:
                nfg.npu_attention_to_ffn(*arguments, scales=scales, quant_mode=2 * is_quantised)
                for flag in flags:
                    flag[0] = 0

            def scattered(records: Any = ready) -> None:
                rows = records.view(numpy.dtype((numpy.void, size))).reshape(tokens, SLOTS)
                for view, where in views:
                    numpy.copyto(view, rows, where=where)

            def in_torch() -> None:
                v = x[0].float()[:, None].expand(-1, SLOTS, -1)
                v = v if scales is None else v * scales[0][experts]
                factor = torch.tensor(127.0) / v.abs().amax(-1, keepdim=True)
                scattered((v * factor).round().to(torch.int8).view(tokens * SLOTS, HIDDEN).numpy().view(numpy.uint8))

            yield Dispatch(call, scattered, lambda: numpy.copyto(target, ready), in_torch)
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(before)
