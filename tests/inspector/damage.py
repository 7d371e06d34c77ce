"""Dumps that were cut off or changed somewhere."""

from __future__ import annotations

import random
from collections.abc import Iterator

JUNK = (b"{", b"}", b'"', b"\\", b"\n", b"<", b"\0", b"\xff", b"[", b"'", b"name: ", b"op {\n", b"\n}\n", b"::", b"-1")


def truncated(data: bytes, step: int) -> Iterator[bytes]:
    """Cut off at every ``step`` bytes."""
    return (data[:end] for end in range(0, len(data), step))


def mutated(data: bytes, generator: random.Random) -> bytes:
    """One to three changes: bytes replaced, put in, taken out, or lines exchanged."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(max(1, len(changed)))
        kind = generator.randrange(5)
        if kind == 0:
            changed[at : at + 1] = generator.choice(JUNK)
        elif kind == 1:
            changed[at:at] = generator.choice(JUNK)
        elif kind == 2:
            del changed[at : at + generator.randint(1, 40)]
        elif kind == 3:
            changed[at : at + 1] = bytes((generator.randrange(256),))
        else:
            lines = changed.split(b"\n")
            i, j = generator.randrange(len(lines)), generator.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
            changed = bytearray(b"\n".join(lines))
    return bytes(changed)
