"""What a folded graph is: boxes in natural order, of ops of the graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from npu_fused_graph.inspector.dump import DumpGraph


@dataclass(slots=True)
class Single:
    """An op that is part of no repeat."""

    op: int


@dataclass(slots=True)
class Run:
    """Repeats of a class one behind the other.

    repeats: ops of each, all in the same order. crossing: values that pass from one to the next. inside: the first
    repeat of the class, folded, where something in it repeats; else empty. label: ``layers 0-16``, where names count.
    """

    group: int
    repeats: list[list[int]]
    crossing: int
    inside: list[Item] = field(default_factory=list)
    label: str = ""


@dataclass(slots=True)
class Variant:
    """A stretch in the place of a repeat, or of several, of a class.

    added, removed: types, with their number. changed: types of ops with other outputs, or inputs and control edges of
    another number. rewired: ops that take inputs from elsewhere, where that is all that differs.
    """

    group: int
    ops: list[int]
    added: dict[str, int]
    removed: dict[str, int]
    changed: dict[str, int]
    rewired: list[int] = field(default_factory=list)
    inside: list[Item] = field(default_factory=list)
    label: str = ""


Item: TypeAlias = Single | Run | Variant


@dataclass(slots=True)
class Fold:
    """items: in natural order. groups: number of classes, those inside repeats, too.

    has_shapes: shapes and dtypes of outputs tell ops apart; else types and edges alone do.
    """

    graph: DumpGraph
    items: list[Item]
    groups: int
    has_shapes: bool

    @property
    def runs(self) -> list[Run]:
        return [item for item in self.items if isinstance(item, Run)]

    @property
    def variants(self) -> list[Variant]:
        return [item for item in self.items if isinstance(item, Variant)]

    def as_dict(self) -> dict[str, Any]:
        """With names for ops."""
        return {
            "graph": self.graph.name,
            "ops": len(self.graph),
            "boxes": len(self.items),
            "has_shapes": self.has_shapes,
            "items": [self._dict(item) for item in self.items],
        }

    def _dict(self, item: Item) -> dict[str, Any]:
        names, types = self.graph.names, self.graph.types
        if isinstance(item, Single):
            return {"kind": "op", "name": names[item.op], "type": types[item.op]}
        inside = [self._dict(inner) for inner in item.inside]
        if isinstance(item, Run):
            return {
                "kind": "run", "group": item.group, "label": item.label, "count": len(item.repeats),
                "crossing": item.crossing, "types": [types[op] for op in item.repeats[0]],
                "repeats": [[names[op] for op in ops] for ops in item.repeats], "inside": inside,
            }  # fmt: skip
        return {
            "kind": "variant", "group": item.group, "label": item.label, "added": item.added, "removed": item.removed,
            "changed": item.changed, "rewired": [names[op] for op in item.rewired],
            "ops": [names[op] for op in item.ops], "inside": inside,
        }  # fmt: skip


# -- names -----------------------------------------------------------------------------------------------------

_SCOPE = re.compile(r"([A-Za-z]+)[._](\d{1,9})(?=[./_])")


def numbers(name: str) -> list[tuple[str, int]]:
    """``model.layers.17.mlp`` -> [("layers", 17)]."""
    return [(word, int(number)) for word, number in _SCOPE.findall(name)]


def label(names: Sequence[str], boxes: list[Item]) -> None:
    """Runs and variants get the numbers their names count, where they do."""
    for box in boxes:
        if isinstance(box, Run):
            box.label = _range([[names[op] for op in ops] for ops in box.repeats])
        elif isinstance(box, Variant):
            box.label = _range([[names[op] for op in box.ops]])


def _range(repeats: list[list[str]]) -> str:
    """By the first op whose name counts."""
    for nth, name in enumerate(repeats[0]):
        for at, (word, first) in enumerate(numbers(name)):
            if all(
                at < len(found := numbers(repeats[i][nth])) and found[at] == (word, first + i)
                for i in range(1, len(repeats))
            ):
                last = first + len(repeats) - 1
                if last == first:
                    return f"{word.removesuffix('s')} {first}"
                return f"{word} {first}-{last}"
    return ""
