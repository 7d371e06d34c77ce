"""Which ops stand for several, and of which: by their type, and by what GE noted of its own fusions."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from npu_fused_graph.inspector.catalogue import COLLECTIVES, FUSED
from npu_fused_graph.inspector.counting import groups_at
from npu_fused_graph.inspector.dump import Dump
from npu_fused_graph.inspector.selection import origins_of, passes_of


@dataclass(frozen=True, slots=True)
class FusedOp:
    """An op that stands for several. stands_for: by its type, "" for one of which only GE's notes say so.

    origins: names of the ops GE made it of. passes: of GE, in order. fx: names in the FX graph of its outputs.
    """

    name: str
    type: str
    graph: str
    stands_for: str
    groups: tuple[str, ...]
    origins: tuple[str, ...]
    passes: tuple[str, ...]
    fx: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def fused(dump: Dump) -> list[FusedOp]:
    """In order. An op GE only inserted or renamed is none."""
    found = []
    for graph in dump.graphs:
        known = set(graph.of_type(*FUSED))
        noted = set(graph.having("_datadump_original_op_names")) if dump.is_from_ge else set()
        for op in sorted(known | noted):
            node = graph.node(op)
            origins = origins_of(node)
            if op not in known and len(origins) < 2:
                continue
            groups = groups_at(graph, op) if node.type in COLLECTIVES else []
            names = [desc.fx_name for desc in node.outputs if desc.fx_name]
            stands_for = FUSED.get(node.type, "")
            facts = tuple(groups), tuple(origins), tuple(passes_of(node)), tuple(names)
            found.append(FusedOp(node.name, node.type, graph.name, stands_for, *facts))
    return found


def by_type(ops: list[FusedOp]) -> dict[str, int]:
    return dict(Counter(op.type for op in ops).most_common())
