"""Independent matmul + all-reduce pairs -> npu_grouped_mat_mul_all_reduce.

Every all-reduce that is still in the graph is a candidate. One sweep puts those that follow each other into groups: a
group ends where another collective runs, at a write or a change of the stream, and where a matmul reads one of its
results, since grouping would delay that matmul. What is wrong with a candidate by itself keeps it out of any group.

All ranks must decide the same, so a bias, which one rank may have alone, decides nothing as long as it is a vector that
an addmm adds. Where ranks differ in more (a bias computed from a result) ``compare_ranks`` tells.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch.fx import Graph, GraphModule, Node

from npu_fused_graph.ops.grouped_mat_mul_all_reduce import SPEC
from npu_fused_graph.ops.grouped_mat_mul_all_reduce_constraints import MOST_GROUPS
from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import operand, through
from npu_fused_graph.passes.grouped_legality import PART_RULES, SITE_RULES
from npu_fused_graph.passes.grouped_rewrite import rewrite
from npu_fused_graph.passes.grouped_site import GroupedSite, Part
from npu_fused_graph.passes.grouped_sources import Sources, is_heavy
from npu_fused_graph.passes.location import module_path, source_line
from npu_fused_graph.passes.order import Order
from npu_fused_graph.passes.records import FusionSite
from npu_fused_graph.passes.reduces import candidates, communication_domain, group_of
from npu_fused_graph.passes.refusals import Refusal, Refused
from npu_fused_graph.passes.rules import Surroundings, check
from npu_fused_graph.passes.tracing import named

if TYPE_CHECKING:
    from npu_fused_graph.passes import FusionOptions


def run(gm: GraphModule, options: FusionOptions) -> list[FusionSite]:
    """Fuse every legal group of ``gm`` in place; one record per group or lonely candidate, in graph order.

    With ``options.grouped`` off nothing is fused, and only groups that could be are reported.
    """
    order = Order(gm.graph)
    around = Surroundings(SPEC, order, options, communication_domain(gm.graph))
    found = _Sweep(gm.graph, around).groups
    _forget_what_ended(found)
    sites: list[FusionSite] = []
    for group in found:
        record, refusal = _record(group), group.refusal
        if refusal is None:
            refusal = _refusal(group, around)
        if refusal is None and around.domain is None:
            around = replace(around, domain=record.group)
        sites.append(replace(record, refusal=_placed(refusal, record)))
    collectives = {part.reduce.node for group in found for part in group.parts}
    for i, group in reversed(list(enumerate(found))):
        if sites[i].is_fused:
            site = GroupedSite(tuple(group.parts))
            sites[i] = replace(sites[i], node=rewrite(gm.graph, site, order, collectives).name)
    return sites if options.grouped else [site for site in sites if site.reason == "deprecated"]


@dataclass
class _Group:
    """node: the first candidate. refusal: of a candidate by itself, which has no parts. ended: why no more joined."""

    node: Node
    parts: list[Part] = field(default_factory=list)
    refusal: Refusal | None = None
    ended: Refusal | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What all-reduces of a group have in common."""
        return self.parts[0].reduce.group, self.parts[0].result_dtype


class _Sweep:
    """One pass over the graph. groups: candidates that follow each other, in graph order."""

    def __init__(self, graph: Graph, around: Surroundings) -> None:
        self.groups: list[_Group] = []
        self._around = around
        self._sources = Sources()
        self._is_open = False
        self._inner: set[Node] = set()
        self._depends: dict[Node, int] = {}  # number of the last group whose results a node is computed from
        collectives = set(candidates(graph))
        for node in graph.nodes:
            self._depends[node] = max((self._depends[x] for x in node.all_input_nodes), default=-1)
            if node in collectives:
                self._candidate(node)
            elif self._is_open and node not in self._inner:
                self._other(node)

    @property
    def _number(self) -> int:
        """Of the group that is open, or was last."""
        return len(self.groups) - 1

    def _end(self, why: Refusal) -> None:
        if self._is_open:
            self.groups[-1].ended = why
        self._is_open = False

    def _candidate(self, node: Node) -> None:
        part = self._part(node)
        if isinstance(part, Refusal):
            self._end(refusals.CollectiveInBetween.at(node, f"{named(node)} cannot be grouped"))
            self.groups.append(_Group(node, refusal=part))
            return
        if self._is_open and self._depends[node] == self._number:
            self._end(refusals.CriticalPath.at(node, f"{named(node)} reduces what is computed from the result"))
        elif self._is_open and not _fits(part, self.groups[-1]):
            text = f"{named(node)} runs before the next all-reduce of this group and dtype"
            self._end(refusals.CollectiveInBetween.at(node, text))
        if not self._is_open:
            self.groups.append(_Group(node))
            self._is_open = True
        self.groups[-1].parts.append(part)
        self._inner.update(part.reduce.inner)
        self._depends.update(dict.fromkeys(part.reduce.inner, self._number))

    def _other(self, node: Node) -> None:
        order = self._around.order
        if order.is_collective(node):
            self._end(refusals.CollectiveInBetween.at(node, f"{named(node)} runs before the next all-reduce"))
        elif order.is_stream_change(node):
            self._end(refusals.OtherStream.at(node, f"{named(node)} changes the stream"))
        elif order.writes(node):
            self._end(refusals.MutationInBetween.at(node, f"{named(node)} writes"))
        elif self._depends[node] == self._number and is_heavy(node):
            self._end(refusals.CriticalPath.at(node, f"{named(node)} reads the result before the next all-reduce"))

    def _part(self, node: Node) -> Part | Refusal:
        try:
            part = self._sources.part(node)
            check(part, self._around, PART_RULES)
            return part
        except Refused as refused:
            return refused.refusal


def _fits(part: Part, group: _Group) -> bool:
    first = group.parts[0]
    return (
        not (part.is_joined or first.is_joined)
        and (part.reduce.group, part.result_dtype) == group.key
        and len(group.parts) < MOST_GROUPS
    )


def _forget_what_ended(groups: list[_Group]) -> None:
    """What ended a group matters only if something that could have joined comes later."""
    later: set[tuple[str, str]] = set()
    for group in reversed(groups):
        if group.parts and not group.parts[0].is_joined:
            if group.key not in later:
                group.ended = None
            later.add(group.key)


def _refusal(group: _Group, around: Surroundings) -> Refusal | None:
    try:
        check(GroupedSite(tuple(group.parts)), around, SITE_RULES)
    except Refused as refused:
        is_lonely = isinstance(refused.refusal, refusals.SingleReduce)
        return group.ended if is_lonely and group.ended is not None else refused.refusal
    return None


def _record(group: _Group) -> FusionSite:
    start = operand(group.node)
    producer = group.node if start is None else through(start)
    layer = module_path(producer) or module_path(group.node)
    record = FusionSite(SPEC.stem, group.node.name, source_line(group.node), layer, group=group_of(group.node))
    if not group.parts:
        return record
    site = GroupedSite(tuple(group.parts))
    return replace(
        record, numerics="same_rounding", group=site.reduce.group, shape=site.shape, matmuls=len(site.members),
        collectives=len(site.parts),
    )  # fmt: skip


def _placed(refusal: Refusal | None, record: FusionSite) -> Refusal | None:
    """With the line of the collective, where the refusal has none of its own."""
    return None if refusal is None else replace(refusal, source=refusal.source or record.source)
