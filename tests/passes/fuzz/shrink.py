"""Makes the program of a failure smaller for as long as it fails in the same way."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.passes.fuzz.faults import FAULTS
from tests.passes.fuzz.fuzzing import Found, Tally, check_plan
from tests.passes.fuzz.graphs import Groups
from tests.passes.fuzz.plan import ProgramPlan, SitePlan

SIMPLER: tuple[dict[str, Any], ...] = (
    {"linear": "linear", "reduce": "raw", "bias": "none", "k": 8, "x": "input"},
    {"linear": "linear", "reduce": "raw", "bias": "linear", "k": 8, "x": "input"},
    {"reduce": "raw"},
    {"reduce": "functional"},
    {"norm": "llama"},
    {"norm": "npu_rms_norm"},
    {"bias": "none"},
    {"bias": "linear"},
    {"fault": ""},
    {"x": "input"},
    {"residual": "input"},
    {"readers": ()},
    {"noops": ()},
    {"reshapes": ("same", "same", "same")},
    {"epsilon": 1e-5},
    {"returns_sum": False},
    {"shares_weight": False},
    {"dice": 0},
)
SIMPLER_PROGRAM: tuple[dict[str, Any], ...] = (
    {"extras": ()}, {"deterministic": False}, {"in_place": False}, {"lead": (2, 3)}, {"lead": (6,)},
    {"ranks": 2}, {"n": 8}, {"dtype": "float16"}, {"capture": "aot"},
)  # fmt: skip


def shrunk(found: Found, groups: Groups, tries: int = 80) -> Found:
    """A failure like ``found`` of a program that is as small as ``tries`` attempts make it."""
    best, wanted = found, signature(found)
    pending = _simpler(best.plan)
    logging.disable(logging.ERROR)  # some attempts are no valid programs, which torch logs at length
    try:
        return _shrunk(best, wanted, pending, groups, tries)
    finally:
        logging.disable(logging.NOTSET)


def _shrunk(best: Found, wanted: str, pending: Iterator[ProgramPlan], groups: Groups, tries: int) -> Found:
    for _ in range(tries):
        plan = next(pending, None)
        if plan is None:
            break
        for other in check_plan(plan, groups, Tally(), [best.variant]):
            if other.variant == best.variant and signature(other) == wanted:
                best, pending = other, _simpler(plan)
                break
    return best


def signature(found: Found) -> str:
    """What is the same in failures with one cause, as far as a text can tell: names, numbers and places left out."""
    reason = re.search(r"\[(\w+)\]", found.failure.text)
    if " records for " in found.failure.text:
        return "verdict: the number of records"
    if found.failure.kind == "verdict":
        head = re.search(r"expected ([\w ]+?), got: (not fused|fused)", found.failure.text)
        what = f"{head[1]}, {head[2]}" if head else found.failure.text[:60]
        return f"verdict: expected {what}{f' [{reason[1]}]' if reason else ''}"
    text = re.sub(r"\([^)]*\)|\d[\d.e+-]*", "", found.failure.text)
    text = re.sub(r"%?\b\w*_\w*\b", "_", text) if found.failure.kind != "crash" else text
    return f"{found.failure.kind}: {text[:100]}"


def _simpler(plan: ProgramPlan) -> Iterator[ProgramPlan]:
    for i in range(len(plan.sites)):
        if len(plan.sites) > 1:
            schedules = list(plan.schedules)
            del schedules[min(i, len(schedules) - 1)]
            yield replace(plan, sites=plan.sites[:i] + plan.sites[i + 1 :], schedules=tuple(schedules), extras=())
    for change in SIMPLER_PROGRAM:
        yield from _different(plan, replace(plan, **change))
    if any(s != "apart" for s in plan.schedules):
        yield replace(plan, schedules=("apart",) * len(plan.schedules))
    for i, site in enumerate(plan.sites):
        for change in SIMPLER:
            for simpler in _of_site(site, change):
                yield from _different(plan, replace(plan, sites=(*plan.sites[:i], simpler, *plan.sites[i + 1 :])))


def _of_site(site: SitePlan, change: dict[str, Any]) -> Iterator[SitePlan]:
    """A fault chose some of the site's plan: that is left."""
    changes = FAULTS[site.fault].site if site.fault else None
    chosen = changes(site) if changes is not None else {}
    if not chosen.keys() & change.keys():
        yield replace(site, **change)
    for name in ("noops", "readers"):
        for i in range(len(getattr(site, name)) if change == {name: ()} else 0):
            values = getattr(site, name)
            yield replace(site, **{name: values[:i] + values[i + 1 :]})  # type: ignore[arg-type]


def _different(plan: ProgramPlan, other: ProgramPlan) -> Iterator[ProgramPlan]:
    if other != plan:
        yield other
