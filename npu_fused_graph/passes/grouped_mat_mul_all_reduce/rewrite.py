"""Puts GroupedMatMulAllReduce in the place of a matched site."""

from __future__ import annotations

import operator
from collections.abc import Set
from typing import Any

import torch
from torch.fx import Graph, Node

from npu_fused_graph.ops.grouped_mat_mul_all_reduce_constraints import MOST_DIMS
from npu_fused_graph.passes.fx import (
    aten,
    dtype_of,
    identity_of,
    is_call,
    is_contiguous,
    same_shape,
    shape_of,
    value_of,
)
from npu_fused_graph.passes.grouped_mat_mul_all_reduce.rules import anchor, late_operands
from npu_fused_graph.passes.grouped_mat_mul_all_reduce.site import GroupedSite, Member
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.empty_shard import with_zeros, zero_columns
from npu_fused_graph.passes.positions import Positions
from npu_fused_graph.passes.writing import CallBuilder, erase


def rewrite(graph: Graph, site: GroupedSite, positions: Positions, others: Set[Node]) -> Node:
    """The fused node; the site's own nodes are erased. others: collectives of other sites."""
    place = anchor(site, positions)
    positions.move(late_operands(site, positions), place)
    with graph.inserting_before(place):
        writer = _Writer(site, CallBuilder(graph, positions, place))
        fused = writer.fused()
        results = [writer.result(fused, i) for i in range(len(site.parts))]
    fused.meta["stack_trace"] = site.reduce.node.meta.get("stack_trace")
    fused.meta["nn_module_stack"] = site.members[0].product.node.meta.get("nn_module_stack")
    own = {*site.inner, *site.before, *(member.product.node for member in site.members)}
    for part, new in zip(site.parts, results, strict=True):
        old = part.reduce.result
        copies = [user for user in old.users if is_call(user, "aten::copy") and identity_of(user) is old]
        if len(old.users) == len(copies) == 1:  # dist.all_reduce(t) leaves a copy into t
            copies[0].replace_all_uses_with(new)
            own.update(copies)
        old.replace_all_uses_with(new)
        new.meta.setdefault("stack_trace", old.meta.get("stack_trace"))
    erase(graph, own, others)
    return fused


class _Writer:
    """Makes the nodes of a fused site."""

    def __init__(self, site: GroupedSite, call: CallBuilder) -> None:
        self.site, self.call = site, call

    def fused(self) -> Node:
        site, source = self.site, self.site.split_source
        keywords: dict[str, Any] = {}
        if source is None:
            x = [self._x(member) for member in site.members]
        else:
            x = [self._filled("x", source, site.members[0])]
            keywords["group_list"] = [member.rows.end for member in site.members if member.rows is not None]
        stacked = site.stacked_weight
        if stacked is not None:
            weight = [self._filled("weight", stacked, site.members[0])]
        else:
            weight = [self._weight(member) for member in site.members]
        return self.call(
            torch.ops.npu_fused_graph.npu_grouped_mat_mul_all_reduce.default, x, weight, site.reduce.group,
            bias=self._biases(), split_item=site.split_item, **keywords,
        )  # fmt: skip

    def result(self, fused: Node, index: int) -> Node:
        """The result of part ``index``, in the shape the graph had."""
        old, value = self.site.parts[index].reduce.result, fused.meta["val"][index]
        new = self.call(operator.getitem, fused, index, value=value)
        if same_shape(shape_of(old), value.shape):
            return new
        return self.call(aten.view.default, new, list(shape_of(old)), value=value_of(old))

    def _x(self, member: Member) -> Node:
        """The left operand as the op takes it: a matrix where results are joined, and not beyond 6-D."""
        x, rows = member.product.x, member.rows
        if rows is not None and x is rows.source:
            x = self.call(aten.slice.Tensor, x, 0, rows.start, rows.end)
        x = self._filled("x", x, member)
        if len(shape_of(x)) == 2 or (len(shape_of(x)) <= MOST_DIMS and not self.site.is_joined):
            return x
        return self.call(aten.view.default, x, [-1, shape_of(x)[-1]])

    def _weight(self, member: Member) -> Node:
        weight, slot = member.product.weight, member.slot
        if slot is not None and weight is slot.source:
            weight = self.call(aten.select.int, weight, 0, slot.index)
        return self._filled("weight", weight, member)

    def _filled(self, name: str, x: Node, member: Member) -> Node:
        """``x`` with a column or row of zeros where this rank has no part of k."""
        pad = zero_columns(member.product).get(name)
        return x if pad is None else with_zeros(x, pad, self.call)

    def _biases(self) -> list[Node] | None:
        """One per group, zeros where this rank has none: a bias of rank 0 alone must not change the decision."""
        if all(member.product.bias is None for member in self.site.members):
            return None
        return [self._bias(member) for member in self.site.members]

    def _bias(self, member: Member) -> Node:
        x, bias = value_of(member.product.x), member.product.bias
        dtype = torch.float32 if x.dtype is torch.bfloat16 else x.dtype
        if bias is None:
            zeros = x.new_zeros(member.weight_shape[1], dtype=dtype)
            return self.call(aten.full.default, list(zeros.shape), 0, dtype=dtype, device=x.device, value=zeros)
        if len(shape_of(bias)) != 1:
            bias = self.call(aten.view.default, bias, [shape_of(bias)[-1]])
        if dtype_of(bias) is not dtype:
            return self.call(aten._to_copy.default, bias, dtype=dtype)
        if not is_contiguous(bias):
            return self.call(aten.clone.default, bias, memory_format=torch.contiguous_format)
        return bias
