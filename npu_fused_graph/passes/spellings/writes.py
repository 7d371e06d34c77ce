"""Which nodes of Dynamo's graph write into a tensor, or change a mode."""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import torch.nn.functional as F
from torch._ops import OpOverloadPacket
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
    if node.kwargs.get("inplace") is True or _is_told_to(node):
        return True
    operator_name = op_name(node)
    if operator_name:
        return bool(node.target._schema.is_mutable)  # type: ignore[union-attr]
    if isinstance(node.target, OpOverloadPacket):
        overloads = (getattr(node.target, overload) for overload in node.target.overloads())
        return any(overload._schema.is_mutable for overload in overloads)
    return name.endswith("_") and not name.endswith("__") and name not in _NO_WRITE


@lru_cache(maxsize=1)
def _places_of_inplace() -> dict[Any, int]:
    """By function of torch.nn.functional, where it takes ``inplace``."""
    places = {}
    for function in vars(F).values():
        with contextlib.suppress(TypeError, ValueError):
            names = list(inspect.signature(function).parameters)
            if "inplace" in names:
                places[function] = names.index("inplace")
    return places


def _is_told_to(node: Node) -> bool:
    """Whether ``inplace`` is passed by its place."""
    if node.op != "call_function" or not isinstance(node.target, Hashable):
        return False
    place = _places_of_inplace().get(node.target)
    return place is not None and len(node.args) > place and node.args[place] is True


def changes_mode(first: Node, last: Node) -> bool:
    """Whether grad mode or autocast changes between two nodes of a graph, so that what the first does depends on it."""
    node = first
    while node is not last:
        if node.op == "call_function" and getattr(node.target, "__name__", "") in _MODES:
            return True
        node = node.next
    return False


def written_by(node: Node) -> list[Node]:
    """The nodes whose tensors ``node`` writes into: its first operand, and where it puts its result."""
    if not writes(node):
        return []
    return [x for x in (*node.args[:1], node.kwargs.get("out")) if isinstance(x, Node)]
