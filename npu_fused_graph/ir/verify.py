"""Structural checks of a GE graph, independent of any operator's meaning."""

from __future__ import annotations

from npu_fused_graph.errors import GraphError
from npu_fused_graph.ir.graph import Graph
from npu_fused_graph.ir.order import NET_OUTPUT, topological


def verify(graph: Graph) -> None:
    """Raise GraphError at the first defect: dangling edge, bad output index, duplicate names, Data gap, cycle."""
    outputs = graph.of_type(NET_OUTPUT)
    if len(outputs) != 1:
        raise GraphError(f"[ir] {graph.name}: expected one NetOutput, got {len(outputs)}.")
    for node in graph.nodes.values():
        names = node.input_names()
        if len(set(names)) != len(names):
            raise GraphError(f"[ir] {node.name} ({node.type}): expected distinct input names, got {names}.")
        for item in node.inputs:
            source = item.source
            if source is None:
                continue
            producer = graph.nodes.get(source.node)
            if producer is None:
                raise GraphError(f"[ir] {node.name} ({node.type}).{item.desc.name}: no node named {source.node}.")
            if not 0 <= source.index < len(producer.outputs):
                raise GraphError(
                    f"[ir] {node.name} ({node.type}).{item.desc.name}: {source.node} ({producer.type}) has "
                    f"{len(producer.outputs)} outputs, output {source.index} is asked for."
                )
        for name in node.controls:
            if name not in graph.nodes:
                raise GraphError(f"[ir] {node.name} ({node.type}): control edge from {name}, which does not exist.")
    indices = sorted(_data_index(node.attrs.get("index"), node.name) for node in graph.of_type("Data", "RefData"))
    if indices != list(range(len(indices))):
        raise GraphError(f"[ir] {graph.name}: expected Data indices 0..{len(indices) - 1}, got {indices}.")
    topological(graph)


def _data_index(value: object, name: str) -> int:
    if value is None:
        return 0  # proto3 drops a zero
    if not isinstance(value, int):
        raise GraphError(f"[ir] {name}: expected an integer attribute index, got {value!r}.")
    return value
