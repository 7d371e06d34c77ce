"""Everything that must not be fused: refused, and for that reason."""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.fx import GraphModule

from npu_fused_graph.host import load_torchair
from npu_fused_graph.passes import CATALOGUE, FusionOptions, FusionSite, fuse_all
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm import fusion, rules
from tests.passes.capture import capture_as, fake_group
from tests.passes.foreign_ops import foreign_ops
from tests.passes.grouped_cases import REFUSED as GROUPING
from tests.passes.refused import CASES, Parts
from tests.passes.test_attention import REACHED as ATTENTION

DATA = Path(__file__).with_name("data")


def table() -> list[tuple[str, str, str]]:
    """(case, rule or "site" where none was found, reason) of refusals.csv."""
    with (DATA / "refusals.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    return [(row[0], row[1], row[2]) for row in rows]


@pytest.fixture(autouse=True, scope="module")
def _operators() -> Iterator[None]:
    load_torchair()
    with foreign_ops():
        yield


@contextmanager
def captured(name: str) -> Iterator[GraphModule]:
    """The graph of a case, in its group of ranks."""
    case = CASES[name]
    inputs = case.inputs()
    with fake_group(case.ranks):
        yield capture_as(case.capture, Parts(case.make, case.dtype), *inputs)


def sites_of(name: str, gm: GraphModule) -> list[FusionSite]:
    case = CASES[name]
    missing = (
        {"matmul_all_reduce_add_rms_norm": CATALOGUE[case.unavailable]("another chip")} if case.unavailable else {}
    )
    torch.use_deterministic_algorithms(case.deterministic)
    try:
        return fuse_all(gm, FusionOptions(case.numerics, case.min_rows, unavailable=missing))
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_table_names_every_case() -> None:
    assert {name for name, _, _ in table()} == set(CASES)


@pytest.mark.parametrize(("name", "reason"), [pytest.param(n, r, id=n) for n, _, r in table()])
def test_refused(name: str, reason: str) -> None:
    with captured(name) as gm:
        sites = sites_of(name, gm)
    assert len(sites) == CASES[name].sites
    refused = [site for site in sites if site.reason == reason]
    assert refused, sites
    refusal = refused[-1].refusal
    assert refusal is not None
    assert type(refusal) is CATALOGUE[reason]
    assert refusal.text and refusal.cure and refusal.node
    assert refusal.source.rpartition(":")[0].endswith((".py",)), refusal


DIFFERENCES = {
    "mean_over_two_dims": "the mean runs over the dims [1, 2] of 3, not over the last",
    "mean_over_the_wrong_dim": "the mean runs over the dims [1] of 3, not over the last",
    "cubed": "is not x ** 2",
    "sum_of_squares": "the squares are summed by sum_1, not averaged over n",
    "no_epsilon": "epsilon is not plainly added to the mean of the squares",
    "epsilon_times_alpha": "epsilon is not plainly added to the mean of the squares",
    "root_in_the_models_dtype": "x is not scaled by it in float32",
    "gamma_per_row": "is not multiplied by a weight of n elements",
    "half_statistics": "the norm computes its statistics in float16 (mean)",
    "half_throughout": "the norm computes its statistics in float16 (pow_1)",
    "float32_sum_without_norm": "the residual is added in float32: add",
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_near_miss_says_what_differs(name: str) -> None:
    with captured(name) as gm:
        (site,) = sites_of(name, gm)
    assert site.refusal is not None
    assert DIFFERENCES[name] in site.refusal.text
    if site.reason == "no_rms_norm":
        assert "weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)" in site.cure


BREAKS: dict[str, str] = {
    "machine_has_the_op": "plain",
    "only_adds": "avg",
    "partial_sum_is_private": "partial_used",
    "_nothing_is_scaled": "alpha",
    "_one_reduce": "parallel_into_the_residual",
    "_result_is_half": "float32_model",
    "_norm_is_private": "rstd_returned",
    "_epsilon_is_literal": "tensor_epsilon",
    "_epsilon_is_in_range": "big_epsilon",
    "_residual_has_full_shape": "broadcast_rows",
    "_dtypes_agree": "wide_bias",
    "_rows_stay_rows": "norm_of_half_rows",
    "_bias_is_vector": "bias_per_row",
    "_layouts": "strided_residual",
    "_weight_layout": "strided_weight",
    "_shapes_can_be_spelled": "dynamic_rank_4",
    "_quantisation_is_supported": "float32_dequant_scale",
    "group_is_known": "unknown_group",
    "group_has_a_size_of_the_op": "group_of_three",
    "one_domain": "second_group",
    "_operands_can_come_first": "gamma_computed_late",
    "_collectives_keep_their_order": "collective_between",
    "_one_stream": "other_stream",
    "not_overlapped": "overlapped",
    "_nothing_is_written": "mutated_between",
    "_order_of_reduction_is_free": "deterministic",
    "_roundings_are_allowed": "single_rounding",
    "_rows_are_worth_it": "decode_rows",
}
"""For each rule a case that it alone refuses."""


def test_every_rule_has_a_case() -> None:
    assert set(BREAKS) == {rule.check.__name__ for rule in (*rules.RULES, *rules.ORDER_RULES)}


@pytest.mark.parametrize("rule", BREAKS)
def test_without_the_rule_its_case_is_no_longer_refused_for_it(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that nothing depends on would be noise, or tested by nothing."""
    name = BREAKS[rule]
    with captured(name) as gm:
        before = [site.reason for site in sites_of(name, copy.deepcopy(gm))]
        for table_of_rules in ("RULES", "ORDER_RULES"):
            others = tuple(r for r in getattr(rules, table_of_rules) if r.check.__name__ != rule)
            monkeypatch.setattr(fusion, table_of_rules, others)
        try:
            after = [site.reason for site in sites_of(name, gm)]
        except Exception as error:  # what the rule keeps out may not be expressible at all
            after = [f"{type(error).__name__}"]
    assert any(before)
    assert after != before


def test_every_reason_is_reached() -> None:
    """By a case here or of grouping, a row of verdicts.csv, or what the installation lacks (tests of capabilities) or
    Dynamo leaves out (test_explain)."""
    with (DATA / "verdicts.csv").open(newline="") as file:
        cells = {cell for row in csv.reader(file) for cell in row}
    grouping = {reason for _, reason in GROUPING.values()} | {"deprecated"}
    elsewhere = {"ge_type_not_registered", "ge_ir_differs", "no_eager_kernel", "graph_break", "outside_every_graph"}
    elsewhere.add("no_window_plan")  # test_dispatch_sites
    elsewhere |= ATTENTION
    assert set(CATALOGUE) == ({reason for _, _, reason in table()} | (cells & set(CATALOGUE)) | grouping | elsewhere)
