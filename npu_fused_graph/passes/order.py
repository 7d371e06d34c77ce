"""Positions in an FX graph that is being rewritten."""

from __future__ import annotations

from bisect import bisect_left

from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import Graph, Node

from npu_fused_graph.passes import recognise
from npu_fused_graph.passes.recognise import aten

_COLLECTIVES = {
    "_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "c10d", "_dtensor", "npu_define",
}  # fmt: skip
_GROUP_ARGUMENTS = {"hcom", "hcomm", "group", "group_name", "group_ep", "group_tp"}
"""How operators that communicate by themselves call their communicator."""
_STREAMS = "air"  # TorchAir's stream scopes, events and waits
_HEAVY = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.convolution.default}


class Order:
    """Positions in the graph; new nodes take the position of what they replace."""

    def __init__(self, graph: Graph) -> None:
        self._position = {node: i for i, node in enumerate(graph.nodes)}
        self._collectives: list[Node] = []
        self._heavy: list[int] = []
        self._streams: list[int] = []
        for node, i in self._position.items():
            if node.op != "call_function":
                continue
            if _communicates(node):
                self._collectives.append(node)
            elif getattr(node.target, "namespace", "") == _STREAMS:
                self._streams.append(i)
            elif node.target in _HEAVY:
                self._heavy.append(i)
        self._collective_positions = [self._position[node] for node in self._collectives]

    def of(self, node: Node) -> int:
        return self._position[node]

    def replace(self, new: Node, old: Node) -> None:
        self._position[new] = self._position[old]

    def collectives_between(self, start: int, end: int) -> list[Node]:
        first = bisect_left(self._collective_positions, start + 1)
        return self._collectives[first : bisect_left(self._collective_positions, end)]

    def heavy_between(self, start: int, end: int) -> bool:
        return bisect_left(self._heavy, start + 1) < bisect_left(self._heavy, end)

    def stream_changes_between(self, start: int, end: int) -> bool:
        return bisect_left(self._streams, start + 1) < bisect_left(self._streams, end)


def _communicates(node: Node) -> bool:
    """Whether a call takes part in a collective, also one that functionalisation wrapped because it mutates."""
    target = node.target
    if isinstance(target, HigherOrderOperator) and node.args and isinstance(node.args[0], OpOverload):
        target = node.args[0]
    if not isinstance(target, OpOverload) or target is recognise.WAIT:
        return False
    return target.namespace in _COLLECTIVES or any(a.name in _GROUP_ARGUMENTS for a in target._schema.arguments)
