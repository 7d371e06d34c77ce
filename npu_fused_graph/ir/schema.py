"""The protobuf messages of a GE model (package ``ge.proto``), declared from their field numbers.

TorchAir ships generated classes for them, but importing those imports torch. Only the fields a reader
needs are declared; the others stay in the unknown-field set and survive a round trip.
Source of the numbers: the descriptor inside TorchAir's ``ge_ir_pb2``.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from npu_fused_graph.ir.dtypes import DTYPES

_F = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _F.TYPE_STRING,
    "bytes": _F.TYPE_BYTES,
    "int64": _F.TYPE_INT64,
    "uint32": _F.TYPE_UINT32,
    "float": _F.TYPE_FLOAT,
    "bool": _F.TYPE_BOOL,
}
_ENUMS: dict[str, dict[str, int]] = {
    "DataType": {"DT_UNDEFINED": 0}
    | {d.reg_op: d.proto for d in DTYPES}
    | {
        "DT_DUAL_SUB_INT8": 14, "DT_DUAL_SUB_UINT8": 15, "DT_QINT8": 18, "DT_QINT16": 19, "DT_QINT32": 20,
        "DT_QUINT8": 21, "DT_QUINT16": 22, "DT_RESOURCE": 23, "DT_STRING_REF": 24, "DT_DUAL": 25, "DT_VARIANT": 26,
        "DT_UINT1": 29, "DT_INT2": 30, "DT_UINT2": 31, "DT_FLOAT6_E3M2": 37, "DT_FLOAT6_E2M3": 38, "DT_HIFLOAT4": 41,
    },
    "ListValueType": {
        "VT_LIST_NONE": 0, "VT_LIST_STRING": 1, "VT_LIST_INT": 2, "VT_LIST_FLOAT": 3, "VT_LIST_BOOL": 4,
        "VT_LIST_BYTES": 5, "VT_LIST_TENSOR_DESC": 6, "VT_LIST_TENSOR": 7, "VT_LIST_GRAPH": 8,
        "VT_LIST_NAMED_ATTRS": 9, "VT_LIST_DATA_TYPE": 10,
    },
}  # fmt: skip

# message -> fields "name=number type"; "*" = repeated, "?" = member of the oneof "value", "map" = map<string, AttrDef>
_MESSAGES: dict[str, str] = {
    "ShapeDef": "dim=1 *int64",
    "ListInt": "list_i=1 *int64",
    "ListFloat": "list_f=1 *float",
    "ListListInt": "list_list_i=1 *ListInt",
    "ListListFloat": "list_list_f=1 *ListFloat",
    "ListValue": "s=2 *bytes, i=3 *int64, f=4 *float, b=5 *bool, t=9 *TensorDef, dt=12 *int64, "
    "val_type=20 ListValueType",
    "AttrDef": "s=2 ?bytes, i=3 ?int64, f=4 ?float, b=5 ?bool, list=1 ?ListValue, td=11 ?TensorDescriptor, "
    "t=12 ?TensorDef, g=13 ?GraphDef, list_list_int=14 ?ListListInt, dt=15 ?int64, "
    "list_list_float=16 ?ListListFloat, expression=17 ?bytes",
    "TensorDescriptor": "name=1 string, dtype=2 DataType, shape=3 ShapeDef, layout=4 string, "
    "size=10 int64, device_type=14 string, attr=5 map",
    "TensorDef": "desc=1 TensorDescriptor, data=2 bytes",
    "OpDef": "name=1 string, type=2 string, input=5 *string, attr=10 map, id=21 int64, stream_id=22 int64, "
    "input_i=28 *int64, output_i=29 *int64, workspace=30 *int64, workspace_bytes=31 *int64, "
    "input_desc=33 *TensorDescriptor, output_desc=34 *TensorDescriptor, subgraph_name=35 *string",
    "GraphDef": "name=1 string, op=6 *OpDef, attr=11 map",
    "ModelDef": "name=1 string, version=2 uint32, custom_version=3 string, graph=7 *GraphDef, attr=11 map",
}

LIST_STRING, LIST_INT, LIST_FLOAT, LIST_BOOL, LIST_TENSOR, LIST_DTYPE = 1, 2, 3, 4, 7, 10
"""Values of ``ListValue.val_type``: which of its lists holds the elements."""


def _add_field(message: descriptor_pb2.DescriptorProto, text: str) -> None:
    name_number, kind = text.strip().split(" ")
    name, number = name_number.split("=")
    field = message.field.add(name=name, number=int(number), label=_F.LABEL_OPTIONAL)
    if kind[0] == "*":
        field.label = _F.LABEL_REPEATED
        kind = kind[1:]
    elif kind[0] == "?":
        field.oneof_index = 0
        kind = kind[1:]
    if kind == "map":
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=_F.TYPE_STRING, label=_F.LABEL_OPTIONAL)
        entry.field.add(
            name="value", number=2, type=_F.TYPE_MESSAGE, label=_F.LABEL_OPTIONAL, type_name=".ge.proto.AttrDef"
        )
        field.label = _F.LABEL_REPEATED
        field.type = _F.TYPE_MESSAGE
        field.type_name = f".ge.proto.{message.name}.{entry.name}"
    elif kind in _SCALARS:
        field.type = _SCALARS[kind]
    elif kind in _ENUMS:
        field.type = _F.TYPE_ENUM
        field.type_name = f".ge.proto.{kind}"
    else:
        field.type = _F.TYPE_MESSAGE
        field.type_name = f".ge.proto.{kind}"


@lru_cache(maxsize=1)
def messages() -> SimpleNamespace:
    """Message classes by name, in a descriptor pool of their own (TorchAir's live in the default one)."""
    file = descriptor_pb2.FileDescriptorProto(name="nfg_ge_ir.proto", package="ge.proto", syntax="proto3")
    for name, numbers in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in sorted(numbers.items(), key=lambda item: item[1]):
            enum.value.add(name=value, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if "?" in fields:
            message.oneof_decl.add(name="value")
        for text in fields.split(","):
            _add_field(message, text)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return SimpleNamespace(
        **{name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ge.proto.{name}")) for name in _MESSAGES}
    )
