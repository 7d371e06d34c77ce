"""What a site must be to become one FlashAttentionScore."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from npu_fused_graph.ops.flash_attention_score import SPEC
from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.flash_attention_score.costs import least_rows
from npu_fused_graph.passes.flash_attention_score.masks import Masks
from npu_fused_graph.passes.flash_attention_score.site import Site
from npu_fused_graph.passes.location import source_line
from npu_fused_graph.passes.options import FusionOptions
from npu_fused_graph.passes.refusals import Refusal
from npu_fused_graph.passes.rules import Rule
from npu_fused_graph.passes.spellings.calls import value
from npu_fused_graph.passes.spellings.writes import writes, written_by
from npu_fused_graph.passes.tracing import named


@dataclass(frozen=True, slots=True)
class Attention:
    """A site and what hides its pairs. between: nodes from its first to its last."""

    site: Site
    masks: Masks
    between: tuple[Node, ...]


def sizes_are_known(a: Attention, options: FusionOptions) -> Refusal | None:
    """Batch, heads and lengths are numbers."""
    site = a.site
    sizes = (*site.sizes, *site.key.shape, *site.value.shape)
    if all(isinstance(size, int) for size in sizes):
        return None
    return refusals.DynamicShape.at(site.anchor, "a size of query, key or value is symbolic")


def keys_are_as_many_as_queries(a: Attention, options: FusionOptions) -> Refusal | None:
    """There are as many keys as queries."""
    queries, keys = a.site.scores[-2:]
    if queries == keys:
        return None
    return refusals.UnequalLengths.at(a.site.anchor, f"{queries} queries look at {keys} keys")


def one_shape(a: Attention, options: FusionOptions) -> Refusal | None:
    """query, key and value have one shape: heads that are shared are repeated."""
    site = a.site
    b, n, s, d = site.sizes
    leads = {"query": site.product[:-2], "key": site.product[:-2], "value": site.weights[:-2]}
    for name, view in (("query", site.query), ("key", site.key), ("value", site.value)):
        if view.value.numel() != b * n * s * d or tuple(view.shape) != (*leads[name], s, d):
            text = f"{name} has the shape {list(view.shape)} beside {b} x {n} heads of {s} x {d}"
            return refusals.AttentionShape.at(site.anchor, text)
    if site.weights[-2:] != site.scores[-2:]:
        return refusals.AttentionShape.at(site.last, f"the weights have the shape {list(site.weights)} by then")
    return None


def plain_tensors(a: Attention, options: FusionOptions) -> Refusal | None:
    """query is a tensor of the graph, not one that vmap or torch.func has wrapped."""
    if isinstance(value(a.site.anchor), FakeTensor) and type(a.site.query.value) is type(value(a.site.anchor)):
        return None
    return refusals.InATransform.at(a.site.anchor, "the attention is inside torch.vmap or torch.func")


def scale_is_finite(a: Attention, options: FusionOptions) -> Refusal | None:
    """The scale is a finite number."""
    scale = a.site.scale
    if scale is not None and math.isfinite(scale):
        return None
    return refusals.ScoreFunction.at(a.site.anchor, f"the scale is {scale}")


def half_precision(a: Attention, options: FusionOptions) -> Refusal | None:
    """query is float16 or bfloat16."""
    dtype = a.site.query.value.dtype
    if dtype in (torch.float16, torch.bfloat16):
        return None
    return refusals.Dtype.at(a.site.anchor, f"query has the dtype {str(dtype).removeprefix('torch.')}")


def one_dtype(a: Attention, options: FusionOptions) -> Refusal | None:
    """key, value and the result have query's dtype."""
    dtype = a.site.query.value.dtype
    for x in (a.site.key.value, a.site.value.value, value(a.site.last)):
        if x.dtype is not dtype:
            return refusals.MixedDtypes.at(a.site.anchor, f"{dtype} and {x.dtype} meet".replace("torch.", ""))
    return None


def head_dim_of_the_op(a: Attention, options: FusionOptions) -> Refusal | None:
    """head_dim is a multiple of 16 of at most 128."""
    d = a.site.sizes[3]
    return None if 0 < d <= 128 and d % 16 == 0 else refusals.HeadDim.at(a.site.anchor, f"head_dim is {d}")


def length_of_the_op(a: Attention, options: FusionOptions) -> Refusal | None:
    """The sequence length is a multiple of 256."""
    s = a.site.sizes[2]
    return None if s > 0 and s % 256 == 0 else refusals.SequenceLength.at(a.site.anchor, f"the sequence has {s} tokens")


