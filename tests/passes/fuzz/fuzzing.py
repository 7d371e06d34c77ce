"""Checks the programs of a range of seeds, each in several variants of its graph, and counts what was seen."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from npu_fused_graph.passes.verdicts import FusionSite
from tests.passes.fuzz.check import Case, Failure, check, check_min_rows, fuse
from tests.passes.fuzz.graphs import Captured, Groups, captured
from tests.passes.fuzz.plan import ProgramPlan, draw
from tests.passes.fuzz.program import Written, of_other_ranks, write
from tests.passes.fuzz.variants import VARIANTS

VARIANTS_PER_PROGRAM = 3
DECISIONS = "decisions"


@dataclass
class Found:
    """A failure with what reproduces it. variant: "" = the graph as captured, "decisions" = the ranks' comparison."""

    plan: ProgramPlan
    variant: str
    failure: Failure

    @property
    def seed(self) -> int:
        return self.plan.seed


@dataclass
class Tally:
    """graphs: checked ones. legal_graphs: with a site that is legal by construction. sites, fused, reasons: of the run
    with numerics="any"."""

    programs: int = 0
    graphs: int = 0
    legal_graphs: int = 0
    legal_sites: int = 0
    sites: int = 0
    fused: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    captures: Counter[str] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def count(self, case: Case, sites: Sequence[FusionSite]) -> None:
        self.graphs += 1
        legal = sum(site.is_legal for site in case.expected)
        self.legal_graphs += bool(legal)
        self.legal_sites += legal
        self.sites += len(sites)
        self.fused.update(str(site.numerics) for site in sites if site.is_fused)
        self.reasons.update(site.reason for site in sites if not site.is_fused)

    @property
    def legal_share(self) -> float:
        return self.legal_graphs / max(self.graphs, 1)


def case_of(written: Written, graph: Captured) -> Case:
    plan = written.plan
    arguments = graph.arguments(written, plan.ranks)
    return Case(graph.gm, arguments, written.results, written.expected, plan.deterministic, plan.in_place)


def check_plan(plan: ProgramPlan, groups: Groups, tally: Tally, variants: Sequence[str] | None = None) -> list[Found]:
    """All failures of a program. variants: which to check besides the graph as captured; None = drawn from the seed."""
    rng = random.Random(plan.seed)
    found: list[Found] = []
    tally.programs += 1
    tally.captures[plan.capture] += 1
    written = write(plan)
    try:
        case = case_of(written, captured(written, groups))
    except Exception as error:
        return [Found(plan, "", Failure("capture", f"{type(error).__name__}: {error}"))]
    found += _check_graph(plan, case, "", tally)
    left = VARIANTS_PER_PROGRAM
    names = rng.sample(list(VARIANTS), len(VARIANTS)) if variants is None else variants
    for name in (name for name in names if name in VARIANTS):
        changed = VARIANTS[name](case, random.Random(f"{plan.seed} {name}"))
        if changed is not None and left:
            left -= 1
            found += _check_graph(plan, changed, name, tally)
    if variants is None or DECISIONS in variants:
        found += _check_decisions(plan, case, groups, tally)
    return found


def _check_graph(plan: ProgramPlan, case: Case, variant: str, tally: Tally) -> list[Found]:
    tally.variants[variant or "as captured"] += 1
    try:
        levels = ["same_rounding", *(["one_ulp"] if plan.seed % 4 == 0 else [])]
        sites = check(case, levels)
        if not variant:
            check_min_rows(case)
        tally.count(case, sites)
    except Failure as failure:
        tally.count(case, [])
        tally.failures[failure.kind] += 1
        return [Found(plan, variant, failure)]
    return []


def _check_decisions(plan: ProgramPlan, case: Case, groups: Groups, tally: Tally) -> list[Found]:
    """A rank that has no bias, or no part of k, must decide like one that has, and compute what it should."""
    if plan.seed % 3:
        return []
    found = []
    for name, other_plan in of_other_ranks(plan).items():
        written = write(other_plan)
        tally.variants[DECISIONS] += 1
        try:
            other = case_of(written, captured(written, groups))
            check(other)
            decisions = []
            for each in (case, other):
                _, sites = fuse(each, "any", compares=False)
                decisions.append([(site.is_fused, site.reason, site.numerics) for site in sites])
            if decisions[0] != decisions[1]:
                raise Failure("decisions", f"with {name} {decisions[0]}, without {decisions[1]}")
        except Failure as failure:
            tally.failures[failure.kind] += 1
            found.append(Found(plan, DECISIONS, failure))
    return found


Report = Callable[[Found], None]


def check_seeds(seeds: Iterator[int], graphs: int, groups: Groups, report: Report) -> Iterator[Tally]:
    """After each program what was counted so far, until ``graphs`` graphs are checked."""
    tally = Tally()
    while tally.graphs < graphs:
        for found in check_plan(draw(next(seeds)), groups, tally):
            report(found)
        yield tally
