"""Puts the fused operator in the place of a matched site."""

from __future__ import annotations

import operator
from collections.abc import Sequence, Set
from typing import Any

import torch
from torch.fx import Graph, Node

from npu_fused_graph.passes.fx import (
    aten,
    copies,
    dtype_of,
    identity_of,
    is_contiguous,
    readers,
    same_shape,
    shape_of,
    storage_owner,
    value_of,
)
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.empty_shard import with_zeros, zero_columns
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.rules import late_operands
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.site import Site
from npu_fused_graph.passes.positions import Positions
from npu_fused_graph.passes.writing import CallBuilder, erase


def rewrite(graph: Graph, site: Site, positions: Positions, others: Set[Node]) -> Node:
    """The fused node, in the place of the add; the site's own nodes are erased. others: collectives of other sites."""
    positions.move(late_operands(site, positions), site.add)
    with graph.inserting_before(site.add):
        writer = _Writer(site, CallBuilder(graph, positions, site.add))
        fused = writer.fused()
        results = writer.results(fused)
    fused.meta["stack_trace"] = site.reduce.node.meta.get("stack_trace")
    fused.meta["nn_module_stack"] = site.product.node.meta.get("nn_module_stack")
    for old, new in results:
        old.replace_all_uses_with(new)
        new.meta.setdefault("stack_trace", old.meta.get("stack_trace"))
    positions.move_collective(site.reduce.inner, fused)
    own = {site.add, *site.norm.inner, *site.reduce.inner, *site.before, *site.after}
    erase(graph, own | {node for node in (site.total, site.norm.output) if node is not None}, others)
    return fused


class _Writer:
    """Makes the nodes of a fused site."""

    def __init__(self, site: Site, call: CallBuilder) -> None:
        self.site, self.call = site, call

    def fused(self) -> Node:
        site, product = self.site, self.site.product
        residual = site.residual
        if site.bias is not None:  # of this rank alone, for all one knows: it does not go through the reduce
            residual = self.call(aten.add.Tensor, residual, self._vector(site.bias))
        residual = self._as_3d(residual)
        stored = product.is_stored_transposed and is_contiguous(product.weight)
        weight = product.weight
        x1, scales, pads = self._x1(), dict(product.scales), zero_columns(product)
        if pads:
            x1, weight = (with_zeros(x, pads[name], self.call) for name, x in (("x", x1), ("weight", weight)))
            scales |= {name: with_zeros(scales[name], pads[name], self.call) for name in scales if name in pads}
        if len(shape_of(x1)) > 3:
            x1 = self.call(aten.view.default, x1, [-1, shape_of(x1)[-1]])
        if product.is_stored_transposed and not stored:
            weight = self.call(aten.t.default, weight)
        keywords: dict[str, Any] = {"epsilon": site.norm.epsilon, **scales}
        bias = self._own_bias()
        if bias is not None:
            keywords["bias"] = bias
        sum_value = value_of(site.reduced).new_empty(shape_of(residual))
        overloads = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm
        overload = overloads.transposed_x2 if stored else overloads.default
        return self.call(
            overload, x1, weight, residual, self._gamma(), site.reduce.group,
            value=(sum_value, torch.empty_like(sum_value)), **keywords,
        )  # fmt: skip

    def results(self, fused: Node) -> list[tuple[Node, Node]]:
        """(old node, new node) of the sum and the norm, each in the shape of the old one."""
        pairs = []
        for i, old in enumerate((self.site.total, self.site.norm.output)):
            if old is not None:
                result = self.call(operator.getitem, fused, i, value=fused.meta["val"][i])
                pairs.append((old, self._back(result, old)))
        return pairs

    def _x1(self) -> Node:
        """The 3-D tensor in front of linear's own flatten where there is one, else the operand."""
        node, k = self.site.product.x, shape_of(self.site.product.x)[-1:]
        start: Node | None = node
        while start is not None:
            shape = shape_of(start)
            if len(shape) == 3 and same_shape(shape[-1:], k) and is_contiguous(start):
                return start
            start = None if copies(start) else identity_of(start)
        return node

    def _as_3d(self, x: Node) -> Node:
        shape = shape_of(x)
        if len(shape) == 3:
            return x
        if len(shape) == 2:
            return self.call(aten.unsqueeze.default, x, 0)
        return self.call(aten.view.default, x, [1, self.site.rows, shape[-1]])

    def _back(self, result: Node, old: Node) -> Node:
        shape, has = shape_of(old), shape_of(result)
        if same_shape(shape, has):
            result.meta["val"] = value_of(old)
            return result
        if len(shape) == 2 and same_shape(shape, has[1:]):
            return self.call(aten.squeeze.dim, result, 0, value=value_of(old))
        return self.call(aten.view.default, result, list(shape), value=value_of(old))

    def _gamma(self) -> Node:
        """The norm's weight as a vector of the sum's dtype."""
        norm, wanted = self.site.norm, dtype_of(self.site.reduced)
        assert norm.gamma is not None
        gamma = self._vector(norm.gamma)
        return gamma if dtype_of(gamma) is wanted else self.call(aten._to_copy.default, gamma, dtype=wanted)

    def _own_bias(self) -> Node | None:
        """What this rank adds to its product."""
        if self.site.product.bias is None:
            return None
        bias = self._vector(self.site.product.bias)
        if is_contiguous(bias):
            return bias
        return self.call(aten.clone.default, bias, memory_format=torch.contiguous_format)

    def _vector(self, x: Node) -> Node:
        return x if len(shape_of(x)) == 1 else self.call(aten.view.default, x, [shape_of(x)[-1]])


def consume_residuals(fused: Sequence[Node]) -> None:
    """Let the ops whose residual nobody else reads write the sum into its memory."""
    plain = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm
    in_place = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm_in_place
    for node in fused:
        if _dies(node):
            stored = node.target is plain.transposed_x2
            node.target = in_place.consuming_transposed_x2 if stored else in_place.consuming


def _dies(fused: Node) -> bool:
    """Whether the residual was computed in this graph, for this op alone."""
    x1, x2, node, *rest = fused.args
    others = (x1, x2, *rest, *fused.kwargs.values())
    while isinstance(node, Node) and node.op == "call_function" and len(readers(node)) == 1 and node not in others:
        source = identity_of(node)
        if source is None:
            return storage_owner(node) is node
        node = source
    return False
