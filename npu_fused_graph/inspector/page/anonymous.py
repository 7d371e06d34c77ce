"""A dump without its names, so that what is said of it may leave the house."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from npu_fused_graph.inspector.dump import Dump, DumpGraph, FileFacts
from npu_fused_graph.inspector.message import split_input
from npu_fused_graph.ir.graph import AttrValue, DTypeValue, Node, Source, TensorValue

_KEPT = ("reduction", "reduce_op")
"""Attributes whose text is a word of GE."""
_GROUPS = ("group", "group_ep", "group_tp", "hcom")


class Ordinals:
    """Groups by number, the same in every dump of a report."""

    def __init__(self) -> None:
        self._groups: dict[str, str] = {}

    def group(self, name: str) -> str:
        return self._groups.setdefault(name, f"group{len(self._groups)}")

    def dump(self, dump: Dump, number: int) -> Dump:
        """The same ops, edges, types, shapes and sizes. Names are types with a number, paths a number."""
        graphs = [self._graph(graph, f"graph{i}") for i, graph in enumerate(dump.graphs)]
        attrs: dict[str, AttrValue] = {
            key: value for key, value in dump.attrs.items() if isinstance(value, (int, float))
        }
        file = FileFacts(stage=dump.file.stage, graph_id=dump.file.graph_id, rank=dump.file.rank)
        return Dump(Path(f"dump{number}"), dump.format, file, graphs, dump.size, attrs)

    def _graph(self, graph: DumpGraph, name: str) -> DumpGraph:
        names = [f"{kind}_{op}" for op, kind in enumerate(graph.types)]

        def renamed(source: str) -> str:
            place = graph.places.get(source, -1)
            return names[place] if place >= 0 else "outside"

        def written(text: str) -> str:
            source, index = split_input(text)
            return "" if index is None else f"{renamed(source)}:{index}"

        def decode(op: int) -> Node:
            node = graph.node(op)
            inputs = [
                replace(
                    item, source=None if item.source is None else Source(renamed(item.source.node), item.source.index)
                )
                for item in node.inputs
            ]
            return replace(
                node, name=names[op], inputs=inputs, outputs=[replace(d, fx_name=None, attrs={}) for d in node.outputs],
                controls=[renamed(c) for c in node.controls], attrs=self._attrs(node.attrs), subgraphs=[],
            )  # fmt: skip

        return DumpGraph(
            name, names, graph.types, [tuple(map(written, row)) for row in graph.inputs], decode,
            has_streams=lambda: graph.has_streams, is_stated=graph.is_stated,
        )  # fmt: skip

    def _attrs(self, attrs: dict[str, AttrValue]) -> dict[str, AttrValue]:
        """Numbers, dtypes and constants; of texts only groups, as numbers, and words of GE."""
        found: dict[str, AttrValue] = {}
        for key, value in attrs.items():
            is_number = isinstance(value, (int, float, DTypeValue, TensorValue))
            is_number = is_number or (isinstance(value, list) and all(isinstance(x, (int, float)) for x in value))
            if is_number or key in _KEPT:
                found[key] = value
            elif key in _GROUPS and isinstance(value, str):
                found[key] = self.group(value)
        return found
