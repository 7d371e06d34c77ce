"""An op's message, from text, binary or JSON, as a node of our ir."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from npu_fused_graph.inspector.meta import read_meta
from npu_fused_graph.ir.dtypes import BY_NAME, BY_REG_OP, DTYPES
from npu_fused_graph.ir.graph import (
    AttrValue,
    Build,
    DTypeValue,
    Graph,
    Node,
    NodeInput,
    Source,
    TensorDesc,
    TensorValue,
)

Message = dict[str, list[Any]]

_PROTO = {d.proto: d.name for d in DTYPES}
_GE = {d.ge: d.name for d in DTYPES}
_NAMES = ("_input_name_key", "_input_name_value", "_output_name_key", "_output_name_value", "_readable_value")
_NO_INPUTS = ("Data", "RefData")
_LISTS = {
    "VT_LIST_STRING": "s", "VT_LIST_INT": "i", "VT_LIST_FLOAT": "f", "VT_LIST_BOOL": "b", "VT_LIST_BYTES": "bt",
    "VT_LIST_TENSOR_DESC": "td", "VT_LIST_TENSOR": "t", "VT_LIST_GRAPH": "g", "VT_LIST_NAMED_ATTRS": "na",
    "VT_LIST_DATA_TYPE": "dt",
}  # fmt: skip
_LIST_NUMBERS = dict(enumerate(_LISTS, 1))


def first(message: Message, field: str, default: Any = None) -> Any:
    """The value of a field that occurs once; the last one counts, as for protobuf."""
    values = message.get(field)
    return values[-1] if values else default


def text(value: Any) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def numbers(message: Message, field: str) -> list[int]:
    """Of a repeated field; empty where one of them is no number, since then nobody knows which is which."""
    found = [number(v) for v in message.get(field, ())]
    return [n for n in found if n is not None] if None not in found else []


def number(value: Any) -> int | None:
    """None for what is no whole number."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def node_of(message: Message, *, is_built: bool) -> Node:
    """is_built: GE wrote it, so that ids and streams mean something, and an absent one is 0."""
    node = Node(text(first(message, "name", b"")), text(first(message, "type", b"")))
    attrs = attrs_of(message)
    sources: list[Source | None] = []
    for written in message.get("input", ()):
        name, index = split_input(text(written))
        if index is None:
            sources.append(None)
        elif index < 0:
            node.controls.append(name)
        else:
            sources.append(Source(name, index))
    described = [desc_of(d, is_built=is_built) for d in message.get("input_desc", ())]
    if node.type in _NO_INPUTS:
        sources = [source for source in sources if source is not None]
        described = described[: len(sources)]
    _name(described, attrs, "_input_name")
    pairs = zip_longest(described, sources)
    node.inputs = [NodeInput(desc or TensorDesc(""), source) for desc, source in pairs]
    is_input = node.type in _NO_INPUTS
    node.outputs = [desc_of(d, is_built=is_built, is_scalar=is_input) for d in message.get("output_desc", ())]
    _name(node.outputs, attrs, "_output_name")
    node.attrs = {key: value for key, value in attrs.items() if key not in _NAMES}
    node.subgraphs = [text(name) for name in message.get("subgraph_name", ())]
    if is_built:
        workspaces = zip_longest(numbers(message, "workspace"), numbers(message, "workspace_bytes"), fillvalue=0)
        node.build = Build(
            number(first(message, "id", 0)), number(first(message, "stream_id", 0)), numbers(message, "input_i"),
            numbers(message, "output_i"), list(workspaces),
        )  # fmt: skip
    return node


def split_input(written: str) -> tuple[str, int | None]:
    """Producer and output of ``producer:output``; -1 for a control edge; None for a port that nothing feeds."""
    if not written:
        return "", None
    name, colon, index = written.rpartition(":")
    if colon and index.lstrip("-").isdigit():
        return name, int(index)
    return written, 0


def _name(descs: Sequence[TensorDesc], attrs: dict[str, AttrValue], stem: str) -> None:
    """GE keeps the names of ports in two lists of the op."""
    keys, places = attrs.get(f"{stem}_key"), attrs.get(f"{stem}_value")
    if isinstance(keys, list) and isinstance(places, list):
        for key, place in zip(keys, places, strict=False):
            if isinstance(place, int) and 0 <= place < len(descs) and not descs[place].name:
                descs[place].name = str(key)


def attrs_of(message: Message) -> dict[str, AttrValue]:
    found: dict[str, AttrValue] = {}
    for entry in message.get("attr", ()):
        if isinstance(entry, dict):
            found[text(first(entry, "key", b""))] = attr_of(first(entry, "value", {}))
    return found


