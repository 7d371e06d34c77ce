"""Attention found in a graph, in whatever spelling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from npu_fused_graph.passes.spellings.calls import shape, value

Step = tuple[str, tuple[Any, ...]]
"""A method of tensors and its arguments."""


@dataclass(frozen=True, slots=True)
class View:
    """A node, and what is still to be done to its tensor: methods that move no number between elements."""

    node: Node
    steps: tuple[Step, ...] = ()

    def then(self, method: str, *arguments: Any) -> View:
        return View(self.node, (*self.steps, (method, arguments)))

    @property
    def value(self) -> Tensor:
        """The fake tensor."""
        x: Any = value(self.node)
        for method, arguments in self.steps:
            x = getattr(x, method)(*arguments)
        found: Tensor = x
        return found

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(self.value.shape) if self.steps else shape(self.node)

    def emit(self, graph: Graph, call: Callable[..., Node]) -> Node:
        """In the graph. call: makes a node of a method call."""
        node = self.node
        for method, arguments in self.steps:
            node = call(method, node, *arguments)
        return node


@dataclass(frozen=True, slots=True)
class Added:
    """A bias on the scores. factor: what multiplies it. scores: their shape where it is added."""

    node: Node
    factor: float
    scores: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Replaced:
    """A mask that puts ``number`` where it is True, or False. scores: their shape there."""

    mask: Node
    is_true: bool
    number: float
    scores: tuple[Any, ...]


@dataclass(slots=True)
class Site:
    """softmax(scale * query key^T + added, replaced) value.

    product, weights: shapes of query key^T as it is computed, and of the weights as they meet the values.
    last: the node whose tensor it is. anchor: the softmax, or the call. query, key: (..., S, D), value: (..., Skv, D).
    scores: shape of what the softmax reads, (..., S, Skv). result: steps from (B, N, S, D) to last's shape.
    inner: nodes between, which nothing else may read. problem: what keeps it from being attention, as (reason, node,
    text), found while it was read.
    """

    last: Node
    anchor: Node
    query: View
    key: View
    value: View
    scale: float | None
    scores: tuple[Any, ...]
    is_call: bool
    is_causal: bool = False
    dropout: float | Node = 0.0
    added: list[Added] = field(default_factory=list)
    replaced: list[Replaced] = field(default_factory=list)
    result: tuple[Step, ...] = ()
    product: tuple[Any, ...] = ()
    weights: tuple[Any, ...] = ()
    inner: tuple[Node, ...] = ()

    @property
    def sizes(self) -> tuple[Any, Any, Any, Any]:
        """(B, N, S, D); heads behind the first axis count as one, tensors without it as heads of one batch."""
        *lead, s, _ = self.scores
        d = self.query.shape[-1]
        if len(lead) == 1:
            return 1, lead[0], s, d
        n = 1
        for size in lead[1:]:
            n = n * size
        return (lead[0] if lead else 1), n, s, d
