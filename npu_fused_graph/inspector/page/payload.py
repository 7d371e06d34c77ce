"""What a report holds: what the other commands say of a dump, and its ops as columns for the pictures."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector.arena import memory
from npu_fused_graph.inspector.boxes import Fold, Item, Run, Single
from npu_fused_graph.inspector.catalogue import COLLECTIVES
from npu_fused_graph.inspector.counting import DECODED, groups_at, summary
from npu_fused_graph.inspector.difference import compare
from npu_fused_graph.inspector.dump import Dump, DumpGraph
from npu_fused_graph.inspector.folding import fold
from npu_fused_graph.inspector.fusions import by_type, fused
from npu_fused_graph.inspector.missed import why
from npu_fused_graph.inspector.ranks import compare_ranks
from npu_fused_graph.inspector.selection import jsonable, plain, tensor
from npu_fused_graph.inspector.terminal import tensor_text

ATTRIBUTED = 5_000
"""Ops up to which attributes are part of a report."""


def facts_of(
    dump: Dump, *, against: Dump | None = None, ranks: Mapping[int, Dump] | None = None, explain: Path | None = None
) -> dict[str, Any]:
    """By command, what each prints with ``--json``."""
    ops = fused(dump)
    found: dict[str, Any] = {
        "summary": summary(dump).as_dict(),
        "fused": {"count": len(ops), "types": by_type(ops), "ops": [op.as_dict() for op in ops]},
        "why": why(dump, explain=explain).as_dict(),
        "memory": _memory(dump),
        "diff": None if against is None else compare(dump, against).as_dict(),
        "ranks": None if not ranks else compare_ranks(ranks).as_dict(),
    }
    return found


def _memory(dump: Dump) -> dict[str, Any] | None:
    """Nothing where the dump has no shapes at all, or is too large to read every output."""
    if dump.ops > DECODED or not all(graph.is_stated for graph in dump.graphs):
        return None
    return memory(dump).as_dict()


def columns(graph: DumpGraph, *, has_attrs: bool = True) -> dict[str, Any]:
    """A graph for the page: one list per fact, ops by their place in the file.

    sources: distances back to the ops that feed each op, None for one from outside; waits: the same for control edges.
    """
    kinds = sorted(set(graph.types))
    number = {kind: i for i, kind in enumerate(kinds)}
    is_small = graph.is_stated and len(graph) <= DECODED
    found: dict[str, Any] = {
        "name": graph.name,
        "names": graph.names,
        "types": kinds,
        "type": [number[kind] for kind in graph.types],
        "sources": [
            [op - source if source >= 0 else None for source, _ in row] for op, row in enumerate(graph.sources)
        ],
        "waits": {op: [source for source in row if source >= 0] for op, row in graph.controls.items()},
        "streams": graph.streams if graph.has_streams else None,
        "outputs": None,
        "attrs": None,
        "collectives": [{"op": op, "groups": groups_at(graph, op)} for op in graph.of_type(*COLLECTIVES)],
        "items": _items(fold(graph)),
    }
    if is_small:
        found["outputs"] = [[tensor_text(tensor(desc)) for desc in node.outputs] for node in graph.nodes()]
    if has_attrs and len(graph) <= ATTRIBUTED:
        found["attrs"] = [{key: plain(value) for key, value in sorted(node.attrs.items())} for node in graph.nodes()]
    return found


def _items(found: Fold) -> list[dict[str, Any]]:
    return [_item(item) for item in found.items]


def _item(item: Item) -> dict[str, Any]:
    """An item of a folded graph, with ops by their place."""
    if isinstance(item, Single):
        return {"op": item.op}
    common = {"group": item.group, "label": item.label, "inside": [_item(inner) for inner in item.inside]}
    if isinstance(item, Run):
        return {**common, "repeats": item.repeats, "crossing": item.crossing}
    return {
        **common, "ops": item.ops, "added": item.added, "removed": item.removed, "changed": item.changed,
        "rewired": item.rewired,
    }  # fmt: skip


def packed(payload: Mapping[str, Any]) -> str:
    """As the page reads it: JSON, gzip, base64. The same payload gives the same text."""
    text = json.dumps(jsonable(payload, most=2**53), separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def graphs_of(dump: Dump, *, has_attrs: bool) -> list[dict[str, Any]]:
    return [columns(graph, has_attrs=has_attrs) for graph in dump.graphs]


def within(dump: Dump, facts: Mapping[str, Any], most: int) -> tuple[str, list[str]]:
    """(payload, notes on what was left out of it) of at most so many bytes. Raises DumpError where that is too few."""
    notes: Sequence[str] = ()
    for has_attrs, has_graphs in ((True, True), (False, True), (False, False)):
        graphs = graphs_of(dump, has_attrs=has_attrs) if has_graphs else []
        if not has_attrs:
            notes = ["attributes were left out, as the page would be too large: inspect DUMP --node NAME has them"]
        if not has_graphs:
            notes = [*notes, "the picture was left out, too"]
        text = packed({**facts, "graphs": graphs, "notes": [*facts.get("notes", ()), *notes]})
        if len(text) <= most:
            return text, list(notes)
    raise DumpError(f"[report] --max-mb: expected room for {len(text):,} bytes, got {most:,}. Pass a larger number.")
