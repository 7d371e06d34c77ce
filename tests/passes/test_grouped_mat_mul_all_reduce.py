"""Grouping matmul + all-reduce pairs: what is grouped and how, what is not and why, and that no number changes."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.fx import GraphModule

import npu_fused_graph as nfg
from npu_fused_graph.host import load_torchair
from npu_fused_graph.passes import CATALOGUE, FusionOptions, FusionSite, fuse_all
from npu_fused_graph.passes.grouped_mat_mul_all_reduce import fusion, match, rules
from npu_fused_graph.passes.location import module_path, source_line
from npu_fused_graph.testing import assert_close
from tests.passes import lockstep
from tests.passes.capture import capture_as, capture_with_arguments, fake_group
from tests.passes.foreign_ops import foreign_ops
from tests.passes.grouped_cases import FUSED, REFUSED, Fused, Graph, ar

pytestmark = pytest.mark.filterwarnings("ignore:.*expected one communication domain:UserWarning")

STEM = "grouped_mat_mul_all_reduce"
OP = "npu_fused_graph::npu_grouped_mat_mul_all_reduce"
MATMULS = ("mm", "addmm", "matmul")
CUTS_AND_JOINS = {"split_with_sizes", "split", "slice", "select", "unbind", "cat"}


@pytest.fixture(autouse=True, scope="module")
def _operators() -> Iterator[None]:
    load_torchair()
    with foreign_ops():
        yield


class Model(nn.Module):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.make = graph.make
        self.keywords = {}
        if "other" in inspect.signature(graph.make).parameters:
            self.keywords["other"] = dist.new_group(list(range(graph.ranks))).group_name

    def forward(self, *inputs: Tensor) -> Any:
        return self.make(*inputs, **self.keywords)


def inputs(graph: Graph) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(graph.dtype) for shape in graph.shapes]


def captured(graph: Graph) -> GraphModule:
    return captured_with_arguments(graph)[0]


def captured_with_arguments(graph: Graph) -> tuple[GraphModule, list[Any]]:
    tensors = inputs(graph)
    if graph.capture == "plain":
        return capture_as("plain", Model(graph), *tensors), tensors
    for x in tensors[:2] if graph.capture == "rows" else ():
        torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.reset()
    dynamic = None if graph.capture == "rows" else graph.capture == "dynamic"
    return capture_with_arguments(Model(graph), *tensors, dynamic=dynamic)


def grouped_sites(gm: GraphModule, **options: Any) -> list[FusionSite]:
    return [site for site in fuse_all(gm, FusionOptions(min_rows=0, **options)) if site.op == STEM]


def fused_nodes(gm: GraphModule) -> list[Any]:
    return [n for n in gm.graph.nodes if n.op == "call_function" and getattr(n.target, "name", str)() == OP]


def op_names(gm: GraphModule) -> Counter[str]:
    targets = [n.target for n in gm.graph.nodes if n.op == "call_function"]
    return Counter(t._opname for t in targets if isinstance(t, torch._ops.OpOverload))


def distinct_results(gm: GraphModule) -> int:
    (output,) = gm.graph.find_nodes(op="output")
    return len(output.all_input_nodes)


@pytest.mark.parametrize("name", FUSED)
def test_grouped(name: str) -> None:
    """Reported and left alone by default; grouped where it is asked for, without changing a number on any rank."""
    case = FUSED[name]
    with fake_group(8):
        gm, arguments = captured_with_arguments(case.graph)
        code, before, tensors = gm.code, op_names(gm), distinct_results(gm)
        shards = [_shard(arguments, rank) for rank in range(8)]
        wanted = {ranks: lockstep.run(gm, shards[:ranks]) for ranks in (2, 4, 8)}
        _check_reports(case, grouped_sites(gm))
        assert gm.code == code, "off by default"
        sites = grouped_sites(gm, grouped=True)
        _check_graph(case, gm, before, sites)
        assert distinct_results(gm) == tensors, "results that were tensors of their own still are"
        for ranks, results in wanted.items():
            for rank_before, rank_after in zip(results, lockstep.run(gm, shards[:ranks]), strict=True):
                for want, got in zip(rank_before, rank_after, strict=True):
                    size = _size(want)
                    assert_close(got / size, want / size, scale=ranks)
        code = gm.code
        assert grouped_sites(gm, grouped=True) == []
        assert gm.code == code, "a second run changes nothing"


def _check_reports(case: Fused, sites: list[FusionSite]) -> None:
    assert [site.reason for site in sites] == ["deprecated"] * len(case.groups)
    for site, (_, matmuls, collectives) in zip(sites, case.groups, strict=True):
        assert site.is_legal and not site.is_fused
        plural = "s" * (collectives > 1)
        assert f"(legal, {matmuls} matmuls and {collectives} collective{plural} -> 1 node)" in str(site)
        assert "deprecated" in str(site) and "Pass grouped=True." in str(site)


def _check_graph(case: Fused, gm: GraphModule, before: Counter[str], sites: list[FusionSite]) -> None:
    assert [site.is_fused for site in sites] == [True] * len(case.groups), sites
    assert [(s.facts["matmuls"], s.facts["collectives"]) for s in sites] == [(m, c) for _, m, c in case.groups]
    nodes = fused_nodes(gm)
    assert [n.name for n in nodes] == [site.node for site in sites]
    assert [(source_line(n), module_path(n)) for n in nodes] == [(site.source, site.layer) for site in sites]
    assert [n.kwargs["split_item"] for n in nodes] == [split_item for split_item, _, _ in case.groups]
    left = op_names(gm)
    assert not {"all_reduce", "all_reduce_", "wait_tensor", "npu_grouped_matmul", "npu_mm_all_reduce_base"} & set(left)
    matmuls = sum(before[name] for name in MATMULS)
    if matmuls:
        assert sum(left[name] for name in MATMULS) == matmuls - sum(m for _, m, _ in case.groups)
    assert set(left) & CUTS_AND_JOINS == case.extra, "nothing that cuts or joins tensors is left or added"


def _size(x: Tensor) -> float:
    """The power of two that brings ``x`` to about 1, for which the tolerances are."""
    rms = float(x.double().square().mean().sqrt()) if x.numel() else 0.0
    return max(1.0, 2.0 ** round(math.log2(rms))) if rms else 1.0


def _shard(arguments: list[Any], rank: int) -> list[Any]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(t.shape, generator=generator).to(t.dtype) if isinstance(t, Tensor) else t for t in arguments]


# -- refusals -------------------------------------------------------------------------------------------------


@contextmanager
def capture_of_refused(name: str) -> Iterator[tuple[GraphModule, dict[str, Any]]]:
    """The graph of a case in its group of ranks, and what the machine lacks."""
    graph, _ = REFUSED[name]
    missing = {STEM: CATALOGUE["ge_type_not_registered"]("another CANN")} if graph.unavailable else {}
    with fake_group(graph.ranks):
        yield captured(graph), missing


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    reason = REFUSED[name][1]
    with capture_of_refused(name) as (gm, missing):
        by_default = grouped_sites(gm, unavailable=missing)
        sites = grouped_sites(gm, grouped=True, unavailable=missing)
    assert by_default == [], "what cannot be grouped is not mentioned"
    assert not any(site.is_fused for site in sites), sites
    found = [site for site in sites if site.reason == reason]
    assert found, sites
    refusal = found[-1].refusal
    assert type(refusal) is CATALOGUE[reason]
    assert refusal.text and refusal.cure and refusal.node and ".py:" in refusal.source


BREAKS = {
    "machine_has_the_op": "not_on_this_machine",
    "only_adds": "maximum",
    "partial_sum_is_private": "partial_sum_read",
    "_nothing_is_quantised": "half_fused_and_quantised",
    "_dtypes": "weight_of_another_dtype",
    "_weights_are_k_n": "linear",
    "_x_is_contiguous": "transposed_x",
    "_joined_results_have_one_width": "flattened_and_joined",
    "_no_empty_group": "nothing_for_one_of_a_grouped_matmul",
    "_columns_fit": "wide",
    "_biases_are_vectors": "bias_per_row",
    "_shapes_can_be_spelled": "dynamic_in_three_dimensions",
    "group_is_known": "unknown_group",
    "group_has_a_size_of_the_op": "one_rank",
    "not_overlapped": "overlapped",
    "_count": "alone",
    "_grouped_matmul_is_reduced_whole": "grouped_matmul_reduced_in_part",
    "one_domain": "behind_an_operator_of_another_group",
    "_one_stream": "pair_across_streams",
    "_nothing_is_written": "written_behind_the_matmul",
    "_operands_can_come_first": "random_operand",
}
"""For each rule a case that it alone refuses; the rule that grouping is asked for has every fused case."""


def test_every_rule_has_a_case() -> None:
    asked = (*rules.PART_RULES, *rules.SITE_RULES)
    assert {*BREAKS, "_is_asked_for"} == {rule.check.__name__ for rule in asked}


@pytest.mark.parametrize("rule", BREAKS)
def test_without_the_rule_its_case_is_no_longer_refused_for_it(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with capture_of_refused(BREAKS[rule]) as (gm, missing):
        before = [site.reason for site in grouped_sites(gm, grouped=True, unavailable=missing)]
        for module, name in ((match, "PART_RULES"), (fusion, "SITE_RULES")):
            others = tuple(r for r in getattr(module, name) if r.check.__name__ != rule)
            monkeypatch.setattr(module, name, others)
        try:
            after = [site.reason for site in grouped_sites(gm, grouped=True, unavailable=missing)]
        except Exception as error:  # what the rule keeps out may not be expressible at all
            after = [type(error).__name__]
    assert any(before)
    assert after != before


# -- on one rank and on another -------------------------------------------------------------------------------


def test_a_bias_of_one_rank_changes_no_decision() -> None:
    """DTensor's row-parallel linear has its bias on rank 0 only."""
    graph = FUSED["one_bias"].graph
    without = Graph(lambda x, w, v, b: FUSED["separate"].graph.make(x, w, v), graph.shapes, dtype=graph.dtype)
    with fake_group(2):
        first, second = captured(graph), captured(without)
        decisions = [
            [(s.is_fused, s.facts["matmuls"], s.facts["shape"]) for s in grouped_sites(gm, grouped=True)]
            for gm in (first, second)
        ]
    assert decisions[0] == decisions[1] == [(True, 2, "2 x bfloat16[10, 8]")]


