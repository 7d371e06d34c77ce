"""The package's rules as data: which clause a reason belongs to, what it says and what cures it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

RULES = Path(__file__).parents[2] / "rules.json"


@dataclass(frozen=True, slots=True)
class Clause:
    """id: the rule's number, "site" where no site is found at all. is_legal: only a setting is in the way."""

    id: str
    statement: str
    reason: str
    meaning: str
    cure: str
    is_legal: bool


@cache
def _data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RULES.read_text(encoding="utf-8"))
    return found


def reasons(fusion: str) -> Iterator[str]:
    """What a fusion's rules refuse with, in the order they are asked. fusion: stem of its operator."""
    for rule in _data()["fusions"][fusion]:
        yield from rule["reasons"]


def clause(fusion: str, reason: str) -> Clause:
    """The rule that refuses with ``reason``."""
    facts = _data()["reasons"][reason]
    rule = next((r for r in _data()["fusions"][fusion] if reason in r["reasons"]), None)
    number, statement = ("site", "") if rule is None else (rule["id"], rule["statement"])
    return Clause(number, statement, reason, facts["meaning"], facts["cure"], facts["is_legal"])


def operator(stem: str) -> dict[str, Any]:
    """ge_type, group_sizes, chips, dtype_rows of an operator."""
    found: dict[str, Any] = _data()["operators"][stem]
    return found


def least(stem: str) -> dict[str, int]:
    """From which size on a fusion gains anything, as the package models it."""
    found: dict[str, int] = _data()["least"][stem]
    return found
