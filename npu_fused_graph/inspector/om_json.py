"""A built model as ``atc --mode=1`` writes it: the same message as JSON, maps as lists of key and value."""

from __future__ import annotations

import json
from typing import Any

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector.dump import DumpGraph, Warnings
from npu_fused_graph.inspector.message import Message, attrs_of, first, node_of, text
from npu_fused_graph.ir.graph import AttrValue


def read_om_json(data: bytes) -> tuple[list[DumpGraph], dict[str, AttrValue], Warnings]:
    try:
        held = json.loads(data.decode(errors="surrogateescape"))
    except ValueError as error:
        raise DumpError(f"[inspect] om json: expected JSON, got a file that ends or breaks: {error}.") from None
    model = message_of(held)
    graphs = [graph_of(g) for g in model.get("graph", ()) if isinstance(g, dict)]
    return graphs, attrs_of(model), Warnings()


def message_of(value: Any) -> Any:
    """JSON as a message: every field a list."""
    if not isinstance(value, dict):
        return value
    return {
        k: [message_of(v) for v in value] if isinstance(value, list) else [message_of(value)]
        for k, value in value.items()
    }


def graph_of(message: Message) -> DumpGraph:
    """A graph whose ops are messages already."""
    ops = [op for op in message.get("op", ()) if isinstance(op, dict)]
    return DumpGraph(
        text(first(message, "name", b"")),
        [text(first(op, "name", b"")) for op in ops],
        [text(first(op, "type", b"")) for op in ops],
        [tuple(text(v) for v in op.get("input", ())) for op in ops],
        lambda op: node_of(ops[op], is_built=True),
        attrs=lambda: attrs_of(message),
        has_streams=lambda: True,
    )
