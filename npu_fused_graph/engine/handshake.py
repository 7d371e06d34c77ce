"""Before a graph's first collective its ranks agree on all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.comm import communicator, rank_text
from npu_fused_graph.comm.communicator import digest_of
from npu_fused_graph.engine.registry import find
from npu_fused_graph.errors import CommunicationError
from npu_fused_graph.ir.graph import Graph, Node
from npu_fused_graph.ir.text import node_text


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a graph's ranks agree on, computed once. lines / digest: per group, its symmetric collectives."""

    groups: Mapping[str, list[Node]]
    lines: dict[str, list[str]]
    digests: dict[str, int]
    has_fixed_sizes: bool


_plans: dict[int, _Plan] = {}


def handshake(graph: Graph, groups: Mapping[str, list[Node]], inputs: Iterable[Tensor], seen: dict[Any, int]) -> None:
    """Before a run: ranks of each group agree on its collectives.

    seen: the graph's own, empty at first: which shapes it ran with, and in which run all ranks compared theirs.
    Point-to-point nodes are left out: they compare on their own, and only two ranks run them.
    """
    plan = _plan(graph, groups)
    shapes = 0 if plan.has_fixed_sizes else _shapes_hash(inputs)
    if len(seen) > 4096:
        seen.clear()
    for name, lines in plan.lines.items():
        try:
            key = name, shapes
            seen[key] = communicator(name).begin(lines, plan.digests[name], seen.get(key, 0))
        except CommunicationError as error:
            first = groups[name][0]
            raise CommunicationError(
                f"[engine] {first.name} ({first.type} on group {name!r}){rank_text()}: {error}"
            ) from error


def _plan(graph: Graph, groups: Mapping[str, list[Node]]) -> _Plan:
    plan = _plans.get(id(groups))
    if plan is None or plan.groups is not groups:
        lines = {name: [_line(n) for n in nodes if find(n.type).is_collective] for name, nodes in groups.items()}
        lines = {name: texts for name, texts in lines.items() if texts}
        digests = {name: digest_of("\n".join(t.partition(" = ")[2] for t in texts)) for name, texts in lines.items()}
        shapes = [node.outputs[0].shape for node in graph.of_type("Data", "RefData")]
        # a scalar input may be a size, which another rank may have otherwise
        has_fixed_sizes = all(shape and min(shape) >= 0 for shape in shapes)
        if len(_plans) >= 64:
            _plans.pop(next(iter(_plans)))
        plan = _plans[id(groups)] = _Plan(groups, lines, digests, has_fixed_sizes)
    return plan


def _shapes_hash(inputs: Iterable[Tensor]) -> int:
    """Shapes, and values of integer inputs so small that they may be sizes (TorchAir feeds symbols like that)."""
    sizes = [tuple(x.shape) for x in inputs]
    values = [x.tolist() for x in inputs if x.dim() < 2 and x.numel() <= 8 and x.dtype in (torch.int64, torch.int32)]
    return hash((tuple(sizes), repr(values)))


_OF_ONE_RANK = {"group", "group_ep", "group_tp", "ep_rank_id", "tp_rank_id"}
"""Attributes that a rank has for itself: its number, and groups, which are known and may be spelled in another way."""


def _line(node: Node) -> str:
    """``name = Type {attributes}``."""
    bare = Node("", node.type, attrs={k: v for k, v in node.attrs.items() if k not in _OF_ONE_RANK})
    text = node_text(bare)
    return f"{node.name} = {node.type} {text[text.find('{') :] if '{' in text else ''}".rstrip()