def desc_of(message: Any, *, is_built: bool, is_scalar: bool = False) -> TensorDesc:
    """is_scalar: without a shape it is a scalar, as TorchAir writes inputs of a graph."""
    if not isinstance(message, dict):
        return TensorDesc("")
    attrs = attrs_of(message)
    desc = TensorDesc(text(first(message, "name", b"")), dtype_of(first(message, "dtype")))
    desc.layout = text(first(message, "layout", b""))
    desc.device = text(first(message, "device_type", b""))
    desc.size = number(first(message, "size"))
    fx_name = attrs.pop("_fx_tensor_name", None)
    desc.fx_name = fx_name if isinstance(fx_name, str) else None
    meta = read_meta(str(attrs.pop("_meta"))) if "_meta" in attrs else None
    desc.dtype_trusted = is_built or meta is not None
    desc.attrs = attrs
    if "shape" in message:
        held = first(message, "shape")
        sizes = held.get("dim", ()) if isinstance(held, dict) else ("?",)
        stated = tuple(-1 if (size := number(v)) is None else size for v in sizes)
        if stated != (-2,) and (stated or is_built or is_scalar):
            desc.shape, desc.shape_source = stated, "stated"
    elif is_scalar and not is_built:
        desc.shape, desc.shape_source = (), "stated"
    if desc.shape is None and meta is not None:
        desc.shape, desc.shape_source = meta[1], "meta"
    if meta is not None and (desc.dtype is None or not is_built) and meta[0] in BY_NAME:
        desc.dtype = desc.dtype or meta[0]
    return desc


def dtype_of(value: Any) -> str | None:
    """Of a descriptor: GE's proto numbers, or their names. One we do not know keeps its own name."""
    if value is None:
        return None
    word = text(value)
    if word.lstrip("-").isdigit():
        return _PROTO.get(int(word), f"DT_{word}" if int(word) else None)
    if word in BY_REG_OP:
        return BY_REG_OP[word].name
    return None if word == "DT_UNDEFINED" else word


def ge_dtype_of(value: Any) -> str | None:
    """Of an attribute, which has other numbers."""
    return _GE.get(number(value) or 0)


def attr_of(message: Any) -> AttrValue:
    """The value of an attribute, as our ir has it; None for one that is empty."""
    if not isinstance(message, dict):
        return None
    for field, read in _ATTRS.items():
        if field in message:
            value: AttrValue = read(first(message, field))
            return value
    return None


def _bytes_or_text(value: Any) -> str | bytes:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return str(value)


def _number_or_text(value: Any) -> int | str:
    """What is no number stays as it stands there."""
    found = number(value)
    return text(value) if found is None else found


def _bool(value: Any) -> bool:
    return value is True or text(value).lower() in ("true", "t", "1")


def _float(value: Any) -> float | str:
    """The float32 that the text stands for. What is no number stays as it stands there."""
    word = text(value)
    try:
        wide = float(word if word.lower().endswith("inf") else word.rstrip("fF"))
        single: float = struct.unpack("<f", struct.pack("<f", wide))[0]
    except (ValueError, OverflowError):
        return word
    return single


def _tensor(message: Any) -> AttrValue:
    """Weights beyond 64 KB are not kept: the bytes are empty, dtype and shape stay."""
    if not isinstance(message, dict):
        return None
    desc = desc_of(first(message, "desc", {}), is_built=True)
    data = first(message, "data", b"")
    payload = data if isinstance(data, bytes) else str(data).encode(errors="surrogateescape")
    known = BY_NAME.get(desc.dtype or "")
    shape = desc.shape or ()
    if known is not None and known.itemsize:
        wanted = known.itemsize
        for size in shape:
            wanted *= max(size, 0)
        payload = payload[:wanted] if wanted else payload
    return TensorValue(desc.dtype or "", shape, payload)


def _graph(message: Any) -> AttrValue:
    if not isinstance(message, dict):
        return None
    graph = Graph(text(first(message, "name", b"")), attrs=attrs_of(message))
    for op in message.get("op", ()):
        node = node_of(op, is_built=False)
        graph.nodes[node.name] = node
    return graph


def _list(message: Any) -> AttrValue:
    if not isinstance(message, dict):
        return []
    kind = first(message, "val_type")
    word = _LIST_NUMBERS.get(int(text(kind)), "") if kind is not None and text(kind).isdigit() else text(kind or "")
    field = _LISTS.get(word) or next((f for f in _ITEMS if f in message), "i")
    read = _ITEMS.get(field)
    return [read(value) for value in message.get(field, ())] if read else [text(v) for v in message.get(field, ())]


def _rows(field: str, inner: str, read: Any) -> Any:
    def rows(message: Any) -> AttrValue:
        found = message.get(field, ()) if isinstance(message, dict) else ()
        return [[read(v) for v in row.get(inner, ())] for row in found if isinstance(row, dict)]

    return rows


_ITEMS: dict[str, Any] = {
    "s": _bytes_or_text, "i": _number_or_text, "f": _float, "b": _bool, "bt": _bytes_or_text,
    "dt": lambda v: DTypeValue(ge_dtype_of(v)), "t": _tensor, "g": _graph,
    "td": lambda v: text(first(v, "name", b"")) if isinstance(v, dict) else "",
}  # fmt: skip
_ATTRS: dict[str, Any] = {
    **_ITEMS,
    "list": _list,
    "list_list_int": _rows("list_list_i", "list_i", _number_or_text),
    "list_list_float": _rows("list_list_f", "list_f", _float),
    "expression": _bytes_or_text,
    "func": lambda v: text(first(v, "name", b"")) if isinstance(v, dict) else "",
}
