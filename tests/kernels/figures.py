"""``python -m tests.kernels.figures``: simulated figures of both kernels, beside the same with one buffer each."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch

from npu_fused_graph.ops.attention_to_ffn import SPEC
from npu_fused_graph.sim.build import kernels_folder, simulator
from npu_fused_graph.sim.launch import Argument, Figures, RankLaunch, output
from npu_fused_graph.sim.operators import OperatorKernel
from npu_fused_graph.sim.picture import WARNING
from tests.kernels.dispatch_case import launch
from tests.kernels.mutants.run import build
from tests.kernels.norm_case import Case, kernel_of
from tests.ops.dispatch_model import call_of, fresh, plan_of

Row = tuple[str, Figures, float]
"""What, its figures, the least bytes it could move."""


def dispatches(one_buffer: OperatorKernel | None) -> list[Row]:
    """H 7168, 128 tokens, 8 of 64 experts and a shared one, 4 FFN ranks."""
    found = []
    for is_quantised, has_scales in ((False, False), (True, False), (True, True)):
        generator = numpy.random.default_rng(1)
        plan = plan_of(
            generator, sessions=1, ffn=4, is_quantised=is_quantised, tokens=128, k=8, experts=64, shared=1, hidden=7168,
            record=7680, micro_batches=1,
        )  # fmt: skip
        call = call_of(
            plan, generator, 0, dtype=torch.bfloat16, is_quantised=is_quantised, has_scales=has_scales, is_async=False,
            is_masked=False,
        )  # fmt: skip
        _, figures = launch(plan, [call], fresh(plan, generator, is_quantised=is_quantised), kernel_=one_buffer)
        items = 128 * 9
        sent = 7168 + 4 if is_quantised else 2 * 7168
        least = 2 * 7168 * 128 + has_scales * items * 4 * 7168 + items * (sent + 4) + 8 * 4
        name = f"AttentionToFFN{', int8' * is_quantised}{' with smooth factors' * has_scales}"
        found.append((name, figures, float(least)))
    return found


def norms(slots: int | None) -> list[Row]:
    """(4096, 8192) on 48 cores. slots: in place of the plan's."""
    found = []
    for dtype in (torch.float16, torch.bfloat16):
        case = Case(4096, 8192, dtype, 48)
        plan = case.plan()
        plan.slots = slots or plan.slots
        mm, residual, gamma = case.inputs()
        arguments = [
            Argument("mm", mm), Argument("residual", residual), Argument("gamma", gamma),
            output("y", torch.empty_like(mm)), output("norm", torch.empty_like(mm)),
        ]  # fmt: skip
        figures = kernel_of(dtype).launch([RankLaunch(arguments, 48, bytes(plan))])
        found.append((f"add and norm, {str(dtype).removeprefix('torch.')}", figures, 4096.0 * 8192 * 8))
    return found


def with_one_buffer(scratch: Path) -> OperatorKernel:
    """AttentionToFFN with one block in each of its queues."""
    folder = kernels_folder()
    source = (folder / "attention_to_ffn" / "op_kernel" / "attention_to_ffn.h").read_text()
    changed: dict[str, Any] = {"attention_to_ffn/op_kernel/attention_to_ffn.h": source.replace("_, 2, ", "_, 1, ")}
    target = build(scratch, changed, is_dispatch=True, c_type="bfloat16_t", name="one_buffer")
    return OperatorKernel(SPEC, next(row for row in SPEC.rows if row.scenario == "bfloat16"), target)


def main() -> int:
    simulator()
    with tempfile.TemporaryDirectory(prefix="nfg-figures-") as scratch:
        ours = [*dispatches(None), *norms(None)]
        naive = [*dispatches(with_one_buffer(Path(scratch))), *norms(1)]
    print(f"{'launch':48} {'cycles':>10} {'bytes/least':>12} {'busiest':>14} {'one buffer':>12}")
    for (name, figures, least), (_, other, _) in zip(ours, naive, strict=True):
        moved = (figures.bytes_in + figures.bytes_out + figures.bytes_far) / least
        pipe = max(figures.busiest, key=lambda p: figures.busiest[p])
        share = figures.busiest[pipe] / figures.simulated_cycles
        slower = other.simulated_cycles / figures.simulated_cycles
        print(f"{name:48} {figures.simulated_cycles:10,.0f} {moved:12.3f} {pipe + f' {share:.0%}':>14} {slower:11.2f}x")
    print(WARNING)
    return 0


if __name__ == "__main__":
    sys.exit(main())
