"""Binary models, walked by hand: nothing is copied that nobody asks for, and an unknown field is stepped over.

``.air`` is a serialised ModelDef; ``.om`` a container that holds one beside weights and kernels. Field numbers are
those of CANN's public ge_ir.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector.dump import DumpGraph, Warnings
from npu_fused_graph.inspector.message import Message, attrs_of, first, node_of, text
from npu_fused_graph.inspector.textproto import KEPT
from npu_fused_graph.ir.graph import AttrValue

_SCHEMA: dict[str, dict[int, tuple[str, str]]] = {
    "ModelDef": {1: ("name", "text"), 2: ("version", "int"), 3: ("custom_version", "text"), 7: ("graph", "GraphDef"),
                 11: ("attr", "Entry")},
    "GraphDef": {1: ("name", "text"), 4: ("input", "text"), 5: ("output", "text"), 6: ("op", "OpDef"),
                 11: ("attr", "Entry")},
    "OpDef": {1: ("name", "text"), 2: ("type", "text"), 5: ("input", "text"), 10: ("attr", "Entry"), 21: ("id", "int"),
              22: ("stream_id", "int"), 28: ("input_i", "int"), 29: ("output_i", "int"), 30: ("workspace", "int"),
              31: ("workspace_bytes", "int"), 33: ("input_desc", "TensorDescriptor"),
              34: ("output_desc", "TensorDescriptor"), 35: ("subgraph_name", "text")},
    "TensorDescriptor": {1: ("name", "text"), 2: ("dtype", "int"), 3: ("shape", "ShapeDef"), 4: ("layout", "text"),
                         5: ("attr", "Entry"), 10: ("size", "int"), 11: ("weight_size", "int"),
                         14: ("device_type", "text"), 18: ("data_offset", "int")},
    "ShapeDef": {1: ("dim", "int")},
    "TensorDef": {1: ("desc", "TensorDescriptor"), 2: ("data", "text")},
    "Entry": {1: ("key", "text"), 2: ("value", "AttrDef")},
    "AttrDef": {1: ("list", "ListValue"), 2: ("s", "text"), 3: ("i", "int"), 4: ("f", "float"), 5: ("b", "bool"),
                7: ("bt", "text"), 10: ("func", "NamedAttrs"), 11: ("td", "TensorDescriptor"), 12: ("t", "TensorDef"),
                13: ("g", "GraphDef"), 14: ("list_list_int", "Rows"), 15: ("dt", "int"),
                16: ("list_list_float", "FloatRows"), 17: ("expression", "text")},
    "ListValue": {2: ("s", "text"), 3: ("i", "int"), 4: ("f", "float"), 5: ("b", "bool"), 7: ("bt", "text"),
                  8: ("td", "TensorDescriptor"), 9: ("t", "TensorDef"), 10: ("g", "GraphDef"),
                  11: ("na", "NamedAttrs"), 12: ("dt", "int"), 20: ("val_type", "int")},
    "NamedAttrs": {1: ("name", "text"), 2: ("attr", "Entry")},
    "Rows": {1: ("list_list_i", "Row")},
    "Row": {1: ("list_i", "int")},
    "FloatRows": {1: ("list_list_f", "FloatRow")},
    "FloatRow": {1: ("list_f", "float")},
}  # fmt: skip

Data = bytes | memoryview
"""A model, or the part of a container that holds it."""

_BYTES = 2
"""Wire type of texts and messages."""
_NAME, _TYPE, _INPUT = (number << 3 | _BYTES for number in (1, 2, 5))
"""Tags in an op."""
_OP = 6 << 3 | _BYTES
"""Tag in a graph."""
_PARTITION_MODEL = 0
_HEADER = 256


class Broken(Exception):
    """The bytes stop being a message. at: where."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


def read_air(data: bytes) -> tuple[list[DumpGraph], dict[str, AttrValue], Warnings]:
    return _read_model(data, is_built=False)


def read_om(data: bytes) -> tuple[list[DumpGraph], dict[str, AttrValue], Warnings]:
    """The model in a container: header, table of partitions, partitions."""
    if data[:4] == b"PICO":
        raise DumpError("[inspect] om: expected a container of GE (IMOD), got one of another tool chain (PICO).")
    if len(data) < _HEADER + 8:
        raise DumpError(f"[inspect] om: expected a header of {_HEADER} bytes and a table, got {len(data)} bytes.")
    if data[80]:
        raise DumpError("[inspect] om: expected a model that is not encrypted, got an encrypted one.")
    at = struct.unpack_from("<I", data, 4)[0]
    at = at if _HEADER <= at < len(data) else _HEADER
    count = struct.unpack_from("<I", data, at)[0]
    for begin, step, layout in ((at + 8, 24, "<QQQ"), (at + 4, 12, "<III")):
        body = begin + step * count
        if not 0 < count < 4096 or body > len(data):
            continue
        rows = [struct.unpack_from(layout, data, begin + step * i) for i in range(count)]
        if all(offset + size <= len(data) - body for _, offset, size in rows):
            for kind, offset, size in rows:
                if kind == _PARTITION_MODEL and size:
                    return _read_model(memoryview(data)[body + offset : body + offset + size], is_built=True)
    raise DumpError("[inspect] om: expected a table with a partition that holds the model, got none.")


