"""Small dumps for the questions asked of them, written to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from npu_fused_graph.ir.graph import AttrValue, Build, Graph, Node, NodeInput, Source, TensorDesc
from npu_fused_graph.ir.write import to_ge_proto


def node(
    name: str, kind: str, *sources: str, shape: Sequence[int] = (4, 8), dtype: str = "float16", outputs: int = 1,
    controls: Sequence[str] = (), build: Build | None = None, **attrs: AttrValue,
) -> Node:  # fmt: skip
    """sources: ``name`` or ``name:output``, "" for a port nothing feeds."""
    made = Node(name, kind, attrs=attrs, controls=list(controls), build=build)
    for source in sources:
        producer, _, index = source.partition(":")
        made.inputs.append(NodeInput(TensorDesc(""), Source(producer, int(index or 0)) if source else None))
    made.outputs = [TensorDesc(f"y{i}", dtype, tuple(shape), True, shape_source="stated") for i in range(outputs)]
    return made


def graph(*nodes: Node) -> Graph:
    return Graph("g", {n.name: n for n in nodes})


def ge_dump(folder: Path, *nodes: Node, name: str = "ge_proto_00000001_graph_1_Build.txt", **attrs: AttrValue) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_ge_proto([graph(*nodes)], attrs))
    return path


def torchair_dump(folder: Path, *nodes: Node, rank: int = 0, graph_id: int = 1, stage: str = "optimized") -> Path:
    """As graph_dump.type = "txt" writes it."""
    lines = to_ge_proto([graph(*nodes)]).splitlines()[1:-1]
    path = folder / f"dynamo_{stage}_graph_{graph_id}_rank_{rank}_pid_{100 + rank}_ts_20261120235336677144.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line[2:] for line in lines) + "\n")
    return path
