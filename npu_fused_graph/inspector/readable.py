"""GE's dumps for people: ops, edges and public attributes, nothing else."""

from __future__ import annotations

import re

from npu_fused_graph.inspector.dump import DumpGraph, Warnings
from npu_fused_graph.inspector.textproto import line_of
from npu_fused_graph.ir.graph import AttrValue, Node, NodeInput, Source, TensorDesc

_GRAPH = re.compile(r'^graph\("(.*)"\):\s*$')
_NODE = re.compile(r"^  %(.*?) : \[#?users=(\d+)\] = Node\[type=([^\]]*)\]\s*(?:\((.*)\))?\s*$")
_ELEMENT = re.compile(r"^  %(.*?) : \[#?users=(\d+)\] = get_element\[node=%(.*)\]\((\d+)\)\s*$")
_RETURN = re.compile(r"^  return \((.*)\)\s*$")


def read_readable(data: bytes) -> tuple[list[DumpGraph], dict[str, AttrValue], Warnings]:
    graphs: list[_Graph] = []
    warnings = Warnings()
    at = 0
    for line in data.decode(errors="surrogateescape").splitlines():
        where, at = at, at + len(line.encode(errors="surrogateescape")) + 1
        if not line.strip():
            continue
        if found := _GRAPH.match(line):
            graphs.append(_Graph(found[1]))
        elif graphs and (found := _ELEMENT.match(line)):
            graphs[-1].elements[found[1]] = (found[3], int(found[4]))
        elif graphs and (found := _NODE.match(line)):
            graphs[-1].add(found[1], int(found[2]), found[3], found[4] or "")
        elif not (graphs and _RETURN.match(line)):
            warnings.say(f"line {line_of(data, where)}: no line of a readable dump")
    warnings.say("a readable dump has no shapes, dtypes, streams and control edges")
    return [graph.finished() for graph in graphs], {}, warnings


class _Graph:
    """What was read of one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[tuple[str, int, str, list[tuple[str, str]], dict[str, AttrValue]]] = []
        self.elements: dict[str, tuple[str, int]] = {}

    def add(self, name: str, outputs: int, kind: str, rest: str) -> None:
        inputs: list[tuple[str, str]] = []
        attrs: dict[str, AttrValue] = {}
        for part in _split(rest):
            key, _, value = part.partition(" = ")
            if key == "inputs":
                pairs = (item.rpartition("=%") for item in _split(value.strip()[1:-1]))
                inputs = [(port, source) for port, _, source in pairs]
            elif key == "attrs":
                attrs = dict(_pair(item) for item in _split(value.strip()[1:-1]))
        self.nodes.append((name, outputs, kind, inputs, attrs))

    def finished(self) -> DumpGraph:
        def source(name: str) -> tuple[str, int]:
            return self.elements.get(name, (name, 0))

        def decode(op: int) -> Node:
            name, outputs, kind, inputs, attrs = self.nodes[op]
            fed = [NodeInput(TensorDesc(port), Source(*source(of))) for port, of in inputs]
            return Node(name, kind, fed, [TensorDesc("") for _ in range(outputs)], attrs=attrs)

        return DumpGraph(
            self.name,
            [node[0] for node in self.nodes],
            [node[2] for node in self.nodes],
            [tuple("{}:{}".format(*source(of)) for _, of in node[3]) for node in self.nodes],
            decode,
            is_stated=False,
        )


def _split(text: str) -> list[str]:
    """At commas that are in no bracket and no quotes."""
    parts, depth, begin, is_quoted = [], 0, 0, False
    for i, c in enumerate(text):
        if c == '"' and text[i - 1 : i] != "\\":
            is_quoted = not is_quoted
        elif is_quoted:
            continue
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[begin:i].strip())
            begin = i + 1
    parts.append(text[begin:].strip())
    return [part for part in parts if part]


def _pair(text: str) -> tuple[str, AttrValue]:
    key, _, value = text.partition(": ")
    return key.strip(), _value(value.strip())


def _value(text: str) -> AttrValue:
    if text in ("true", "false"):
        return text == "true"
    if text[:1] == '"':
        return text[1:-1]
    if text[:1] == "{" and text[-1:] == "}":
        return [_value(part) for part in _split(text[1:-1])]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
