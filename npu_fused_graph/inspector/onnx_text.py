"""GE's dumps in ONNX's text format: what an op is stands in attributes, those of its ports with the port's number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from npu_fused_graph.inspector import text_index
from npu_fused_graph.inspector.dump import DumpGraph, Warnings
from npu_fused_graph.inspector.message import Message, dtype_of, first, number, split_input, text
from npu_fused_graph.ir.graph import AttrValue, Build, Node, NodeInput, Source, TensorDesc

_LAYOUT = replace(text_index.GE_PROTO, opener=b"\n  node {\n", type_field=b"op_type", type_prefix=b"ge:")
_OF_THE_OP = frozenset(
    {
        "id", "stream_id", "src_name", "src_index", "dst_name", "dst_index", "input_name", "input_i", "output_i",
        "workspace", "workspace_bytes", "is_input_const", "_input_name_key", "_input_name_value", "_output_name_key",
        "_output_name_value",
    }
)  # fmt: skip


def read_onnx(data: bytes) -> tuple[list[DumpGraph], dict[str, AttrValue], Warnings]:
    warnings = Warnings()
    graphs, model = text_index.graphs_of(data, _LAYOUT, _node, lambda message: {}, warnings)
    for graph in list(graphs):
        graphs.extend(_take_subgraphs(graph))
    for graph in graphs:
        graph.has_streams = b'"stream_id"' in data
    if b'"output_desc_nums"' not in data:
        warnings.say("written with DUMP_GE_GRAPH=3: ops and edges, nothing else. ge_proto dumps have the rest")
    elif b"type: STRING" not in data:
        warnings.say(
            "written with DUMP_GE_GRAPH=2: no string attributes, so no groups of collectives and no fused originals. "
            "ge_proto dumps have them at every level"
        )
    return graphs, {key: text(first(model, key)) for key in ("producer_name", "ir_version") if key in model}, warnings


def _take_subgraphs(root: DumpGraph) -> list[DumpGraph]:
    """Graphs that are attributes of nodes of the type ``subgraph``, which are no ops."""
    places = [op for op, kind in enumerate(root.types) if kind == "subgraph"]
    found = []
    for op in places:
        message = root.node(op).attrs.get("graph")
        if isinstance(message, _Held):
            found.append(_graph(message.message))
    if places:
        kept = [op for op in range(len(root)) if root.types[op] != "subgraph"]
        decode = root._decode
        root.names, root.types = [root.names[op] for op in kept], [root.types[op] for op in kept]
        root.inputs = [root.inputs[op] for op in kept]
        root._decode = lambda op: decode(kept[op])
        root._nodes.clear()
    return found


class _Held(str):
    """A graph in an attribute, by name."""

    message: Message


def _graph(message: Message) -> DumpGraph:
    nodes = [node for node in message.get("node", ()) if isinstance(node, dict)]
    return DumpGraph(
        text(first(message, "name", b"")),
        [text(first(node, "name", b"")) for node in nodes],
        [text(first(node, "op_type", b"")).removeprefix("ge:") for node in nodes],
        [tuple(text(v) for v in node.get("input", ())) for node in nodes],
        lambda op: _node(nodes[op]),
    )


def _node(message: Message) -> Node:
    attrs = {}
    for entry in message.get("attribute", ()):
        if isinstance(entry, dict):
            attrs[text(first(entry, "name", b""))] = _value(entry)
    node = Node(text(first(message, "name", b"")), text(first(message, "op_type", b"")).removeprefix("ge:"))
    sources: list[Source | None] = []
    for written in message.get("input", ()):
        name, index = split_input(text(written))
        if index is not None and index < 0:
            node.controls.append(name)
        else:
            sources.append(None if index is None else Source(name, index))
    described = _descs(attrs, "input")
    described += [TensorDesc("") for _ in range(len(sources) - len(described))]
    node.inputs = [NodeInput(desc, source) for desc, source in zip(described, sources, strict=False)]
    node.outputs = _descs(attrs, "output")
    node.attrs = {
        key: value for key, value in attrs.items()
        if key not in _OF_THE_OP and not key.startswith(("input_desc_", "output_desc_"))
    }  # fmt: skip
    if attrs:
        node.build = Build(
            number(attrs.get("id", 0)), number(attrs.get("stream_id", 0)), _integers(attrs.get("input_i")),
            _integers(attrs.get("output_i")),
            list(zip(_integers(attrs.get("workspace")), _integers(attrs.get("workspace_bytes")), strict=False)),
        )  # fmt: skip
    return node


def _value(entry: Message) -> AttrValue:
    """Zero and empty values are left out of the text; the type says which they are."""
    kind = text(first(entry, "type", ""))
    if kind in ("INTS", "FLOATS", "STRINGS"):
        return [text(v) if kind == "STRINGS" else _number(v) for v in entry.get(kind.lower(), ())]
    if kind == "GRAPH":
        held = first(entry, "g", {})
        graph = _Held(text(first(held, "name", b"")))
        graph.message = held
        return graph
    if kind == "FLOAT":
        found = _number(first(entry, "f", "0"))
        return float(found) if isinstance(found, int) else found
    if kind == "STRING":
        return text(first(entry, "s", b""))
    return _number(first(entry, "i", 0))


def _number(value: Any) -> int | float | str:
    """What is no number stays as it stands there."""
    whole = number(value)
    if whole is not None:
        return whole
    try:
        return float(text(value))
    except ValueError:
        return text(value)


def _integers(value: AttrValue) -> list[int]:
    return [v for v in value if isinstance(v, int)] if isinstance(value, list) else []


def _descs(attrs: Mapping[str, AttrValue], side: str) -> list[TensorDesc]:
    count = attrs.get(f"{side}_desc_nums")
    return [_desc(attrs, f"{side}_desc", port) for port in range(count if isinstance(count, int) else 0)]


def _desc(attrs: Mapping[str, AttrValue], stem: str, port: int) -> TensorDesc:
    """Ports from the 20th on may be one JSON text each."""
    whole = attrs.get(f"{stem}_{port}")
    held: Mapping[str, Any] = {}
    if isinstance(whole, str):
        try:
            loaded = json.loads(whole)
            held = loaded if isinstance(loaded, dict) else {}
        except ValueError:
            held = {}

    def get(name: str) -> Any:
        return held.get(name) if held else attrs.get(f"{stem}_{name}:{port}")

    desc = TensorDesc("", dtype_of(get("dtype")), dtype_trusted=True, layout=str(get("layout") or ""))
    shape = get("shape")
    if isinstance(shape, list) and shape != [-2]:
        desc.shape, desc.shape_source = tuple(-1 if (n := number(size)) is None else n for size in shape), "stated"
    size = get("size")
    desc.size = size if isinstance(size, int) else None
    desc.device = str(get("device_type") or "")
    prefix = f"{stem}_attr_"
    desc.attrs = {
        key[len(prefix) :].rpartition(":")[0]: value for key, value in attrs.items()
        if key.startswith(prefix) and key.endswith(f":{port}")
    }  # fmt: skip
    return desc
