"""Positions in an FX graph that is being rewritten."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import Graph, GraphModule, Node

from npu_fused_graph.passes.fx import op_name, wrapped
from npu_fused_graph.passes.spellings.reduces import WAITS

_COLLECTIVES = {
    "_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "c10d", "_dtensor", "npu_define",
}  # fmt: skip
_GROUP_ARGUMENTS = {"hcom", "hcomm", "group", "group_name", "group_ep", "group_tp"}
"""How operators that communicate by themselves call their communicator."""
_STREAMS = "air"  # TorchAir's stream scopes, events and waits
_HEAVY = {"aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul", "aten::convolution"}


class Positions:
    """Positions in the graph; new nodes take the position of what they replace."""

    def __init__(self, graph: Graph) -> None:
        self._position = {node: i for i, node in enumerate(graph.nodes)}
        self._collectives: list[Node] = []
        self._writes: list[Node] = []
        self._heavy: list[int] = []
        streams: list[Node] = []
        for node, i in self._position.items():
            if node.op != "call_function":
                continue
            if _communicates(node):
                self._collectives.append(node)
            elif getattr(node.target, "namespace", "") == _STREAMS:
                streams.append(node)
            elif op_name(node) in _HEAVY:
                self._heavy.append(i)
            if has_a_graph(node) or (isinstance(node.target, OpOverload) and node.target._schema.is_mutable):
                self._writes.append(node)
        self._writers = set(self._writes)
        self._fixed = {*self._collectives, *self._writes, *streams}
        self._streams = [self._position[node] for node in streams]
        self._positions = {id(nodes): [self._position[n] for n in nodes] for nodes in (self._collectives, self._writes)}

    def of(self, node: Node) -> int:
        return self._position[node]

    def replace(self, new: Node, old: Node) -> None:
        self._position[new] = self._position[old]

    def move(self, nodes: Iterable[Node], before: Node) -> None:
        """Put ``nodes`` and what they are computed from in front of ``before``, as far as they stand behind it.

        They keep their positions, which tell their order: sites are rewritten from the last on, so whoever moves them
        again wants them still further ahead.
        """
        late = {x for node in nodes for x in self.needed(node, before)}
        for node in sorted(late, key=self.of):
            before.prepend(node)

    def move_collective(self, old: Sequence[Node], new: Node) -> None:
        """``new``, whose position is known, communicates in the place of ``old``."""
        positions = self._positions[id(self._collectives)]
        for node in old:
            i = bisect_left(positions, self._position[node])
            if i < len(positions) and self._collectives[i] is node:
                del self._collectives[i], positions[i]
        i = bisect_left(positions, self._position[new])
        self._collectives.insert(i, new)
        positions.insert(i, self._position[new])
        self._fixed.add(new)

    def is_free(self, node: Node) -> bool:
        """Whether a node may change places with others: no collective, nothing that writes or orders streams."""
        return not node.is_impure() and node not in self._fixed

    def writes(self, node: Node) -> bool:
        return node in self._writers

    def is_stream_change(self, node: Node) -> bool:
        return getattr(node.target, "namespace", "") == _STREAMS

    def is_collective(self, node: Node) -> bool:
        return node.op == "call_function" and _communicates(node)

    def collectives_between(self, start: int, end: int) -> list[Node]:
        return self._between(self._collectives, start, end)

    def writes_between(self, start: int, end: int) -> list[Node]:
        return self._between(self._writes, start, end)

    def heavy_between(self, start: int, end: int) -> bool:
        return bisect_left(self._heavy, start + 1) < bisect_left(self._heavy, end)

    def stream_changes_between(self, start: int, end: int) -> bool:
        return bisect_left(self._streams, start + 1) < bisect_left(self._streams, end)

    def needed(self, node: Node, before: Node) -> list[Node]:
        """``node`` and what it is computed from, as far as that comes after ``before``; in graph order."""
        found, pending = {node}, [node]
        while pending:
            for x in pending.pop().all_input_nodes:
                if x not in found and self.of(x) > self.of(before):
                    found.add(x)
                    pending.append(x)
        return sorted(found, key=self.of)

    def _between(self, nodes: list[Node], start: int, end: int) -> list[Node]:
        positions = self._positions[id(nodes)]
        return nodes[bisect_left(positions, start + 1) : bisect_left(positions, end)]


def has_a_graph(node: Node) -> bool:
    """Whether a call runs a graph of its own, as torch.no_grad() leaves it in an export: it may do anything."""
    return bool(graphs_of(node))


def graphs_of(node: Node) -> list[Graph]:
    """The graphs a call runs."""
    if not isinstance(node.target, HigherOrderOperator):
        return []
    module = node.graph.owning_module
    attributes = [getattr(module, str(x.target), None) for x in node.all_input_nodes if x.op == "get_attr"]
    return [found.graph for found in attributes if isinstance(found, GraphModule)]


def _communicates(node: Node) -> bool:
    """Whether a call takes part in a collective, also one that functionalisation wrapped because it mutates."""
    if has_a_graph(node):
        return True
    target = wrapped(node) or node.target
    return isinstance(target, OpOverload) and is_collective(target)


def is_collective(target: OpOverload) -> bool:
    """Whether an operator takes part in a collective."""
    if target.name() in WAITS:
        return False
    return target.namespace in _COLLECTIVES or any(a.name in _GROUP_ARGUMENTS for a in target._schema.arguments)
