"""Hand-built ir graphs of several nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.ir.graph import Graph, Node, NodeInput, Source, TensorDesc, TensorValue


def node(
    name: str, ge_type: str, inputs: Mapping[str, str | None], outputs: Sequence[str] = ("y",), **attrs: Any
) -> Node:
    """A node. inputs: IR name -> ``producer`` or ``producer:output``, None = unfed."""
    items = [NodeInput(TensorDesc(key), None if source is None else _source(source)) for key, source in inputs.items()]
    return Node(name, ge_type, items, [TensorDesc(o) for o in outputs], attrs=attrs)


def graph_of(
    data: Mapping[str, Tensor],
    nodes: Sequence[Node],
    results: Sequence[str],
    *,
    const: Mapping[str, Tensor] | None = None,
    dynamic: bool = False,
) -> Graph:
    """Data nodes of the tensors' dtypes and shapes (-1 everywhere when dynamic), the nodes, and NetOutput."""
    graph = Graph("case")
    for index, (name, value) in enumerate(data.items()):
        shape = (-1,) * value.dim() if dynamic else tuple(value.shape)
        desc = TensorDesc("y", _dtype(value), shape, True)
        graph.nodes[name] = Node(name, "Data", outputs=[desc], attrs={"index": index})
    for name, value in (const or {}).items():
        raw = bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist())
        payload = TensorValue(_dtype(value), tuple(value.shape), raw)
        graph.nodes[name] = Node(name, "Const", outputs=[TensorDesc("y")], attrs={"value": payload})
    graph.nodes.update((item.name, item) for item in nodes)
    inputs = {f"input{i}": source for i, source in enumerate(results)}
    graph.nodes["NetOutput"] = node("NetOutput", "NetOutput", inputs, ())
    return graph


def _source(text: str) -> Source:
    name, _, index = text.partition(":")
    return Source(name, int(index or 0))


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
