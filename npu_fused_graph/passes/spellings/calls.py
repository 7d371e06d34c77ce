"""What a node of Dynamo's graph, or of a graph of aten operators, computes: one name for every way to call it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from npu_fused_graph.passes.fx import op_name


@dataclass(frozen=True, slots=True)
class Call:
    """kind: of the operator. given: arguments by the parameters' names in KINDS; what was left out is not there."""

    kind: str
    given: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.given.get(name)


@dataclass(frozen=True, slots=True)
class Kind:
    """parameters: in order. functions, methods (of tensors), operators (aten, prims): what is called."""

    parameters: tuple[str, ...]
    functions: tuple[Callable[..., Any], ...] = ()
    methods: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()


_TWO = ("x", "y")
KINDS: dict[str, Kind] = {
    "attention": Kind(
        ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
        (F.scaled_dot_product_attention,), (), ("aten::scaled_dot_product_attention",),
    ),
    "matmul": Kind(
        _TWO, (torch.matmul, torch.bmm, operator.matmul), ("matmul", "bmm", "__matmul__"),
        ("aten::matmul", "aten::bmm"),
    ),
    "baddbmm": Kind(("x", "batch1", "batch2", "beta", "alpha"), (torch.baddbmm,), ("baddbmm",), ("aten::baddbmm",)),
    "einsum": Kind(("equation", "operands"), (torch.einsum,), (), ("aten::einsum",)),
    "softmax": Kind(
        ("x", "dim", "dtype"), (torch.softmax,), ("softmax",), ("aten::softmax.int", "aten::_softmax")
    ),
    "mul": Kind(
        _TWO, (torch.mul, operator.mul, operator.imul), ("mul", "mul_"), ("aten::mul.Tensor", "aten::mul.Scalar")
    ),
    "div": Kind(
        ("x", "y", "rounding_mode"), (torch.div, operator.truediv, operator.itruediv), ("div", "div_"),
        ("aten::div.Tensor", "aten::div.Scalar"),
    ),
    "add": Kind(
        ("x", "y", "alpha"), (torch.add, operator.add, operator.iadd), ("add", "add_"),
        ("aten::add.Tensor", "aten::add.Scalar"),
    ),
    "sub": Kind(
        ("x", "y", "alpha"), (torch.sub, operator.sub, operator.isub), ("sub", "sub_"),
        ("aten::sub.Tensor", "aten::sub.Scalar"),
    ),
    "where": Kind(
        ("condition", "x", "y"), (torch.where,), (),
        ("aten::where.self", "aten::where.ScalarOther", "aten::where.ScalarSelf"),
    ),
    "where of": Kind(("x", "condition", "y"), (), ("where",)),
    "masked_fill": Kind(
        ("x", "mask", "value"), (torch.masked_fill,), ("masked_fill", "masked_fill_"),
        ("aten::masked_fill.Scalar", "aten::masked_fill.Tensor"),
    ),
    "maximum": Kind(_TWO, (torch.maximum, torch.max), ("maximum", "max"), ("aten::maximum",)),
    "dropout": Kind(("x", "p", "training", "inplace"), (F.dropout, torch.dropout), (), ("aten::dropout",)),
    "transpose": Kind(
        ("x", "dim0", "dim1"), (torch.transpose, torch.swapaxes), ("transpose", "swapaxes", "swapdims"),
        ("aten::transpose.int",),
    ),
    "permute": Kind(("x", "dims"), (torch.permute,), ("permute",), ("aten::permute",)),
    "attribute": Kind(("x", "name"), (getattr,)),
}  # fmt: skip

_ALIASES = {
    "input": "x", "self": "x", "other": "y", "mat2": "y", "condition": "condition", "train": "training",
    "exponent": "y", "half_to_float": "half_to_float",
}  # fmt: skip
_BY_FUNCTION = {f: name for name, kind in KINDS.items() for f in kind.functions}
_BY_METHOD = {m: name for name, kind in KINDS.items() for m in kind.methods}
_BY_OPERATOR = {o: name for name, kind in KINDS.items() for o in kind.operators}

