"""Times of a few calls on all ranks: no verdicts. On a CPU they say nothing about an NPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from npu_fused_graph import afd
from npu_fused_graph.compile.backend import get_npu_backend
from npu_fused_graph.selftest.device import Device
from npu_fused_graph.selftest.measure import failure
from npu_fused_graph.selftest.report import Check

PART = "times"
ROWS = {"cpu": (16, 256), "npu": (16, 256, 1024, 4096)}
SIZES = {"cpu": (256, 512), "npu": (4096, 4096)}
"""Of M, and of K and N: what a CPU can do in seconds, and what a model has."""
CALLS = 7


def checks(device: Device, rank: int, size: int, group: str) -> Iterator[Check]:
    """First the all-reduce alone, then the fused operator against the separate ones, then one dispatch of tokens."""
    k, n = SIZES[device.name]
    weight, gamma = device.put((torch.randn(k, n).half() * k**-0.5, torch.ones(n).half()))

    def block(x: Any, residual: Any) -> Any:
        product = x @ weight
        dist.all_reduce(product)
        total = product + residual
        wide = total.float()
        return gamma * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).half(), total

    for m in ROWS[device.name]:
        x, y, residual = device.put((torch.randn(m, k).half(), torch.randn(m, n).half(), torch.randn(1, m, n).half()))

        try:
            with torch.no_grad():
                alone = _median(partial(dist.all_reduce, y), device)
                separate = _median(_compiled(block, (x, residual), passes=()), device)
                fused = _median(_compiled(block, (x, residual), min_rows=0), device)
        except Exception as error:
            yield Check(PART, f"M = {m}", "FAILED", failure(error))
            continue
        text = (
            f"all-reduce {alone:.2f} ms; matmul, all-reduce, add and norm: separate {separate:.2f} ms, fused "
            f"{fused:.2f} ms, {separate / fused:.2f}x; float16, K = {k}, N = {n}, {size} ranks"
        )
        yield Check(PART, f"M = {m}", "told", text)
    if device.name == "cpu" and size > 1:
        yield from _dispatch(rank, size, group)


def _compiled(model: Callable[..., Any], inputs: tuple[Any, ...], **options: Any) -> Callable[[], Any]:
    torch._dynamo.reset()
    call = torch.compile(model, backend=get_npu_backend(**options), dynamic=False, fullgraph=True)
    return lambda: call(*inputs)


def _median(call: Callable[[], Any], device: Device) -> float:
    """Milliseconds, after two calls nobody counts."""
    taken = []
    for _ in range(CALLS + 2):
        dist.barrier()
        device.wait()
        begin = time.perf_counter()
        call()
        device.wait()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[2:]) * 1e3


def _dispatch(rank: int, size: int, group: str) -> Iterator[Check]:
    """Bytes a second of AttentionToFFN from one attention rank to one FFN rank."""
    tokens, hidden, k = 128, 7168, 4
    plan = afd.plan(size, ffn_ranks=1, tokens=tokens, hidden=hidden, k=k, moe_experts=8)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, hidden, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(8, generator=generator)[:k] for _ in range(tokens)]).int()
    if rank == 0:
        with afd.FFNWorker(plan, group) as worker:
            for _ in range(CALLS):
                batch = worker.receive()
                worker.answer(batch, batch.x)
            dist.barrier()
        return
    with afd.AttentionWorker(plan, group) as attention:
        taken = []
        for _ in range(CALLS):
            begin = time.perf_counter()
            attention.send(x, ids)
            taken.append(time.perf_counter() - begin)
            attention.receive(torch.ones(tokens, k))
        dist.barrier()
    rate = tokens * (k + 1) * hidden * 2 / statistics.median(taken) / 1e9
    yield Check(PART, "AttentionToFFN", "told", f"{rate:.2f} GB/s, {tokens} tokens to {k + 1} experts, H = {hidden}")
