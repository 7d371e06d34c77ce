"""Every dispatch of tokens to experts: a call of the operator is one node, others keep what they are.

A dispatch by collectives cannot become AttentionToFFN by itself: FFN ranks are ranks of their own there, which read
windows that all have registered with a plan of who holds which expert. The site says so.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import replace

from torch.fx import GraphModule, Node

from npu_fused_graph.ops.attention_to_ffn import SPEC
from npu_fused_graph.passes.attention_to_ffn.rules import CALLS, RULES, DispatchSite
from npu_fused_graph.passes.fx import arguments, is_call, operand, shape_of, skip_identities
from npu_fused_graph.passes.location import module_path, source_line
from npu_fused_graph.passes.options import FusionOptions
from npu_fused_graph.passes.positions import Positions
from npu_fused_graph.passes.refusals import Refused
from npu_fused_graph.passes.rules import Context, check
from npu_fused_graph.passes.verdicts import FusionSite

BY_HAND = (
    "npu::npu_moe_distribute_dispatch",
    "npu::npu_moe_distribute_dispatch_v2",
    "npu::npu_moe_distribute_dispatch_setup",
)
"""Operators that dispatch between ranks that all hold experts."""

_ALL_TO_ALL = ("_c10d_functional::all_to_all_single", "npu_define::all_to_all_single_npu")
_PICKS = (
    "aten::index.Tensor", "aten::index_select", "aten::gather", "aten::embedding", "npu::npu_moe_token_permute",
    "npu::npu_moe_init_routing",
)  # fmt: skip
"""What puts tokens into the order of their experts."""
_MOVES = ("aten::cat", "aten::constant_pad_nd", "aten::slice.Tensor", "aten::split.Tensor", "aten::split_with_sizes")
"""What may lie between picking and sending, besides views: nothing that computes."""
_LIMIT = 8
"""Nodes that are looked at."""


def run(gm: GraphModule, options: FusionOptions) -> list[FusionSite]:
    """One record per dispatch, in graph order. Nothing is rewritten."""
    found = [DispatchSite(node) for node in gm.graph.nodes if is_dispatch(node)]
    if not found:
        return []
    context = Context(SPEC, Positions(gm.graph), options, None)
    return [_record(site, context) for site in found]


def is_dispatch(node: Node) -> bool:
    """Whether a node sends tokens to the ranks of their experts."""
    return is_call(node, *CALLS, *BY_HAND) or (is_call(node, *_ALL_TO_ALL) and any(map(_picks, _sources(node))))


def _picks(node: Node) -> bool:
    return is_call(node, *_PICKS)


def _sources(node: Node) -> Iterator[Node]:
    """What a node sends, and what that was made of without computing anything."""
    found = operand(node)
    for _ in range(_LIMIT):
        if found is None:
            return
        found = skip_identities(found)
        yield found
        if not is_call(found, *_MOVES) and found.target is not operator.getitem:
            return
        found = next(iter(found.all_input_nodes), None)


def _record(site: DispatchSite, context: Context) -> FusionSite:
    node = site.node
    shape = shape_of(arguments(node).get("x") or operand(node))
    record = FusionSite(
        SPEC.stem, node.name, source_line(node), module_path(node), collective=node.name,
        facts={"shape": " x ".join(map(str, shape)), "is_call": site.is_call},
    )  # fmt: skip
    try:
        check(site, context, RULES)
    except Refused as refused:
        return replace(record, refusal=refused.refusal)
    return record
