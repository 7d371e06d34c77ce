"""Protobuf's text format without a schema: what a dump says, unknown fields too, and how far it can be read.

A message is ``{field: [value, ...]}`` in the order of first appearance. Values are bytes (what stood in quotes, escapes
resolved), str (numbers, names, true) or messages. Enough for every printer seen: C++'s one field per line, TorchAir's,
``key: <...>``, one-line forms, lists in brackets, comments.
"""

from __future__ import annotations

import re
from typing import Union

Value = Union[bytes, str, "Message"]
Message = dict[str, list[Value]]

KEPT = 1 << 16
"""Bytes of a quoted value that are kept; longer ones are weights, of which only ``b""`` stays."""

_TOKEN = re.compile(
    rb"""[\s,;]*(?:
      (?P<key>[A-Za-z_]\w*|\[[^\]\n]*\])\s*(?P<colon>:?)\s*(?P<open>[{<])?
    | (?P<close>[}>])
    | (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    | (?P<comment>\#[^\n]*)
    )""",
    re.VERBOSE,
)
_VALUE = re.compile(rb"""\s*("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|\[|[^\s{}<>\[\],;"'#]+)""")
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
_NAMED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


class Doubt(Exception):
    """Where a text stops being a message. at: byte. read: what came before."""

    def __init__(self, what: str, at: int, read: Message) -> None:
        super().__init__(what)
        self.what, self.at, self.read = what, at, read


def unescaped(quoted: bytes) -> bytes:
    """What stands between quotes, C's and Python's escapes resolved."""
    if b"\\" not in quoted:
        return quoted
    return _ESCAPE.sub(_resolved, quoted)


def _resolved(match: re.Match[bytes]) -> bytes:
    octal, hexadecimal, other = match.groups()
    if octal is not None:
        return bytes((int(octal, 8) & 255,))
    if hexadecimal is not None:
        return bytes((int(hexadecimal, 16),))
    return _NAMED.get(other, other)


def parse(data: bytes, begin: int = 0, end: int | None = None) -> Message:
    """The message in ``data[begin:end]``. Raises Doubt at what is no text format, and at an end inside a message."""
    end = len(data) if end is None else end
    message: Message = {}
    stack: list[Message] = []
    last: list[Value] = []  # the field whose text may go on in another pair of quotes
    at = begin
    while True:
        token = _TOKEN.match(data, at, end)
        if token is None:
            if data[at:end].strip(b" \t\r\n,;"):
                raise Doubt(
                    "neither a field nor the end of a message", _past_space(data, at, end), _root(stack, message)
                )
            if stack:
                raise Doubt("the end inside a message", end, stack[0])
            return message
        at = token.end()
        key = token["key"]
        if key is not None:
            values = message.setdefault(key.decode(errors="surrogateescape"), [])
            if token["open"]:
                inner: Message = {}
                values.append(inner)
                stack.append(message)
                message = inner
            elif token["colon"]:
                at = _scalar(data, at, end, values, _root(stack, message))
                last = values
            else:
                raise Doubt(
                    f"{key.decode(errors='replace')} without a value", token.start("key"), _root(stack, message)
                )
        elif token["close"]:
            if not stack:
                raise Doubt("a closing bracket too many", token.start("close"), message)
            message = stack.pop()
        elif token["text"] is not None:
            if not last or not isinstance(last[-1], bytes):
                raise Doubt("a text without a field", token.start("text"), _root(stack, message))
            last[-1] += _text(token["text"])


def _root(stack: list[Message], message: Message) -> Message:
    return stack[0] if stack else message


def _past_space(data: bytes, at: int, end: int) -> int:
    while at < end and data[at : at + 1] in b" \t\r\n,;":
        at += 1
    return at


def _text(quoted: bytes) -> bytes:
    return unescaped(quoted[1:-1]) if len(quoted) <= KEPT else b""


def _scalar(data: bytes, at: int, end: int, values: list[Value], root: Message) -> int:
    """Append the value, or those of a list; where it ends."""
    found = _VALUE.match(data, at, end)
    if found is None:
        raise Doubt("a field without a value", at, root)
    word = found[1]
    if word != b"[":
        values.append(_value(word))
        return found.end()
    at = found.end()
    while True:
        at = _past_space(data, at, end)
        if data[at : at + 1] == b"]":
            return at + 1
        found = _VALUE.match(data, at, end)
        if found is None or found[1] == b"[":
            raise Doubt("a list without an end", at, root)
        values.append(_value(found[1]))
        at = found.end()


def _value(word: bytes) -> Value:
    return _text(word) if word[:1] in b"\"'" else word.decode(errors="surrogateescape")


def line_of(data: bytes, at: int) -> int:
    """The number of the line of byte ``at``."""
    return data.count(b"\n", 0, at) + 1
