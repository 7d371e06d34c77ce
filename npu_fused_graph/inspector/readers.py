"""Files to dumps, each format by its own reader."""

from __future__ import annotations

import gzip
import importlib
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector import text_index
from npu_fused_graph.inspector.acl_graph import read_output_code, read_tasks
from npu_fused_graph.inspector.binary import read_air, read_om
from npu_fused_graph.inspector.dump import Dump, DumpGraph, Warnings
from npu_fused_graph.inspector.formats import FORMATS, facts_of, format_of
from npu_fused_graph.inspector.fx_text import read_fx, read_fx_log
from npu_fused_graph.inspector.message import Message, attrs_of, first, node_of, text
from npu_fused_graph.inspector.om_json import read_om_json
from npu_fused_graph.inspector.onnx_text import read_onnx
from npu_fused_graph.inspector.python_log import read_python_log
from npu_fused_graph.inspector.readable import read_readable
from npu_fused_graph.inspector.textproto import Doubt, parse
from npu_fused_graph.ir.graph import AttrValue, Node

Read = tuple[list[DumpGraph], dict[str, AttrValue], Warnings]
"""Graphs, attributes of the model, warnings."""


def _ge_proto(data: bytes) -> Read:
    warnings = Warnings()
    graphs, model = text_index.graphs_of(
        data, text_index.GE_PROTO, lambda message: node_of(message, is_built=True), attrs_of, warnings
    )
    return graphs, attrs_of(model), warnings


def _torchair_txt(data: bytes) -> Read:
    warnings = Warnings()
    graphs, _ = text_index.graphs_of(
        data, text_index.TORCHAIR_TXT, lambda message: node_of(message, is_built=False), attrs_of, warnings
    )
    return graphs, {}, warnings


def _torchair_pbtxt(data: bytes) -> Read:
    warnings = Warnings()
    graphs, _ = text_index.graphs_of(
        data, text_index.TORCHAIR_PBTXT, lambda message: _torchair_node(message, warnings), lambda message: {}, warnings
    )
    for graph in graphs:
        for op, written in enumerate(graph.inputs):
            if any(text.startswith("^") for text in written):
                graph.inputs[op] = tuple(_edge(text) for text in written)
    return graphs, {}, warnings


def _edge(written: str) -> str:
    """Control edges have a sign of their own here."""
    return f"{written[1:]}:-1" if written.startswith("^") else written


def _torchair_node(message: Message, warnings: Warnings) -> Node:
    """Its attributes are texts that hold messages: ``[i]x`` and ``[o]y`` describe inputs and outputs, in order."""
    op: Message = {"name": message.get("name", []), "type": message.get("op", []), "input": []}
    op["input"] = [_edge(text(written)) for written in message.get("input", ())]
    for entry in message.get("attr", ()):
        if not isinstance(entry, dict):
            continue
        key, held = text(first(entry, "key", b"")), first(entry, "value", {})
        data = first(held, "s", b"") if isinstance(held, dict) else b""
        try:
            inner = parse(data if isinstance(data, bytes) else str(data).encode(errors="surrogateescape"))
        except Doubt as doubt:
            name = text(first(message, "name", b""))
            warnings.say(f"op {name}, attribute {key}: {doubt.what}; the rest of it was not read")
            inner = doubt.read
        if key.startswith(("[i]", "[o]")):
            op.setdefault("input_desc" if key[1] == "i" else "output_desc", []).append(inner)
        else:
            op.setdefault("attr", []).append({"key": [key], "value": [inner]})
    return node_of(op, is_built=False)


READERS: dict[str, Callable[[bytes], Read]] = {
    "torchair pbtxt": _torchair_pbtxt,
    "torchair txt": _torchair_txt,
    "torchair py": read_python_log,
    "torchair code": read_output_code,
    "torchair tasks": read_tasks,
    "fx": read_fx,
    "fx log": read_fx_log,
    "ge proto": _ge_proto,
    "ge onnx": read_onnx,
    "ge readable": read_readable,
    "air": read_air,
    "om": read_om,
    "om json": read_om_json,
}
"""Of formats that hold a graph."""


def read_dump(path: Path | str) -> Dump:
    """Read one dump of any format, ``.gz`` and ``.zst`` too.

    Raises DumpError for a file that is not there, holds no dump, or one without a graph; what is damaged in part is
    read as far as it goes, and ``warnings`` say where that ends.
    """
    path = Path(path)
    return dump_of(contents(path), path)


def dump_of(data: bytes, path: Path) -> Dump:
    """The dump that a file of this name holds, as read_dump gives it."""
    kind = format_of(data, path.name)
    if kind not in READERS:
        what = f"{kind}: {FORMATS[kind]}" if kind else f"a file that begins with {data[:24]!r}"
        raise DumpError(f"[inspect] {path}: expected a dump of a graph ({', '.join(READERS)}), got {what}.")
    if not data or data.isspace():
        raise DumpError(
            f"[inspect] {path}: expected a dump, got an empty file. TorchAir leaves one when it cannot write its dump, "
            "and says so in its log."
        )
    graphs, attrs, warnings = READERS[kind](data)
    if not graphs or not any(graphs):
        raise DumpError(f"[inspect] {path}: expected {kind} with an op, got none. {' '.join(warnings)}".rstrip())
    return Dump(path, kind, facts_of(path), graphs, len(data), attrs, warnings)


UNPACKED = 4 * 2**30
"""Bytes that one packed file may hold."""


def contents(path: Path) -> bytes:
    """What a file holds, unpacked. Raises DumpError where it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DumpError(f"[inspect] {path}: expected a file that can be read, got: {error}.") from None
    return unpacked(data, path)


def unpacked(data: bytes, path: Path) -> bytes:
    """What a ``.gz`` or ``.zst`` holds; other bytes as they are. Raises DumpError for a damaged or a huge one."""
    broken: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    if data[:2] == b"\x1f\x8b":
        stream: Any = gzip.GzipFile(fileobj=io.BytesIO(data))
    elif data[:4] == b"\x28\xb5\x2f\xfd":
        library = _zstandard(path)
        broken = (*broken, library.ZstdError)
        stream = library.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True)
    else:
        return data
    found = bytearray()
    try:
        while part := stream.read(2**20):
            found += part
            if len(found) > UNPACKED:
                raise DumpError(f"[inspect] {path}: expected at most {UNPACKED:,} bytes unpacked, got more. Unpack it.")
    except broken as error:
        raise DumpError(f"[inspect] {path}: expected a file that can be read, got: {error}.") from None
    return bytes(found)


def _zstandard(path: Path) -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        raise DumpError(
            f"[inspect] {path}: expected the package zstandard, which reads .zst, got none. pip install zstandard."
        ) from None
