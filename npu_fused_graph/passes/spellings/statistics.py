"""x / sqrt(mean(x ** 2, -1) + epsilon) in basic operators: the part all written-out norms share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from npu_fused_graph.passes.fx import (
    arguments,
    dtype_name,
    dtype_of,
    identity_of,
    is_call,
    is_cast,
    op_name,
    operand,
    readers,
    same_shape,
    shape_of,
    skip_identities,
    widened,
)
from npu_fused_graph.passes.refusals import HalfStatistics, NoRmsNorm, Refusal

ROOTS = ("aten::rsqrt", "aten::sqrt", "aten::pow.Tensor_Scalar")
"""The operators a written-out norm is recognised by."""
_HALF = (torch.float16, torch.bfloat16)
CURE = "Spell it weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype), x32 = x.float()."


@dataclass(frozen=True, slots=True)
class Statistics:
    """scaled = source.float() * rsqrt(mean(source.float() ** 2, -1) + epsilon), or the same with / sqrt(..).

    anchor: the root. source: what is normalised; where that is a float32 sum of two 16-bit tensors, ``addends`` are
    these two and ``total`` is the sum rounded to their dtype, None if nobody rounds it. inner: the nodes in between.
    """

    anchor: Node
    source: Node
    scaled: Node
    epsilon: Any
    inner: frozenset[Node]
    addends: tuple[Node, Node] | None = None
    total: Node | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the model's tensors around the norm."""
        return dtype_of(self.addends[0] if self.addends else self.source)


@dataclass(frozen=True, slots=True)
class NearMiss:
    """Something like a norm of ``source`` that no fused operator computes, and what is different about it."""

    source: Node
    refusal: Refusal


def statistics(anchor: Node) -> Statistics | NearMiss | None:
    """What starts at the root ``anchor``; None where it is the root of something else."""
    exponent = _exponent(anchor)
    biased = operand(anchor)
    if exponent is None or biased is None:
        return None
    mean, epsilon = _mean_and_epsilon(biased)
    squares = None if mean is None else _squares(mean)
    if mean is None or squares is None:
        return None
    square, adder = squares
    powers = _squared(square)
    source = _source(powers[0] if powers else next(iter(square.all_input_nodes), None))
    rank = len(shape_of(square))
    if source is None or rank == 0:
        return None

    def differs(text: str) -> NearMiss:
        refusal = NoRmsNorm.at(anchor, f"{anchor.name} is like a norm's, but {text}", CURE)
        return NearMiss(skip_identities(source), refusal)

    if epsilon is None:
        return differs("epsilon is not plainly added to the mean of the squares")
    if not powers or any(_source(x) is not source for x in powers):
        return differs(f"{square.name} is not x ** 2 of one x")
    dims = [int(d) % rank for d in arguments(adder)["dim"] or range(rank)]
    if dims != [rank - 1]:
        return differs(f"the mean runs over the dims {dims} of {rank}, not over the last")
    if not _averages(mean, adder, shape_of(square)[-1]):
        return differs(f"the squares are summed by {adder.name}, not averaged over n")
    scaled = _scaled(anchor, source, exponent)
    if scaled is None:
        return differs("x is not scaled by it in float32, row by row (mean(-1, keepdim=True))")
    product, factors = scaled
    narrow = next((node for node in (square, adder, anchor, product) if dtype_of(node) is not torch.float32), None)
    if narrow is not None:
        text = f"the norm computes its statistics in {dtype_name(narrow)} ({narrow.name})"
        return NearMiss(skip_identities(source), HalfStatistics.at(narrow, text)) if dtype_of(narrow) in _HALF else None
    core = {biased, mean, adder, square, anchor, product, *factors}
    wide = [x for x in (*powers, *product.args[:2]) if isinstance(x, Node) and x is not source and _source(x) is source]
    upcasts = {x for x in wide if all(user in core for user in readers(x))}
    addends = _addends(source)
    if addends is None:
        return Statistics(anchor, source, product, epsilon, frozenset(core | upcasts))
    casts = {x for x in source.args[:2] if isinstance(x, Node) and x not in addends and readers(x) == [source]}
    total = next((user for user in readers(source) if is_cast(user, dtype_of(addends[0]))), None)
    return Statistics(anchor, source, product, epsilon, frozenset(core | upcasts | casts | {source}), addends, total)


