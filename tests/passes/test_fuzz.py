"""Random programs: some that are always the same, and whether the fuzzer would see what it looks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.fx import GraphModule, Node

from npu_fused_graph.passes import fuse_all
from tests.passes.fuzz import check
from tests.passes.fuzz.cli import LEGAL_SHARE, report_of
from tests.passes.fuzz.faults import FAULTS
from tests.passes.fuzz.fuzzing import Tally, case_of, check_plan
from tests.passes.fuzz.graphs import Groups, captured, environment
from tests.passes.fuzz.linears import LINEARS, REDUCES
from tests.passes.fuzz.norms import NORMS
from tests.passes.fuzz.plan import ProgramPlan, SitePlan, draw
from tests.passes.fuzz.program import write

aten = torch.ops.aten

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"  # Dynamo does it to Megatron's autograd function
)


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    with environment() as groups:
        yield groups


@pytest.mark.parametrize("first", range(0, 16, 4))
def test_programs(first: int, groups: Groups) -> None:
    """About 60 graphs; ``make fuzz`` checks more."""
    tally = Tally()
    failures = [found for seed in range(first, first + 4) for found in check_plan(draw(seed), groups, tally)]
    assert not failures, "\n".join(map(report_of, failures))
    assert tally.graphs >= 8


def test_every_row_of_the_tables_is_drawn() -> None:
    plans = [draw(seed) for seed in range(6000)]
    sites = [site for plan in plans for site in plan.sites]
    assert {site.linear for site in sites} == set(LINEARS)
    assert {site.reduce for site in sites} == {*REDUCES, "base"}
    assert {site.norm for site in sites} == set(NORMS)
    assert {site.fault for site in sites} == {"", *FAULTS}
    for plan in plans[:400]:
        compile(write(plan).source, "program", "exec")
    legal = sum(any(site.is_legal for site in write(plan).expected) for plan in plans[:400])
    assert legal >= LEGAL_SHARE * 400


# -- what a wrong pass would do ----------------------------------------------------------------------------------------


def fused_nodes(gm: GraphModule) -> list[Node]:
    return [n for n in gm.graph.nodes if "npu_mm_all_reduce_add_rms_norm" in str(n.target)]


def other_epsilon(gm: GraphModule) -> None:
    for node in fused_nodes(gm):
        node.kwargs = node.kwargs | {"epsilon": node.kwargs["epsilon"] * 1.5}


def swapped_results(gm: GraphModule) -> None:
    for node in fused_nodes(gm):
        for user in list(node.users):
            user.args = (node, 1 - user.args[1])


def no_bias(gm: GraphModule) -> None:
    for node in fused_nodes(gm):
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "bias"}


def residual_twice(gm: GraphModule) -> None:
    for node in fused_nodes(gm):
        with gm.graph.inserting_before(node):
            double = gm.graph.call_function(aten.add.Tensor, (node.args[2], node.args[2]))
        double.meta["val"] = node.args[2].meta["val"]
        node.args = (*node.args[:2], double, *node.args[3:])


def rounded_once_more(gm: GraphModule) -> None:
    """norm_out = RN(y * rstd * gamma) instead of RN(RN(y * rstd) * gamma)."""
    for node in fused_nodes(gm):
        (total,) = (user for user in node.users if user.args[1] == 0)
        (norm,) = (user for user in node.users if user.args[1] == 1)
        with gm.graph.inserting_after(total):
            other = gm.graph.call_function(
                torch.ops.aten.rms_norm.default, (total, [node.args[3].meta["val"].size(0)]), {}
            )
            other.args = (*other.args, node.args[3], node.kwargs["epsilon"])
        other.meta["val"] = norm.meta["val"]
        norm.replace_all_uses_with(other)


def another_result(gm: GraphModule) -> None:
    (output,) = gm.graph.find_nodes(op="output")
    output.args = ((*output.args[0], output.args[0][0]),)


def transposed_result(gm: GraphModule) -> None:
    (output,) = gm.graph.find_nodes(op="output")
    first = output.args[0][0]
    with gm.graph.inserting_before(output):
        swapped = gm.graph.call_function(aten.transpose.int, (first, 0, 1))
        copied = gm.graph.call_function(aten.clone.default, (swapped,), {"memory_format": torch.contiguous_format})
        back = gm.graph.call_function(aten.transpose.int, (copied, 0, 1))
    for node in (swapped, copied, back):
        node.meta["val"] = None
    output.args = ((back, *output.args[0][1:]),)


def no_meta(gm: GraphModule) -> None:
    del fused_nodes(gm)[0].meta["val"]


WRONG: list[tuple[Callable[[GraphModule], None], str]] = [
    (other_epsilon, "numbers"),
    (swapped_results, "numbers"),
    (no_bias, "numbers"),
    (residual_twice, "numbers"),
    (rounded_once_more, "numbers"),
    (another_result, "signature"),
    (transposed_result, "layout"),
    (no_meta, "meta"),
]


@pytest.fixture(scope="module")
def cases(groups: Groups) -> list[check.Case]:
    """One site with a bias, one without, so that the first row is tiny and epsilon counts."""
    plans = [ProgramPlan(0, "plain", ranks=4, lead=(4, 3), sites=(SitePlan(bias=bias),)) for bias in ("linear", "none")]
    return [case_of(write(plan), captured(write(plan), groups)) for plan in plans]


@pytest.mark.parametrize(("change", "kind"), [pytest.param(c, k, id=c.__name__) for c, k in WRONG])
def test_a_wrong_pass_is_caught(
    change: Callable[[GraphModule], None], kind: str, cases: list[check.Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(gm: GraphModule, options: Any) -> Any:
        sites = fuse_all(gm, options)
        if any(site.is_fused for site in sites):
            change(gm)
            gm.recompile()
        return sites

    case = cases[change is other_epsilon]
    check.check(case)
    monkeypatch.setattr(check, "fuse_all", wrong)
    with pytest.raises(check.Failure) as failure:
        check.check(case)
    assert failure.value.kind == kind, failure.value


def test_a_wrong_verdict_is_caught(groups: Groups) -> None:
    for fault, expected in (("", "reduced_used"), ("reduced_used", "")):
        plans = [ProgramPlan(0, "plain", sites=(SitePlan(fault=name),)) for name in (fault, expected)]
        case = case_of(write(plans[0]), captured(write(plans[0]), groups))
        wrong = check.Case(case.gm, case.arguments, case.results, write(plans[1]).expected)
        with pytest.raises(check.Failure, match=r"verdict: .*expected"):
            check.check(wrong)
