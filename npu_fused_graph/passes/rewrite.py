"""Puts the fused operator in the place of a matched site."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from npu_fused_graph.passes import recognise
from npu_fused_graph.passes.order import Order
from npu_fused_graph.passes.recognise import AllReduce, Linear, RmsNorm, aten, is_call, same_shape, shape_of

_TRANSPOSES = (aten.t.default, aten.permute.default, aten.transpose.int)


@dataclass(frozen=True, slots=True)
class Site:
    """matmul -> all-reduce -> + residual -> norm, recognised."""

    reduce: AllReduce
    linear: Linear
    add: Node
    residual: Node
    norm: RmsNorm

    @property
    def rows(self) -> Any:
        """Product of the leading dims: an int, or symbolic."""
        return _product(shape_of(self.residual)[:-1])

    @property
    def can_reshape(self) -> bool:
        """Whether the graph can spell the views around the fused op: an explicit shape takes numbers only."""
        shapes = [shape_of(x) for x in (self.add, self.norm.output)]
        return all(
            all(isinstance(size, int) for size in shape) or (len(shape) in (2, 3) and same_shape(shape, shapes[0]))
            for shape in shapes
        )


def rewrite(graph: Graph, site: Site, order: Order) -> Node:
    add, norm = site.add, site.norm
    with graph.inserting_before(add):
        residual = _as_3d(graph, site.residual, order)
        overloads = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm
        stored = recognise.stored_transposed(site.linear.weight)
        fused = graph.call_function(
            overloads.default if stored is None else overloads.transposed_x2,
            (_operand(site.linear), stored or site.linear.weight, residual, norm.gamma, site.reduce.group),
            {"epsilon": float(norm.epsilon)} | ({} if site.linear.bias is None else {"bias": site.linear.bias}),  # type: ignore[arg-type]
        )
        y, normalised = (graph.call_function(operator.getitem, (fused, i)) for i in (0, 1))
        for node, old in ((y, add), (normalised, norm.output)):
            node.meta["val"] = _shaped(recognise.value_of(old), residual)
        fused.meta["val"] = (y.meta["val"], normalised.meta["val"])
        results = [_back(graph, node, old) for node, old in ((y, add), (normalised, norm.output))]
    fused.meta["stack_trace"] = site.reduce.node.meta.get("stack_trace")
    fused.meta["nn_module_stack"] = site.linear.node.meta.get("nn_module_stack")
    for new, old in zip(results, (add, norm.output), strict=True):
        old.replace_all_uses_with(new)
        order.replace(new, add)
        new.meta.setdefault("stack_trace", old.meta.get("stack_trace"))
    _erase(graph, site)
    return fused


def _erase(graph: Graph, site: Site) -> None:
    """Remove the nodes the fused one stands for. Dead-code elimination would keep the collective."""
    pending = [site.norm.output, site.add, *site.norm.inner, *site.reduce.inner]
    own = {*pending, site.linear.node}
    while pending:
        node = pending.pop()
        if node._erased or node.users or not (node in own or is_call(node, *recognise.VIEWS, *_TRANSPOSES)):
            continue
        inputs = node.all_input_nodes
        graph.erase_node(node)
        pending.extend(inputs)


def _operand(linear: Linear) -> Node:
    """x1: the 3-D tensor in front of linear's own flatten where there is one, else the 2-D operand."""
    node, k = linear.x, shape_of(linear.x)[-1:]
    while is_call(node, *recognise.VIEWS):
        source = node.args[0]
        assert isinstance(source, Node)
        node = source
        shape = shape_of(node)
        if len(shape) == 3 and same_shape(shape[-1:], k) and recognise.is_contiguous(node):
            return node
    return linear.x


def _as_3d(graph: Graph, residual: Node, order: Order) -> Node:
    shape = shape_of(residual)
    if len(shape) == 3:
        return residual
    if len(shape) == 2:
        view = graph.call_function(aten.unsqueeze.default, (residual, 0))
    else:
        view = graph.call_function(aten.view.default, (residual, [1, _product(shape[:-1]), shape[-1]]))
    view.meta["val"] = view.target(recognise.value_of(residual), *view.args[1:])  # type: ignore[operator]
    order.replace(view, residual)
    return view


def _back(graph: Graph, node: Node, old: Node) -> Node:
    """``node``, which is 3-D, in the shape of the node it replaces."""
    shape, has = shape_of(old), shape_of(node)
    if same_shape(shape, has):
        return node
    if len(shape) == 2 and same_shape(shape, has[1:]):
        view = graph.call_function(aten.squeeze.dim, (node, 0))
    else:
        view = graph.call_function(aten.view.default, (node, list(shape)))
    view.meta["val"] = recognise.value_of(old)
    return view


def _shaped(value: Any, residual: Node) -> Any:
    return value.view(shape_of(residual)) if isinstance(value, torch.Tensor) else value


def _product(sizes: tuple[Any, ...]) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * size
    return total
