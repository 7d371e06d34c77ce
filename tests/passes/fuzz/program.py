"""A plan as a Python function, with the verdict of each of its collectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor

from tests.passes.fuzz.faults import FAULTS
from tests.passes.fuzz.linears import LINEARS
from tests.passes.fuzz.plan import ProgramPlan, SitePlan
from tests.passes.fuzz.sites import Program, Site
from tests.passes.fuzz.text import Expectation, Input, Result, Text, tensor
from tests.passes.spellings import ReduceFromModelParallelRegion, in_place


@dataclass(frozen=True)
class Written:
    """The text of a plan: a function of tensors, its inputs, its results and what becomes of its collectives."""

    plan: ProgramPlan
    source: str
    inputs: tuple[Input, ...]
    results: tuple[Result, ...]
    expected: tuple[Expectation, ...]

    def function(self, groups: dict[str, str]) -> Callable[..., Any]:
        """groups: names of the process groups "world" and "second"."""
        namespace: dict[str, Any] = {
            "torch": torch,
            "F": F,
            "dist": dist,
            "funcol": funcol,
            "in_place": in_place,
            "Megatron": ReduceFromModelParallelRegion,
            "T": getattr(torch, self.plan.dtype),
        }
        namespace |= {name.upper(): group for name, group in groups.items()}
        exec(compile(self.source, f"<program of seed {self.plan.seed}>", "exec"), namespace)  # noqa: S102
        return namespace["program"]  # type: ignore[no-any-return]

    def tensors(self, rank: int) -> list[Tensor]:
        return [tensor(x, self.plan.seed, rank) for x in self.inputs]


def write(plan: ProgramPlan) -> Written:
    dtype = getattr(torch, plan.dtype)
    text = Text(dtype, plan.seed)
    program = Program(plan, text)
    _write_sites(program)
    if not text.results:
        text.give(text.let("torch.ones(2)", "one"))
    for site in text.expected:
        _apply_program(plan, site)
    return Written(plan, text.source, tuple(text.inputs), tuple(text.results), tuple(text.expected))


def _apply_program(plan: ProgramPlan, site: Expectation) -> None:
    """What is wrong with the program as a whole is a further reason for every site."""
    wrong = {"dtype": plan.dtype == "float32", "group_size": plan.ranks == 3, "deterministic_mode": plan.deterministic}
    site.reasons |= {reason for reason, is_wrong in wrong.items() if is_wrong}
    site.is_free = site.is_free and not any(wrong.values())


def _write_sites(program: Program) -> None:
    plan = program.plan
    schedules = [*plan.schedules, "apart"]
    index = 0
    while index < len(plan.sites):
        _extras(program, index)
        schedule = schedules[index]
        if schedule == "apart" or index + 1 == len(plan.sites):
            list(Site(program, plan.sites[index], index).write())
            index += 1
            continue
        in_between = schedule in ("first_between", "nested")
        first = Site(program, plan.sites[index], index, in_between=in_between)
        second = Site(program, plan.sites[index + 1], index + 1)
        _interleave(first.write(), second.write(), ORDERS[schedule])
        if schedule == "first_between":
            for site in first.expected:
                site.crossed_by = second.expected[0]
        index += 2
    _extras(program, len(plan.sites))


ORDERS = {
    "hoisted_product": "12111222",  # both products, then the rest of the first, the rest of the second
    "late_norms": "11122212",  # the norms last
    "first_between": "11221122",  # both reduces, then the add and the norm of the first
    "nested": "11222211",  # the second site as a whole between the first's reduce and add
}
"""In which order the stages of two sites are written; what is left follows at the end."""


def _interleave(first: Iterator[None], second: Iterator[None], order: str) -> None:
    for which in order:
        next(first if which == "1" else second, None)
    list(first)
    list(second)


# -- unrelated code ---------------------------------------------------------------------------------------------------


def _extras(program: Program, position: int) -> None:
    for where, what in program.plan.extras:
        if where == position:
            _extra(program, what)


def _extra(program: Program, what: str) -> None:
    text, plan = program.text, program.plan
    shape = (*plan.lead, plan.n)
    x = text.take(shape, "residual", is_shared=True)
    op = "torch.ops._c10d_functional"
    if what == "norm":
        gamma = text.take((plan.n,), "gamma", is_shared=True)
        wide = text.let(f"{x}.float()", "wide")
        text.give(text.let(f"{gamma} * ({wide} * torch.rsqrt({wide}.pow(2).mean(-1, keepdim=True) + 1e-5)).to(T)"))
    elif what in ("reduce", "reduce_max"):
        reasons = {"no_matmul", "no_residual_add"} | ({"reduce_op"} if what == "reduce_max" else set())
        text.collective(Expectation(f"extra {what}", reasons=reasons))
        reduce_op = "max" if what == "reduce_max" else "sum"
        text.give(text.let(f'{op}.wait_tensor({op}.all_reduce({x} * 2, "{reduce_op}", WORLD))'))
    elif what == "gather":
        text.give(text.let(f"{op}.wait_tensor({op}.all_gather_into_tensor({x}, {plan.ranks}, WORLD))"))
    elif what == "elementwise":
        text.give(text.let(f"torch.sigmoid({x}) + 1"))
    elif what == "matmul":
        text.give(text.let(f"F.linear({x}, {text.take((8, plan.n), 'weight')})"))
    else:
        assert what == "dead_code"
        text.let(f"{x} * 3")


def of_other_ranks(plan: ProgramPlan) -> dict[str, ProgramPlan]:
    """Programs of ranks that differ in what ranks may differ in: without the biases of rank 0, or without any k."""
    changes = {
        "bias": lambda site: replace(site, bias="none" if site.bias in ("linear", "divided") else site.bias),
        "k": lambda site: replace(site, k=0),
    }
    may = {"bias": _may_lack_bias, "k": _may_lack_k}
    found = {}
    for name, change in changes.items():
        sites = tuple(change(site) if may[name](site) else site for site in plan.sites)
        if sites != plan.sites:
            found[name] = replace(plan, sites=sites)
    return found


def _may_lack_bias(site: SitePlan) -> bool:
    fault = FAULTS.get(site.fault)
    return not (LINEARS[site.linear].needs_bias or (fault is not None and fault.bias is not None))


def _may_lack_k(site: SitePlan) -> bool:
    """Empty tensors have no layout that could be refused."""
    fault = FAULTS.get(site.fault)
    is_plain = fault is None or (fault.linear is None and not {"not_contiguous", "weight_layout"} & set(fault.reasons))
    return site.x == "input" and not site.shares_weight and is_plain
