"""What an all-reduce sums where it is no plain matmul, and what can be done about it."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterator

from torch.fx import Node

from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import arguments, identity_of, is_call, op_name, operand
from npu_fused_graph.passes.refusals import Refusal
from npu_fused_graph.passes.spellings.products import SPELLINGS, Product, product
from npu_fused_graph.passes.spellings.reduces import WAITS
from npu_fused_graph.passes.tracing import break_in_front, input_of, named

DROPOUTS = {
    "aten::dropout", "aten::native_dropout", "npu::_npu_dropout", "npu::npu_dropout_do_mask",
    "npu::dropout_with_byte_mask", "npu::_dropout_with_byte_mask",
}  # fmt: skip
"""Those in eval mode do not get here: they only show what they are given."""

GROUPED = ("npu::npu_grouped_matmul", "npu::npu_grouped_matmul.List")
ROUTED = (*GROUPED, "aten::_grouped_mm", "transformers::grouped_mm_fallback", "vllm::moe_forward")
"""Matmuls whose rows are sorted by what the router says."""

_JOINS = {
    "aten::index_add", "aten::index_put", "aten::scatter_add", "aten::scatter_reduce.two", "aten::sum.dim_IntList",
    "npu::npu_moe_finalize_routing",
}  # fmt: skip
"""How rows come together."""

_KEEP = "Nothing to change here: the fused op has one matmul. Keep these and their one all-reduce."

_SUMS = ("aten::add.Tensor", "aten::mul.Tensor", "aten::mul.Scalar")

_NEAR = 100
"""Nodes that are looked at."""


def no_matmul(source: Node) -> Refusal:
    """The refusal of a site whose collective sums ``source``."""
    producer = operand(source) if source.target is operator.getitem else source
    assert producer is not None
    name = op_name(producer) or producer.op
    if producer.op == "placeholder":
        return _input(producer)
    if name in DROPOUTS:
        text = f"a dropout stands between the matmul and the collective: {named(producer)}"
        return refusals.TrainingDropout.at(producer, text)
    expert = routed(source)
    if expert is not None:
        text = f"what is reduced is put together from the rows of experts: {named(expert)}"
        return refusals.NoMatmul.at(expert, text, _KEEP)
    if not any(is_call(node, *SPELLINGS, *ROUTED) for node in _behind(source)):
        text = f"what is reduced comes from {name}, with no matmul near: {named(source)}"
        return refusals.NoMatmul.at(source, text, "Nothing to fuse here.")
    if name in _JOINS:
        return refusals.NoMatmul.at(source, f"what is reduced joins rows of matmuls: {named(source)}", _KEEP)
    summed = _summed(source)
    if len(summed) > 1:
        text = f"what is reduced is a sum of {len(summed)} matmuls: {', '.join(map(named, summed[:3]))}"
        cure = "Make them one: join their inputs, each with its factor, along k, and their weights, too."
        return refusals.NoMatmul.at(source, text, cure)
    cure = "Give the linear a contiguous activation and a 2-D weight." if name == "aten::bmm" else ""
    text = f"what is reduced comes from {name}, not from a plain matmul: {named(source)}"
    return refusals.NoMatmul.at(source, text, cure)


def _input(node: Node) -> Refusal:
    found, where = input_of(node), break_in_front()
    if where and found.kind == "input":
        text = f"what is reduced was computed in front of the graph break at {where}"
        return refusals.GraphBreak.at(node, text)
    text = f"what is reduced is the {found.kind} {found.name} of the graph"
    return refusals.NoMatmul.at(node, text, "Nothing to fuse here, or compile what multiplies together with it.")


def routed(node: Node) -> Node | None:
    """The grouped matmul that ``node`` is computed from without another matmul in between, if it is near."""
    found = next((x for x in _behind(node) if is_call(x, *ROUTED)), None)
    is_constant = found is not None and isinstance(arguments(found).get("group_list"), (list, tuple))
    return None if is_constant else found


def _behind(node: Node) -> Iterator[Node]:
    """``node`` and what it is computed from, nearest first, to the matmuls and collectives behind it."""
    pending, seen = deque([node]), {node}
    while pending and len(seen) < _NEAR:
        current = pending.popleft()
        yield current
        if current.op != "call_function" or is_call(current, *WAITS, *ROUTED) or product(current) is not None:
            continue
        fresh = [x for x in current.all_input_nodes if x not in seen]
        seen.update(fresh)
        pending.extend(fresh)


def _summed(node: Node) -> list[Node]:
    """The matmuls that additions, each with a factor or without one, put into ``node``, as far as they are near."""
    found, pending, seen = [], [node], {node}
    while pending and len(seen) < _NEAR:
        current = pending.pop()
        if isinstance(product(current), Product):
            found.append(current)
        elif is_call(current, *_SUMS) or identity_of(current) is not None:
            fresh = [x for x in current.all_input_nodes if x not in seen]
            seen.update(fresh)
            pending.extend(fresh)
    return found[::-1]
