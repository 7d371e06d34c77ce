"""Fuses one graph and compares everything that is known about it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from npu_fused_graph.passes import FusionOptions, fuse_all
from npu_fused_graph.passes.verdicts import FusionSite
from tests.passes import lockstep
from tests.passes.fuzz.text import Expectation, Result, Verdicts, tolerance, verdicts

MANY_ROWS = 1 << 20
MOSTLY = 0.9
"""Share of elements that are equal bit by bit where only the statistics' last bit may differ; a rounding more or less
changes a quarter of them."""


@dataclass
class Failure(Exception):
    """kind: "numbers", "crash", "verdict", "meta", "layout", "lint", "idempotence", "signature" or "decisions"."""

    kind: str
    text: str
    graph: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class Case:
    """A graph with what its placeholders get on each rank and what must become of its collectives.

    wanted: results of the unfused graph on each rank, once they are known.
    """

    gm: GraphModule
    arguments: list[list[Any]]
    results: Sequence[Result]
    expected: Sequence[Expectation]
    deterministic: bool = False
    in_place: bool = False
    wanted: list[list[Any]] = field(default_factory=list)

    def unfused(self) -> list[list[Any]]:
        if not self.wanted:
            self.wanted.extend(_run(self, self.gm, "unfused"))
        return self.wanted


def check(case: Case, levels: Sequence[str] = ("same_rounding",)) -> list[FusionSite]:
    """The records for numerics="any"; raises Failure. levels: further values of numerics to compare the verdicts of."""
    fused, sites = fuse(case, "any")
    _check_graph(case, fused)
    _check_numbers(case, fused)
    _check_again(case, fused)
    for level in levels:
        fuse(case, level)
    return sites


def check_min_rows(case: Case) -> None:
    """With a limit above the rows of every site the legal ones are refused for that."""
    _, sites = fuse(case, "any", min_rows=MANY_ROWS, compares=False)
    for site, expected in zip(sites, case.expected, strict=True):
        if site.is_fused or (expected.is_legal and site.reason != "min_rows"):
            raise Failure("verdict", f"min_rows={MANY_ROWS}: expected min_rows, got: {site}", text_of(case.gm))


def fuse(
    case: Case, numerics: Any, *, min_rows: int = 0, compares: bool = True
) -> tuple[GraphModule, list[FusionSite]]:
    """A fused copy of the graph. compares: with verdicts as constructed."""
    fused = copy.deepcopy(case.gm)
    sites = _fuse(case, fused, numerics, min_rows)
    if compares:
        _check_verdicts(sites, verdicts(case.expected, numerics), numerics, fused)
    return fused, sites


def _fuse(case: Case, gm: GraphModule, numerics: Any, min_rows: int = 0) -> list[FusionSite]:
    """The records of the first pass. What it leaves may be grouped: its numbers are checked, its verdicts are not."""
    with _deterministic(case.deterministic):
        try:
            sites = fuse_all(
                gm, FusionOptions(numerics=numerics, min_rows=min_rows, grouped=True, in_place=case.in_place)
            )
        except Exception as error:
            raise Failure("crash", f"fuse_all: {type(error).__name__}: {error}", text_of(gm)) from error
    return [site for site in sites if site.op == "matmul_all_reduce_add_rms_norm"]


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _check_verdicts(sites: list[FusionSite], wanted: Verdicts, numerics: str, gm: GraphModule) -> None:
    if len(sites) != len(wanted):
        text = f"{len(sites)} records for {len(wanted)} collectives: {[str(s) for s in sites]}"
        raise Failure("verdict", text, text_of(gm))
    for i, (site, (reasons, expected)) in enumerate(zip(sites, wanted, strict=True)):
        where = f"numerics={numerics!r}, collective {i} ({site.node})"
        if site.reason not in reasons:
            verdict = " or ".join(sorted(r or f"fused as {expected}" for r in reasons))
            raise Failure("verdict", f"{where}: expected {verdict}, got: {site}", text_of(gm))
        if site.is_fused and site.numerics != expected:
            raise Failure("verdict", f"{where}: expected class {expected}, got {site.numerics}", text_of(gm))
        if site.refusal is not None and not (site.refusal.reason and site.refusal.text and site.cure):
            raise Failure("verdict", f"{where}: a refusal without reason, text or cure: {site}", text_of(gm))
    count = sum("npu_mm_all_reduce_add_rms_norm" in str(n.target) for n in gm.graph.nodes if n.op == "call_function")
    if count < sum(site.is_fused for site in sites):
        raise Failure("verdict", f"{count} fused nodes for the records {[str(s) for s in sites]}", text_of(gm))


def _check_graph(case: Case, fused: GraphModule) -> None:
    try:
        fused.graph.lint()
    except Exception as error:
        raise Failure("lint", str(error), text_of(fused)) from error
    for what in ("placeholder", "output"):
        before, after = (gm.graph.find_nodes(op=what) for gm in (case.gm, fused))
        if [n.target for n in before] != [n.target for n in after]:
            raise Failure("signature", f"{what}s were {before}, are {after}", text_of(fused))
    for node in fused.graph.nodes:
        if node.op == "call_function" and "val" not in node.meta:
            raise Failure("meta", f"{node.format_node()} has no meta['val']", text_of(fused))


def _check_numbers(case: Case, fused: GraphModule) -> None:
    wanted = case.unfused()
    got = _run(case, fused, "fused")
    for rank, (expected, actual) in enumerate(zip(wanted, got, strict=True)):
        if len(expected) != len(actual):
            raise Failure("signature", f"{len(expected)} results became {len(actual)}", text_of(fused))
        for i, (result, x, y) in enumerate(zip(case.results, expected, actual, strict=True)):
            problem = _difference(result, x, y)
            if problem:
                raise Failure(*problem[:1], f"rank {rank}, result {i} ({result.name}): {problem[1]}", text_of(fused))


def _run(case: Case, gm: GraphModule, what: str) -> list[list[Any]]:
    torch.manual_seed(0)  # dropout
    try:
        with torch.no_grad():
            return lockstep.run(gm, case.arguments)
    except lockstep.LockstepError as error:
        kind = "meta" if "meta says" in str(error) else "crash"
        raise Failure(kind, f"the {what} graph: {error}", text_of(gm)) from error
    except Exception as error:
        raise Failure("crash", f"the {what} graph: {type(error).__name__}: {error}", text_of(gm)) from error


def _difference(result: Result, expected: Tensor, actual: Tensor) -> tuple[str, str] | None:
    facts = [(tuple(x.shape), x.dtype, x.stride()) for x in (expected, actual)]
    if facts[0] != facts[1]:
        return "layout", f"was {facts[0]}, is {facts[1]}"
    if torch.equal(expected.nan_to_num(), actual.nan_to_num()) and torch.equal(expected.isnan(), actual.isnan()):
        return None
    differs = expected.double().nan_to_num() != actual.double().nan_to_num()
    text = f"{int(differs.sum())} of {differs.numel()} elements differ"
    if not expected.is_floating_point() or not torch.equal(expected.isfinite(), actual.isfinite()):
        return "numbers", text
    distance = (expected.double() - actual.double()).abs().nan_to_num()
    bound = tolerance(expected, result.dtype, result.ulps)
    if (distance > bound).any():
        worst = float((distance / tolerance(expected, result.dtype, 1.0)).max())
        return "numbers", f"{text}, by up to {worst:.3g} units in the last place; allowed: {result.ulps:.3g}"
    share = 1 - float(differs.double().mean())
    if result.mostly_equal and differs.numel() >= 30 and share < MOSTLY:
        return "numbers", f"{text}: more than statistics alone explain"
    return None


def _check_again(case: Case, fused: GraphModule) -> None:
    before = text_of(fused)
    again = _fuse(case, fused, "any")
    if any(site.is_fused for site in again):
        raise Failure("idempotence", f"the fused graph has sites: {[str(s) for s in again]}", before)
    if text_of(fused) != before:
        raise Failure("idempotence", f"the second run changed the graph to\n{text_of(fused)}", before)


def text_of(gm: GraphModule) -> str:
    """The graph, one node per line, with shapes and dtypes."""
    lines = []
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        facts = f"  # {str(value.dtype).removeprefix('torch.')}{list(value.shape)}" if isinstance(value, Tensor) else ""
        lines.append(f"{node.format_node()}{facts}".replace("call_function[target=torch.ops.", "["))
    return "\n".join(lines)
