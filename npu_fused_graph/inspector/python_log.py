"""TorchAir's Python dump: a log of the calls by which converters built the graph, with the lines of the model.

It is read, never executed. Passes do not rewrite it, so it says nothing about what they did. Constants stand in the
calls themselves: they are attributes here, ``arg1``, of the op they are passed to.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from npu_fused_graph.inspector.dump import DumpGraph, Warnings
from npu_fused_graph.ir.graph import AttrValue, Node, NodeInput, Source, TensorDesc

_FILE = re.compile(r'^# File "(.*?)", line (\d+), in (\S+)')
_FX = re.compile(r"^## FX Code: (\w+)[^=]*= (\S+?)\(")
_CALL = re.compile(r"^[\w, ]+ = ge\.\w+\(")


def read_python_log(data: bytes) -> tuple[list[DumpGraph], dict[str, AttrValue], Warnings]:
    """Every call of a converter's helper is an op; ``_source`` and ``_fx`` say which line and FX node it came from."""
    warnings = Warnings()
    warnings.say("TorchAir's passes do not rewrite this file: it says nothing about what they did")
    log = _Log()
    for number, line in enumerate(data.decode(errors="surrogateescape").splitlines(), 1):
        if found := _FILE.match(line):
            log.source = f"{found[1]}:{found[2]} in {found[3]}"
        elif found := _FX.match(line):
            log.fx = f"{found[1]} = {found[2]}"
        elif _CALL.match(line):
            try:
                log.add(ast.parse(line).body[0])
            except (SyntaxError, ValueError, AttributeError, TypeError, IndexError, RecursionError):
                warnings.say(f"line {number}: no call that can be read")
        elif line.strip() and not line.startswith(("#", "from ", "import ")):
            warnings.say(f"line {number}: no line of TorchAir's Python dump")
    nodes = log.nodes
    graph = DumpGraph(
        "", [n.name for n in nodes], [n.type for n in nodes], [_written(n) for n in nodes], lambda op: nodes[op],
        is_stated=False,
    )  # fmt: skip
    return [graph], {}, warnings


def _written(node: Node) -> tuple[str, ...]:
    fed = ["" if item.source is None else str(item.source) for item in node.inputs]
    return (*fed, *(f"{name}:-1" for name in node.controls))


class _Log:
    """What was read so far. values: variable -> the op and output it stands for."""

    def __init__(self) -> None:
        self.source = self.fx = ""
        self.nodes: list[Node] = []
        self.values: dict[str, Source] = {}

    def add(self, statement: Any) -> None:
        """``a_0, a_1 = ge.Split(x_0, 2, node_name="a")``. Raises one of several errors for another statement."""
        (target,), call = statement.targets, statement.value
        targets: list[Any] = target.elts if isinstance(target, ast.Tuple) else [target]
        words = {keyword.arg: keyword.value for keyword in call.keywords}
        name = ast.literal_eval(words.pop("node_name")) if "node_name" in words else call.func.attr
        node = Node(str(name), str(call.func.attr))
        for place, argument in enumerate(call.args):
            self._take(node, f"arg{place}", argument)
        for key, value in words.items():
            if key == "dependencies":
                given: list[Any] = value.elts
                node.controls = [self.values[item.id].node for item in given if item.id in self.values]
            else:
                self._take(node, str(key), value)
        node.attrs |= {"_source": self.source, "_fx": self.fx}
        node.outputs = [TensorDesc("") for item in targets if item.id != "_"]
        for index, item in enumerate(targets):
            self.values[item.id] = Source(node.name, index)
        self.nodes.append(node)

    def _take(self, node: Node, name: str, value: Any) -> None:
        """An argument: a value of the graph, several, none, or a constant."""
        items: list[Any] = value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
        if items and all(isinstance(item, ast.Name) and item.id in self.values for item in items):
            node.inputs += [NodeInput(TensorDesc(""), self.values[item.id]) for item in items]
        elif isinstance(value, ast.Constant) and value.value is None and name.startswith("arg"):
            node.inputs.append(NodeInput(TensorDesc(""), None))
        else:
            node.attrs[name] = _constant(value)


def _constant(value: Any) -> AttrValue:
    """A literal as it is, ``ge.Const([1, 2], dtype=9)`` as its value; anything else as its text."""
    if isinstance(value, ast.Call) and value.args:
        value = value.args[0]
    try:
        found: AttrValue = ast.literal_eval(value)
    except (ValueError, TypeError):
        return ast.unparse(value)
    return list(found) if isinstance(found, tuple) else found
