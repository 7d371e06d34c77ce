"""Guards for what TorchAir makes of mutated inputs and of as_strided (T9 and T10 in docs/torchair_defects.md)."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from npu_fused_graph.errors import UnsupportedModeError
from npu_fused_graph.passes.fx import aten, is_call, value_of
from npu_fused_graph.passes.location import source_line

_SAME_TENSOR = ("aten::detach", "aten::alias")


def separate_assigned_values(gm: GraphModule) -> None:
    """Give every mutated input a value of its own, in place (T9).

    TorchAir maps a value that is copied into an input to a graph result with that input as its target. One result has
    one target: of several inputs that receive the same value all but the last would keep their old contents.
    """
    assigned: set[Node] = set()
    for node in gm.graph.find_nodes(op="call_function", target=aten.copy_.default):
        target, value = node.args[:2]
        if not isinstance(target, Node) or target.op != "placeholder" or not isinstance(value, Node):
            continue
        root = value
        while is_call(root, *_SAME_TENSOR):
            assert isinstance(root.args[0], Node)
            root = root.args[0]
        if root in assigned:
            with gm.graph.inserting_before(node):
                own = gm.graph.call_function(aten.clone.default, (value,))
            own.meta["val"] = value_of(value)
            node.args = (target, own, *node.args[2:])
        assigned.add(root)
    gm.recompile()


def refuse_strides_of_what_is_not_dense(gm: GraphModule) -> None:
    """Raise UnsupportedModeError for as_strided on a tensor that is not contiguous from its storage's start (T10).

    Strides and offset refer to memory; in a GE graph every tensor is dense, so they would pick other elements.
    """
    for node in gm.graph.find_nodes(op="call_function", target=aten.as_strided.default):
        source = node.args[0]
        value = value_of(source) if isinstance(source, Node) else None
        if not isinstance(value, torch.Tensor):
            continue
        offset = value.storage_offset()
        if not value.is_contiguous() or (isinstance(offset, int) and offset != 0):
            where = source_line(node)
            raise UnsupportedModeError(
                f"[backend] as_strided{f' at {where}' if where else ''}: expected a contiguous tensor, got one with "
                f"strides {list(value.stride())} and offset {offset}. Call .contiguous() on it, or slice and transpose."
            )
