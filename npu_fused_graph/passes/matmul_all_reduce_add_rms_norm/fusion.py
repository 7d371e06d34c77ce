"""matmul + all-reduce + residual add + RMSNorm -> npu_mm_all_reduce_add_rms_norm.

Every all-reduce of the graph is a candidate; ``match`` finds the site around it, ``rules`` are the conditions it must
fulfil. Only facts that are equal on all ranks decide, so all ranks take the same decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch.fx import Graph, GraphModule, Node

from npu_fused_graph.ops.inplace_matmul_all_reduce_add_rms_norm import SPEC as IN_PLACE
from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm import SPEC
from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import operand, skip_identities
from npu_fused_graph.passes.location import module_path, source_line
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm import targets
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.match import Matcher
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.rewrite import consume_residuals, rewrite
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.rules import ORDER_RULES, RULES
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.site import UNKNOWN
from npu_fused_graph.passes.options import FusionOptions
from npu_fused_graph.passes.positions import Positions, graphs_of
from npu_fused_graph.passes.refusals import Refused
from npu_fused_graph.passes.rules import Context, check
from npu_fused_graph.passes.spellings.reduces import (
    candidates,
    communication_domain,
    group_of,
)
from npu_fused_graph.passes.tracing import named
from npu_fused_graph.passes.verdicts import FusionSite


def run(gm: GraphModule, options: FusionOptions) -> list[FusionSite]:
    """Fuse every legal site of ``gm`` in place; one record per all-reduce, in graph order, those in graphs of
    its nodes last.

    A fused op runs where the add was, later than its all-reduce did. The last site is rewritten first: those before it
    then see where its collective really is.
    """
    matcher = Matcher(gm.graph)
    positions = Positions(gm.graph)
    nodes = list(candidates(gm.graph))
    domain = communication_domain(gm.graph)
    sites: list[FusionSite] = []
    for node in nodes:
        sites.append(_verdict(node, matcher, Context(SPEC, positions, options, domain)))
        if domain is None and sites[-1].is_fused:
            domain = sites[-1].group
    fused: list[Node] = []
    others = set(nodes)
    for i, node in reversed(list(enumerate(nodes))):
        if sites[i].is_fused:
            try:
                site = matcher.match(node)  # again: what it was matched with may have been rewritten
                check(site, Context(SPEC, positions, options, domain), ORDER_RULES)
                fused.append(rewrite(gm.graph, site, positions, others))
                sites[i] = replace(sites[i], node=fused[-1].name)
            except Refused as refused:
                sites[i] = _refused(sites[i], refused)
    if options.in_place and IN_PLACE.stem not in options.unavailable:
        consume_residuals(fused)
    return [*sites, *_nested(gm.graph)]


def _nested(graph: Graph) -> Iterator[FusionSite]:
    """The candidates in graphs that nodes of ``graph`` run."""
    for caller in graph.nodes:
        for inner in graphs_of(caller):
            for node in candidates(inner):
                text = f"it is in a graph of its own, which {named(caller)} runs"
                where = source_line(node), module_path(node)
                record = FusionSite(SPEC.stem, node.name, *where, group=group_of(node), facts=dict(UNKNOWN))
                yield replace(record, refusal=replace(refusals.NestedGraph.at(node, text), source=record.source))
            yield from _nested(inner)


def _verdict(node: Node, matcher: Matcher, context: Context) -> FusionSite:
    """What becomes of a candidate if the collectives' order lets it; not rewritten yet."""
    start = operand(node)
    producer = node if start is None else skip_identities(start)
    layer = module_path(producer) or module_path(node)
    record = FusionSite(
        SPEC.stem, node.name, source_line(node), layer, group=group_of(node), collective=node.name, facts=dict(UNKNOWN)
    )  # fmt: skip
    try:
        site = matcher.match(node)
        chosen = targets.target(context.options)
        facts = UNKNOWN | targets.facts(chosen, site)
        record = replace(record, numerics=chosen.numerics(site), group=site.reduce.group, facts=facts)
        check(site, context, RULES)
        return record
    except Refused as refused:
        return _refused(record, refused)


def _refused(record: FusionSite, refused: Refused) -> FusionSite:
    where = refused.refusal.source or record.source  # the graph's output has no line of its own
    return replace(record, refusal=replace(refused.refusal, source=where))
