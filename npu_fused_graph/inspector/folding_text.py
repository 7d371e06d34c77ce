"""A folded graph for people: a line for each box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from npu_fused_graph.inspector.boxes import Fold, Item, Run, Single, Variant
from npu_fused_graph.inspector.catalogue import SOURCES
from npu_fused_graph.inspector.terminal import cut, width

_BESIDE = frozenset((*SOURCES, "PlaceHolder"))


def fold_text(found: Fold) -> str:
    graph = found.graph
    lines = [f"graph {graph.name or '(unnamed)'}: {len(graph):,} ops in {len(found.items):,} boxes"]
    lines += _lines(found, found.items, 1)
    if not found.has_shapes:
        lines.append("note: shapes and dtypes are not compared" + ("; --full compares them" if graph.is_stated else ""))
    return "\n".join([cut(lines[0], width()), *lines[1:]])


def _lines(found: Fold, items: Sequence[Item], depth: int) -> list[str]:
    indent, lines = "  " * depth, []
    what = "layer" if depth == 1 else "part"
    shown: set[int] = set()
    for kind, boxes in groupby(items, key=type):
        if kind is Single:
            lines.append(_ops(found, [box for box in boxes if isinstance(box, Single)]))
            lines[-1] = cut(indent + lines[-1], width())
            continue
        for box in boxes:
            if isinstance(box, Run):
                size, count = len(box.repeats[0]), len(box.repeats)
                values = f"{box.crossing} value{'s' * (box.crossing != 1)}"
                cross = f"{values} cross{'es' * (box.crossing == 1)}" if depth == 1 or box.crossing else "side by side"
                text = f"{_letter(box.group)} {box.label or what} x{count:,}  {size:,} ops each, {cross}: "
                lines.append(cut(indent + text + _types(found, box.repeats[0]), width()))
                if box.inside and box.group not in shown:
                    lines += _lines(found, box.inside, depth + 1)
                shown.add(box.group)
            elif isinstance(box, Variant):
                lines += [cut(indent + line, width()) for line in _variant(found, box)]
    return lines


def _ops(found: Fold, singles: Sequence[Single]) -> str:
    types, names = found.graph.types, found.graph.names
    if len(singles) == 1:
        return f"{types[singles[0].op]}  {names[singles[0].op]}"
    return f"{len(singles):,} ops: {_types(found, [single.op for single in singles])}"


def _variant(found: Fold, box: Variant) -> list[str]:
    name = f"{box.label}, " if box.label else ""
    lines = [f"{name}{len(box.ops):,} ops in the place of {_letter(box.group)}, at {found.graph.names[box.ops[0]]}"]
    for sign, types in (("+", box.added), ("-", box.removed), ("~", box.changed)):
        if types:
            lines.append(f"  {sign} {_counted(types)}")
    if box.rewired:
        names = ", ".join(found.graph.names[op] for op in box.rewired)
        lines.append(f"  takes inputs from elsewhere: {names}")
    return lines


def _letter(group: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    return f"{chr(ord('A') + group % 26)}{group // 26 or ''}"


def _types(found: Fold, ops: Iterable[int]) -> str:
    """In order of their first op; what is there before the graph runs comes last."""
    types = found.graph.types
    counted = Counter(types[op] for op in ops)
    return _counted({kind: counted[kind] for kind in sorted(counted, key=lambda kind: kind in _BESIDE)})


def _counted(types: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} x{count:,}" if count > 1 else kind for kind, count in types.items())
