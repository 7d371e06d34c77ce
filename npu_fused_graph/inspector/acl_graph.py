"""What TorchAir leaves of a graph that is captured: output_code.py, and the runtime's list of the captured tasks."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector.binary import read_air
from npu_fused_graph.inspector.dump import DumpGraph, Warnings
from npu_fused_graph.inspector.fx_graph import UNREADABLE, FxGraph
from npu_fused_graph.inspector.fx_text import Read, lines_of, parsed
from npu_fused_graph.ir.dtypes import BY_NAME
from npu_fused_graph.ir.graph import AttrValue, Build, Node, TensorDesc

_GE_GRAPH = re.compile(rb"^serialized_graph = (b'.*'|b\".*\")\r?$", re.M)
_INPUTS = re.compile(r"^(\w+(?:, \w+)*),? = args$")
_EXAMPLE = re.compile(
    r"^\s*(\w+) = rand_strided\(\(([^()]*)\),\s*\([^()]*\),\s*device ='(\w+)[^']*',\s*dtype =torch\.(\w+)\)"
)
_STREAM = re.compile(r"^with torch\.npu\.stream\(\w+\['(.*)'\]\):$")
_EVENT = re.compile(r"^(event_\w+)\.(record|wait)\(")
_CONSTANT = re.compile(r"^(\w+) = tensor_constants\['(.*?)'\]")
_HOST = ("global ", "from ", "import ", "external_event_", "capture_stream_", "handle_")
"""Lines of the host program, which are no op of the graph."""


def read_output_code(data: bytes) -> Read:
    """The program of a captured graph: its function ``forward``. That of a GE graph holds the graph itself."""
    if found := _GE_GRAPH.search(data):
        try:
            held = ast.literal_eval(found[1].decode())
        except UNREADABLE:
            raise DumpError("[inspect] output_code.py: expected the bytes of a GE graph, got damaged ones.") from None
        return read_air(held)
    code = _Code()
    lines = lines_of(data)
    for line_number, line in enumerate(lines, 1):
        try:
            code.take(line)
        except UNREADABLE:
            code.warnings.say(f"line {line_number}: no line of a captured graph")
    if not code.graph.is_whole:
        code.warnings.say("forward has no return: the rest of it is not in the file")
    code.warnings.say("a captured graph's code states dtypes and shapes of its inputs only")
    return [code.graph.finished()], {}, code.warnings


class _Code:
    """The lines of ``forward``, then the examples of inputs in ``main``."""

    def __init__(self) -> None:
        self.graph = FxGraph("forward")
        self.warnings = Warnings()
        self._is_inside = False
        self._skipped: int | None = None
        self._streams: list[tuple[int, str]] = []
        self._waits = 0

    def take(self, line: str) -> None:
        text, depth = line.strip(), len(line) - len(line.lstrip())
        if text and depth == 0:
            self._is_inside = text.startswith("def forward(")
        elif found := _EXAMPLE.match(line):
            self._describe(*found.groups())
        elif text and self._is_inside and not self._is_skipped(text, depth):
            self._statement(text, depth)

    def _is_skipped(self, text: str, depth: int) -> bool:
        """Blocks that only the capture runs."""
        if self._skipped is not None and depth > self._skipped:
            return True
        self._skipped = depth if text == "if is_capturing:" else None
        return self._skipped is not None or text.startswith(_HOST)

    def _statement(self, text: str, depth: int) -> None:
        while self._streams and depth <= self._streams[-1][0]:
            self._streams.pop()
        if found := _STREAM.match(text):
            self._streams.append((depth, found[1]))
            return
        graph = self.graph
        graph.notes = {"stream": self._streams[-1][1]} if self._streams else {}
        if found := _INPUTS.match(text):
            for name in found[1].split(", "):
                graph.add(name, "placeholder")
        elif found := _EVENT.match(text):
            self._event(found[1], is_wait=found[2] == "wait")
        elif not re.match(r"event_\w+ = torch\.npu\.Event\(", text):
            graph.statements(parsed(_CONSTANT.sub(r"\1 = self.\2", text)).body)

    def _event(self, name: str, *, is_wait: bool) -> None:
        if is_wait:
            self._waits += 1
        self.graph.add(f"{name}_wait_{self._waits}" if is_wait else name, "event.wait" if is_wait else "event.record")
        if is_wait:
            self.graph.nodes[-1].controls = [name]

    def _describe(self, name: str, sizes: str, device: str, dtype: str) -> None:
        shape = tuple(int(s) if s.strip().isdecimal() else -1 for s in sizes.split(",") if s.strip())
        known = dtype if dtype in BY_NAME else None
        for node in self.graph.nodes:
            if node.name == name and node.type == "placeholder":
                desc = TensorDesc("", known, shape, True, shape_source="stated", device=device.upper())
                node.outputs = [desc]


# -- tasks -----------------------------------------------------------------------------------------------------

_HASH = re.compile(r"_(?=[0-9a-f]*\d)[0-9a-f]{16,}(?:_.*)?$", re.S)
_MARK = "dead_lock_"
_BROKEN = 500
"""Records that cannot be read, after which a file is given up: each costs a search through it."""


def read_tasks(data: bytes) -> Read:
    """Tasks by stream, in the order of each stream. A task waits for the one before it, and for its event's record."""
    warnings = Warnings()
    streams: dict[int, list[dict[str, Any]]] = {}
    for event in _events(data.decode(errors="surrogateescape"), warnings):
        stream = _stream(event)
        if event.get("ph") == "X" and stream is not None and isinstance(event.get("args"), dict):
            streams.setdefault(stream, []).append(event)
    if not streams:
        raise DumpError('[inspect] graph JSON: expected a task, {"ph": "X", "args": {"Stream Id": ...}}, got none.')
    graph = _Tasks(warnings)
    for stream, events in streams.items():
        if all(isinstance(event.get("ts"), (int, float)) for event in events):
            events.sort(key=lambda event: event["ts"])
        for event in events:
            graph.add(stream, event)
    found = graph.finished()
    warnings.say("a list of captured tasks has no data edges, shapes, dtypes and groups; its times are no measurements")
    return [found], {}, warnings


