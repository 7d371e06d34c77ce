"""Finds the site around a collective: back to the matmul, forward to the norm.

Whatever only shows the same elements is passed. Each step that fails is a refusal with its node and cure.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch.fx import Graph, Node

from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import (
    dtype_name,
    dtype_of,
    identity_of,
    is_call,
    is_cast,
    is_one,
    op_name,
    path_to,
    readers,
    same_shape,
    shape_of,
    skip_identities,
)
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.rules import DTYPES
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.site import Site
from npu_fused_graph.passes.refusals import Refusal, Refused
from npu_fused_graph.passes.spellings.no_matmul import DROPOUTS, no_matmul
from npu_fused_graph.passes.spellings.norms import RmsNorm, is_vector, near_misses, norm_at, norms
from npu_fused_graph.passes.spellings.products import Product, product
from npu_fused_graph.passes.spellings.reduces import (
    AllReduce,
    all_reduce,
    is_reduced,
)
from npu_fused_graph.passes.tracing import break_behind, named


class Matcher:
    """Finds the site around a collective. Where the graph's norms are is looked up once."""

    def __init__(self, graph: Graph) -> None:
        self._anchors: dict[Node, Node] = {}  # of a norm, by the node whose elements it normalises
        self._adders: dict[Node, Node] = {}  # of a norm that adds, by the node that does
        for norm in norms(graph):
            if norm.source is not None:
                self._anchors.setdefault(skip_identities(norm.source), norm.anchor)
            else:
                self._adders.setdefault(norm.adder or norm.anchor, norm.anchor)
        self._missed = {miss.source: miss.refusal for miss in near_misses(graph)}

    def match(self, node: Node) -> Site:
        """The site of a candidate. Raises Refused."""
        reduce = all_reduce(node)
        if isinstance(reduce, Refusal):
            raise Refused(reduce)
        found, before = _product(reduce)
        after, add, bias = self._residual_add(reduce)
        residual = self._residual(add, after[-1])
        norm = self._norm(add)
        if norm is None:
            _refuse_missing_norm(add, residual, after[-1], self._missed.get(add))
        if norm.refusal is not None:
            raise Refused(norm.refusal)
        return Site(reduce, found, before, after, bias, add, residual, norm)

    def _norm(self, add: Node) -> RmsNorm | None:
        """Read now, because sites before this one have been rewritten."""
        anchor = self._adders.get(add) or self._anchors.get(add)
        return None if anchor is None else norm_at(anchor)

    def _residual_add(self, reduce: AllReduce) -> tuple[tuple[Node, ...], Node, Node | None]:
        """(nodes from the reduced result to the add, the add, a bias added in between)."""
        path, bias = [reduce.result], None
        while True:
            node = path[-1]
            if node in self._anchors and bias is not None:
                _refuse(refusals.NoResidualAdd.at(node, "only a vector is added to the reduced result before the norm"))
            if node in self._anchors:
                norm = self._anchors[node]
                _refuse(refusals.NormBeforeAdd.at(norm, f"the reduced result is normalised first: {named(norm)}"))
            users = [user for user in readers(node) if not _is_hint(user, node)]
            if len(users) != 1:
                what = "nothing reads it" if not users else f"it is read by {', '.join(map(_reader, users[:3]))}"
                at = users[-1] if users else node
                _refuse(refusals.ResultUsedElsewhere.at(at, f"the reduced result goes not to one add alone: {what}"))
            user = users[0]
            if is_cast(user, torch.float32) and len(readers(user)) == 1 and readers(user)[0] in self._adders:
                return tuple(path), readers(user)[0], bias
            if identity_of(user) is node:
                path.append(user)
            elif bias is None and (vector := _added_vector(user, node)) is not None:
                bias = vector
                path.append(user)
            elif user in self._adders or is_call(user, "aten::add.Tensor", "aten::add.Scalar"):
                return tuple(path), user, bias
            else:
                _refuse_no_add(user)

    def _residual(self, add: Node, reduced: Node) -> Node:
        """The other operand of the add."""
        norm = self._norm(add) if add in self._adders else None
        a, b = add.args[:2] if norm is None or norm.addends is None else norm.addends
        residual = b if a is reduced else a
        if not isinstance(residual, Node):
            _refuse(refusals.ResidualIsANumber.at(add, f"{named(add)} adds a number"))
        if residual is reduced:
            _refuse(refusals.ResidualIsTheResult.at(add, f"{named(add)} adds the reduced result to itself"))
        if is_call(residual, "vllm::maybe_chunk_residual"):
            whole = residual.args[1]
            if isinstance(whole, Node) and same_shape(shape_of(whole), shape_of(residual)):
                residual = whole
        return residual


