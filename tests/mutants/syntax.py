"""A source file as bytes, tokens and tree: where a node is, and its text with the parentheses around it."""

from __future__ import annotations

import ast
import bisect
import io
import tokenize
from dataclasses import dataclass

_BLANK = {
    tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    tokenize.ENCODING,
}  # fmt: skip
_ATOMS = (
    ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant, ast.JoinedStr, ast.List, ast.Dict, ast.Set,
    ast.ListComp, ast.SetComp, ast.DictComp,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    start: int
    end: int
    text: str


class Source:
    """Offsets are in bytes, as in ``ast``. tokens: without comments and line ends."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.tree = ast.parse(data)
        lines = data.split(b"\n")
        self.starts = [0]
        for line in lines:
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.tokens = []
        for token in tokenize.tokenize(io.BytesIO(data).readline):
            if token.type not in _BLANK:
                start, end = self._offset(token.start), self._offset(token.end)
                self.tokens.append(Token(start, end, token.string))
        self._token_starts = [token.start for token in self.tokens]

    def _offset(self, place: tuple[int, int]) -> int:
        row, column = place
        line = self.data[self.starts[row - 1] : self.starts[row]]
        return self.starts[row - 1] + (column if line.isascii() else len(line.decode()[:column].encode()))

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(self, start: int, end: int) -> str:
        return self.data[start:end].decode()

    def line(self, offset: int) -> int:
        return bisect.bisect_right(self.starts, offset)

    def between(self, start: int, end: int) -> list[Token]:
        """The tokens that lie in these bytes."""
        first = bisect.bisect_left(self._token_starts, start)
        return self.tokens[first : bisect.bisect_left(self._token_starts, end)]

    def one(self, text: str, start: int, end: int) -> Token:
        """The first token of this text."""
        return next(token for token in self.between(start, end) if token.text == text)

    def before(self, offset: int) -> Token:
        """The last token that ends at or in front of an offset."""
        return self.tokens[bisect.bisect_left(self._token_starts, offset) - 1]

    def after(self, offset: int) -> Token:
        """The first token that starts at or behind an offset."""
        return self.tokens[bisect.bisect_left(self._token_starts, offset)]

    def operand(self, node: ast.expr, start: int, end: int) -> str:
        """The text of these bytes, which hold ``node`` and perhaps its parentheses, fit to stand anywhere."""
        text = self.text(start, end)
        is_whole = isinstance(node, _ATOMS) or (start, end) != self.span(node)
        is_whole = is_whole or (isinstance(node, (ast.Tuple, ast.GeneratorExp)) and text.startswith("("))
        return text if is_whole else f"({text})"

    def elements(self, node: ast.Tuple | ast.List | ast.Set | ast.Dict) -> tuple[list[tuple[int, int]], bool]:
        """The spans of the elements of a literal, parentheses included, and whether a comma ends them."""
        start, end = self.span(node)
        tokens = self.between(start, end)
        if not isinstance(node, ast.Tuple) or _is_one_group(tokens):
            start, end = tokens[0].end, tokens[-1].start
        values = [self.span(value) for value in (node.values if isinstance(node, ast.Dict) else node.elts)]
        keys = node.keys if isinstance(node, ast.Dict) else [None] * len(values)
        begins = [self.span(key)[0] if key is not None else span[0] for key, span in zip(keys, values, strict=True)]
        commas = [self.one(",", values[i][1], begins[i + 1]) for i in range(len(values) - 1)]
        last = self.before(end)
        is_ended = last.text == "," and last.start >= values[-1][1]
        firsts = [self.after(start).start, *(self.after(comma.end).start for comma in commas)]
        lasts = [self.before(comma.start).end for comma in commas]
        lasts.append(self.before(last.start).end if is_ended else last.end)
        return list(zip(firsts, lasts, strict=True)), is_ended


def _is_one_group(tokens: list[Token]) -> bool:
    """Whether the first token is a parenthesis that the last one closes."""
    depth = 0
    for token in tokens:
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        if depth == 0:
            return token is tokens[-1]
    return False
