"""Changes of a captured graph that no capture makes, each with what it does to the verdicts.

Capturing takes most of the time, so that a program is checked in several variants of its graph.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from tests.passes.fuzz.check import Case
from tests.passes.fuzz.text import Result

aten, functional = torch.ops.aten, torch.ops._c10d_functional

CANDIDATES = (
    functional.all_reduce.default,
    functional.all_reduce_.default,
    functional.all_reduce_coalesced.default,
    functional.reduce_scatter_tensor.default,
)
"""Targets that have a record each; npu, vllm and legacy ones are looked up by name."""
CANDIDATE_NAMES = ("npu_mm_all_reduce_base", "vllm.all_reduce", "c10d_functional.all_reduce")

MATMULS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.linear.default, aten.matmul.default)

MERGED = (
    aten.view.default, aten._unsafe_view.default, aten.t.default, aten.permute.default, aten.transpose.int,
    aten.unsqueeze.default, aten.squeeze.dim, aten._to_copy.default, aten.reshape.default, aten.to.dtype,
)  # fmt: skip


def value_of(node: Node) -> Any:
    return node.meta.get("val")


def is_pure(node: Node) -> bool:
    """An aten operator that writes nothing."""
    target = node.target
    is_aten = isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"
    return node.op == "call_function" and is_aten and not target._schema.is_mutable and "dropout" not in str(target)


def writes(gm: GraphModule) -> bool:
    """Whether an operator of the graph writes to its arguments: then nodes may not be moved."""
    return any(
        isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable
        for n in gm.graph.nodes
        if n.op == "call_function"
    )


def swapped(case: Case, rng: random.Random) -> Case | None:
    """Some additions and products with their operands the other way round."""
    gm = copy.deepcopy(case.gm)
    done = False
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target in (aten.add.Tensor, aten.mul.Tensor) and not node.kwargs:
            a, b = node.args
            if isinstance(a, Node) and isinstance(b, Node) and _dense(a, b) and rng.random() < 0.7:
                node.args, done = (b, a), True
    return replace(case, gm=gm) if done else None


def _dense(*nodes: Node) -> bool:
    """Whether the layout of a sum of these does not depend on their order."""
    return all(isinstance(value_of(n), Tensor) and value_of(n).is_contiguous() for n in nodes)


def reordered(case: Case, rng: random.Random) -> Case | None:
    """Pure nodes as late, or as early, as their neighbours allow; collectives, products and vectors stay.

    A vector may be a norm's weight: computed after the sum it would be a reason to refuse the site.
    """
    if writes(case.gm):
        return None
    gm = copy.deepcopy(case.gm)
    done = False
    for node in list(gm.graph.nodes):
        value = value_of(node)
        if not is_pure(node) or node.target in MATMULS or not isinstance(value, Tensor) or value.dim() < 2:
            continue
        if rng.random() < 0.6:
            continue
        other = node.next if rng.random() < 0.5 else node.prev
        steps = rng.randint(1, 12)
        forward = other is node.next
        anchor = node
        while steps and _may_pass(node, other, forward):
            anchor, other = other, other.next if forward else other.prev
            steps -= 1
        if anchor is not node:
            (anchor.append if forward else anchor.prepend)(node)
            done = True
    return replace(case, gm=gm) if done else None


def _may_pass(node: Node, other: Node, forward: bool) -> bool:
    """Collectives and vectors are not passed: which side of them a sum lies on decides whether it can be fused."""
    value = value_of(other)
    if not is_pure(other) or not isinstance(value, Tensor) or value.dim() < 2:
        return False
    return other not in node.users if forward else other not in node.all_input_nodes


def reinplaced(case: Case, rng: random.Random) -> Case | None:
    """all_reduce writes into a product that nothing else reads, as inductor makes it."""
    gm = copy.deepcopy(case.gm)
    done = False
    for node in gm.graph.find_nodes(op="call_function", target=functional.all_reduce.default):
        source = node.args[0]
        has_own_memory = source.op == "call_function" and source.target in (aten.mm.default, aten.addmm.default)
        if has_own_memory and len(source.users) == 1:
            node.target, done = functional.all_reduce_.default, True
    return replace(case, gm=gm) if done else None


def merged(case: Case, rng: random.Random) -> Case | None:
    """Equal casts and views of one tensor computed once, as common subexpression elimination does."""
    if writes(case.gm):
        return None
    gm = copy.deepcopy(case.gm)
    seen: dict[tuple[Any, ...], Node] = {}
    done = False
    for node in list(gm.graph.nodes):
        value = value_of(node)
        if node.target not in MERGED or not isinstance(value, Tensor) or value.dtype is torch.float32:
            continue  # a float32 value of the sum may belong to a norm: sharing it with another reader is a reason
        key = (node.target, str(node.args), str(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            gm.graph.erase_node(node)
            done = True
        else:
            seen[key] = node
    return replace(case, gm=gm) if done else None


def candidates(gm: GraphModule) -> list[Node]:
    """The nodes that have a record, in order."""
    found = []
    for node in gm.graph.nodes:
        if node.op == "call_function":
            name = str(node.target).removesuffix(".default")
            is_named = any(name.endswith(x) for x in CANDIDATE_NAMES) and name.split(".")[0] != "npu_fused_graph"
            if node.target in CANDIDATES or is_named:
                found.append(node)
    return found


def read(case: Case, rng: random.Random) -> Case | None:
    """One more reader, whose value is returned: of what one collective reduces, or of what it returns."""
    gm = copy.deepcopy(case.gm)
    nodes = candidates(gm)
    if not nodes or len(nodes) != len(case.expected):
        return None
    index = rng.randrange(len(nodes))
    if case.expected[index].label.endswith(("into_the_residual", "parallel")):
        return None  # a sum of two reduces, of which one is read elsewhere, is an ordinary residual to the other
    node = nodes[index]
    if node.target._schema.is_mutable or "coalesced" in str(node.target) or "reduce_scatter" in str(node.target):
        return None
    reads_partial = rng.random() < 0.5 and "base" not in str(node.target)
    source, reason = (
        (node.args[0], "matmul_result_used_elsewhere") if reads_partial else (node, "result_used_elsewhere")
    )
    if not reads_partial:
        source = next((u for u in node.users if "wait_tensor" in str(u.target)), node)
    if source.op != "call_function":
        return None
    with gm.graph.inserting_after(source):
        reader = gm.graph.call_function(aten.relu.default, (source,))
        reader.meta["val"] = torch.ops.aten.relu.default(value_of(source))
    output = gm.graph.find_nodes(op="output")[0]
    output.args = ((*output.args[0], reader),)
    expected = copy.deepcopy(list(case.expected))
    expected[index].reasons.add(reason)
    expected[index].is_free = False
    results = [*case.results, Result(reader.name, case.results[0].dtype, 64, mostly_equal=False)]
    return replace(case, gm=gm, expected=expected, results=results, wanted=[])


Variant = Callable[[Case, random.Random], Case | None]

VARIANTS: dict[str, Variant] = {
    "swapped": swapped, "reordered": reordered, "reinplaced": reinplaced, "merged": merged, "read": read,
}  # fmt: skip
