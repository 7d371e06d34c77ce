"""Recognises the spellings a fusion is built from: RMSNorm, all-reduce, row-parallel linear.

Each recogniser looks at FX nodes as AOTAutograd leaves them and returns a small record, or None. Nothing is
rewritten here, and no shape, epsilon or group name is baked in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from npu_fused_graph.passes.records import Numerics

aten = torch.ops.aten

VIEWS = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.detach.default,
    aten.alias.default,
    aten.clone.default,  # what dropout leaves behind in eval mode
}
"""Ops that keep the elements of a contiguous tensor and their order."""

WAIT = torch.ops._c10d_functional.wait_tensor.default
ALL_REDUCE = torch.ops._c10d_functional.all_reduce.default


def value_of(node: Node) -> Any:
    """The fake tensor of a node."""
    return node.meta.get("val")


def is_call(node: Any, *targets: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def dtype_of(node: Any) -> torch.dtype | None:
    value = value_of(node) if isinstance(node, Node) else None
    return value.dtype if isinstance(value, torch.Tensor) else None


def shape_of(node: Node) -> tuple[Any, ...]:
    value = value_of(node)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def same_shape(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are known to be equal, without a guard on sizes that are dynamic."""
    return len(a) == len(b) and all(statically_known_true(x == y) for x, y in zip(a, b, strict=True))


def is_contiguous(node: Node) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.is_contiguous()


def is_transposed(node: Node) -> bool:
    """Whether the tensor is laid out as the transpose of a contiguous matrix, by an op or from outside the graph."""
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.dim() == 2 and value.t().is_contiguous()


def through_views(node: Node) -> Node:
    """The node whose elements ``node`` shows in another shape."""
    while is_call(node, *VIEWS):
        source = node.args[0]
        assert isinstance(source, Node)
        node = source
    return node


def upcast_of(node: Any) -> Node | None:
    """x if ``node`` is x converted to float32, or is itself a float32 tensor."""
    if is_call(node, aten._to_copy.default) and dtype_of(node) is torch.float32:
        source = node.args[0]
        return source if isinstance(source, Node) else None
    if is_call(node, torch.ops.prims.convert_element_type.default) and dtype_of(node) is torch.float32:
        source = node.args[0]
        return source if isinstance(source, Node) else None
    return node if isinstance(node, Node) and dtype_of(node) is torch.float32 else None


# -- RMSNorm --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """output = source / rms(source) * gamma over the last dim.

    epsilon: the literal, or the Node it comes from. numerics: how the roundings compare with the fused kernel.
    inner: nodes between source and output; leaks: those of them somebody else reads.
    """

    source: Node
    output: Node
    gamma: Node
    epsilon: float | Node
    numerics: Numerics
    inner: frozenset[Node]

    def leaks(self) -> list[Node]:
        own = self.inner | {self.output}
        return [node for node in self.inner if any(user not in own for user in node.users)]


def rms_norms(graph: Graph) -> Iterator[RmsNorm]:
    """Every RMSNorm of the graph, in graph order; each starts at its rsqrt."""
    for node in graph.nodes:
        if is_call(node, aten.rsqrt.default):
            found = _rms_norm(node)
            if found is not None:
                yield found


def _rms_norm(rsqrt: Node) -> RmsNorm | None:
    biased = rsqrt.args[0]
    if not is_call(biased, aten.add.Tensor, aten.add.Scalar):
        return None
    assert isinstance(biased, Node)
    if len(biased.args) != 2 or biased.kwargs or dtype_of(rsqrt) is not torch.float32:
        return None  # epsilon times alpha, or statistics the kernel does not compute in float32
    mean, epsilon = biased.args
    if is_call(epsilon, aten.mean.dim):
        mean, epsilon = epsilon, mean
    if not is_call(mean, aten.mean.dim) or not isinstance(epsilon, (float, int, Node)):
        return None
    assert isinstance(mean, Node)
    square = mean.args[0]
    if not isinstance(square, Node) or not _is_last_dim(mean, len(shape_of(square))):
        return None
    wide = _squared(square)
    source = upcast_of(wide)
    if wide is None or source is None:
        return None
    scaled = _scaled(rsqrt, source)
    if scaled is None:
        return None
    tail = _tail(scaled, source)
    if tail is None:
        return None
    output, gamma, numerics, tail_inner = tail
    upcasts = {n for n in source.users if n is not source and upcast_of(n) is source and n is not output}
    inner = {biased, mean, square, rsqrt, scaled, *tail_inner} | {
        n for n in upcasts if _feeds_only(n, {square, scaled})
    }
    inner.discard(output)
    inner.discard(source)
    return RmsNorm(source, output, gamma, epsilon, numerics, frozenset(inner))


def _feeds_only(node: Node, readers: set[Node]) -> bool:
    return all(user in readers for user in node.users)


def _is_last_dim(mean: Node, rank: int) -> bool:
    dims = mean.args[1] if len(mean.args) > 1 else mean.kwargs.get("dim")
    keepdim = mean.args[2] if len(mean.args) > 2 else mean.kwargs.get("keepdim", False)
    return isinstance(dims, (list, tuple)) and list(dims) in ([-1], [rank - 1]) and keepdim is True


def _squared(square: Node) -> Node | None:
    """x of x**2 or x * x."""
    base = square.args[0] if square.args else None
    if not isinstance(base, Node):
        return None
    if is_call(square, aten.pow.Tensor_Scalar) and square.args[1] == 2:
        return base
    if is_call(square, aten.mul.Tensor) and square.args[1] is base:
        return base
    return None


def _scaled(rsqrt: Node, source: Node) -> Node | None:
    """source * rsqrt: the one product that reads both."""
    for user in rsqrt.users:
        if is_call(user, aten.mul.Tensor):
            other = user.args[1] if user.args[0] is rsqrt else user.args[0]
            if upcast_of(other) is source:
                return user
    return None


def _tail(scaled: Node, source: Node) -> tuple[Node, Node, Numerics, set[Node]] | None:
    """(output, gamma, numerics class, nodes in between) behind source * rsqrt."""
    dtype = dtype_of(source)
    for user in scaled.users:
        if is_call(user, aten._to_copy.default) and dtype_of(user) is dtype and dtype is not torch.float32:
            product = _times_gamma(user)
            if product is not None:  # cast, then gamma: the kernel's own order
                return product[0], product[1], "same_rounding", {user}
    product = _times_gamma(scaled)
    if product is None:
        return None
    node, gamma = product
    narrow = upcast_of(gamma) if dtype is not torch.float32 else gamma
    inner: set[Node] = set()
    numerics: Numerics = "one_ulp"
    if narrow is not None and narrow is not gamma:
        inner.add(gamma)  # gamma.float(): the weight itself goes into the fused op
        gamma = narrow
    if dtype_of(gamma) is not dtype:
        numerics = "any"
    if dtype is torch.float32:
        return node, gamma, numerics, inner
    for user in node.users:
        if is_call(user, aten._to_copy.default) and dtype_of(user) is dtype:
            return user, gamma, numerics, inner | {node}
    return None


def _times_gamma(x: Node) -> tuple[Node, Node] | None:
    """(product, gamma) for x * gamma with a 1-D gamma of x's last dim."""
    for user in x.users:
        if is_call(user, aten.mul.Tensor):
            gamma = user.args[1] if user.args[0] is x else user.args[0]
            if isinstance(gamma, Node) and gamma is not x and same_shape(shape_of(gamma), shape_of(x)[-1:]):
                return user, gamma
    return None


