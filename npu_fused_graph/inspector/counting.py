"""What is in a dump: counted, with what the dump cannot say named as such."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from npu_fused_graph.inspector.catalogue import COLLECTIVES, FUSED, GROUPS
from npu_fused_graph.inspector.dump import Dump, DumpGraph
from npu_fused_graph.inspector.formats import FORMATS

DECODED = 20_000
"""Ops up to which outputs are counted unasked: each has to be read in full."""


@dataclass(slots=True)
class GraphSummary:
    """data_edges, control_edges: between its ops. outside: inputs whose producer is not in it."""

    name: str
    ops: int
    data_edges: int
    control_edges: int
    outside: int
    streams: dict[str, int] | None


@dataclass(slots=True)
class Summary:
    """Everything countable of a dump.

    types: how many ops of each. fused: of the types that stand for several ops. groups: collectives by group, then
    type. outputs, shapes, dtypes, layouts: of all outputs, None where they were not counted. attrs: numbers of the
    model, as GE wrote them.
    """

    path: str
    format: str
    what: str
    file: dict[str, Any]
    bytes: int
    ops: int
    graphs: list[GraphSummary]
    types: dict[str, int]
    fused: dict[str, int]
    groups: dict[str, dict[str, int]]
    outputs: int | None = None
    shapes: dict[str, int] | None = None
    dtypes: dict[str, int] | None = None
    layouts: dict[str, int] | None = None
    attrs: dict[str, int | str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summary(dump: Dump, *, is_full: bool = False) -> Summary:
    """is_full: outputs are counted however many ops there are."""
    types: Counter[str] = Counter()
    for graph in dump.graphs:
        types.update(graph.histogram)
    found = Summary(
        str(dump.path), dump.format, FORMATS[dump.format], asdict(dump.file), dump.size, dump.ops,
        [_graph(graph) for graph in dump.graphs], dict(types.most_common()),
        {kind: count for kind, count in types.most_common() if kind in FUSED}, _groups(dump),
        attrs={key: value for key, value in dump.attrs.items() if isinstance(value, (int, str)) and key in NUMBERS},
        warnings=list(dump.warnings),
    )  # fmt: skip
    if not all(graph.is_stated for graph in dump.graphs):
        return found
    if is_full or dump.ops <= DECODED:
        _count_outputs(dump, found)
    else:
        found.notes.append(f"outputs are not counted beyond {DECODED:,} ops; --full counts them")
    return found


NUMBERS = (
    "memory_size", "weight_size", "zero_copy_memory_size", "p2p_memory_size", "session_scope_memory_size", "stream_num",
    "event_num", "label_num", "soc_version", "atc_version", "target_type",
)  # fmt: skip


def _graph(graph: DumpGraph) -> GraphSummary:
    edges = [source for row in graph.sources for source, _ in row]
    controls = [source for row in graph.controls.values() for source in row]
    outside = sum(source < 0 for source in (*edges, *controls))
    streams = None
    if graph.has_streams:
        counted = Counter(graph.streams)
        streams = {str(stream): counted[stream] for stream in sorted(counted)}
    return GraphSummary(graph.name, len(graph), len(edges), len(controls), outside, streams)


def _groups(dump: Dump) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for graph in dump.graphs:
        for op in graph.of_type(*COLLECTIVES):
            for group in groups_at(graph, op):
                found.setdefault(group, Counter())[graph.types[op]] += 1
    return {group: dict(counted) for group, counted in found.items()}


def groups_at(graph: DumpGraph, op: int) -> list[str]:
    """The groups an op talks to; ["?"] where the dump does not say."""
    return [group for key in GROUPS if (group := graph.text(op, key))] or ["?"]


def _count_outputs(dump: Dump, found: Summary) -> None:
    shapes: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    layouts: Counter[str] = Counter()
    for graph in dump.graphs:
        for node in graph.nodes():
            for desc in node.outputs:
                shapes[desc.shape_source or "unknown"] += 1
                dtypes[(desc.dtype or "unknown") if desc.dtype_trusted else "unknown"] += 1
                layouts[desc.layout or "unknown"] += 1
    found.outputs = sum(shapes.values())
    found.shapes, found.dtypes, found.layouts = (dict(c.most_common()) for c in (shapes, dtypes, layouts))
