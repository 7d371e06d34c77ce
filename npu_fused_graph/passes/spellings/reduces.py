"""Every spelling of an all-reduce: one function and one row of SPELLINGS each."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import (
    arguments,
    identity_of,
    is_call,
    op_name,
    operand,
    readers,
    shape_of,
    skip_identities,
    wrapped,
)
from npu_fused_graph.passes.refusals import Refusal
from npu_fused_graph.passes.spellings.products import Product

WAITS = ("_c10d_functional::wait_tensor", "c10d_functional::wait_tensor")
_FUSED = ("npu_fused_graph::", "npu::", "mindspeed::")
_GATHERS = ("_c10d_functional::all_gather_into_tensor",)


@dataclass(frozen=True, slots=True)
class AllReduce:
    """result = sum over ``group`` of operand.

    node: the collective; of a scatter and gather the scatter. result: the node that later code reads. inner: all nodes
    that disappear with the site, in graph order. product: of an operator that multiplies too; operand is None then.
    """

    node: Node
    operand: Node | None
    result: Node
    reduce_op: str
    group: str
    inner: tuple[Node, ...]
    product: Product | None = None


def candidates(graph: Graph) -> Iterator[Node]:
    """Collectives that may be a site, in graph order."""
    for node in graph.nodes:
        if _name(node) in SPELLINGS:
            yield node


def all_reduce(node: Node) -> AllReduce | Refusal:
    """The record of a candidate, or why it is none."""
    return SPELLINGS[_name(node)](node)


def _name(node: Node) -> str:
    inner = wrapped(node)
    name = "" if inner is None else str(inner.name())
    return name if name in _EAGER else op_name(node)


def group_of(node: Node) -> str:
    """The group a candidate names, as it is written there."""
    if wrapped(node) is not None:
        return ""
    found = arguments(node)
    return str(next((found[name] for name in ("group_name", "hcom", "ranks") if name in found), ""))


def communication_domain(graph: Graph) -> str | None:
    """The group of the operators of ``graph`` that compute and communicate, if there are any."""
    for node in graph.nodes:
        if op_name(node).startswith(_FUSED):
            found = arguments(node)
            group = next((found[name] for name in ("hcom", "hcomm") if name in found), None)
            if isinstance(group, str):
                return group
    return None


def is_reduced(node: Node) -> bool:
    """Whether ``node`` shows a reduced result that has one reader."""
    while len(readers(node)) == 1:
        source = operand(node) if is_call(node, *WAITS, *_GATHERS) else identity_of(node)
        if source is None:
            return op_name(node) in SPELLINGS
        node = source
    return False


# -- spellings ------------------------------------------------------------------------------------------------


def _functional(node: Node) -> AllReduce | Refusal:
    tensor, reduce_op, group = node.args[:3]
    return _waited_for(node, tensor, str(reduce_op), str(group))


def _legacy(node: Node) -> AllReduce | Refusal:
    """c10d_functional::all_reduce names the group by tag and ranks."""
    tensor, reduce_op, tag, ranks = node.args[:4]
    try:
        found = torch.distributed.distributed_c10d._find_pg_by_ranks_and_tag(str(tag), list(ranks))  # type: ignore[arg-type]
    except (KeyError, ValueError):
        found = None
    if found is None:
        return refusals.UnknownGroup.at(node, f"no group has tag {tag!r} and the ranks {ranks}")
    return _waited_for(node, tensor, str(reduce_op), found.group_name)


def _vllm(node: Node) -> AllReduce | Refusal:
    """vllm::all_reduce names vLLM's coordinator of a group; its result needs no wait."""
    found = arguments(node)
    group = _vllm_group(str(found["group_name"]))
    return AllReduce(node, _node(found["tensor"]), node, "sum", group, (node,))


def _scattered(node: Node) -> AllReduce | Refusal:
    """A reduce-scatter that the same ranks gather at once, both along dim 0."""
    tensor, reduce_op, _, group = node.args[:4]
    part = _waited_for(node, tensor, str(reduce_op), str(group))
    if isinstance(part, Refusal):
        return part
    gathers, dim = readers(part.result), _scatter_dim(tensor)
    if len(gathers) != 1 or not is_call(gathers[0], *_GATHERS):
        along = f" along dim {dim}" if dim else ""
        return refusals.SequenceParallel.at(node, f"the sum is scattered{along} over group {group!r} and stays so")
    gather = gathers[0]
    if gather.args[2] != group:
        return refusals.SequenceParallel.at(node, f"scattered over group {group!r}, gathered over {gather.args[2]!r}")
    whole = _waited_for(gather, tensor, str(reduce_op), str(group))
    if isinstance(whole, Refusal):
        return whole
    gathered = _gather_dim(whole.result)
    if dim or gathered:
        return refusals.ScatterDim.at(node, f"the sum is scattered along dim {dim} and gathered along dim {gathered}")
    return AllReduce(node, part.operand, whole.result, part.reduce_op, part.group, (*part.inner, *whole.inner))


