"""What fails where, and why: everything else that fails is unexplained, and its cell does not count as tested."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cell:
    """torch: (2, 10). generation: of TorchAir. python: (3, 11)."""

    torch: tuple[int, int]
    generation: str
    python: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Cause:
    """text: what torch or TorchAir does otherwise there. tests: matches ids that fail by it. where: in which cells."""

    text: str
    tests: str
    where: Callable[[Cell], bool]


CAUSES: tuple[Cause, ...] = ()


def cause_of(test: str, cell: Cell) -> str | None:
    """The known cause of a failure; None if there is none."""
    for cause in CAUSES:
        if cause.where(cell) and re.search(cause.tests, test):
            return cause.text
    return None
