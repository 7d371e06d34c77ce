"""Which nodes of a file may be mutated, and what is known about each from the nodes around it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace

_LOGGERS = ("log", "_log", "logger", "_logger", "logging", "LOG", "LOGGER", "warnings")
_CACHES = ("cache", "lru_cache", "cached_property")


@dataclass(frozen=True)
class Place:
    """at_import: not inside a function. is_condition: decides which way to go, or is an operand of and/or there.
    is_logic: the operands of an and/or here are such. is_unpacked: a literal with one element per target.
    first, last: the lines of the statement, without its body."""

    at_import: bool = True
    is_condition: bool = False
    is_logic: bool = False
    is_unpacked: bool = False
    first: int = 0
    last: int = 0


def nodes_of(tree: ast.Module) -> Iterator[tuple[ast.AST, Place]]:
    """Every node that may be mutated: no imports, annotations, type aliases, asserts, f-strings, texts of errors."""
    for statement in tree.body:
        yield from _walk(statement, Place())


def _walk(node: ast.AST, place: Place) -> Iterator[tuple[ast.AST, Place]]:
    if _is_left_alone(node):
        return
    if isinstance(node, ast.stmt):
        body = getattr(node, "body", None)
        last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
        place = Place(place.at_import, first=node.lineno, last=last)
    yield node, place
    for child, inner in _children(node, place):
        yield from _walk(child, inner)


def _children(node: ast.AST, place: Place) -> Iterator[tuple[ast.AST, Place]]:
    plain = replace(place, is_condition=False, is_logic=False, is_unpacked=False)
    test = replace(plain, is_condition=True, is_logic=True)
    inside = replace(plain, at_import=False)
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            defaults = [d for d in (*node.args.defaults, *node.args.kw_defaults) if d is not None]
            yield from ((child, plain) for child in (*_changeable(node.decorator_list), *defaults))
            yield from ((child, inside) for child in node.body)
        case ast.Lambda():
            defaults = [d for d in (*node.args.defaults, *node.args.kw_defaults) if d is not None]
            yield from ((child, plain) for child in defaults)
            yield node.body, inside
        case ast.ClassDef():
            yield from ((child, plain) for child in (*_changeable(node.decorator_list), *node.keywords, *node.body))
        case ast.If() | ast.While() | ast.IfExp():
            yield node.test, test
            yield from ((child, plain) for child in ast.iter_child_nodes(node) if child is not node.test)
        case ast.comprehension():
            yield node.iter, plain
            yield from ((child, test) for child in node.ifs)
        case ast.match_case():
            yield node.pattern, plain
            yield from ((child, test) for child in [node.guard] if child)
            yield from ((child, plain) for child in node.body)
        case ast.BoolOp():
            yield from ((child, test if place.is_logic else plain) for child in node.values)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand, replace(plain, is_logic=place.is_logic)
        case ast.Assign():
            is_unpacked = any(isinstance(target, (ast.Tuple, ast.List)) for target in node.targets)
            yield from ((child, plain) for child in node.targets)
            yield node.value, replace(plain, is_unpacked=is_unpacked)
        case ast.AnnAssign():
            yield from ((child, plain) for child in (node.target, node.value) if child)
        case ast.Raise():
            if not isinstance(node.exc, ast.Call) and node.exc is not None:
                yield node.exc, plain
        case ast.Call():
            yield node.func, plain
            if not _holds_texts(node):
                yield from ((child, plain) for child in (*node.args, *node.keywords))
        case _:
            yield from ((child, plain) for child in ast.iter_child_nodes(node))


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Assert() | ast.JoinedStr():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name == "__all__" or _is_alias(value)
        case ast.AugAssign(target=ast.Name(id="__all__")):
            return True
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
            return name == "__all__" or ast.unparse(annotation).endswith("TypeAlias")
        case _:
            return type(node).__name__ == "TypeAlias"


def _is_alias(value: ast.expr) -> bool:
    """``Callable[[int], str]``, ``int | None``, ``TypeVar("T")``; a table that is read by a literal index is none."""
    match value:
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name)):
            return (name[0].isupper() and not name.isupper()) or name in ("dict", "list", "tuple", "set", "type")
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _is_type(left) and _is_type(right)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in ("TypeVar", "ParamSpec", "NewType", "NamedTuple", "TypedDict")
        case _:
            return False


def _is_type(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=None):
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in ("int", "str", "float", "bool", "bytes") or (name[0].isupper() and not name.isupper())
        case _:
            return _is_alias(node)


def _changeable(decorators: list[ast.expr]) -> list[ast.expr]:
    """The size of a cache changes nothing but time."""
    return [d for d in decorators if isinstance(d, ast.Call) and _last_name(d.func) not in _CACHES]


def _holds_texts(call: ast.Call) -> bool:
    """Whether the arguments are what an exception or a log says."""
    name = _last_name(call.func)
    owner = _last_name(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    return name.endswith(("Error", "Exception", "Warning", "Exit", "Interrupt")) or owner in _LOGGERS


def _last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
