"""Independent matmul + all-reduce pairs -> npu_grouped_mat_mul_all_reduce.

Every all-reduce that is still in the graph is a candidate. One sweep puts those that follow each other into groups: a
group ends where another collective runs, at a write or a change of the stream, and where a matmul reads one of its
results, since grouping would delay that matmul. What is wrong with a candidate by itself keeps it out of any group.

All ranks must decide the same, so a bias, which one rank may have alone, decides nothing as long as it is a vector that
an addmm adds. Where ranks differ in more (a bias computed from a result) ``compare_ranks`` tells.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import GraphModule

from npu_fused_graph.ops.grouped_mat_mul_all_reduce import SPEC
from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import operand, skip_identities
from npu_fused_graph.passes.grouped_mat_mul_all_reduce.match import Group, groups
from npu_fused_graph.passes.grouped_mat_mul_all_reduce.rewrite import rewrite
from npu_fused_graph.passes.grouped_mat_mul_all_reduce.rules import SITE_RULES
from npu_fused_graph.passes.grouped_mat_mul_all_reduce.site import GroupedSite
from npu_fused_graph.passes.location import module_path, source_line
from npu_fused_graph.passes.options import FusionOptions
from npu_fused_graph.passes.positions import Positions
from npu_fused_graph.passes.refusals import Refusal, Refused
from npu_fused_graph.passes.rules import Context, check
from npu_fused_graph.passes.spellings.reduces import candidates, communication_domain, group_of
from npu_fused_graph.passes.verdicts import FusionSite


def run(gm: GraphModule, options: FusionOptions) -> list[FusionSite]:
    """Fuse every legal group of ``gm`` in place; one record per group or lonely candidate, in graph order.

    With ``options.grouped`` off nothing is fused, and only groups that could be are reported.
    """
    if not any(candidates(gm.graph)):
        return []
    positions = Positions(gm.graph)
    context = Context(SPEC, positions, options, communication_domain(gm.graph))
    found = groups(gm.graph, context)
    sites: list[FusionSite] = []
    for group in found:
        record, refusal = _record(group), group.refusal
        if refusal is None:
            refusal = _refusal(group, context)
        if refusal is None and context.domain is None:
            context = replace(context, domain=record.group)
        sites.append(replace(record, refusal=_placed(refusal, record)))
    collectives = {part.reduce.node for group in found for part in group.parts}
    for i, group in reversed(list(enumerate(found))):
        if sites[i].is_fused:
            site = GroupedSite(tuple(group.parts))
            sites[i] = replace(sites[i], node=rewrite(gm.graph, site, positions, collectives).name)
    return sites if options.grouped else [site for site in sites if site.reason == "deprecated"]


def _refusal(group: Group, context: Context) -> Refusal | None:
    try:
        check(GroupedSite(tuple(group.parts)), context, SITE_RULES)
    except Refused as refused:
        is_lonely = isinstance(refused.refusal, refusals.SingleReduce)
        return group.ended if is_lonely and group.ended is not None else refused.refusal
    return None


def _record(group: Group) -> FusionSite:
    start = operand(group.node)
    producer = group.node if start is None else skip_identities(start)
    layer = module_path(producer) or module_path(group.node)
    node = group.node
    record = FusionSite(
        SPEC.stem, node.name, source_line(node), layer, group=group_of(node), collective=node.name,
        facts={"shape": "", "matmuls": 1, "collectives": 1},
    )  # fmt: skip
    if not group.parts:
        return record
    site = GroupedSite(tuple(group.parts))
    return replace(
        record, numerics="same_rounding", group=site.reduce.group,
        facts={"shape": site.shape, "matmuls": len(site.members), "collectives": len(site.parts)},
    )  # fmt: skip


def _placed(refusal: Refusal | None, record: FusionSite) -> Refusal | None:
    """With the line of the collective, where the refusal has none of its own."""
    return None if refusal is None else replace(refusal, source=refusal.source or record.source)
