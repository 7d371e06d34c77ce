"""A dump without its names, so that what is said of it may leave the house."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from npu_fused_graph.inspector.counting import NUMBERS
from npu_fused_graph.inspector.dump import Dump, DumpGraph, FileFacts
from npu_fused_graph.inspector.message import split_input
from npu_fused_graph.ir.dtypes import BY_NAME
from npu_fused_graph.ir.graph import AttrValue, DTypeValue, Node, Source, TensorDesc, TensorValue

_NUMBERS = frozenset(
    ["adj_x1", "adj_x2", "alpha", "axes", "axis", "begin_mask", "begin_norm_axis", "dst_type", "dtype", "end_mask",
     "epsilon", "fusion", "fusion_id", "index", "keep_dims", "N", "num_split", "rank_size", "root_rank",
     "shrink_axis_mask", "transpose_x1", "transpose_x2", "value", "is_trans_a", "is_trans_b", "comm_turn"]
)  # fmt: skip
"""Attributes of GE's own ops that hold numbers; others have keys of their own, perhaps."""
_WORDS = ("reduction", "reduce_op")
_REDUCTIONS = ("sum", "prod", "max", "min", "mean", "avg")
_GROUPS = ("group", "group_ep", "group_tp", "hcom")
_RANKS = re.compile(r"rank_list=[\d,]+")
_ORIGINS = "_datadump_original_op_names"
_STAGES = ("original", "optimized", "captured", "Build", "PreRunBegin", "AfterInfershape")
_LAYOUTS = re.compile(r"(ND|NCHW|NHWC|NC1HWC0|FRACTAL_\w{1,12}|NCDHW|NDC1HWC0)?$")
_FX = re.compile(r"(aten|prims|npu|c10d|_c10d_functional|operator|builtins|math|placeholder|output|get_attr)\b")


class Ordinals:
    """Groups and types by number, the same in every dump of a report."""

    def __init__(self) -> None:
        self._groups: dict[str, str] = {}
        self._types: dict[str, str] = {}

    def group(self, name: str) -> str:
        """With the ranks it names, which tell groups of several dumps apart."""
        found = self._groups.setdefault(name, f"group{len(self._groups)}")
        ranks = _RANKS.search(name)
        return f"{found}:{ranks[0]}" if ranks else found

    def dump(self, dump: Dump, number: int) -> Dump:
        """The same ops, edges, types of GE, shapes and sizes. Names are types with a number, paths a number."""
        names = {graph.name: f"graph{i}" for i, graph in reversed(list(enumerate(dump.graphs)))}
        graphs = [self._graph(dump, graph, f"graph{i}", names) for i, graph in enumerate(dump.graphs)]
        attrs: dict[str, AttrValue] = {k: v for k, v in dump.attrs.items() if k in NUMBERS and isinstance(v, int)}
        stage = dump.file.stage if dump.file.stage in _STAGES else ""
        file = FileFacts(stage=stage, graph_id=dump.file.graph_id, rank=dump.file.rank)
        return Dump(Path(f"dump{number}"), dump.format, file, graphs, dump.size, attrs)

    def _graph(self, dump: Dump, graph: DumpGraph, name: str, graphs: dict[str, str]) -> DumpGraph:
        is_fx = dump.format.startswith("fx") or dump.format in ("torchair code", "torchair tasks")
        types = [self._type(kind) for kind in graph.types] if is_fx else graph.types
        names = [f"{kind}_{op}" for op, kind in enumerate(types)]

        def renamed(source: str) -> str:
            place = graph.places.get(source, -1)
            return names[place] if place >= 0 else "outside"

        def written(text: str) -> str:
            source, index = split_input(text)
            return "" if index is None else f"{renamed(source)}:{index}"

        def decode(op: int) -> Node:
            node = graph.node(op)
            inputs = [replace(item, desc=_plain(item.desc), source=_from(item.source, renamed)) for item in node.inputs]
            attrs = self._attrs(node.attrs)
            if isinstance(origins := node.attrs.get(_ORIGINS), list):
                attrs[_ORIGINS] = [f"origin{i}" for i, _ in enumerate(dict.fromkeys(map(str, origins)))]
            return replace(
                node, name=names[op], type=types[op], inputs=inputs, outputs=[_plain(d) for d in node.outputs],
                controls=[renamed(c) for c in node.controls], attrs=attrs,
                subgraphs=[graphs[s] for s in node.subgraphs if s in graphs],
            )  # fmt: skip

        return DumpGraph(
            name, names, types, [tuple(map(written, row)) for row in graph.inputs], decode,
            has_streams=lambda: graph.has_streams, is_stated=graph.is_stated,
        )  # fmt: skip

    def _type(self, kind: str) -> str:
        """Targets of an FX graph may be a user's own."""
        return kind if _FX.match(kind) else self._types.setdefault(kind, f"type{len(self._types)}")

    def _attrs(self, attrs: dict[str, AttrValue]) -> dict[str, AttrValue]:
        """Numbers, dtypes and constants under GE's keys; of texts only groups, as numbers, and kinds of sums."""
        found: dict[str, AttrValue] = {}
        for key, value in attrs.items():
            is_number = isinstance(value, (int, float, DTypeValue, TensorValue))
            is_number = is_number or (isinstance(value, list) and all(isinstance(x, (int, float)) for x in value))
            if (key in _NUMBERS and is_number) or (key in _WORDS and value in _REDUCTIONS):
                found[key] = value
            elif key in _GROUPS and isinstance(value, str):
                found[key] = self.group(value)
        return found


def _plain(desc: TensorDesc) -> TensorDesc:
    dtype = desc.dtype if desc.dtype in BY_NAME else None
    layout = desc.layout if _LAYOUTS.match(desc.layout) else ""
    return replace(desc, name="", dtype=dtype, layout=layout, fx_name=None, attrs={})


def _from(source: Source | None, renamed: Callable[[str], str]) -> Source | None:
    return None if source is None else Source(renamed(source.node), source.index)
