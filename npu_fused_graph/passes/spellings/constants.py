"""Tensors that a graph computes from nothing but numbers, as masks are: what they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from npu_fused_graph.passes.fx import op_name
from npu_fused_graph.passes.spellings.calls import value
from npu_fused_graph.passes.spellings.writes import writes, written_by

_PURE = {
    "arange", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_ones", "new_zeros",
    "new_full", "tensor", "scalar_tensor", "add", "sub", "rsub", "mul", "div", "truediv", "neg", "abs", "pow", "exp",
    "le", "lt", "ge", "gt", "eq", "ne", "and_", "or_", "xor", "invert", "logical_and", "logical_or", "logical_not",
    "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not", "where", "masked_fill", "tril", "triu", "expand",
    "expand_as", "broadcast_to", "repeat", "unsqueeze", "squeeze", "view", "reshape", "flatten", "unflatten", "permute",
    "transpose", "contiguous", "clone", "detach", "getitem",
    "getattr", "to", "float", "half", "bfloat16", "bool", "int", "long",
    "type", "type_as", "_to_copy", "convert_element_type", "cumsum", "diff", "cat", "stack", "minimum", "maximum",
    "floor_divide", "floordiv", "remainder", "mod", "rsqrt", "sqrt", "log", "log2", "slice", "select", "index",
}  # fmt: skip
"""By their names: same arguments, same result, nothing written."""
_MOST_NODES = 300
_MOST_ELEMENTS = 1 << 28


class Constants:
    """Of one graph. Each node is computed once; what is written into, through whichever view, is not known."""

    def __init__(self, graph: Graph) -> None:
        self._known: dict[Node, Any] = {}
        self._written = {_storage(target) for node in graph.nodes for target in written_by(node)} - {None}

    def value(self, node: Any) -> Tensor | None:
        """What ``node`` holds, on a CPU; None unless numbers alone say it."""
        if not isinstance(node, Node):
            return None
        found = self._known.get(node, self)
        if found is self:
            with _disable_current_modes(), torch.no_grad():
                found = self._known[node] = self._computed(node)
        return found if isinstance(found, Tensor) else None

    def is_written(self, node: Node) -> bool:
        """Whether anything writes into its memory."""
        return _storage(node) in self._written

    def number(self, x: Any) -> float | None:
        """A Python number, or what a tensor of one element holds."""
        if isinstance(x, (int, float)):
            return float(x)
        found = self.value(x)
        return float(found) if found is not None and found.numel() == 1 else None

    def _computed(self, node: Node) -> Any:
        order: dict[Node, None] = {}
        if not self._collect(node, order):
            return None
        values: dict[Node, Any] = {}
        for one in order:
            known = self._known.get(one)
            values[one] = known if isinstance(known, Tensor) else _run(one, values)
        return values[node]

    def _collect(self, node: Node, order: dict[Node, None]) -> bool:
        """Put ``node`` behind all it is computed from; whether that can be computed."""
        stack: list[tuple[Node, bool]] = [(node, False)]
        while stack:
            one, is_ready = stack.pop()
            if one in order:
                continue
            if is_ready or isinstance(self._known.get(one), Tensor):
                order[one] = None
                continue
            if len(stack) > _MOST_NODES or _name(one) not in _PURE or writes(one) or _storage(one) in self._written:
                return False
            found = value(one)
            if isinstance(found, Tensor) and not (isinstance(found.numel(), int) and found.numel() <= _MOST_ELEMENTS):
                return False
            stack.append((one, True))
            stack.extend((source, False) for source in one.all_input_nodes)
        return len(order) <= _MOST_NODES


def _storage(node: Node) -> int | None:
    found = value(node)
    return found.untyped_storage()._cdata if isinstance(found, Tensor) else None


def _name(node: Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    return op_name(node).partition("::")[2].partition(".")[0] or getattr(node.target, "__name__", "")


def is_pure(node: Node) -> bool:
    """Whether it can be left out where nobody reads it."""
    return _name(node) in _PURE and not writes(node)


def _run(node: Node, values: dict[Node, Any]) -> Any:
    def real(x: Any) -> Any:
        return torch.device("cpu") if isinstance(x, torch.device) else x

    arguments, keywords = pytree.tree_map(
        real,
        torch.fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__),
        is_leaf=lambda x: isinstance(x, slice),
    )
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
    target: Callable[..., Any] = node.target  # type: ignore[assignment]
    return target(*arguments, **keywords)