_SAME_ELEMENTS = {
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone", "detach", "alias",
    "expand", "expand_as", "view_as", "reshape_as", "_unsafe_view", "getitem", "to", "float", "half", "bfloat16",
    "type", "type_as", "_to_copy", "convert_element_type", "positive", "pos", "broadcast_to",
}  # fmt: skip
"""By their names: of each the elements stay what they are and in their order if neither their number changes."""


_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def value(node: Any) -> Any:
    """The fake tensor of a node, in either kind of graph."""
    if not isinstance(node, Node):
        return None
    return node.meta.get("example_value", node.meta.get("val"))


def shape(node: Any) -> tuple[Any, ...]:
    found = value(node)
    return tuple(found.shape) if isinstance(found, Tensor) else ()


def call_of(node: Any) -> Call | None:
    """None for what is not in KINDS."""
    if not isinstance(node, Node):
        return None
    if node.op == "call_method":
        name = _BY_METHOD.get(str(node.target))
    elif node.op == "call_function":
        name = _BY_OPERATOR.get(op_name(node)) or _hashed(node.target)
    else:
        name = None
    if name is None:
        return None
    if name == "softmax" and node.target is F.softmax:
        return None
    parameters = KINDS[name].parameters
    arguments = node.args
    if name == "permute" and len(arguments) > 2:
        arguments = (arguments[0], arguments[1:])
    if name == "einsum":
        operands = arguments[1:]
        if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
            operands = tuple(operands[0])
        arguments = (arguments[0], operands)
    given = dict(zip(parameters, arguments, strict=False))
    given |= {_ALIASES.get(key, key): x for key, x in node.kwargs.items()}
    return Call(name, given)


def _hashed(target: Any) -> str | None:
    try:
        return _BY_FUNCTION.get(target)
    except TypeError:
        return None


def softmax_of(node: Any) -> Call | None:
    """A softmax; torch.nn.functional's has an argument of its own between the others."""
    if isinstance(node, Node) and node.op == "call_function" and node.target is F.softmax:
        given = dict(zip(("x", "dim", "_stacklevel", "dtype"), node.args, strict=False))
        given |= {_ALIASES.get(key, key): x for key, x in node.kwargs.items()}
        return Call("softmax", given)
    found = call_of(node)
    return found if found is not None and found.kind == "softmax" else None


def same_elements(node: Any) -> Node | None:
    """The node whose elements, in their order, ``node`` shows in another shape or dtype."""
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
        return None
    name = str(node.target) if node.op == "call_method" else op_name(node).partition("::")[2].partition(".")[0]
    name = name or getattr(node.target, "__name__", "")
    source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    if name not in _SAME_ELEMENTS or source is None:
        return None
    before, after = value(source), value(node)
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.numel() != after.numel():
        return None
    if after.dtype is not before.dtype and not {before.dtype, after.dtype} <= _FLOATS:
        return None
    if after.requires_grad != before.requires_grad:  # detached, or made under another grad mode
        return None
    if name == "getitem" and not _only_adds_axes(node.args[1]):
        return None
    return source


def _only_adds_axes(index: Any) -> bool:
    index = index if isinstance(index, tuple) else (index,)
    return all(i is None or i is Ellipsis or i == slice(None, None, None) for i in index)


def is_swap_of_last_two(node: Any) -> Node | None:
    """x if ``node`` is x with its last two axes exchanged."""
    found = call_of(node)
    if found is None or not isinstance(found["x"], Node):
        return None
    source: Node = found["x"]
    if value(source).requires_grad != value(node).requires_grad:
        return None
    rank = len(shape(source))
    last = {rank - 1, rank - 2}
    if found.kind == "transpose" and all(isinstance(d, int) for d in (found["dim0"], found["dim1"])):
        return source if {found["dim0"] % rank, found["dim1"] % rank} == last else None
    if found.kind == "permute":
        order = [int(d) % rank for d in found["dims"]]
        return source if order == [*range(rank - 2), rank - 1, rank - 2] else None
    return source if found.kind == "attribute" and found["name"] == "mT" else None
