"""Which GE types converters emit: read from source that registers them, TorchAir's or ours, without importing it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping

Operators = Mapping[str, "list[str] | None"]
"""By operator of torch_npu the GE types its converter emits, sorted; None: it has no converter."""


def torchair_operators(converters: Iterable[str], schemas: Iterable[str]) -> Operators:
    """Of a torch_npu release. converters: text of TorchAir's modules of converters. schemas: of its YAML files."""
    names = {name for text in schemas for name in re.findall(r"func: (\w*npu\w*)", text)}
    return dict(sorted({**dict.fromkeys(names), **emitted(converters)}.items()))


def emitted(modules: Iterable[str]) -> dict[str, list[str]]:
    """Operator -> GE types, of every converter that the texts of ``modules`` register."""
    found: dict[str, set[str]] = {}
    for text in modules:
        module = ast.parse(text)
        functions = {node.name: node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}
        for operator, name in _registered(module):
            if name in functions:
                found.setdefault(operator, set()).update(_types(name, functions, set()))
    return {operator: sorted(types) for operator, types in found.items()}


def _registered(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Operators and names of functions: ``@register(op)``, ``register(op)(function)``, ``{"npu_op": function}``."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            yield from ((operator, node.name) for d in node.decorator_list for operator in _operator(d))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Name):
            yield from ((operator, node.args[0].id) for operator in _operator(node.func))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and str(key.value).startswith("npu_") and isinstance(value, ast.Name):
                    yield str(key.value), value.id


def _operator(node: ast.expr) -> list[str]:
    return re.findall(r"^register_fx_node_ge_converter\(torch\.ops\.npu\.(\w+)", ast.unparse(node))


def _types(name: str, functions: Mapping[str, ast.FunctionDef], seen: set[str]) -> Iterator[str]:
    """Of a function and those of its module it calls: ``ge.Type(...)``, ``custom_op("Type", ...)``."""
    if name in seen:
        return
    seen.add(name)
    for call in ast.walk(ast.Module(functions[name].body, [])):
        if not isinstance(call, ast.Call):
            continue
        space, _, called = ast.unparse(call.func).rpartition(".")
        if called == "custom_op" and call.args and isinstance(call.args[0], ast.Constant):
            yield str(call.args[0].value)
        elif space == "ge" and called != "custom_op":
            yield _camel(called)
        elif not space and called in functions:
            yield from _types(called, functions, seen)


def _camel(name: str) -> str:
    return name if name[0].isupper() else "".join(part.capitalize() for part in name.split("_"))
