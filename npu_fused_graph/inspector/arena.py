"""How much memory a graph needs: from the offsets GE assigned, or without them estimated by who is alive when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from npu_fused_graph.inspector.catalogue import SOURCES
from npu_fused_graph.inspector.dump import Dump, DumpGraph
from npu_fused_graph.ir.dtypes import BY_NAME
from npu_fused_graph.ir.graph import TensorDesc

ALIGNMENT = 512
"""Bytes GE rounds a tensor up to."""


@dataclass(frozen=True, slots=True)
class Alive:
    """A tensor, or a workspace, that is alive at the peak. born, dies: places in the order of the ops."""

    name: str
    type: str
    bytes: int
    offset: int | None
    born: int
    dies: int


@dataclass(slots=True)
class Memory:
    """is_estimate: no offsets in the dump; tensors are taken to live from their op to their last reader.

    high_water: bytes of the arena that are used, or of all that is alive at once. declared: GE's memory_size, None
    where it wrote none. live_peak: bytes alive at once, at op ``peak_at``. curve: (place, bytes alive) where that
    changes. unknown: outputs without a size. weights: bytes of constants that the dump tells the shape of.
    """

    is_estimate: bool
    high_water: int
    declared: int | None
    live_peak: int
    peak_at: str
    peak_place: int
    top: list[Alive]
    curve: list[tuple[int, int]]
    unknown: int
    weights: int
    declared_others: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def memory(dump: Dump, *, top: int = 10) -> Memory:
    """Of the root graph. top: how many of the largest tensors alive at the peak are named."""
    graph = dump.root
    order = _order(graph)
    last_use = _last_uses(graph, order)
    tensors: list[Alive] = []
    unknown = weights = 0
    has_offsets = False
    for place, op in enumerate(order):
        node = graph.node(op)
        if node.type in SOURCES:
            weights += sum(size_of(d) or 0 for d in node.outputs) if node.type not in ("Data", "RefData") else 0
            continue
        offsets = node.build.output_offsets if node.build else []
        has_offsets |= bool(offsets)
        for port, desc in enumerate(node.outputs):
            size = size_of(desc)
            if size is None:
                unknown += 1
                continue
            offset = offsets[port] if port < len(offsets) else None
            dies = last_use.get((op, port), place)
            tensors.append(Alive(f"{node.name}:{port}", node.type, size, offset, place, dies))
        for offset, size in node.build.workspaces if node.build else ():
            tensors.append(Alive(f"{node.name} workspace", node.type, size, offset, place, place))
    placed = [t for t in tensors if t.offset is not None] if has_offsets else tensors
    curve, peak, peak_place = _curve(placed, is_rounded=not has_offsets)
    high = max((t.offset + t.bytes for t in placed if t.offset is not None), default=0) if has_offsets else peak
    alive = sorted((t for t in placed if t.born <= peak_place <= t.dies), key=lambda t: -t.bytes)
    numbers = {
        key: value for key, value in dump.attrs.items() if key.endswith("memory_size") and isinstance(value, int)
    }
    declared = numbers.pop("memory_size", None)
    peak_at = graph.names[order[peak_place]] if order else ""
    return Memory(
        not has_offsets, high, declared, peak, peak_at, peak_place, alive[:top], curve, unknown, weights, numbers
    )


def _order(graph: DumpGraph) -> list[int]:
    """As GE numbered the ops where it did, else as they stand in the file, which is an order they can run in."""
    ids = [node.build.id if node.build else None for node in graph.nodes()]
    if len(set(ids)) == len(ids) and None not in ids:
        return sorted(range(len(graph)), key=lambda op: ids[op] or 0)
    return list(range(len(graph)))


def _last_uses(graph: DumpGraph, order: list[int]) -> dict[tuple[int, int], int]:
    """(op, output) -> the place of the last op that reads it."""
    found: dict[tuple[int, int], int] = {}
    for place, op in enumerate(order):
        for source in graph.sources[op]:
            found[source] = place
    return found


def size_of(desc: TensorDesc) -> int | None:
    """Bytes: as GE says, else of dtype and shape; None where either is not known."""
    if desc.size:
        return desc.size
    known = BY_NAME.get(desc.dtype or "")
    if known is None or not known.itemsize or desc.shape is None or any(size < 0 for size in desc.shape):
        return None
    count = known.itemsize
    for size in desc.shape:
        count *= size
    return count


def _curve(tensors: list[Alive], *, is_rounded: bool) -> tuple[list[tuple[int, int]], int, int]:
    """(place, bytes alive) where that changes; the most, and where. Bytes that several own count once."""
    events: dict[int, list[tuple[int, Alive]]] = {}
    for tensor in tensors:
        events.setdefault(tensor.born, []).append((1, tensor))
        events.setdefault(tensor.dies + 1, []).append((-1, tensor))
    owners: dict[tuple[int, int], Counter[int]] = {}
    curve, alive, peak, peak_place = [], 0, 0, 0
    for place in sorted(events):
        for sign, tensor in events[place]:
            for key, size in _pieces(tensor, is_rounded):
                sizes = owners.setdefault(key, Counter())
                before = max(+sizes, default=0)
                sizes[size] += sign
                alive += max(+sizes, default=0) - before
        curve.append((place, alive))
        if alive > peak:
            peak, peak_place = alive, place
    return curve, peak, peak_place


def _pieces(tensor: Alive, is_rounded: bool) -> Iterator[tuple[tuple[int, int], int]]:
    """What a tensor owns: with an offset its place in the arena, which an in-place op shares with its input."""
    if tensor.offset is not None:
        yield (0, tensor.offset), tensor.bytes
    else:
        rounded = -(-tensor.bytes // ALIGNMENT) * ALIGNMENT if is_rounded else tensor.bytes
        yield (1, hash((tensor.name, tensor.born))), rounded
