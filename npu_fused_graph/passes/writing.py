"""Nodes that a rewrite adds and removes."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from torch.fx import Graph, Node
from torch.fx.node import map_arg

from npu_fused_graph.passes.fx import is_assert, value_of
from npu_fused_graph.passes.positions import Positions


class CallBuilder:
    """Makes calls with fake tensors, at the graph's insertion point and with the position of ``place``."""

    def __init__(self, graph: Graph, positions: Positions, place: Node) -> None:
        self._graph, self._positions, self._place = graph, positions, place

    def __call__(self, target: Any, *args: Any, value: Any = None, **kwargs: Any) -> Node:
        """value: what the call gives, if it is known."""
        node = self._graph.call_function(target, args, kwargs)
        self._positions.replace(node, self._place)
        if value is None:
            value = target(*map_arg(args, value_of), **map_arg(kwargs, value_of))
        node.meta["val"] = value
        return node


def erase(graph: Graph, own: Set[Node], keep: Set[Node]) -> None:
    """Remove the nodes a fused one stands for, and what was computed for them alone, but for ``keep``."""
    own = own | {user for node in own for user in node.users if is_assert(user)}
    pending = list(own)
    while pending:
        node = pending.pop()
        if node._erased or node.users or node.op != "call_function":
            continue
        if node not in own and (node in keep or node.is_impure()):
            continue
        inputs = node.all_input_nodes
        graph.erase_node(node)
        pending.extend(inputs)
