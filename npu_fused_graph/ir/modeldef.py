"""Read what TorchAir hands to ``TorchNpuGraph.load``: a serialised ModelDef holding one GraphDef."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from npu_fused_graph.errors import GraphError
from npu_fused_graph.ir import dtypes, schema
from npu_fused_graph.ir.graph import (
    AttrValue,
    DTypeValue,
    Graph,
    Node,
    NodeInput,
    Source,
    TensorDesc,
    TensorValue,
)

_CONTROL_INDEX = -1
_BOOKKEEPING = ("_input_name_key", "_input_name_value", "_output_name_key", "_output_name_value", "_readable_value")


def read_model(data: bytes) -> Graph:
    """Parse a serialised ModelDef with exactly one graph.

    Raises GraphError when the bytes are not a ModelDef or hold another number of graphs.
    """
    model = schema.messages().ModelDef()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise GraphError(
            f"[ir] model: expected a serialised ge.proto.ModelDef, got bytes that do not parse: {error}."
        ) from None
    if len(model.graph) != 1:
        raise GraphError(
            f"[ir] model: expected a ModelDef with one graph, got {len(model.graph)}. "
            "A serialised GraphDef is not a ModelDef: wrap it in ModelDef.graph."
        )
    return read_graph(model.graph[0])


def read_graph(proto: Any) -> Graph:
    """Translate a GraphDef message (ours or TorchAir's class)."""
    graph = Graph(name=proto.name, attrs={key: _attr(value) for key, value in proto.attr.items()})
    for op in proto.op:
        if op.name in graph.nodes:
            raise GraphError(f"[ir] {op.name}: expected unique node names, got this one twice.")
        graph.nodes[op.name] = _node(op)
    return graph


def _node(op: Any) -> Node:
    node = Node(name=op.name, type=op.type)
    data_inputs: list[Source | None] = []
    for text in op.input:
        if not text:
            data_inputs.append(None)
            continue
        name, _, index = text.rpartition(":")
        if not name or not index.lstrip("-").isdigit():
            raise GraphError(f"[ir] {op.name}: expected an input 'node:index', got {text!r}.")
        if int(index) == _CONTROL_INDEX:
            node.controls.append(name)
        else:
            data_inputs.append(Source(name, int(index)))
    # a Data node describes the tensor it stands for as an input, too; nothing feeds it
    input_descs = [] if op.type in ("Data", "RefData") else op.input_desc
    if len(data_inputs) != len(input_descs):
        raise GraphError(
            f"[ir] {op.name} ({op.type}): expected one input_desc per data input, "
            f"got {len(data_inputs)} inputs and {len(input_descs)} descriptors."
        )
    node.inputs = [NodeInput(_desc(d), s) for d, s in zip(input_descs, data_inputs, strict=True)]
    node.outputs = [_desc(d, is_graph_input=op.type in ("Data", "RefData")) for d in op.output_desc]
    node.attrs = {key: _attr(value) for key, value in op.attr.items() if key not in _BOOKKEEPING}
    return node


def _desc(desc: Any, *, is_graph_input: bool = False) -> TensorDesc:
    """TorchAir leaves most shapes out, and writes a scalar input of the graph the same way; [-2] is an unknown rank."""
    attr = desc.attr
    # of an input in an internal memory format TorchAir gives the shape of the tensor as an attribute alone
    shape = tuple(attr["origin_shape"].list.i if "origin_shape" in attr else desc.shape.dim)
    is_stated = shape != (-2,) and (bool(shape) or is_graph_input)
    fx_name = attr["_fx_tensor_name"].s.decode() if "_fx_tensor_name" in attr else None
    return TensorDesc(
        name=desc.name,
        dtype=dtypes.from_proto(desc.dtype),
        shape=shape if is_stated else None,
        dtype_trusted="_meta" in attr,
        fx_name=fx_name,
        device=desc.device_type,
    )


def tensor_value(tensor: Any) -> TensorValue:
    """Payload of a TensorDef; bytes beyond the declared shape are cut (a Const made from a view has them)."""
    name = dtypes.from_proto(tensor.desc.dtype)
    if name is None:
        raise GraphError("[ir] Const: expected a dtype, got DT_UNDEFINED.")
    shape = tuple(tensor.desc.shape.dim)
    count = 1
    for dim in shape:
        count *= dim
    wanted = count * dtypes.BY_NAME[name].itemsize
    data = bytes(tensor.data)
    if len(data) < wanted:
        raise GraphError(f"[ir] Const: expected {wanted} bytes for {name}{list(shape)}, got {len(data)}.")
    return TensorValue(name, shape, data[:wanted] if wanted else data)


def _attr(attr: Any) -> AttrValue:
    kind = attr.WhichOneof("value")
    if kind is None:
        return None
    value: Any = getattr(attr, kind)
    if kind in ("s", "expression"):
        return _text(value)
    if kind == "dt":
        return DTypeValue(dtypes.from_ge(value))
    if kind == "t":
        return tensor_value(value)
    if kind == "g":
        return read_graph(value)
    if kind == "td":
        return str(value.name)
    if kind == "list":
        return _list(value)
    if kind == "list_list_int":
        return [list(row.list_i) for row in value.list_list_i]
    if kind == "list_list_float":
        return [list(row.list_f) for row in value.list_list_f]
    scalar: int | float | bool = value
    return scalar


def _list(value: Any) -> AttrValue:
    if value.val_type == schema.LIST_STRING or value.s:
        return [_text(item) for item in value.s]
    if value.val_type == schema.LIST_DTYPE or value.dt:
        return [DTypeValue(dtypes.from_ge(item)) for item in value.dt]
    if value.val_type == schema.LIST_TENSOR or value.t:
        return [tensor_value(item) for item in value.t]
    if value.val_type == schema.LIST_FLOAT or value.f:
        return list(value.f)
    if value.val_type == schema.LIST_BOOL or value.b:
        return list(value.b)
    return list(value.i)


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return bytes(value)