@pytest.mark.parametrize("step", [1, 2])
def test_a_bias_is_handed_over_contiguous(step: int) -> None:
    def model(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Any:
        bias = b[::step]
        return [ar(torch.addmm(bias, x, weight)) for weight in (w, v)]

    with fake_group(2):
        arguments = [torch.ones(shape).half() for shape in ((4, 8), (8, 6), (8, 6), (6 * step,))]
        gm, _ = capture_with_arguments(model, *arguments)
        assert [s.is_fused for s in grouped_sites(gm, grouped=True)] == [True]
    (fused,) = (n for n in gm.graph.nodes if "npu_grouped_mat_mul_all_reduce" in str(n.target))
    assert [b.meta["val"].is_contiguous() for b in fused.kwargs["bias"]] == [True, True]
    assert len(gm.graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default)) == (2 if step == 2 else 0)


def test_sites_of_both_passes_in_one_model() -> None:
    """The attention's reduce goes with its norm, the experts' reduces go together."""
    from tests.passes.blocks import Block

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Block()
            self.experts = nn.ParameterList(nn.Parameter(torch.randn(32, 32).half()) for _ in range(2))

        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            y, h = self.attention(x, residual)
            make = FUSED["separate"].graph.make
            a, b = make(h, *self.experts)
            return y + a + b

    with fake_group(2):
        report = nfg.explain(
            Layer(), torch.zeros(2, 3, 16).half(), torch.zeros(2, 3, 32).half(), min_rows=0, grouped=True
        )
    assert [(s.op, s.facts.get("collectives", 1)) for s in report.fused] == [
        ("matmul_all_reduce_add_rms_norm", 1),
        (STEM, 2),
    ]


@pytest.mark.parametrize("value", [1, "yes", None])
def test_bad_option(value: Any) -> None:
    with pytest.raises(nfg.errors.InvalidArgumentError, match="grouped: expected True or False"):
        FusionOptions(grouped=value)


def test_each_of_a_chain_says_what_ended_it() -> None:
    def chain(x: Tensor, w: Tensor, v: Tensor, u: Tensor) -> Any:
        return ar(ar(ar(x @ w).relu() @ v).relu() @ u)

    with fake_group(2):
        gm = captured(Graph(chain, ((6, 16), (16, 32), (32, 16), (16, 32))))
        sites = grouped_sites(gm, grouped=True)
    assert [site.reason for site in sites] == ["critical_path", "critical_path", "single_reduce"]
