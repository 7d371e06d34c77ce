"""Ops by what they are, and what lies around one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from math import isfinite
from typing import Any

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector.counting import groups_at
from npu_fused_graph.inspector.dump import Dump, DumpGraph
from npu_fused_graph.ir.graph import DTypeValue, Graph, Node, TensorDesc, TensorValue


@dataclass(frozen=True, slots=True)
class Filter:
    """All that are given hold. type, name, group: with * and ?. dtype: of an output, by torch's name."""

    type: str = ""
    name: str = ""
    stream: int | None = None
    group: str = ""
    dtype: str = ""


def select(dump: Dump, wanted: Filter) -> Iterator[tuple[DumpGraph, int]]:
    """The ops that fit, in order. What is cheap to know is asked first."""
    for graph in dump.graphs:
        fits = lru_cache(maxsize=None)(lambda kind: fnmatchcase(kind, wanted.type))
        streams = graph.streams if wanted.stream is not None and graph.has_streams else None
        if wanted.stream is not None and streams is None:
            continue
        for op, kind in enumerate(graph.types):
            if wanted.type and not fits(kind):
                continue
            if wanted.name and not fnmatchcase(graph.names[op], wanted.name):
                continue
            if streams is not None and streams[op] != wanted.stream:
                continue
            if wanted.group and not any(fnmatchcase(g, wanted.group) for g in groups_at(graph, op) if g != "?"):
                continue
            if wanted.dtype and all(desc.dtype != wanted.dtype for desc in graph.node(op).outputs):
                continue
            yield graph, op


def place_of(dump: Dump, name: str) -> tuple[DumpGraph, int]:
    """The op of this name. Raises DumpError with names that are near."""
    found = dump.find(name)
    if found is not None:
        return found
    from difflib import get_close_matches

    names = [n for graph in dump.graphs for n in graph.names]
    near = [n for n in names if name in n][:3] or get_close_matches(name, names[:50_000], 3)
    hint = f" Near: {', '.join(near)}." if near else ""
    raise DumpError(f"[inspect] {dump.path}: expected an op named {name!r}, got none of that name.{hint}")


def neighbours(graph: DumpGraph, op: int, hops: int) -> dict[int, int]:
    """Ops at most ``hops`` edges away, control edges too: how far each is; upstream negative, the op itself 0."""
    found = {op: 0}
    waits: dict[int, list[int]] = {}
    for reader, sources in graph.controls.items():
        for source in sources:
            waits.setdefault(source, []).append(reader)
    for sign in (-1, 1):
        edge = [op]
        for hop in range(1, hops + 1):
            reached: list[int] = []
            for at in edge:
                if sign < 0:
                    around = [s for s, _ in graph.sources[at]] + graph.controls.get(at, [])
                else:
                    around = graph.readers[at] + waits.get(at, [])
                reached += [o for o in around if o >= 0 and o not in found]
                found.update((o, sign * hop) for o in reached if o not in found)
            edge = reached
    return found


def facts_of(graph: DumpGraph, op: int) -> dict[str, Any]:
    """An op in full, as JSON has it."""
    node = graph.node(op)
    readers = graph.read_by(op)
    facts: dict[str, Any] = {
        "name": node.name,
        "type": node.type,
        "graph": graph.name,
        "inputs": [
            {"port": item.desc.name, "from": None if item.source is None else str(item.source), **tensor(item.desc)}
            for item in node.inputs
        ],
        "waits_for": list(node.controls),
        "outputs": [{"port": desc.name, **tensor(desc)} for desc in node.outputs],
        "readers": [graph.names[reader] for reader in readers],
        "attrs": {key: plain(value) for key, value in sorted(node.attrs.items())},
        "subgraphs": list(node.subgraphs),
    }
    if node.build is not None:
        facts["id"] = node.build.id
        facts["stream"] = node.build.stream if graph.has_streams else None
        facts["input_offsets"], facts["output_offsets"] = node.build.input_offsets, node.build.output_offsets
        facts["workspaces"] = [list(w) for w in node.build.workspaces]
    return facts


def tensor(desc: TensorDesc) -> dict[str, Any]:
    """shape_source: "stated", "meta", or "" for a shape nobody knows. dtype None: not known."""
    return {
        "dtype": desc.dtype if desc.dtype_trusted else None,
        "shape": None if desc.shape is None else list(desc.shape),
        "shape_source": desc.shape_source,
        "layout": desc.layout,
        "fx": desc.fx_name,
    }


def plain(value: Any) -> Any:
    """An attribute as JSON has it; of tensors dtype and shape."""
    if isinstance(value, DTypeValue):
        return value.name
    if isinstance(value, TensorValue):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Graph):
        return f"graph {value.name}"
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def jsonable(value: Any, *, most: int | None = None) -> Any:
    """With texts for numbers JSON does not have, infinite ones and none; and for whole ones beyond ``most``."""
    if isinstance(value, dict):
        return {key: jsonable(held, most=most) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(held, most=most) for held in value]
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return str(value) if most is not None and isinstance(value, int) and abs(value) > most else value


def origins_of(node: Node) -> list[str]:
    """The ops GE made this one of, each once; empty where it does not say."""
    names = node.attrs.get("_datadump_original_op_names")
    return list(dict.fromkeys(map(str, names))) if isinstance(names, list) else []


def passes_of(node: Node) -> list[str]:
    """GE's passes that changed it, in order."""
    names = node.attrs.get("pass_name")
    ub = node.attrs.get("pass_name_ub")
    found = [str(n) for n in names] if isinstance(names, list) else [str(names)] if names else []
    return found + ([str(ub)] if ub else [])
