"""An FX graph, put together from the statements of its Python text. They are read as a tree, never executed.

An argument that is a value of the graph is an input of the op; anything else is an attribute, ``arg1`` by its place
or by its keyword. Where values stand among constants, as sizes do, ``%1`` in the attribute is the op's input 1.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from npu_fused_graph.inspector.dump import DumpGraph
from npu_fused_graph.inspector.fx_tensors import described
from npu_fused_graph.ir.graph import AttrValue, Node, NodeInput, Source, TensorDesc

_GLOBALS = frozenset(("inf", "nan", "torch", "device", "NoneType", "Ellipsis", "int", "float", "bool", "str"))
_MODULES = frozenset(("torch", "operator", "_operator", "math", "builtins"))
_OPERATORS = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.Pow: "pow", ast.MatMult: "matmul", ast.LShift: "lshift", ast.RShift: "rshift", ast.BitAnd: "and_",
    ast.BitOr: "or_", ast.BitXor: "xor", ast.UAdd: "pos", ast.USub: "neg", ast.Invert: "invert", ast.Eq: "eq",
    ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge",
}  # fmt: skip
_GETITEM = "operator.getitem"

UNREADABLE = (SyntaxError, ValueError, AttributeError, TypeError, LookupError, RecursionError, MemoryError)
"""What reading a damaged line may raise."""


class FxGraph:
    """What was read so far. source: the model's line the next ops come from; notes: attributes they all have."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = ""
        self.notes: dict[str, AttrValue] = {}
        self.nodes: list[Node] = []
        self.values: dict[str, Source] = {}
        self._by_name: dict[str, Node] = {}
        self._tuples: set[str] = set()

    @property
    def is_whole(self) -> bool:
        return bool(self.nodes) and self.nodes[-1].type == "output"

    def signature(self, function: Any) -> None:
        """``def forward(self, x: "f16[4]"):``."""
        for argument in (*function.args.args[1:], *filter(None, (function.args.vararg, function.args.kwarg))):
            note = argument.annotation.value if isinstance(argument.annotation, ast.Constant) else None
            self.add(argument.arg, "placeholder", annotation=note if isinstance(note, str) else None)

    def statements(self, body: Sequence[Any]) -> None:
        """One line: an op, then what it is called where it works in place; values that are let go do not count."""
        first, *others = body
        if isinstance(first, ast.Return):
            self.add("output", "output", [first.value] if first.value else [])
        elif isinstance(first, ast.AugAssign):
            name, note = _named(others[0])
            kind = f"operator.i{_OPERATORS[type(first.op)].rstrip('_')}"
            self.add(name, kind, [first.target, first.value], annotation=note)
        elif isinstance(first, ast.Assign) and isinstance(first.targets[0], ast.Subscript):
            (name, note), target = _named(others[0]), first.targets[0]
            self.add(name, "operator.setitem", [target.value, target.slice, first.value], annotation=note)
        elif not (isinstance(first.value, ast.Constant) and first.value.value is None):
            name, note = _named(first)
            self._assign(name, first.value, note)

    def _assign(self, name: str, value: Any, note: str | None) -> None:
        path = _path(value)
        if isinstance(value, ast.Call) and not path:
            self._call(name, value, note)
        elif isinstance(value, ast.Subscript):
            self.add(name, _GETITEM, [value.value, value.slice], annotation=note)
        elif isinstance(value, ast.BinOp):
            self.add(name, f"operator.{_OPERATORS[type(value.op)]}", [value.left, value.right], annotation=note)
        elif isinstance(value, ast.UnaryOp):
            self.add(name, f"operator.{_OPERATORS[type(value.op)]}", [value.operand], annotation=note)
        elif isinstance(value, ast.Compare):
            given = [value.left, *value.comparators]
            self.add(name, f"operator.{_OPERATORS[type(value.ops[0])]}", given, annotation=note)
        elif path and path[0] == "self" and len(path) > 1:
            self.add(name, "get_attr", annotation=note, target=".".join(path[1:]))
        elif path and path[0] in self.values and len(path) > 1:
            attr = ast.Constant(".".join(path[1:]))
            self.add(name, "builtins.getattr", [ast.Name(path[0]), attr], annotation=note)
        elif isinstance(value, ast.Name) and value.id in self.values:
            self._rename(value.id, name)
        else:
            raise ValueError("no op")

    def _call(self, name: str, call: ast.Call, note: str | None) -> None:
        args, words = _arguments(call)
        path = _path(call.func)
        if path and path[0] == "self":
            self.add(name, "call_module", args, words, note, target=".".join(path[1:]))
        elif path and (path[0] not in self.values and (len(path) != 2 or path[0] in _MODULES)):
            self.add(name, ".".join(path).removeprefix("torch.ops."), args, words, note)
        else:
            func: Any = call.func
            self.add(name, func.attr, [func.value, *args], words, note)

    def _rename(self, old: str, name: str) -> None:
        """``x = X``: the argument X of forward is called x in the graph."""
        node = self._by_name.get(old)
        if node is None or node.type != "placeholder":
            self.values[name] = self.values[old]
            return
        node.name, node.attrs = name, {"target": old, **node.attrs}
        self._by_name[name] = node
        self.values[old] = self.values[name] = Source(name, 0)

    def add(
        self, name: str, kind: str, args: Sequence[Any] = (), words: Sequence[tuple[str, Any]] = (),
        annotation: str | None = None, **attrs: AttrValue,
    ) -> None:  # fmt: skip
        """An op. What it takes out of a tuple is an output of the op that made the tuple, and no op."""
        desc = described(annotation)
        if kind == _GETITEM and len(args) == 2 and (owner := self._tuple(args[0])) and _is_place(args[1]):
            place = args[1].value
            owner.outputs += [TensorDesc("") for _ in range(len(owner.outputs), place + 1)]
            owner.outputs[place] = desc
            self.values[name] = Source(owner.name, place)
            return
        node = Node(name, kind, attrs=dict(attrs))
        for place, argument in enumerate(args):
            self._take(node, f"arg{place}", "", argument)
        for word, argument in words:
            self._take(node, word, word, argument)
        if self.source and kind not in ("placeholder", "output"):
            node.attrs["_source"] = self.source
        node.attrs |= self.notes
        node.outputs = [desc] if annotation or kind in ("placeholder", "get_attr") else []
        self.nodes.append(node)
        if kind != "output":
            self.values[name] = Source(name, 0)
            self._by_name[name] = node

    def _tuple(self, value: Any) -> Node | None:
        """The op behind a value that nobody says to be a tensor."""
        node = self._by_name.get(value.id) if isinstance(value, ast.Name) else None
        if node is None or node.type in ("placeholder", "get_attr"):
            return None
        if node.name not in self._tuples and any(desc.shape is not None for desc in node.outputs):
            return None
        self._tuples.add(node.name)
        return node

    def _take(self, node: Node, name: str, port: str, value: Any) -> None:
        items: list[Any] = value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
        if items and all(map(_is_value, items)):
            for item in items:
                self._feed(node, item.id, port)
        else:
            node.attrs[name] = self._constant(node, value)

    def _feed(self, node: Node, name: str, port: str = "") -> str:
        source = self.values.get(name, Source(name, 0))
        node.inputs.append(NodeInput(TensorDesc(port), source))
        return f"%{len(node.inputs) - 1}"

    def _constant(self, node: Node, value: Any) -> AttrValue:
        """A literal as it is, anything else as its text, values in it as inputs."""
        if isinstance(value, (ast.List, ast.Tuple)):
            return [self._constant(node, item) for item in value.elts]
        if _is_value(value):
            return self._feed(node, value.id)
        try:
            found = ast.literal_eval(value)
            if found is None or isinstance(found, (str, float, bytes)):
                return found
            if isinstance(found, int) and found.bit_length() <= 64:
                return found
        except UNREADABLE:
            pass
        return ast.unparse(_Fed(self, node).visit(value))

    def finished(self) -> DumpGraph:
        by_name = self._by_name
        is_stated = any(node.outputs and node.outputs[0].shape is not None for node in self.nodes)
        for source in [item.source for node in self.nodes for item in node.inputs]:
            owner = by_name.get(source.node) if source else None
            if source and owner and len(owner.outputs) <= source.index:
                owner.outputs += [TensorDesc("") for _ in range(len(owner.outputs), source.index + 1)]
        for node in self.nodes:
            for item in node.inputs:
                owner = by_name.get(item.source.node) if item.source else None
                if owner and item.source:
                    item.desc = replace(owner.outputs[item.source.index], name=item.desc.name)
        nodes = self.nodes
        inputs = [(*map(str, node.sources()), *(f"{name}:-1" for name in node.controls)) for node in nodes]
        return DumpGraph(
            self.name, [n.name for n in nodes], [n.type for n in nodes], inputs, nodes.__getitem__, is_stated=is_stated
        )


