"""Graphs as the files GE writes: a binary model (``.air``) and its text (``ge_proto_*.txt``).

For making dumps: of a graph that was built by hand, or read, changed and written again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import text_format

from npu_fused_graph.ir import schema
from npu_fused_graph.ir.dtypes import BY_NAME, GE_UNDEFINED
from npu_fused_graph.ir.graph import AttrValue, DTypeValue, Graph, Node, TensorDesc, TensorValue


def to_air(graphs: Sequence[Graph], attrs: Mapping[str, AttrValue] | None = None) -> bytes:
    """A serialised ModelDef. graphs: the root first. attrs: of the model."""
    data: bytes = _model(graphs, attrs or {}).SerializeToString(deterministic=True)
    return data


def to_ge_proto(graphs: Sequence[Graph], attrs: Mapping[str, AttrValue] | None = None) -> str:
    """The same as protobuf's text, as GE dumps it."""
    text: str = text_format.MessageToString(_model(graphs, attrs or {}))
    return text


def _model(graphs: Sequence[Graph], attrs: Mapping[str, AttrValue]) -> Any:
    model = schema.messages().ModelDef()
    for graph in graphs:
        _put_graph(model.graph.add(), graph)
    _put_attrs(model.attr, attrs)
    return model


def _put_graph(message: Any, graph: Graph) -> None:
    message.name = graph.name
    for node in graph.nodes.values():
        _put_node(message.op.add(), node)
    _put_attrs(message.attr, graph.attrs)


def _put_node(message: Any, node: Node) -> None:
    message.name, message.type = node.name, node.type
    for item in node.inputs:
        message.input.append("" if item.source is None else str(item.source))
        _put_desc(message.input_desc.add(), item.desc)
    message.input.extend(f"{name}:-1" for name in node.controls)
    for desc in node.outputs:
        _put_desc(message.output_desc.add(), desc)
    _put_attrs(message.attr, node.attrs)
    message.subgraph_name.extend(node.subgraphs)
    if node.build is not None:
        message.id, message.stream_id = node.build.id or 0, node.build.stream or 0
        message.input_i.extend(node.build.input_offsets)
        message.output_i.extend(node.build.output_offsets)
        message.workspace.extend(offset for offset, _ in node.build.workspaces)
        message.workspace_bytes.extend(size for _, size in node.build.workspaces)


def _put_desc(message: Any, desc: TensorDesc) -> None:
    message.name, message.layout, message.device_type = desc.name, desc.layout, desc.device
    message.dtype = BY_NAME[desc.dtype].proto if desc.dtype else 0
    if desc.shape_source == "meta":
        sizes = ", ".join(str(size) if size >= 0 else "s0" for size in desc.shape or ())
        message.attr["_meta"].s = f"Tensor(dtype=torch.{desc.dtype}, shape=torch.Size([{sizes}])".encode()
    elif desc.shape is not None:
        message.shape.SetInParent()
        message.shape.dim.extend(desc.shape)
    if desc.size is not None:
        message.size = desc.size
    if desc.fx_name is not None:
        message.attr["_fx_tensor_name"].s = desc.fx_name.encode()
    _put_attrs(message.attr, desc.attrs)


def _put_attrs(entries: Any, attrs: Mapping[str, AttrValue]) -> None:
    for key, value in attrs.items():
        _put_value(entries[key], value)


def _put_value(message: Any, value: AttrValue) -> None:
    if value is None:
        message.SetInParent()
    elif isinstance(value, bool):
        message.b = value
    elif isinstance(value, int):
        message.i = value
    elif isinstance(value, float):
        message.f = value
    elif isinstance(value, (str, bytes)):
        message.s = _bytes(value)
    elif isinstance(value, DTypeValue):
        message.dt = _ge_number(value)
    elif isinstance(value, TensorValue):
        _put_tensor(message.t, value)
    elif isinstance(value, Graph):
        _put_graph(message.g, value)
    elif value and isinstance(value[0], (list, tuple)):
        _put_rows(message, value)
    else:
        _put_list(message.list, value)


def _put_rows(message: Any, rows: Sequence[Any]) -> None:
    if any(isinstance(v, float) for row in rows for v in row):
        for row in rows:
            message.list_list_float.list_list_f.add().list_f.extend(row)
    else:
        message.list_list_int.SetInParent()
        for row in rows:
            message.list_list_int.list_list_i.add().list_i.extend(row)


def _put_list(message: Any, values: Sequence[Any]) -> None:
    message.SetInParent()
    if not values:
        message.val_type = schema.LIST_INT
    elif isinstance(values[0], bool):
        message.b.extend(values)
        message.val_type = schema.LIST_BOOL
    elif isinstance(values[0], (str, bytes)):
        message.s.extend(map(_bytes, values))
        message.val_type = schema.LIST_STRING
    elif isinstance(values[0], DTypeValue):
        message.dt.extend(map(_ge_number, values))
        message.val_type = schema.LIST_DTYPE
    elif isinstance(values[0], TensorValue):
        for value in values:
            _put_tensor(message.t.add(), value)
        message.val_type = schema.LIST_TENSOR
    elif any(isinstance(v, float) for v in values):
        message.f.extend(values)
        message.val_type = schema.LIST_FLOAT
    else:
        message.i.extend(values)
        message.val_type = schema.LIST_INT


def _put_tensor(message: Any, value: TensorValue) -> None:
    message.desc.dtype = BY_NAME[value.dtype].proto
    message.desc.shape.SetInParent()
    message.desc.shape.dim.extend(value.shape)
    message.data = value.data


def _ge_number(value: DTypeValue) -> int:
    return GE_UNDEFINED if value.name is None else BY_NAME[value.name].ge


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode(errors="surrogateescape")
