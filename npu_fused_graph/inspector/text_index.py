"""The ops of a large text dump by where they begin: found by searching for bytes, proven by cheap looks.

Both printers write one field per line with a fixed indent, so that an op begins with a line nothing else can be, and
its name, type and inputs are its first lines. What does not look like that is read whole by the tolerant reader.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from sys import intern

from npu_fused_graph.inspector.dump import DumpGraph, Warnings
from npu_fused_graph.inspector.textproto import Doubt, Message, line_of, parse, unescaped
from npu_fused_graph.ir.graph import AttrValue, Node


@dataclass(frozen=True)
class Layout:
    """How a printer writes. opener: the line an op begins with. type_field: of the op's type.

    is_nested: graphs are messages (``graph {``) and ops lie in them; else the file is one graph. type_prefix: in front
    of every type.
    """

    opener: bytes
    type_field: bytes
    is_nested: bool
    type_prefix: bytes = b""

    @property
    def op_field(self) -> str:
        return self.opener.strip(b"\n {").decode()

    def graphs_in(self, text: bytes) -> int:
        """How many graphs begin in a text between ops."""
        return text.count(b"\ngraph {\n") + text.startswith(b"graph {\n")

    @cached_property
    def usual_head(self) -> re.Pattern[bytes]:
        """Name, type and inputs in this order, without escapes, and with more behind them."""
        value = rb'"([^"\\\n]+)"\n\s*'
        kind = re.escape(self.type_field) + rb": " + value.replace(b'"(', b'"' + self.type_prefix + b"(", 1)
        return re.compile(
            rb"\s*name: " + value + kind + rb'((?:input: "[^"\\\n]*"\n\s*)*)(?!input:|name:|' + self.type_field + rb":)"
        )

    @property
    def closing(self) -> bytes:
        """The line an op ends with, in front of its newline."""
        return self.opener[: len(self.opener) - len(self.opener.lstrip(b"\n "))] + b"}"


GE_PROTO = Layout(b"\n  op {\n", b"type", True)
TORCHAIR_TXT = Layout(b"\nop {\n", b"type", False)
TORCHAIR_PBTXT = Layout(b"\nnode {\n", b"op", False)


@dataclass
class _Ops:
    """Of one graph. begins, ends: of each op's lines, without the opening and the closing one."""

    names: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    inputs: list[tuple[str, ...]] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def part(self, first: int, last: int) -> _Ops:
        if (first, last) == (0, len(self.names)):
            return self
        columns = (self.names, self.types, self.inputs, self.begins, self.ends)
        return _Ops(*(column[first:last] for column in columns))  # type: ignore[arg-type]


class Doubtful(Exception):
    """The file is not as the printers write. at: the byte where that shows."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


def graphs_of(
    data: bytes, layout: Layout, decode: Callable[[Message], Node], attrs: Callable[[Message], dict[str, AttrValue]],
    warnings: Warnings,
) -> tuple[list[DumpGraph], Message]:  # fmt: skip
    """The graphs of a text dump, and the fields of the model around them.

    decode: the message of an op to a node. attrs: the message of a graph, without its ops, to its attributes.
    """
    if b"\r\n" in data[:65536]:
        data = data.replace(b"\r\n", b"\n")
    try:
        return _indexed(data, layout, decode, attrs, warnings)
    except Doubtful as doubt:
        warnings.clear()
        found = _read_whole(data, layout, decode, attrs, warnings)
        if not warnings:
            at = line_of(data, min(doubt.at, len(data)))
            warnings.say(f"line {at}: not laid out as its printer does; the file was read by the slower reader")
        return found


# -- searching -------------------------------------------------------------------------------------------------


def _indexed(
    data: bytes, layout: Layout, decode: Callable[[Message], Node], attrs: Callable[[Message], dict[str, AttrValue]],
    warnings: Warnings,
) -> tuple[list[DumpGraph], Message]:  # fmt: skip
    doubts: list[tuple[int, str]] = []
    ops, around, firsts = _search(data, layout, doubts)
    count = len(ops.names)
    if len(doubts) > max(2, count // 100) or 2 * len(doubts) > max(2, count):
        raise Doubtful(doubts[0][0])  # no damage: another printer
    for at, what in doubts:
        warnings.say(f"line {line_of(data, at)}: {what}")
    model = _tolerant(around, warnings, "what stands around the ops")
    fields = [g for g in model.get("graph", ()) if isinstance(g, dict)] if layout.is_nested else [model]
    graphs = []
    for message, first, last in zip(fields, firsts, [*firsts[1:], count], strict=False):
        graphs.append(_graph(data, layout, ops.part(first, last), message, decode, attrs, warnings))
    return graphs, {key: values for key, values in model.items() if key != "graph"} if layout.is_nested else {}


def _graph(
    data: bytes, layout: Layout, ops: _Ops, fields: Message, decode: Callable[[Message], Node],
    attrs: Callable[[Message], dict[str, AttrValue]], warnings: Warnings,
) -> DumpGraph:  # fmt: skip
    """fields: of the graph, without its ops."""

    def node(op: int) -> Node:
        try:
            return decode(parse(data, ops.begins[op], ops.ends[op]))
        except Doubt as doubt:
            warnings.say(
                f"line {line_of(data, doubt.at)}: {doubt.what}, in op {ops.names[op]}; the rest of it was not read"
            )
            return decode(doubt.read)

    is_ge = layout is GE_PROTO
    first, last = (ops.begins[0], ops.ends[-1]) if ops.begins else (0, 0)
    return DumpGraph(
        _string(fields, "name"), ops.names, ops.types, ops.inputs,
        node, attrs=lambda: attrs(fields),
        has_streams=lambda: is_ge and data.find(b"\n    stream_id: ", first, last) >= 0,
        search=_TextSearch(data, ops) if is_ge else None,
    )  # fmt: skip


def _search(data: bytes, layout: Layout, doubts: list[tuple[int, str]]) -> tuple[_Ops, bytes, list[int]]:
    """All ops; the text around them, in which there are the graphs' own fields; the first op of each graph.

    doubts: gets ops that do not end where the next one begins, or have no name. Raises Doubtful where nothing is laid
    out as this printer does.
    """
    ops, find, opener, closing, usual = _Ops(), data.find, layout.opener, layout.closing, layout.usual_head.match
    at = -1 if data.startswith(opener[1:]) else find(opener)
    if at < 0 and not data.startswith(opener[1:]):
        raise Doubtful(0)
    around = [data[: at + 1]]
    firsts = [0] * layout.graphs_in(around[0]) if layout.is_nested else [0]
    while True:
        block = at + len(opener)
        at = find(opener, block - 1)
        stop = len(data) if at < 0 else at
        close = find(closing, block - 1, stop)
        if head := usual(data, block, stop if close < 0 else close):
            ops.names.append(head[1].decode("utf-8", "surrogateescape"))
            ops.types.append(intern(head[2].decode("utf-8", "surrogateescape")))
            ops.inputs.append(tuple(head[3].decode("utf-8", "surrogateescape").split('"')[1::2]))
        else:
            name, kind, sources = _head(data, block, stop if close < 0 else close, layout)
            if not name or not kind:
                doubts.append((block, "an op without a name or a type"))
            ops.names.append(name or f"(line {line_of(data, block)})")
            ops.types.append(kind or "?")
            ops.inputs.append(sources)
        ops.begins.append(block)
        ops.ends.append(stop if close < 0 else close)
        if close < 0:
            doubts.append((block, "an op without an end; what it holds may be incomplete"))
        elif close + len(closing) != stop:
            between = data[close + len(closing) : stop + 1]
            around.append(between)
            opened = layout.graphs_in(between)
            firsts += [len(ops.names)] * opened
            if at >= 0 and not opened:
                doubts.append((close + len(closing) + 1, "lines that are of no op; an op may be missing"))
        if at < 0:
            return ops, b"".join(around), firsts


def _head(data: bytes, line: int, end: int, layout: Layout) -> tuple[str, str, tuple[str, ...]]:
    """Name, type and inputs in any order: the first lines of an op, all with a text."""
    name, kind = b"", ""
    sources: list[str] = []
    while line < end:
        close = data.find(b"\n", line, end)
        if close < 0:
            close = end
        if data[close - 1 : close] != b'"':
            break
        key, _, value = data[line : close - 1].partition(b': "')
        key = key.lstrip()
        if b"\\" in value:
            value = unescaped(value)
        if key == b"input":
            sources.append(value.decode(errors="surrogateescape"))
        elif key == b"name":
            name = value
        elif key == layout.type_field:
            kind = intern(value.removeprefix(layout.type_prefix).decode(errors="surrogateescape"))
        line = close + 1
    return name.decode(errors="surrogateescape"), kind, tuple(sources)


def _tolerant(text: bytes, warnings: Warnings, what: str) -> Message:
    """As far as it can be read."""
    try:
        return parse(text)
    except Doubt as doubt:
        warnings.say(f"{doubt.what}, in {what}; the rest of them was not read")
        return doubt.read


_TEXT = re.compile(rb'\s*value \{\s*s: "((?:[^"\\\n]|\\.)*)"')


def _key(attr: str) -> bytes:
    """The line of an op's attribute."""
    return b'\n      key: "' + attr.encode("utf-8", "surrogateescape") + b'"\n'


class _TextSearch:
    """Of GE's own text, where an attribute is a line of its own."""

    def __init__(self, data: bytes, ops: _Ops) -> None:
        self._data, self._ops = data, ops

    def streams(self) -> list[int]:
        field, find = b"\n    stream_id: ", self._data.find
        found = []
        for begin, end in zip(self._ops.begins, self._ops.ends, strict=True):
            at = find(field, begin, end)
            word = self._data[at + len(field) : find(b"\n", at + 1)] if at >= 0 else b"0"
            found.append(int(word) if word.isdigit() else 0)
        return found

    def text(self, op: int, attr: str) -> str | None:
        begin, end = self._ops.begins[op], self._ops.ends[op]
        at = self._data.find(_key(attr), begin, end)
        if at < 0:
            return None
        value = _TEXT.match(self._data, at + len(_key(attr)), end)
        return unescaped(value[1]).decode("utf-8", "surrogateescape") if value else None

    def having(self, attr: str) -> list[int]:
        field = _key(attr)
        begins, found = self._ops.begins, []
        last = self._ops.ends[-1] if begins else 0
        at = self._data.find(field, begins[0], last) if begins else -1
        while at >= 0:
            op = bisect_right(begins, at) - 1
            found.append(op)
            at = self._data.find(field, max(self._ops.ends[op], at + 1), last)
        return found


# -- reading whole ---------------------------------------------------------------------------------------------


def _read_whole(
    data: bytes, layout: Layout, decode: Callable[[Message], Node], attrs: Callable[[Message], dict[str, AttrValue]],
    warnings: Warnings,
) -> tuple[list[DumpGraph], Message]:  # fmt: skip
    try:
        model = parse(data)
    except Doubt as doubt:
        model = doubt.read
        warnings.say(f"line {line_of(data, doubt.at)}: {doubt.what}; what follows was not read")
    messages = [g for g in model.get("graph", ()) if isinstance(g, dict)] if layout.is_nested else [model]
    graphs = [_of_message(message, layout, decode, attrs) for message in messages]
    return graphs, {key: values for key, values in model.items() if key != "graph"}


def _of_message(
    message: Message,
    layout: Layout,
    decode: Callable[[Message], Node],
    attrs: Callable[[Message], dict[str, AttrValue]],
) -> DumpGraph:
    ops = [op for op in message.get(layout.op_field, ()) if isinstance(op, dict)]
    rest = {key: values for key, values in message.items() if key != layout.op_field}
    type_field, prefix = layout.type_field.decode(), layout.type_prefix.decode()
    return DumpGraph(
        _string(message, "name"),
        [_string(op, "name") for op in ops],
        [_string(op, type_field).removeprefix(prefix) for op in ops],
        [tuple(_decoded(v) for v in op.get("input", ())) for op in ops],
        lambda op: decode(ops[op]),
        attrs=lambda: attrs(rest),
        has_streams=lambda: any("stream_id" in op for op in ops),
    )


def _string(message: Message, name: str) -> str:
    values = message.get(name)
    return _decoded(values[-1]) if values else ""


def _decoded(value: object) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
