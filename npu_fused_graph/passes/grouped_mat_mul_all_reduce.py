"""Independent matmul + all-reduce pairs -> npu_grouped_mat_mul_all_reduce.

Every all-reduce that is still in the graph is a candidate. One sweep puts those that follow each other into groups: a
group ends where another collective runs, at a write or a change of the stream, and where a matmul reads one of its
results, since grouping would delay that matmul. What is wrong with a candidate by itself keeps it out of any group.
Only facts that are equal on all ranks decide, so all ranks take the same decision.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from npu_fused_graph.passes.grouped_sources import is_matmul, part_at
from npu_fused_graph.passes.location import module_path, source_line
from npu_fused_graph.passes.order import Order
from npu_fused_graph.passes.records import FusionSite
from npu_fused_graph.passes.reduces import candidates, communication_domain, group_of
from npu_fused_graph.passes.refusals import Refusal, Refused
from npu_fused_graph.passes.rules import Surroundings, check

if TYPE_CHECKING:
    from npu_fused_graph.passes import FusionOptions


def run(gm: GraphModule, options: FusionOptions) -> list[FusionSite]:
    """Fuse every legal group of ``gm`` in place; one record per group or lonely candidate, in graph order.

    With ``options.grouped`` off nothing is fused, and only groups that could be are reported.
    """
    order = Order(gm.graph)
    around = Surroundings(SPEC, order, options, communication_domain(gm.graph))
    found = list(_groups(gm.graph, around))
    sites: list[FusionSite] = []
    for group in found:
        record, refusal = _record(group), group.refusal
        if group.parts and refusal is None:
            refusal = _refusal(group, around)
        if refusal is None and around.domain is None:
            around = replace(around, domain=record.group)
        sites.append(replace(record, refusal=_placed(refusal, record)))
    for i, group in reversed(list(enumerate(found))):
        if sites[i].is_fused:
            sites[i] = replace(sites[i], node=rewrite(gm.graph, GroupedSite(tuple(group.parts)), order).name)
    return sites if options.grouped else [site for site in sites if site.reason == "deprecated"]


@dataclass
class _Group:
    """node: the first candidate. parts: none for a candidate that is refused by itself. ended: why no more joined."""

    node: Node
    parts: list[Part] = field(default_factory=list)
    refusal: Refusal | None = None
    ended: Refusal | None = None


def _groups(graph: Graph, around: Surroundings) -> Iterator[_Group]:
    """Candidates that follow each other, in graph order."""
    order = around.order
    collectives = set(candidates(graph))
    inner: set[Node] = set()
    depends: dict[Node, int] = {}  # number of the last group whose results a node is computed from
    number, current = 0, None
    for node in graph.nodes:
        depends[node] = max((depends[x] for x in node.all_input_nodes), default=-1)
        ended: Refusal | None = None
        if node in inner:
            continue
        if node in collectives:
            part = _part(node, around)
            if isinstance(part, Refusal):
                if current is not None:
                    current.ended = refusals.CollectiveInBetween.at(node, f"{node.name} cannot be grouped")
                    yield current
                    current = None
                yield _Group(node, refusal=part)
                continue
            inner.update(part.reduce.inner)
            if current is not None and depends[node] == number:
                ended = refusals.CriticalPath.at(node, f"{node.name} reduces what is computed from the result")
            if current is not None and (ended is not None or not _fits(part, current)):
                current.ended = ended
                yield current
                current = None
            if current is None:
                number += 1
                current = _Group(node)
            current.parts.append(part)
            depends.update(dict.fromkeys(part.reduce.inner, number))
            continue
        if current is None:
            continue
        if order.is_collective(node):
            ended = refusals.CollectiveInBetween.at(node, f"{node.name} runs before the next all-reduce")
        elif order.is_stream_change(node):
            ended = refusals.OtherStream.at(node, f"{node.name} changes the stream")
        elif order.breaks_a_group(node):
            ended = refusals.MutationInBetween.at(node, f"{node.name} writes")
        elif is_matmul(node) and depends[node] == number:
            ended = refusals.CriticalPath.at(node, f"{node.name} reads the result before the next all-reduce")
        if ended is not None:
            current.ended = ended
            yield current
            current = None
    if current is not None:
        yield current


def _part(node: Node, around: Surroundings) -> Part | Refusal:
    try:
        part = part_at(node)
        check(part, around, PART_RULES)
        return part
    except Refused as refused:
        return refused.refusal


def _fits(part: Part, group: _Group) -> bool:
    first = group.parts[0]
    return (
        not (part.is_joined or first.is_joined)
        and part.reduce.group == first.reduce.group
        and part.result_dtype == first.result_dtype
        and len(group.parts) < MOST_GROUPS
    )


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