# -- all-reduce -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AllReduce:
    """node: the collective. operand: what is reduced. result: the node later code reads (after wait, and after the
    copy of an in-place all_reduce). inner: collective, wait, copy."""

    node: Node
    operand: Node
    result: Node
    reduce_op: str
    group: str
    inner: frozenset[Node]


def all_reduces(graph: Graph) -> Iterator[Node]:
    """Collective nodes that may be a site, in graph order."""
    for node in graph.nodes:
        if is_call(node, ALL_REDUCE):
            yield node


def all_reduce(node: Node) -> AllReduce | None:
    """The record of a collective whose only reader is its wait; None when it is read before that."""
    operand, reduce_op, group = node.args[:3]
    assert isinstance(operand, Node)
    waits = list(node.users)
    if len(waits) != 1 or not is_call(waits[0], WAIT):
        return None
    wait = waits[0]
    inner = {node, wait}
    result = wait
    copies = [u for u in wait.users if is_call(u, aten.copy.default) and u.args[1] is wait]
    if len(copies) == 1 and len(wait.users) == 1 and copies[0].args[0] is operand:
        result = copies[0]  # dist.all_reduce(t): t.copy_(all_reduce(t)) after functionalisation
        inner.add(result)
    while len(result.users) == 1 and is_call(again := next(iter(result.users)), WAIT):
        result = again  # funcol.wait_tensor(funcol.all_reduce(t)): the functional collective waits by itself, too
        inner.add(result)
    return AllReduce(node, operand, result, str(reduce_op), str(group), frozenset(inner))


# -- linear ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Linear:
    """node = x @ weight (+ bias). weight as the matmul reads it: (k, n), maybe a transposed view."""

    node: Node
    x: Node
    weight: Node
    bias: Node | None


def stored_transposed(weight: Node) -> Node | None:
    """The contiguous (n, k) tensor ``weight`` is the transpose of; None if it is none."""
    swaps = is_call(weight, aten.t.default)
    swaps = swaps or (is_call(weight, aten.permute.default) and [int(d) % 2 for d in weight.args[1]] == [1, 0])  # type: ignore[arg-type, union-attr]
    swaps = swaps or (is_call(weight, aten.transpose.int) and {int(d) % 2 for d in weight.args[1:]} == {0, 1})  # type: ignore[arg-type]
    if not swaps:
        return None
    source = weight.args[0]
    return source if isinstance(source, Node) and len(shape_of(source)) == 2 and is_contiguous(source) else None


def linear(node: Node) -> Linear | None:
    """The record of mm or addmm (with alpha = beta = 1)."""
    if is_call(node, aten.mm.default):
        x, weight = node.args
        assert isinstance(x, Node) and isinstance(weight, Node)
        return Linear(node, x, weight, None)
    if is_call(node, aten.addmm.default) and not node.kwargs:
        bias, x, weight = node.args
        assert isinstance(bias, Node) and isinstance(x, Node) and isinstance(weight, Node)
        return Linear(node, x, weight, bias)
    return None
