"""``npu-fused-graph kernel trace``: one launch of a kernel in the simulator, as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops.attention_to_ffn import SPEC
from npu_fused_graph.ops.window_tables import AttentionTables, FfnTables
from npu_fused_graph.sim.chips import CHIPS
from npu_fused_graph.sim.launch import Figures, RankLaunch
from npu_fused_graph.sim.operators import kernel_of
from npu_fused_graph.sim.picture import WARNING, chrome_trace, page


def trace(
    output: Path, *, tokens: int, hidden: int, top_k: int, experts: int, shared: int, ffn_ranks: int,
    is_quantised: bool, chip: str, log: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Launch AttentionToFFN once, on random tokens, and write its picture; facts about the launch.

    output: an HTML page, or with the ending .json a trace that Perfetto opens. chip: one of CHIPS that has the
    operator. Raises InvalidArgumentError for a chip without it, KernelError for sizes the operator does not have.
    """
    if chip not in CHIPS or not SPEC.runs_on(chip):
        known = ", ".join(name for name in CHIPS if SPEC.runs_on(name))
        raise argument_error("kernel", "--chip", f"one of {known}", chip, "AttentionToFFN is on these.")
    log(f"launching AttentionToFFN for {chip} in the simulator ...")
    figures = launch_dispatch(
        tokens=tokens, hidden=hidden, top_k=top_k, experts=experts, shared=shared, ffn_ranks=ffn_ranks,
        is_quantised=is_quantised, chip=chip,
    )  # fmt: skip
    title = f"AttentionToFFN, {tokens} tokens of {hidden}, {top_k} of {experts} experts + {shared}, {chip}"
    mhz = CHIPS[chip]
    if output.suffix == ".json":
        output.write_text(json.dumps(chrome_trace(figures, mhz)), encoding="utf-8")
    else:
        output.write_text(page(figures, title, mhz), encoding="utf-8")
    facts = {name: value for name, value in asdict(figures).items() if name != "trace"}
    us = figures.simulated_cycles / mhz
    return {"written": str(output), "launch": title, "simulated_us": us, **facts, "note": WARNING}


def launch_dispatch(
    *, tokens: int, hidden: int, top_k: int, experts: int, shared: int, ffn_ranks: int, is_quantised: bool, chip: str
) -> Figures:
    """One attention rank, bfloat16, experts dealt out to the FFN ranks by turns."""
    generator = torch.Generator().manual_seed(0)
    slots = top_k + shared
    record = -(-(hidden + 4) // 512) * 512 if is_quantised else hidden
    far = FfnTables(1, 1, tokens, slots, record, 1 if is_quantised else 2)
    own = AttentionTables(1, tokens, slots)
    table = torch.tensor([[[1, e % ffn_ranks, e // ffn_ranks] for e in range(experts + shared)]], dtype=torch.int32)
    chosen = [torch.randperm(experts, generator=generator)[:top_k] for _ in range(tokens)]
    one = torch.zeros(1, dtype=torch.int32)
    tensors: dict[str, torch.Tensor | None] = {
        "x": torch.randn(1, tokens, hidden, generator=generator).bfloat16(), "session_id": one,
        "micro_batch_id": one.clone(), "layer_id": one.clone(),
        "expert_ids": torch.stack(chosen)[None].int() if top_k <= experts else torch.zeros(1, tokens, top_k).int(),
        "expert_rank_table": table, "scales": None, "active_mask": None,
    }  # fmt: skip
    attrs = {
        "group": "hccl_world_group", "world_size": ffn_ranks + 1, "ffn_token_info_table_shape": [1, 1, far.words],
        "ffn_token_data_shape": [1, 1, tokens, slots, record], "attn_token_info_table_shape": [1, tokens, slots],
        "moe_expert_num": experts, "quant_mode": 2 if is_quantised else 0,
    }  # fmt: skip
    kernel = kernel_of(SPEC, {"x": "bfloat16"})
    windows = [torch.zeros(far.size, dtype=torch.int8) for _ in range(ffn_ranks)]
    sender = kernel.one_sided(tensors, attrs, chip, torch.zeros(own.info_size, dtype=torch.int8))
    return kernel.launch([*(RankLaunch(window=w) for w in windows), sender], is_traced=True)


def format_trace(facts: dict[str, Any]) -> str:
    """For people."""
    busy = {pipe: cycles / facts["simulated_cycles"] for pipe, cycles in facts["busiest"].items() if cycles}
    most = max(busy, key=lambda pipe: busy[pipe])
    return (
        f"{facts['launch']}\n"
        f"simulated: {facts['simulated_cycles']:,.0f} cycles, {facts['simulated_us']:,.1f} us; {most} is busy for "
        f"{busy[most]:.0%} of it\n"
        f"written: {facts['written']}\n"
        f"{facts['note']}"
    )
