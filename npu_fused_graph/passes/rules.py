"""What a rule is, and the rules that every site with an all-reduce has, whatever it is fused into.

A rule returns the refusal, or None. Rules look at facts that are equal on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from torch.fx import Node

from npu_fused_graph import comm
from npu_fused_graph.errors import CommunicationError
from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import is_call, readers
from npu_fused_graph.passes.order import Order
from npu_fused_graph.passes.reduces import WAITS, AllReduce
from npu_fused_graph.passes.refusals import Refusal, Refused
from npu_fused_graph.passes.tracing import named
from npu_fused_graph.spec import OpSpec

if TYPE_CHECKING:
    from npu_fused_graph.passes import FusionOptions


class AnySite(Protocol):
    """before: nodes from the matmul to what is reduced."""

    @property
    def reduce(self) -> AllReduce: ...

    @property
    def before(self) -> tuple[Node, ...]: ...


S = TypeVar("S", bound=AnySite)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """spec: of the op. order: positions in the graph. domain: group of the sites fused before, None for the first."""

    spec: OpSpec
    order: Order
    options: FusionOptions
    domain: str | None


@dataclass(frozen=True, slots=True)
class Rule(Generic[S]):
    """item: of the specification's section 4.4 (L1 to L19), or another section."""

    item: str
    check: Callable[[S, Surroundings], Refusal | None]


def check(site: S, around: Surroundings, rules: Sequence[Rule[S]]) -> None:
    """Raise Refused for the first of ``rules`` the site breaks."""
    for rule in rules:
        refusal = rule.check(site, around)
        if refusal is not None:
            raise Refused(refusal)


# -- shared rules ---------------------------------------------------------------------------------------------


def machine_has_the_op(site: AnySite, around: Surroundings) -> Refusal | None:
    refusal = around.options.unavailable.get(around.spec.stem)
    return None if refusal is None else replace(refusal, node=site.reduce.node.name)


def only_adds(site: AnySite, around: Surroundings) -> Refusal | None:
    what = site.reduce.reduce_op
    return None if what == "sum" else refusals.ReduceOp.at(site.reduce.node, f"the collective computes {what!r}")


def partial_sum_is_private(site: AnySite, around: Surroundings) -> Refusal | None:
    known = {*site.before, *site.reduce.inner}
    for node in site.before:
        others = [user for user in readers(node) if user not in known]
        if others:
            text = f"the partial sum {named(node)} is also read by {named(others[0])}"
            return refusals.MatmulResultUsedElsewhere.at(others[0], text)
    return None


def group_is_known(site: AnySite, around: Surroundings) -> Refusal | None:
    group = site.reduce.group
    try:
        comm.resolve(group)
    except CommunicationError as error:
        return refusals.UnknownGroup.at(site.reduce.node, f"group {group!r} is not known here: {error}")
    return None


def group_has_a_size_of_the_op(site: AnySite, around: Surroundings) -> Refusal | None:
    size, sizes = comm.resolve(site.reduce.group).size(), around.spec.group_sizes
    if size in sizes:
        return None
    cure = f"Use a tensor-parallel size of {', '.join(map(str, sizes[:-1]))} or {sizes[-1]}."
    return refusals.GroupSize.at(site.reduce.node, f"the group has {size} ranks", cure)


def one_domain(site: AnySite, around: Surroundings) -> Refusal | None:
    group = site.reduce.group
    if around.domain in (None, group) or _is_same_group(group, str(around.domain)):
        return None
    text = f"the site is on group {group!r}, fused operators before it are on {around.domain!r}"
    return refusals.SecondGroup.at(site.reduce.node, text)


def _is_same_group(a: str, b: str) -> bool:
    """A group has several names."""
    try:
        return comm.resolve(a) is comm.resolve(b)
    except CommunicationError:
        return False


def not_overlapped(site: AnySite, around: Surroundings) -> Refusal | None:
    order, node = around.order, site.reduce.node
    waits = [order.of(x) for x in site.reduce.inner if is_call(x, *WAITS)]
    if not waits or not order.heavy_between(order.of(node), max(waits)):
        return None
    return refusals.Overlapped.at(node, "other matmuls run between the collective and its wait")
