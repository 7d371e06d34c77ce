"""Execution order and liveness of a GE graph."""

from __future__ import annotations

import heapq

from npu_fused_graph.errors import GraphError
from npu_fused_graph.ir.graph import Graph, Node

NET_OUTPUT = "NetOutput"
_HAS_NO_EFFECT_WITHOUT_OUTPUT = {"NetOutput", "Data", "RefData"}


def predecessors(node: Node) -> list[str]:
    """Names of the nodes that must run before ``node``: data producers, then control edges."""
    return [source.node for source in node.sources()] + node.controls


def live_nodes(graph: Graph) -> set[str]:
    """Nodes that matter: everything NetOutput, an op without outputs (a side effect) or a collective depends on."""
    stack = [
        node.name
        for node in graph.nodes.values()
        if node.type == NET_OUTPUT
        or (not node.outputs and node.type not in _HAS_NO_EFFECT_WITHOUT_OUTPUT)
        or node.group is not None  # the other ranks wait, whether the result is read here or not
    ]
    live: set[str] = set()
    while stack:
        name = stack.pop()
        if name in live:
            continue
        live.add(name)
        stack.extend(predecessors(graph.nodes[name]))
    return live


def topological(graph: Graph, names: set[str] | None = None) -> list[Node]:
    """Nodes in an order that respects data and control edges; emission order decides between free ones.

    names: restrict to these nodes. Raises GraphError naming the nodes of a cycle.
    """
    position = {name: i for i, name in enumerate(graph.nodes) if names is None or name in names}
    waiting = dict.fromkeys(position, 0)
    followers: dict[str, list[str]] = {name: [] for name in position}
    for name in position:
        for before in set(predecessors(graph.nodes[name])):
            if before in position:
                followers[before].append(name)
                waiting[name] += 1
    ready = [position[name] for name, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    by_position = {i: name for name, i in position.items()}
    order: list[Node] = []
    while ready:
        name = by_position[heapq.heappop(ready)]
        order.append(graph.nodes[name])
        for after in followers[name]:
            waiting[after] -= 1
            if waiting[after] == 0:
                heapq.heappush(ready, position[after])
    if len(order) != len(position):
        stuck = sorted(name for name, count in waiting.items() if count)
        raise GraphError(f"[ir] {graph.name}: expected an acyclic graph, got a cycle through {', '.join(stuck[:8])}.")
    return order
