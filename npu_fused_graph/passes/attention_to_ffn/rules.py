"""What a dispatch must be to become an AttentionToFFN node."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.fx import Node

from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import is_call, op_name
from npu_fused_graph.passes.location import source_line
from npu_fused_graph.passes.refusals import Refusal
from npu_fused_graph.passes.rules import Context, Rule

CALLS = ("npu_fused_graph::npu_attention_to_ffn", "npu::npu_attention_to_ffn")
"""The operator, ours and torch_npu's."""


@dataclass(frozen=True, slots=True)
class DispatchSite:
    """node: it sends tokens to the ranks of their experts."""

    node: Node

    @property
    def is_call(self) -> bool:
        """Of the operator."""
        return is_call(self.node, *CALLS)


def is_the_operator(site: DispatchSite, context: Context) -> Refusal | None:
    """The dispatch is a call of npu_attention_to_ffn, whose windows and FFN ranks somebody has planned."""
    if site.is_call:
        return None
    text = f"tokens are sent by {op_name(site.node)}, between ranks that all hold experts"
    return refusals.NoWindowPlan.at(site.node, text)


def machine_has_the_op(site: DispatchSite, context: Context) -> Refusal | None:
    """The installed CANN and the chip have the operator."""
    found = context.options.unavailable.get(context.spec.stem)
    return None if found is None else replace(found, node=site.node.name, source=source_line(site.node))


RULES: tuple[Rule[DispatchSite, Context], ...] = (
    Rule("L28", is_the_operator, refusals.NoWindowPlan),
    Rule("L20", machine_has_the_op, *refusals.OF_THE_MACHINE),
)
