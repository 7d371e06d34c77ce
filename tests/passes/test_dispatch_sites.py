"""Dispatches of tokens to experts in a report: calls of the operator, and what is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed._functional_collectives as functional
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph import afd
from npu_fused_graph.host.standin import process
from npu_fused_graph.passes import FusionOptions, fuse_all
from npu_fused_graph.passes.refusals import Soc
from tests.ops.dispatch_constraint_cases import good
from tests.passes.capture import capture, fake_group

TOKENS = torch.ones(1, 3, 1024, dtype=torch.bfloat16)
ROWS, ORDER = torch.ones(4, 8), torch.tensor([3, 1, 2, 0])


@pytest.fixture(autouse=True)
def four_ranks() -> Iterator[None]:
    with fake_group(4):
        yield


def sent(x: Tensor) -> Tensor:
    nfg.npu_attention_to_ffn(**good() | {"x": x})
    return x * 2


def test_a_call_is_one_node() -> None:
    report = nfg.explain(sent, TOKENS)
    (site,) = report.sites
    assert (site.op, site.is_fused, site.is_legal, site.facts) == (
        "attention_to_ffn", True, True, {"shape": "1 x 3 x 1024", "is_call": True}
    )  # fmt: skip
    assert site.source == f"{Path(__file__)}:{sent.__code__.co_firstlineno + 1}"
    assert str(site) == f"is attention_to_ffn, one node: npu_attention_to_ffn at {site.source}"
    assert site.as_dict()["shape"] == "1 x 3 x 1024"


def test_a_call_that_the_machine_does_not_have() -> None:
    gm = capture(sent, TOKENS)
    lacks = FusionOptions(unavailable={"attention_to_ffn": Soc("CANN has it for Atlas A3 only")})
    (site,) = fuse_all(gm, lacks)
    assert (site.is_fused, site.reason, site.refusal.source if site.refusal else "") == (False, "soc", site.source)


def test_a_worker_needs_no_other_rank_to_be_looked_at() -> None:
    plan = afd.plan(4, ffn_ranks=2, ffn_start=2, tokens=4, hidden=1024, k=2, moe_experts=4)
    x, ids = torch.ones(4, 1024, dtype=torch.bfloat16), torch.tensor([[0, 1]] * 4, dtype=torch.int32)
    with afd.AttentionWorker(plan, "0") as worker:

        def step(x: Tensor, scores: Tensor) -> Tensor:
            worker.send(x, ids)
            return x + worker.receive(scores)

        (site,) = nfg.explain(step, x, torch.ones(4, 2)).sites
    assert (site.is_fused, site.source) == (True, f"{Path(__file__)}:{step.__code__.co_firstlineno + 1}")


def exchanged(x: Tensor, order: Tensor) -> Tensor:
    there = functional.all_to_all_single(x[order], None, None, "0")
    return functional.all_to_all_single(there * 2, None, None, "0")


def padded(x: Tensor, order: Tensor) -> Tensor:
    picked = torch.cat([torch.index_select(x, 0, order), x[:0]])
    return functional.all_to_all_single(picked.view(4, 8), None, None, "0")


def not_picked(x: Tensor, order: Tensor) -> Tensor:
    return functional.all_to_all_single(x[order] * 2, None, None, "0")


@pytest.mark.parametrize(("model", "dispatches"), [(exchanged, 1), (padded, 1), (not_picked, 0)])
def test_a_dispatch_by_hand(model: Callable[..., Any], dispatches: int) -> None:
    """The way back sends what was computed, no tokens that were picked."""
    report = nfg.explain(model, ROWS, ORDER)
    assert [(s.op, s.reason, s.is_legal) for s in report.sites] == [
        ("attention_to_ffn", "no_window_plan", False)
    ] * dispatches
    for site in report.sites:
        assert "tokens are sent by npu_define::all_to_all_single_npu, between ranks that all hold experts" in str(site)
        assert "split attention and FFN ranks with npu_fused_graph.afd" in site.cure


def test_torch_npus_dispatch_between_experts() -> None:
    library = torch.library.Library("npu", "FRAGMENT")
    try:
        library.define("npu_moe_distribute_dispatch(Tensor x, Tensor expert_ids) -> Tensor")
        library.impl("npu_moe_distribute_dispatch", lambda x, ids: x.clone(), "CompositeExplicitAutograd")
        dispatch = torch.ops.npu.npu_moe_distribute_dispatch
        (site,) = nfg.explain(lambda x, ids: dispatch(x, ids) + 1, ROWS, ORDER).sites
    finally:
        library._destroy()
    assert (site.reason, site.facts["shape"]) == ("no_window_plan", "4 x 8")


def test_a_run_counts_what_is_written_by_hand_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to switch on what is one node already."""
    monkeypatch.setattr(process, "counts", type(process.counts)())
    process.count_sites(nfg.explain(sent, TOKENS).sites, False)
    assert not process.counts
    process.count_sites(nfg.explain(exchanged, ROWS, ORDER).sites, False)
    assert dict(process.counts) == {"refused no_window_plan": 1}
