"""What `run` says of graphs that are compiled without our passes, and that looking at them changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from npu_fused_graph.host.run_report import RunReport, SiteCounts, format_report, read_report
from npu_fused_graph.host.standin import fusable, process
from npu_fused_graph.host.standin.fusable import would_fuse
from npu_fused_graph.passes import FusionOptions, fuse_all
from npu_fused_graph.passes.refusals import CATALOGUE
from npu_fused_graph.passes.verdicts import FusionSite
from tests.passes.blocks import Block
from tests.passes.capture import capture, capture_as, fake_group


def sizes(gm: GraphModule) -> list[torch.SymInt]:
    return [node.meta["val"] for node in gm.graph.nodes if isinstance(node.meta.get("val"), torch.SymInt)]


def guards(gm: GraphModule) -> list[str]:
    return [str(guard.expr) for guard in sizes(gm)[0].node.shape_env.guards]


def described(gm: GraphModule) -> list[Any]:
    return [(node.format_node(), list(node.meta.items())) for node in gm.graph.nodes]


INPUTS = torch.zeros(2, 4000, 16).half(), torch.zeros(2, 4000, 32).half()


def test_a_graph_stays_as_it_is() -> None:
    """The copy is rewritten: the verdict is that of the pass."""
    with fake_group(2):
        gm = capture(Block(), *INPUTS)
        nodes, code = described(gm), gm.code
        sites = would_fuse(gm)
        after = described(gm)
        assert [site.is_fused for site in sites] == [True]
        assert gm.code == code
        assert [text for text, _ in after] == [text for text, _ in nodes]
        for (_, before), (_, now) in zip(nodes, after, strict=True):
            assert [key for key, _ in now] == [key for key, _ in before]
            assert all(a is b for (_, a), (_, b) in zip(now, before, strict=True))
        assert [site.as_dict() for site in fuse_all(gm)] == [site.as_dict() for site in sites]


def test_a_look_makes_no_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a rule asks about a size: the script must not be compiled more often."""
    answers = []

    def ask(gm: GraphModule, options: FusionOptions) -> list[FusionSite]:
        answers.extend(bool(size > 3) for size in sizes(gm))
        return []

    with fake_group(2):
        gm = capture_as("mark_dynamic", Block(), *INPUTS)
        known = guards(gm)
        with monkeypatch.context() as patch:
            patch.setattr(fusable, "fuse_all", ask)
            would_fuse(gm)
        assert answers == [False, True], "2 and 4000"
        assert guards(gm) == known
        ask(gm, FusionOptions())
        assert len(guards(gm)) > len(known), "it would have made one"


def site(reason: str = "") -> FusionSite:
    refusal = CATALOGUE[reason]("text", "cure") if reason else None
    return FusionSite("matmul_all_reduce_add_rms_norm", "all_reduce", "model.py:1", "layer", refusal=refusal)


def test_verdicts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "counts", Counter())
    verdicts = [site(), site(), site("min_rows"), site("numerics"), site("deprecated")]
    process.count_sites(verdicts, False)
    process.count_sites(verdicts, True)
    process.count_sites([site("min_rows")], True)
    assert +process.counts == {
        "sites legal": 7, "sites fused": 2, "sites off": 2, "sites small_off": 1, "sites small_on": 2,
        "refused numerics": 2,
    }  # fmt: skip


TOLD: dict[str, tuple[SiteCounts, int, list[str]]] = {
    "no site": (SiteCounts(), 2, []),
    "all fused": (SiteCounts(legal=4, fused=4), 1, ["  legal sites 4, fused 4"]),
    "off": (SiteCounts(legal=6, off=6), 1, ["  legal sites 6, fused 0: add nfg.enable_fusion(config)"]),
    "off on two ranks": (
        SiteCounts(legal=12, off=12), 2, ["  legal sites 12 in 2 ranks, fused 0: add nfg.enable_fusion(config)"],
    ),
    "off, few rows": (
        SiteCounts(legal=6, small_off=6), 1,
        ["  legal sites 6, fused 0: add nfg.enable_fusion(config, min_rows=0), they have few rows"],
    ),
    "off, some of few rows": (
        SiteCounts(legal=6, off=4, small_off=2), 1,
        ["  legal sites 6, fused 0: add nfg.enable_fusion(config); min_rows=0 fuses the 2 with few rows, too"],
    ),
    "on, few rows": (
        SiteCounts(legal=6, fused=4, small_on=2), 1,
        ["  legal sites 6, fused 4: min_rows=0 fuses the 2 with few rows, too"],
    ),
    "refused": (
        SiteCounts(refused={"no_rms_norm": 1, "numerics": 2}), 1,
        ["  legal sites 0, fused 0", "  refused sites 3: no_rms_norm 1, numerics 2; nfg.explain says why"],
    ),
    "not examined": (
        SiteCounts(unexamined={"KeyError: 'val'": 2}), 1, ["  2 graphs not examined for sites: KeyError: 'val'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TOLD))
def test_what_the_report_says(name: str) -> None:
    sites, ranks, lines = TOLD[name]
    assert format_report(RunReport(ranks=ranks, sites=sites)).splitlines()[1:] == lines


def test_counts_of_processes_are_added(tmp_path: Path) -> None:
    for pid in (1, 2):
        counts = {"sites legal": 3, "sites off": 2, "sites small_off": 1, "refused numerics": 1, "unexamined E: x": 1}
        end = {"event": "end", "counts": counts, "breaks": {}}
        (tmp_path / f"{pid}.jsonl").write_text(json.dumps(end) + "\n")
    sites = SiteCounts(legal=6, off=4, small_off=2, refused={"numerics": 2}, unexamined={"E: x": 2})
    assert read_report(tmp_path, 0, 0).sites == sites
