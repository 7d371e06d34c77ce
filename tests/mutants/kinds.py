"""The kinds of faults: for a node, the edits that make it wrong."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from tests.mutants.syntax import Source
from tests.mutants.walk import Place

Edit = tuple[int, int, str]
"""Start, end and what to put there."""

_ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.MatMult, ast.Pow, ast.LShift, ast.RShift)
_STRICT = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_METHODS = ("to", "float", "double", "half", "int", "long", "type", "contiguous", "clone")
_TYPES = ("int", "float", "bool")
_BARE = (ast.AugAssign, ast.Raise, ast.Continue, ast.Break)


def negate(source: Source, node: ast.AST, place: Place) -> Iterator[Edit]:
    if not place.is_condition or not isinstance(node, ast.expr):
        return
    start, end = source.span(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        operand = source.after(start + len("not"))
        yield start, end, source.text(operand.start, end)
    else:
        yield start, end, f"not ({source.text(start, end)})"


def drop_row(source: Source, node: ast.AST, place: Place) -> Iterator[Edit]:
    if not place.at_import or place.is_unpacked or not isinstance(node, (ast.Tuple, ast.List, ast.Set, ast.Dict)):
        return
    if isinstance(getattr(node, "ctx", None), ast.Store):
        return
    count = len(node.values if isinstance(node, ast.Dict) else node.elts)
    if count < 2:
        return
    spans, is_ended = source.elements(node)
    needs_comma = isinstance(node, ast.Tuple) and count == 2 and not is_ended
    for i, (start, end) in enumerate(spans):
        if i < count - 1 and needs_comma:
            kept = source.text(*spans[i + 1])
            yield start, spans[i + 1][1], _lines(source, start, spans[i + 1][0]) + kept + ","
        elif i < count - 1:
            yield start, spans[i + 1][0], _lines(source, start, spans[i + 1][0])
        else:
            lines = _lines(source, spans[i - 1][1], end)
            yield spans[i - 1][1], end, ("," if needs_comma else "") + lines


def swap(source: Source, node: ast.AST, place: Place) -> Iterator[Edit]:
    match node:
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _ORDERED):
            symbols = {"-", "/", "//", "%", "@", "**", "<<", ">>"}
        case ast.Compare(left=left, ops=[ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE()], comparators=[right]):
            symbols = set(_STRICT)
        case _:
            return
    start, end = source.span(node)
    symbol = next(t for t in source.between(source.span(left)[1], source.span(right)[0]) if t.text in symbols)
    ends = start, source.before(symbol.start).end, source.after(symbol.end).start, end
    first, second = source.operand(left, *ends[:2]), source.operand(right, *ends[2:])
    if first != second:
        yield start, end, second + source.text(ends[1], ends[2]) + first


def off_by_one(source: Source, node: ast.AST, place: Place) -> Iterator[Edit]:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))) if not isinstance(value, bool):
            yield *source.span(node), str(1 - value)
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            start, end = source.span(node)
            yield start, end, str(value + 1)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for a, op, b in zip([left, *comparators], ops, comparators, strict=False):
                if isinstance(op, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)):
                    between = source.between(source.span(a)[1], source.span(b)[0])
                    token = next(t for t in between if t.text in _STRICT)
                    yield token.start, token.end, _STRICT[token.text]


def drop_cast(source: Source, node: ast.AST, place: Place) -> Iterator[Edit]:
    match node:
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in _METHODS:
            start, end = source.span(node)
            dot = source.one(".", source.span(value)[1], end)
            text = source.text(start, source.before(dot.start).end)
            yield start, end, _kept(text, _lines(source, source.before(dot.start).end, end))
        case ast.Call(func=ast.Name(id=name), args=[value], keywords=[]) if name in _TYPES:
            start, end = source.span(node)
            if isinstance(value, ast.Starred):
                return
            first, last = source.after(source.span(node.func)[1]).end, source.before(end).start
            if source.before(last).text == "," and source.before(last).start >= source.span(value)[1]:
                last = source.before(last).start
            inner = source.after(first).start, source.before(last).end
            if isinstance(value, ast.GeneratorExp):
                inner = source.span(value)
            text = source.operand(value, *inner)
            yield start, end, _kept(text, "\n" * (_breaks(source, start, end) - text.count("\n")))


def drop_statement(source: Source, node: ast.AST, place: Place) -> Iterator[Edit]:
    match node:
        case ast.Expr(value=ast.Call()):
            pass
        case ast.Assign(targets=[*targets]) if all(isinstance(t, (ast.Attribute, ast.Subscript)) for t in targets):
            pass
        case ast.AnnAssign(target=ast.Attribute() | ast.Subscript(), value=ast.expr()):
            pass
        case _ if isinstance(node, _BARE):
            pass
        case _:
            return
    start, end = source.span(node)
    yield start, end, "pass" + _lines(source, start, end)


def _breaks(source: Source, start: int, end: int) -> int:
    return source.data[start:end].count(b"\n")


def _lines(source: Source, start: int, end: int) -> str:
    """As many line ends as these bytes hold, so that nothing below moves."""
    return "\n" * _breaks(source, start, end)


def _kept(text: str, lines: str) -> str:
    return f"({text}{lines})" if lines else text


KINDS: dict[str, Callable[[Source, ast.AST, Place], Iterator[Edit]]] = {
    "negate": negate,
    "drop-row": drop_row,
    "swap": swap,
    "off-by-one": off_by_one,
    "drop-cast": drop_cast,
    "drop-statement": drop_statement,
}