def _refuse(refusal: Refusal) -> NoReturn:
    raise Refused(refusal)


def _refuse_missing_norm(add: Node, residual: Node, reduced: Node, near_miss: Refusal | None) -> NoReturn:
    # the norm of a float32 sum is spelled without casts
    if dtype_of(reduced) not in DTYPES:
        _refuse(refusals.Dtype.at(reduced, f"the reduced result is {dtype_name(reduced)}"))
    if dtype_of(add) is not dtype_of(reduced):
        text = f"the sum is {dtype_name(add)}, the reduced result {dtype_name(reduced)}"
        _refuse(refusals.MixedDtypes.at(add, text))
    if is_reduced(residual):
        _refuse(refusals.SumOfReduces.at(add, f"{named(add)} adds two reduced results"))
    users = readers(add)
    while len(users) == 1 and identity_of(users[0]) is not None:
        users = readers(users[0])
    if len(users) == 1 and is_call(users[0], "aten::add.Tensor"):
        others = [x for x in users[0].args[:2] if isinstance(x, Node) and skip_identities(x) is not add]
        if any(is_reduced(x) for x in others):
            _refuse(refusals.SumOfReduces.at(users[0], f"{named(users[0])} adds another reduced result"))
    if users and all(user.op == "output" for user in users) and (where := break_behind()):
        _refuse(refusals.GraphBreak.at(add, f"the sum {named(add)} leaves the graph at the graph break at {where}"))
    _refuse(near_miss or refusals.NoRmsNorm.at(add, f"no RMSNorm reads the sum {add.name}"))


def _product(reduce: AllReduce) -> tuple[Product, tuple[Node, ...]]:
    """The matmul, and the nodes from what is reduced back to it."""
    if reduce.product is not None:
        return reduce.product, ()
    assert reduce.operand is not None
    source = skip_identities(reduce.operand)
    found = product(source)
    if isinstance(found, Refusal):
        raise Refused(found)
    if found is None:
        _refuse(no_matmul(source))
    return found, (*path_to(reduce.operand, source), source)


def _added_vector(add: Node, reduced: Node) -> Node | None:
    """The bias of ``reduced + bias``, where bias is a vector of the last dim and reduced has several rows."""
    shape = shape_of(reduced)
    if not is_call(add, "aten::add.Tensor") or add.kwargs or not same_shape(shape_of(add), shape):
        return None
    other = add.args[1] if add.args[0] is reduced else add.args[0]
    rows_are_one = all(map(is_one, shape[:-1]))
    if rows_are_one or not isinstance(other, Node) or other is reduced or not is_vector(other, shape[-1]):
        return None
    return other


def _is_hint(user: Node, node: Node) -> bool:
    """vLLM's maybe_chunk_residual(x, residual) looks at x's shape only."""
    return is_call(user, "vllm::maybe_chunk_residual") and user.args[0] is node and user.args[1] is not node


_MULTIPLIERS = {"aten::mul.Tensor", "aten::mul.Scalar", "aten::div.Tensor"}


def _reader(user: Node) -> str:
    if user.op != "output":
        return named(user)
    where = break_behind()
    return f"what comes behind the graph break at {where}" if where else "the caller: it is a result of the graph"


def _refuse_no_add(user: Node) -> NoReturn:
    name = op_name(user)
    if name in _MULTIPLIERS:
        _refuse(refusals.ScaledBeforeAdd.at(user, f"the reduced result is multiplied before the add: {named(user)}"))
    if name in DROPOUTS:
        _refuse(refusals.TrainingDropout.at(user, f"a dropout stands before the add: {named(user)}"))
    sums = [x for x in readers(user) if is_call(x, "aten::add.Tensor")] if is_cast(user, torch.float32) else []
    if sums:
        cure = "Add in the model's dtype, or normalise the float32 sum of two 16-bit tensors."
        _refuse(refusals.MixedDtypes.at(sums[0], f"the residual is added in float32: {named(sums[0])}", cure))
    if user.op != "output":
        _refuse(refusals.NoResidualAdd.at(user, f"the reduced result goes to {name or user.op}: {named(user)}"))
    if where := break_behind():
        _refuse(refusals.GraphBreak.at(user, f"the reduced result leaves the graph at the graph break at {where}"))
    cure = "Nothing to fuse here, or compile what adds the residual together with it."
    _refuse(refusals.NoResidualAdd.at(user, "the reduced result is a result of the graph", cure))
