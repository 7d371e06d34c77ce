"""A deterministic one-line-per-node text of a GE graph: for golden files, diffs and people."""

from __future__ import annotations

import hashlib

from npu_fused_graph.ir.graph import AttrValue, DTypeValue, Graph, Node, TensorDesc, TensorValue
from npu_fused_graph.ir.order import live_nodes

_NOISE = {"input_layout_info", "output_layout_info"}
_MAX_INLINE_BYTES = 64


def to_text(graph: Graph, *, live_only: bool = False) -> str:
    """Nodes in emission order as ``name = Type(input=source, ...) {attr=value} -> out:dtype[shape]``.

    Bookkeeping attributes (leading underscore, layouts) are left out; large constants appear by digest.
    """
    keep = live_nodes(graph) if live_only else set(graph.nodes)
    lines = [f"graph {graph.name}"]
    lines += [node_text(node) for node in graph.nodes.values() if node.name in keep]
    return "\n".join(lines) + "\n"


def node_text(node: Node) -> str:
    """One node as a line."""
    inputs = [f"{item.desc.name}={item.source or 'none'}" for item in node.inputs]
    inputs += [f"^{name}" for name in node.controls]
    attrs = [
        f"{key}={_value(value)}"
        for key, value in sorted(node.attrs.items())
        if not key.startswith("_") and key not in _NOISE
    ]
    text = f"{node.name} = {node.type}({', '.join(inputs)})"
    if attrs:
        text += f" {{{', '.join(attrs)}}}"
    if node.outputs:
        text += " -> " + ", ".join(_output(desc) for desc in node.outputs)
    return text


def _output(desc: TensorDesc) -> str:
    text = desc.name
    if desc.dtype_trusted:
        text += f":{desc.dtype}"
    if desc.shape:
        text += str(list(desc.shape))
    return text


def _value(value: AttrValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, DTypeValue):
        return f"<{value.name}>"
    if isinstance(value, TensorValue):
        if len(value.data) <= _MAX_INLINE_BYTES:
            content = value.data.hex()
        else:
            content = "sha256:" + hashlib.sha256(value.data).hexdigest()[:16]
        return f"<{value.dtype}{list(value.shape)} {content}>"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, Graph):
        return f"<graph {value.name}>"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return str(value)