def _events(text: str, warnings: Warnings) -> Iterator[dict[str, Any]]:
    """Each record of the list; where the list breaks, the records that are whole."""
    try:
        held = json.loads(text)
    except (ValueError, RecursionError):
        held = None
    if held is None:
        decoder, at = json.JSONDecoder(), text.find("{")
        line, counted, broken = 1, 0, 0
        while at >= 0:
            try:
                event, end = decoder.raw_decode(text, at)
                yield event
            except (ValueError, RecursionError):
                line, counted = line + text.count("\n", counted, at), at
                warnings.say(f"line {line}: no record of a task")
                broken += 1
                if broken == _BROKEN:
                    return
                end = text.find("\n", at)
            at = text.find("{", end) if end >= 0 else -1
        return
    rows = held.get("traceEvents") if isinstance(held, dict) else held
    yield from (row for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()


def _stream(event: dict[str, Any]) -> int | None:
    args = event.get("args")
    stated = _number(args.get("Stream Id")) if isinstance(args, dict) else None
    return _number(str(event.get("tid")).removeprefix("stream")) if stated is None else stated


def _number(value: Any) -> int | None:
    """Of a stream."""
    text = str(value)
    return int(text) if text.isdecimal() and len(text) < 20 else None


class _Tasks:
    def __init__(self, warnings: Warnings) -> None:
        self.warnings = warnings
        self.nodes: list[Node] = []
        self._last: dict[int, Node] = {}
        self._first: dict[int, Node] = {}
        self._records: dict[tuple[str, str], list[Node]] = {}
        self._waits: list[tuple[tuple[str, str], Node]] = []
        self._starts: list[tuple[Node, int]] = []

    def add(self, stream: int, event: dict[str, Any]) -> None:
        args: dict[str, Any] = event["args"]
        written, task = str(event.get("name", "")), str(args.get("Task Type", ""))
        name = written.removeprefix(_MARK)
        is_kernel = task.startswith("KERNEL") or not task
        node = Node(f"{name}@{stream}.{args.get('Task Id', '?')}", _HASH.sub("", name) if is_kernel else task)
        node.attrs = {key: _plain(value) for key, value in args.items() if key != "ExtendInfo"}
        node.attrs |= _extended(args.get("ExtendInfo"))
        if written != name:
            node.attrs["deadlock"] = True
        node.build = Build(stream=stream)
        if stream in self._last:
            node.controls.append(self._last[stream].name)
        self._last[stream] = node
        self._first.setdefault(stream, node)
        if not is_kernel:
            self._synchronise(node, name, args)
        self.nodes.append(node)

    def _synchronise(self, node: Node, name: str, args: dict[str, Any]) -> None:
        handle = name.removeprefix(node.type).lstrip("_")
        key = "NOTIFY" if "NOTIFY" in node.type else "EVENT", handle
        started = _number(args.get("Active Stream Id"))
        if started is not None:
            self._starts.append((node, started))
        elif handle and ("RECORD" in node.type or "WRITE_VALUE" in node.type):
            self._records.setdefault(key, []).append(node)
        elif handle and "WAIT" in node.type:
            self._waits.append((key, node))
        else:
            return
        if handle:
            node.attrs["event"] = handle

    def finished(self) -> DumpGraph:
        for key, node in self._waits:
            records = self._records.get(key, [])
            if len(records) == 1:
                node.controls.append(records[0].name)
            elif records:
                self.warnings.say(
                    f"event {key[1]} is recorded {len(records)} times: which of them a wait is for is open"
                )
        for node, stream in self._starts:
            if stream in self._first and self._first[stream] is not node:
                self._first[stream].controls.append(node.name)
        nodes = self.nodes
        inputs = [tuple(f"{name}:-1" for name in node.controls) for node in nodes]
        return DumpGraph(
            "", [n.name for n in nodes], [n.type for n in nodes], inputs, nodes.__getitem__,
            has_streams=lambda: True, is_stated=False,
        )  # fmt: skip


def _plain(value: Any) -> AttrValue:
    return value if isinstance(value, (str, int, float, bool)) or value is None else json.dumps(value)


def _extended(held: Any) -> dict[str, AttrValue]:
    """ExtendInfo is JSON in a text, or nothing."""
    try:
        found = json.loads(held) if isinstance(held, str) else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return {f"ExtendInfo.{key}": _plain(value) for key, value in found.items()}
    return {"ExtendInfo": _plain(held)} if held else {}