_SPLITS = ("aten::split.Tensor", "aten::split_with_sizes", "aten::chunk")


def _scatter_dim(tensor: Any) -> int:
    """The dim whose parts were put one below the other for a collective that scatters along dim 0."""
    cat = skip_identities(_node(tensor))
    if not is_call(cat, "aten::cat") or arguments(cat)["dim"] != 0:
        return 0
    splits = {operand(x) for x in arguments(cat)["tensors"] if x.target is operator.getitem}
    split = splits.pop() if len(splits) == 1 else None
    if split is None or not is_call(split, *_SPLITS):
        return 0
    dim: int = arguments(split)["dim"]
    return dim % len(shape_of(operand(split)))


def _gather_dim(result: Node) -> int:
    """The dim along which the parts of a collective that gathers along dim 0 are joined."""
    users = readers(result)
    if len(users) != 1 or not is_call(users[0], *_SPLITS) or arguments(users[0])["dim"] != 0:
        return 0
    cats = {reader for part in readers(users[0]) for reader in readers(part)}
    cat = cats.pop() if len(cats) == 1 else None
    if cat is None or not is_call(cat, "aten::cat"):
        return 0
    dim: int = arguments(cat)["dim"]
    return dim % len(shape_of(cat))


def _half_fused(node: Node) -> AllReduce | Refusal:
    """npu::npu_mm_all_reduce_base multiplies and reduces."""
    found = arguments(node)
    extra = [name for name in _BEYOND if found[name] not in (None, 0)]
    if extra:
        return refusals.Quantisation.at(node, f"{op_name(node)} has {', '.join(extra)}, which the fused op has not")
    scales = {name: found[name] for name in _SCALES if found[name] is not None and found[name] != 0}
    product = Product(node, _node(found["x1"]), _node(found["x2"]), bias=found["bias"], scales=scales)
    return AllReduce(node, None, node, str(found["reduce_op"]), str(found["hcom"]), (node,), product)


def _coalesced(node: Node) -> Refusal:
    return refusals.Coalesced.at(node, "the collective reduces several tensors")


def _eager(node: Node) -> Refusal:
    return refusals.EagerCollective.at(node, f"{_name(node)} takes a process group object")


_EAGER = (
    "c10d::allreduce_", "c10d::allreduce_coalesced_", "c10d::reduce_scatter_", "c10d::_reduce_scatter_base_",
    "c10d::reduce_scatter_tensor_coalesced_",
)  # fmt: skip

SPELLINGS: Mapping[str, Callable[[Node], AllReduce | Refusal]] = {
    "_c10d_functional::all_reduce": _functional,
    "_c10d_functional::all_reduce_": _functional,
    "c10d_functional::all_reduce": _legacy,
    "vllm::all_reduce": _vllm,
    "_c10d_functional::reduce_scatter_tensor": _scattered,
    "npu::npu_mm_all_reduce_base": _half_fused,
    "_c10d_functional::all_reduce_coalesced": _coalesced,
    "_c10d_functional::all_reduce_coalesced_": _coalesced,
    "c10d_functional::all_reduce_coalesced": _coalesced,
    **dict.fromkeys(_EAGER, _eager),
}

_SCALES = ("antiquant_scale", "antiquant_offset", "dequant_scale", "antiquant_group_size")
_BEYOND = (
    "x3", "pertoken_scale", "comm_quant_scale_1", "comm_quant_scale_2", "group_sizes", "y_dtype", "x1_dtype",
    "x2_dtype", "dequant_scale_dtype", "pertoken_scale_dtype", "comm_quant_mode",
)  # fmt: skip


def _waited_for(node: Node, tensor: Any, reduce_op: str, group: str) -> AllReduce | Refusal:
    """The record of a collective whose only reader is its wait."""
    inner = [node]
    # funcol.wait_tensor(funcol.all_reduce(t)): the functional collective waits by itself, too
    while len(users := readers(inner[-1])) == 1 and is_call(users[0], *WAITS):
        inner.append(users[0])
    if len(inner) == 1:
        return refusals.ResultUsedElsewhere.at(
            node, "the collective's result is read before its wait", "Read only the waited result."
        )
    return AllReduce(node, _node(tensor), inner[-1], reduce_op, group, tuple(inner))


def _vllm_group(name: str) -> str:
    """The c10d name of vLLM's group ``name``, if vLLM runs in this process."""
    state = sys.modules.get("vllm.distributed.parallel_state")
    coordinator = getattr(state, "_groups", {}).get(name, lambda: None)()
    return name if coordinator is None else str(coordinator.device_group.group_name)


def _node(x: Any) -> Node:
    assert isinstance(x, Node)
    return x