def no_dropout(a: Attention, options: FusionOptions) -> Refusal | None:
    """No weights are dropped."""
    p = a.site.dropout
    return refusals.AttentionDropout.at(a.site.anchor, f"weights are dropped with p = {p}") if p else None


def weights_are_private(a: Attention, options: FusionOptions) -> Refusal | None:
    """Nothing else reads the scores."""
    known = {*a.site.inner, a.site.last}
    for node in a.site.inner:
        for user in node.users:
            if user not in known:
                return refusals.AttentionWeightsUsed.at(
                    user, f"the scores {named(node)} are also read by {named(user)}"
                )
    return None


def bias_has_querys_dtype(a: Attention, options: FusionOptions) -> Refusal | None:
    """What is added has query's dtype."""
    for bias, _ in a.masks.biases:
        if bias.value.dtype is not a.site.query.value.dtype:
            found = str(bias.value.dtype).removeprefix("torch.")
            return refusals.BiasDtype.at(bias.node, f"the bias {named(bias.node)} has the dtype {found}")
    return None


def bias_needs_no_gradient(a: Attention, options: FusionOptions) -> Refusal | None:
    """What is added needs no gradient."""
    for bias, _ in a.masks.biases:
        if torch.is_grad_enabled() and value(bias.node).requires_grad:
            return refusals.BiasGradient.at(bias.node, f"the bias {named(bias.node)} needs a gradient")
    return None


def nothing_is_written_between(a: Attention, options: FusionOptions) -> Refusal | None:
    """Between the two products nothing is written in place but the scores themselves."""
    own = {*a.site.inner}
    for node in (*a.between, a.site.last):
        is_own = node in own and node.kwargs.get("out") is None and own.issuperset(written_by(node))
        if writes(node) and not is_own:
            return refusals.MutationInBetween.at(node, f"{named(node)} writes from the first to the second product")
    return None


def machine_has_the_op(a: Attention, options: FusionOptions) -> Refusal | None:
    """The installed CANN and the chip have the operator."""
    found = options.unavailable.get(SPEC.stem)
    if found is None:
        return None
    return replace(found, node=a.site.anchor.name, source=source_line(a.site.anchor))


def is_asked_for(a: Attention, options: FusionOptions) -> Refusal | None:
    """Written out, it is fused unless only calls are to be."""
    if a.site.is_call or options.attention == "all":
        return None
    return refusals.NotACall.at(a.site.anchor, "the attention is written out")


def enough_scores(a: Attention, options: FusionOptions) -> Refusal | None:
    """There are as many queries over all heads as keep the chip busy (see min_rows)."""
    b, n, s, _ = a.site.sizes
    least = least_rows() if options.min_rows is None else options.min_rows
    if b * n * s >= least:
        return None
    return refusals.FewScores.at(a.site.anchor, f"{b} x {n} heads of {s} queries are fewer than {least} rows")


SHAPE_RULES: tuple[Rule[Attention, FusionOptions], ...] = (
    Rule("L43", plain_tensors, refusals.InATransform),
    Rule("L29", sizes_are_known, refusals.DynamicShape),
    Rule("L30", keys_are_as_many_as_queries, refusals.UnequalLengths),
    Rule("L31", one_shape, refusals.AttentionShape),
    Rule("L32", half_precision, refusals.Dtype),
    Rule("L33", one_dtype, refusals.MixedDtypes),
    Rule("L34", head_dim_of_the_op, refusals.HeadDim),
    Rule("L35", length_of_the_op, refusals.SequenceLength),
    Rule("L44", scale_is_finite, refusals.ScoreFunction),
    Rule("L36", no_dropout, refusals.AttentionDropout),
    Rule("L37", weights_are_private, refusals.AttentionWeightsUsed),
)
"""Asked before masks are read, whose sizes must fit."""
RULES: tuple[Rule[Attention, FusionOptions], ...] = (
    Rule("L38", bias_has_querys_dtype, refusals.BiasDtype),
    Rule("L39", bias_needs_no_gradient, refusals.BiasGradient),
    Rule("L40", nothing_is_written_between, refusals.MutationInBetween),
    Rule("L20", machine_has_the_op, *refusals.OF_THE_MACHINE),
    Rule("L41", is_asked_for, refusals.NotACall),
    Rule("L42", enough_scores, refusals.FewScores),
)


def between(site: Site) -> Iterator[Node]:
    """Nodes of the graph from the site's first to its last."""
    node = min((*site.inner, site.anchor))
    while node is not site.last:
        yield node
        node = node.next