def _exponent(anchor: Node) -> float | None:
    """-0.5 or 0.5 for a root."""
    if is_call(anchor, "aten::pow.Tensor_Scalar"):
        power = anchor.args[1]
        return float(power) if isinstance(power, (int, float)) and abs(power) == 0.5 else None
    return {"aten::rsqrt": -0.5, "aten::sqrt": 0.5}.get(op_name(anchor))


def _mean_and_epsilon(biased: Node) -> tuple[Node | None, Any]:
    """(mean of squares, what is added to it); None where nothing is, or not as it is."""
    if not is_call(biased, "aten::add.Tensor", "aten::add.Scalar"):
        return biased, None
    mean, epsilon = biased.args[:2]
    if isinstance(epsilon, Node) and _squares(epsilon) is not None:
        mean, epsilon = epsilon, mean
    is_plain = len(biased.args) == 2 and not biased.kwargs  # not epsilon times alpha
    return (mean if isinstance(mean, Node) else None), epsilon if is_plain else None


def _squares(mean: Node) -> tuple[Node, Node] | None:
    """(what is averaged, the node that adds it up) of a mean, or of a sum, multiplied by something or not."""
    if is_call(mean, "aten::div.Tensor", "aten::mul.Tensor"):
        mean = next((x for x in mean.all_input_nodes if is_call(x, "aten::sum.dim_IntList")), mean)
    if not is_call(mean, "aten::mean.dim", "aten::sum.dim_IntList"):
        return None
    square = operand(mean)
    return None if square is None else (square, mean)


def _averages(mean: Node, adder: Node, size: Any) -> bool:
    """Whether ``mean`` is the mean of rows of ``size``: by the operator, by / size or by * (1 / size)."""
    if mean is adder:
        return is_call(mean, "aten::mean.dim")
    number = mean.args[1] if mean.args[0] is adder else mean.args[0]
    if not isinstance(number, (int, float)) or not isinstance(size, int):
        return False
    if is_call(mean, "aten::div.Tensor"):
        return mean.args[0] is adder and number == size
    return number == 1 / size


def _squared(square: Node) -> list[Node]:
    """The operands of x ** 2 or x * x, where each may be a cast of its own; empty if it is no square."""
    if (is_call(square, "aten::pow.Tensor_Scalar") and square.args[1] == 2) or is_call(square, "aten::square"):
        return [square.all_input_nodes[0]]
    if is_call(square, "aten::mul.Tensor"):
        return [x for x in square.args[:2] if isinstance(x, Node)]
    return []


def _source(x: Any) -> Node | None:
    """x before it was converted to float32."""
    return widened(x) or (x if dtype_of(x) in _HALF else None)


def _scaled(root: Node, source: Node, exponent: float) -> tuple[Node, list[Node]] | None:
    """(x * rstd or x / root, nodes from the root to it)."""
    row = (*shape_of(source)[:-1], 1)
    for node, path in _factors(root):
        inverse = (exponent < 0) != any(_is_reciprocal(x) for x in path)
        for user in readers(node):
            if user in path or not same_shape(shape_of(node), row) or not is_call(user, _SCALES[inverse]):
                continue
            a, b = user.args[:2]
            other = b if a is node and inverse else a
            if other is not node and _source(other) is source:
                return user, path
    return None


_SCALES = {True: "aten::mul.Tensor", False: "aten::div.Tensor"}


def _factors(node: Node, path: tuple[Node, ...] = ()) -> Iterator[tuple[Node, list[Node]]]:
    """The root and what shows it, once inverted or not, each with the nodes from the root to it."""
    yield node, list(path)
    for user in readers(node):
        shows = identity_of(user) is node
        inverts = _is_reciprocal(user) and not any(map(_is_reciprocal, path))
        if shows or inverts or (is_call(user, "aten::mul.Tensor") and user.args[1] == 1):  # 1 / x is reciprocal * 1
            yield from _factors(user, (*path, user))


def _is_reciprocal(node: Node) -> bool:
    return is_call(node, "aten::reciprocal") or (is_call(node, "aten::pow.Tensor_Scalar") and bool(node.args[1] == -1))


def _addends(source: Node) -> tuple[Node, Node] | None:
    """The two tensors of one 16-bit dtype that ``source`` adds in float32."""
    if not is_call(source, "aten::add.Tensor") or source.kwargs or dtype_of(source) is not torch.float32:
        return None
    a, b = (_source(x) for x in source.args[:2])
    if a is None or b is None or dtype_of(a) is not dtype_of(b) or dtype_of(a) not in _HALF:
        return None
    return a, b
