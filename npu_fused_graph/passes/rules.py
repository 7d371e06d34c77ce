"""What a rule is, and the rules that every site with an all-reduce has, whatever it is fused into.

A rule returns the refusal, or None. Rules look at facts that are equal on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from torch.fx import Node

from npu_fused_graph import comm
from npu_fused_graph.errors import CommunicationError
from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import is_call, readers
from npu_fused_graph.passes.options import FusionOptions
from npu_fused_graph.passes.positions import Positions
from npu_fused_graph.passes.refusals import Refusal, Refused
from npu_fused_graph.passes.spellings.reduces import WAITS, AllReduce
from npu_fused_graph.passes.tracing import named
from npu_fused_graph.spec import OpSpec


class AnySite(Protocol):
    """before: nodes from the matmul to what is reduced."""

    @property
    def reduce(self) -> AllReduce: ...

    @property
    def before(self) -> tuple[Node, ...]: ...


S = TypeVar("S")
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Context:
    """What rules ask beside the site.

    spec: of the op. positions: in the graph. domain: group of the sites fused before, None for the first.
    """

    spec: OpSpec
    positions: Positions
    options: FusionOptions
    domain: str | None


class Rule(Generic[S, C]):
    """number: in docs/fusion_rules.md; a B is the constraint of the operator with that number. check: of a site and
    what else it asks, mostly a Context. reasons: what it refuses with.
    """

    def __init__(self, number: str, check: Callable[[S, C], Refusal | None], *reasons: type[Refusal]) -> None:
        self.number = number
        self.check = check
        self.reasons = reasons

    @property
    def statement(self) -> str:
        """What must hold: the first paragraph of the check's text."""
        return " ".join((self.check.__doc__ or "").partition("\n\n")[0].split())


def check(site: S, context: C, rules: Sequence[Rule[S, C]]) -> None:
    """Raise Refused for the first of ``rules`` the site breaks."""
    for rule in rules:
        refusal = rule.check(site, context)
        if refusal is not None:
            assert isinstance(refusal, rule.reasons), (rule.number, refusal.reason)
            raise Refused(refusal)


# -- shared rules ---------------------------------------------------------------------------------------------


def machine_has_the_op(site: AnySite, context: Context) -> Refusal | None:
    """The installed CANN and the chip have the operator."""
    refusal = context.options.unavailable.get(context.spec.stem)
    return None if refusal is None else replace(refusal, node=site.reduce.node.name)


def only_adds(site: AnySite, context: Context) -> Refusal | None:
    """The collective computes a sum."""
    what = site.reduce.reduce_op
    return None if what == "sum" else refusals.ReduceOp.at(site.reduce.node, f"the collective computes {what!r}")


def partial_sum_is_private(site: AnySite, context: Context) -> Refusal | None:
    """Nothing but the collective reads what is reduced."""
    known = {*site.before, *site.reduce.inner}
    for node in site.before:
        others = [user for user in readers(node) if user not in known]
        if others:
            text = f"the partial sum {named(node)} is also read by {named(others[0])}"
            return refusals.MatmulResultUsedElsewhere.at(others[0], text)
    return None


def group_is_known(site: AnySite, context: Context) -> Refusal | None:
    """The group of the collective exists in this process."""
    group = site.reduce.group
    try:
        comm.resolve(group)
    except CommunicationError as error:
        return refusals.UnknownGroup.at(site.reduce.node, f"group {group!r} is not known here: {error}")
    return None


def group_has_a_size_of_the_op(site: AnySite, context: Context) -> Refusal | None:
    """The group has as many ranks as the operator runs on."""
    size = comm.resolve(site.reduce.group).size()
    if size in context.spec.group_sizes:
        return None
    cure = f"Use a tensor-parallel size of {context.spec.group_sizes_text}."
    return refusals.GroupSize.at(site.reduce.node, f"the group has {size} ranks", cure)


def one_domain(site: AnySite, context: Context) -> Refusal | None:
    """All fused operators of a graph use one group: CANN documents no support for more in a process."""
    group = site.reduce.group
    if context.domain in (None, group) or _is_same_group(group, str(context.domain)):
        return None
    text = f"the site is on group {group!r}, fused operators before it are on {context.domain!r}"
    return refusals.SecondGroup.at(site.reduce.node, text)


def _is_same_group(a: str, b: str) -> bool:
    """A group has several names."""
    try:
        return comm.resolve(a) is comm.resolve(b)
    except CommunicationError:
        return False


def not_overlapped(site: AnySite, context: Context) -> Refusal | None:
    """No other matmul runs between the collective and its wait: the model overlaps the two already."""
    positions, node = context.positions, site.reduce.node
    waits = [positions.of(x) for x in site.reduce.inner if is_call(x, *WAITS)]
    if not waits or not positions.heavy_between(positions.of(node), max(waits)):
        return None
    return refusals.Overlapped.at(node, "other matmuls run between the collective and its wait")
