"""Every attention of a graph of Dynamo's, as it is before autograd: fused, or why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.fx import GraphModule, Node

from npu_fused_graph.ops.flash_attention_score import SPEC
from npu_fused_graph.passes.flash_attention_score import masks
from npu_fused_graph.passes.flash_attention_score.match import anchors, read
from npu_fused_graph.passes.flash_attention_score.rewrite import Rewriter
from npu_fused_graph.passes.flash_attention_score.rules import RULES, SHAPE_RULES, Attention, between
from npu_fused_graph.passes.flash_attention_score.site import Site
from npu_fused_graph.passes.location import module_path, source_line
from npu_fused_graph.passes.options import FusionOptions
from npu_fused_graph.passes.refusals import Refused
from npu_fused_graph.passes.rules import check
from npu_fused_graph.passes.spellings.calls import call_of
from npu_fused_graph.passes.spellings.constants import Constants
from npu_fused_graph.passes.verdicts import FusionSite


def run(gm: GraphModule, options: FusionOptions) -> list[FusionSite]:
    """One record per attention, in graph order; rewrites those that are fused."""
    if options.attention == "none":
        return []
    constants, rewriter = Constants(gm.graph), Rewriter(gm.graph)
    found = [_fused(anchor, rewriter, constants, options) for anchor in list(anchors(gm.graph))]
    if any(site.is_fused for site in found):
        gm.graph.lint()
        gm.recompile()
    return found


def _fused(anchor: Node, rewriter: Rewriter, constants: Constants, options: FusionOptions) -> FusionSite:
    call = call_of(anchor)
    is_call = call is not None and call.kind == "attention"
    record = FusionSite(
        SPEC.stem, anchor.name, source_line(anchor), module_path(anchor), facts={"is_written_out": not is_call}
    )
    try:
        site = read(anchor, constants)
        record = replace(record, facts=_facts(site))
        found = _judged(site, rewriter, constants, options)
    except Refused as refused:
        return replace(record, refusal=refused.refusal)
    return replace(
        record,
        node=rewriter.rewrite(found, is_written=constants.is_written(site.last)).name,
        numerics="same_rounding" if is_call else "any",
    )


def _judged(site: Site, rewriter: Rewriter, constants: Constants, options: FusionOptions) -> Attention:
    """Raises Refused for the first rule the site breaks."""
    plain = Attention(site, masks.Masks(False, [], []), tuple(between(site)))
    check(plain, options, SHAPE_RULES)
    found = replace(plain, masks=masks.read(site, constants))
    check(found, options, RULES)
    return found


def _facts(site: Site) -> dict[str, Any]:
    b, n, s, d = (int(x) if isinstance(x, int) else str(x) for x in site.sizes)
    return {"is_written_out": not site.is_call, "batch": b, "heads": n, "sequence": s, "head_dim": d}
