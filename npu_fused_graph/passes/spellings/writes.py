"""Which nodes of Dynamo's graph write into a tensor, or change a mode."""

from __future__ import annotations

import operator

from torch.fx import Node

from npu_fused_graph.passes.fx import op_name

_IN_PLACE = (
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.iand, operator.ior,
    operator.ixor, operator.ipow, operator.imatmul, operator.ifloordiv, operator.imod,
)  # fmt: skip
_NO_WRITE = ("and_", "or_", "not_")
_MODES = ("_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_enter_inference_mode", "_exit_inference_mode")


def writes(node: Node) -> bool:
    """In-place methods and operators, assignments to slices, results that are told where to go, changes of mode."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if node.target in _IN_PLACE or name in _MODES or node.kwargs.get("out") is not None:
        return True
    if node.kwargs.get("inplace") is True:
        return True
    operator_name = op_name(node)
    if operator_name:
        return bool(node.target._schema.is_mutable)  # type: ignore[union-attr]
    return name.endswith("_") and not name.endswith("__") and name not in _NO_WRITE


def written_by(node: Node) -> list[Node]:
    """The nodes whose tensors ``node`` writes into: its first operand, and where it puts its result."""
    if not writes(node):
        return []
    return [x for x in (*node.args[:1], node.kwargs.get("out")) if isinstance(x, Node)]
