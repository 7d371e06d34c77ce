"""Positions in an FX graph that is being rewritten."""

from __future__ import annotations

from bisect import bisect_left

from torch.fx import Graph, Node

from npu_fused_graph.passes import recognise
from npu_fused_graph.passes.recognise import aten, is_call

_COLLECTIVES = {
    "_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "c10d", "_dtensor", "npu_define",
    "npu_fused_graph",
}  # fmt: skip
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
            namespace = getattr(node.target, "namespace", "")
            if namespace in _COLLECTIVES and not is_call(node, recognise.WAIT):
                self._collectives.append(node)
            elif namespace == _STREAMS:
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