class _Fed(ast.NodeTransformer):
    """Puts ``%1`` where a value stood in an expression."""

    def __init__(self, graph: FxGraph, node: Node) -> None:
        self._graph, self._node = graph, node

    def visit_Name(self, name: ast.Name) -> ast.Name:
        return ast.Name(self._graph._feed(self._node, name.id)) if name.id in self._graph.values else name


def _named(statement: Any) -> tuple[str, str | None]:
    """What a statement assigns to, and what it says of it."""
    if isinstance(statement, ast.AnnAssign):
        target: Any = statement.target
        note = ast.literal_eval(statement.annotation)
        return str(target.id), note if isinstance(note, str) else None
    (target,) = statement.targets
    return str(target.id), None


def _is_value(value: Any) -> bool:
    return isinstance(value, ast.Name) and value.id not in _GLOBALS


def _is_place(value: Any) -> bool:
    return isinstance(value, ast.Constant) and type(value.value) is int and 0 <= value.value < 10_000


def _path(value: Any) -> list[str]:
    """``a.b.c``, and ``getattr(a.b, "0")`` for a name that is none; empty for another expression."""
    if isinstance(value, ast.Name):
        return [value.id]
    if isinstance(value, ast.Attribute):
        owner, name = value.value, value.attr
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "getattr":
        if len(value.args) != 2 or not isinstance(value.args[1], ast.Constant):
            return []
        owner, name = value.args[0], str(value.args[1].value)
    else:
        return []
    path = _path(owner)
    return [*path, name] if path else []


def _arguments(call: ast.Call) -> tuple[list[Any], list[tuple[str, Any]]]:
    """``f(*(a, b), **{"c": d})`` as ``f(a, b, c=d)``."""
    args = [item for argument in call.args for item in _spread(argument)]
    words: list[tuple[str, Any]] = []
    for word in call.keywords:
        held: Any = word.value
        words += [(word.arg, held)] if word.arg else [(k.value, v) for k, v in zip(held.keys, held.values, strict=True)]
    return args, words


def _spread(argument: Any) -> Iterator[Any]:
    if isinstance(argument, ast.Starred) and isinstance(argument.value, (ast.Tuple, ast.List)):
        yield from argument.value.elts
    else:
        yield argument