def _read_model(data: Data, *, is_built: bool) -> tuple[list[DumpGraph], dict[str, AttrValue], Warnings]:
    graphs: list[DumpGraph] = []
    model: Message = {}
    warnings = Warnings()
    try:
        for number, wire, begin, end in _fields(data, 0, len(data)):
            name, kind = _SCHEMA["ModelDef"].get(number, ("", ""))
            if name == "graph" and wire == 2:
                graphs.append(_graph(data, begin, end, warnings, is_built=is_built))
            elif name:
                _put(model, name, kind, data, wire, begin, end, warnings)
    except Broken as broken:
        warnings.say(f"byte {broken.at}: no field of a model; what follows was not read")
    return graphs, attrs_of(model), warnings


def _graph(data: Data, begin: int, end: int, warnings: Warnings, *, is_built: bool) -> DumpGraph:
    names: list[str] = []
    types: list[str] = []
    inputs: list[tuple[str, ...]] = []
    spans: list[tuple[int, int]] = []
    rest: Message = {}
    last = begin
    try:
        while last < end:
            if data[last] != _OP:
                number, wire, at, last = next(_fields(data, last, end))
                field, kind = _SCHEMA["GraphDef"].get(number, ("", ""))
                if field:
                    _put(rest, field, kind, data, wire, at, last, warnings)
                continue
            size, at = _varint(data, last + 1, end)
            last = at + size
            if last > end:
                raise Broken(at)
            name, kind, sources = _head(data, at, last)
            names.append(name)
            types.append(kind)
            inputs.append(sources)
            spans.append((at, last))
    except Broken as broken:
        warnings.say(f"byte {broken.at}: no field of a graph; what follows was not read")

    return DumpGraph(
        text(first(rest, "name", b"")), names, types, inputs,
        lambda op: node_of(_tolerant(data, "OpDef", *spans[op], warnings), is_built=is_built),
        attrs=lambda: attrs_of(rest), has_streams=lambda: is_built,
    )  # fmt: skip


def _head(data: Data, at: int, end: int) -> tuple[str, str, tuple[str, ...]]:
    """Name, type and inputs come first in an op, fields 1, 2 and 5; what is behind them is not looked at."""
    name = kind = ""
    sources: list[str] = []
    while at < end:
        tag = data[at]
        if tag & 7 != _BYTES or tag > _INPUT:
            break
        at += 1
        size = data[at] if at < end else 128
        if size < 128:
            at += 1
        else:
            size, at = _varint(data, at, end)
        last = at + size
        if last > end:
            raise Broken(at)
        word = str(data[at:last], "utf-8", "surrogateescape")
        if tag == _INPUT:
            sources.append(word)
        elif tag == _NAME:
            name = word
        elif tag == _TYPE:
            kind = word
        at = last
    return name, kind, tuple(sources)


def _tolerant(data: Data, schema: str, begin: int, end: int, warnings: Warnings) -> Message:
    """A message as far as it goes."""
    found: Message = {}
    known = _SCHEMA[schema]
    try:
        for number, wire, at, last in _fields(data, begin, end):
            field, kind = known.get(number, ("", ""))
            if field:
                _put(found, field, kind, data, wire, at, last, warnings)
    except Broken as broken:
        warnings.say(f"byte {broken.at}: no field of a message of {schema}; the rest of it was not read")
    return found


def _put(into: Message, field: str, kind: str, data: Data, wire: int, begin: int, end: int, warnings: Warnings) -> None:
    values = into.setdefault(field, [])
    if kind in _SCHEMA:
        if wire == 2:
            values.append(_tolerant(data, kind, begin, end, warnings))
    elif kind == "text":
        if wire == 2:
            values.append(bytes(data[begin:end]) if end - begin <= KEPT else b"")
    elif kind == "float":
        count = (end - begin) // 4
        values.extend(struct.unpack_from(f"<{count}f", data, begin) if wire in (2, 5) else ())
    elif wire == 0:
        values.append(_signed(_varint(data, begin, end)[0]))
    elif wire == 2:  # packed
        while begin < end:
            value, begin = _varint(data, begin, end)
            values.append(_signed(value))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(data: Data, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field, wire type, first byte, byte behind it) of each field of a message. Raises Broken."""
    while at < end:
        key, begin = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == 0:
            _, stop = _varint(data, begin, end)
        elif wire == 2:
            length, begin = _varint(data, begin, end)
            stop = begin + length
        elif wire in (1, 5):
            stop = begin + (8 if wire == 1 else 4)
        else:
            raise Broken(at)
        if number == 0 or stop > end:
            raise Broken(at)
        yield number, wire, begin, stop
        at = stop


def _varint(data: Data, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & ((1 << 64) - 1), at
        shift += 7
    raise Broken(at)
