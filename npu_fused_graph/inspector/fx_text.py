"""FX graphs as text: the Python of ``print_readable``, and the list of nodes that a graph prints in a log."""

from __future__ import annotations

import ast
import re
from typing import Any
from warnings import catch_warnings, simplefilter

from npu_fused_graph.inspector.dump import DumpGraph, Warnings
from npu_fused_graph.inspector.fx_graph import UNREADABLE, FxGraph
from npu_fused_graph.inspector.fx_tensors import split
from npu_fused_graph.ir.graph import AttrValue

_CLASS = re.compile(r"^class ([<\w]\w*>?)(?:\(.*\))?:")
_NODE = re.compile(r"^[ \t]*%(\w+) : (.*?)\[(?:num_)?users=\d+\] = (\w+)\[target=")
_REFERENCE = re.compile(r"%(\w+)")
_DEPTH = 50
"""Brackets in brackets that an argument may have."""

Read = tuple[list[DumpGraph], dict[str, AttrValue], Warnings]


def lines_of(data: bytes) -> list[str]:
    return [line.rstrip("\r") for line in data.decode(errors="surrogateescape").split("\n")]


def parsed(text: str) -> Any:
    """The tree of a line. Damaged ones make Python warn of their spelling."""
    with catch_warnings():
        simplefilter("ignore")
        return ast.parse(text)


def read_fx(data: bytes) -> Read:
    """Every class is a graph; a graph that another one calls is an attribute ``self.name`` there."""
    warnings = Warnings()
    graphs: list[FxGraph] = []
    signature: list[str] = []
    for number, line in enumerate(lines_of(data), 1):
        text = line.strip()
        try:
            if found := _CLASS.match(text):
                graphs.append(FxGraph(found[1]))
            elif text.startswith("def forward(") or signature:
                signature.append(text)
                if text.endswith(":") or not text:
                    whole, signature = " ".join(signature), []
                    graphs[-1].signature(parsed(f"{whole} pass").body[0])
            elif text.startswith("#") and graphs:
                graphs[-1].source = source_of(text)
            elif text and not text.startswith(("import ", "from ", "#")) and "fx_pytree.tree_flatten_spec(" not in text:
                graphs[-1].statements(parsed(text).body)
        except UNREADABLE:
            warnings.say(f"line {number}: no line of an FX graph")
    _say_cut_off(graphs, warnings)
    return _finished(graphs), {}, warnings


def source_of(comment: str) -> str:
    """The model's line that a comment names: ``# File: m.py:7 in forward, code: y = x @ w``."""
    before, code, _ = comment.partition(", code: ")
    place, _, function = before.partition("File: ")[2].rpartition(" in ")
    return f"{place} in {function}" if code and place.rpartition(":")[2].isdecimal() else ""


def read_fx_log(data: bytes) -> Read:
    """Graphs in a log, each after a line that ends in ``graph():``; lines of the log between them do not count."""
    warnings = Warnings()
    graphs: list[FxGraph] = []
    for number, line in enumerate(lines_of(data), 1):
        try:
            text = line.strip()
            if text.endswith("):") and "graph(" in text:
                graphs.append(FxGraph(text[: text.rindex("graph(")].strip()[:200]))
            elif found := _NODE.match(line):
                if not graphs or graphs[-1].is_whole:
                    graphs.append(FxGraph(""))
                _add(graphs[-1], found[1], found[2], found[3], line[found.end() :].rstrip())
            elif graphs and not graphs[-1].is_whole and text.startswith("return "):
                graphs[-1].statements(parsed(text).body)
            elif text.startswith("%"):
                raise ValueError("no node")
        except UNREADABLE:
            warnings.say(f"line {number}: no node of an FX graph")
    _say_cut_off(graphs, warnings)
    warnings.say("a graph in a log has no shapes, dtypes and lines of the model")
    return _finished(graphs), {}, warnings


def _add(graph: FxGraph, name: str, stated: str, kind: str, rest: str) -> None:
    """rest: ``target](args = (%x, 1), kwargs = {dim: 0})``."""
    note = stated.partition('"')[2].partition('"')[0] or None
    args: list[Any] = []
    words: list[tuple[str, Any]] = []
    target, call, given = rest.partition("](args = ")
    if kind in ("call_function", "call_method", "call_module") and call and given.endswith("})"):
        given, _, keywords = given[:-1].rpartition(", kwargs = ")
        args = [_expression(part) for part in split(given.strip()[1:-1])]
        pairs = (part.partition(":") for part in split(keywords.strip()[1:-1]))
        words = [(key.strip(), _expression(value)) for key, _, value in pairs]
    elif kind in ("placeholder", "get_attr") and rest.endswith(("]", ")")):
        target = rest.partition("](default=")[0].removesuffix("]")
    else:
        raise ValueError("no node")
    if kind in ("call_function", "call_method"):
        graph.add(name, target.removeprefix("torch.ops."), args, words, note)
    elif kind == "placeholder" and target == name:
        graph.add(name, kind, annotation=note)
    else:
        graph.add(name, kind, args, words, note, target=target)


def _expression(text: str, depth: int = 0) -> Any:
    """An argument. Texts stand in a log without quotes: what is no value, list or literal is its own text."""
    text = text.strip()
    if depth > _DEPTH:
        raise ValueError("too many brackets")
    if found := _REFERENCE.fullmatch(text):
        return ast.Name(found[1])
    if text and text[0] in "([" and text[-1] in ")]":
        return ast.List([_expression(part, depth + 1) for part in split(text[1:-1])])
    try:
        tree = parsed(_REFERENCE.sub(r"\1", text)).body[0].value if "%" in text else None
        return tree or ast.Constant(ast.literal_eval(text))
    except UNREADABLE:
        return ast.Constant(text)


def _say_cut_off(graphs: list[FxGraph], warnings: Warnings) -> None:
    for graph in graphs:
        if not graph.is_whole:
            warnings.say(f"graph {graph.name or '(unnamed)'} has no return: the rest of it is not in the file")


def _finished(graphs: list[FxGraph]) -> list[DumpGraph]:
    names = {graph.name for graph in graphs}
    for graph in graphs:
        for node in graph.nodes:
            if node.type == "get_attr" and node.attrs.get("target") in names:
                node.subgraphs = [str(node.attrs["target"])]
    return [graph.finished() for graph in graphs]
