"""What passes say about FX nodes: the operator a node calls, its tensor, and whose elements and memory it has."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

aten = torch.ops.aten

_VIEWS = {
    "aten::view", "aten::_unsafe_view", "aten::reshape", "aten::unsqueeze", "aten::squeeze", "aten::squeeze.dim",
    "aten::squeeze.dims", "aten::flatten.using_ints", "aten::unflatten.int", "aten::detach", "aten::alias",
    "aten::contiguous", "aten::clone",
}  # fmt: skip
"""Operators that keep the elements and their order. aten::clone is what dropout leaves behind in eval mode."""
_CASTS = {"aten::_to_copy", "aten::to.dtype", "aten::to.dtype_layout", "aten::type_as", "prims::convert_element_type"}
_AXES = {"aten::permute", "aten::transpose.int", "aten::t"}


# -- one node -------------------------------------------------------------------------------------------------


def op_name(node: Any) -> str:
    """``namespace::name`` or ``namespace::name.overload`` of the operator a node calls; "" for what calls none."""
    target = node.target if isinstance(node, Node) and node.op == "call_function" else None
    return str(target.name()) if isinstance(target, OpOverload) else ""


def wrapped(node: Node) -> OpOverload | None:
    """The operator that functionalisation hands to another one to be called: because it mutates, or has effects."""
    if not isinstance(node.target, HigherOrderOperator):
        return None
    return next((x for x in node.args[:2] if isinstance(x, OpOverload)), None)  # with_effects has a token in front


def is_call(node: Any, *names: str) -> bool:
    return op_name(node) in names


def arguments(node: Node) -> dict[str, Any]:
    """All arguments of a call of an operator by name, defaults included."""
    assert isinstance(node.target, OpOverload)
    found = {a.name: a.default_value if a.has_default_value() else None for a in node.target._schema.arguments}
    found.update(zip(found, node.args, strict=False))
    found.update(node.kwargs)
    return found


def operand(node: Node) -> Node | None:
    """The first argument, if it is a node."""
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return first if isinstance(first, Node) else None


def value_of(node: Any) -> Any:
    """The fake tensor of a node."""
    return node.meta.get("val") if isinstance(node, Node) else None


def dtype_of(node: Any) -> torch.dtype | None:
    value = value_of(node)
    return value.dtype if isinstance(value, torch.Tensor) else None


def shape_of(node: Any) -> tuple[Any, ...]:
    value = value_of(node)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def is_contiguous(node: Node) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.is_contiguous()


def same_shape(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are known to be equal, without a guard on sizes that are dynamic."""
    return len(a) == len(b) and all(statically_known_true(x == y) for x, y in zip(a, b, strict=True))


def is_one(size: Any) -> bool:
    return bool(statically_known_true(size == 1))


def dtype_name(node: Any) -> str:
    return str(dtype_of(node)).removeprefix("torch.")


# -- whose elements and memory a node has ------------------------------------------------------------------------


def identity_of(node: Any) -> Node | None:
    """The node whose elements, in the same order and of the same dtype, are those of ``node``; None if it is new."""
    name = op_name(node)
    if not name:
        return None
    source = operand(node)
    if name in _VIEWS:
        return source
    if name in _CASTS:
        return source if dtype_of(source) is dtype_of(node) is not None else None
    if name == "aten::copy":  # t.copy_(x) after functionalisation, as dist.all_reduce(t) leaves it
        written = node.args[1]
        same = dtype_of(written) is dtype_of(node) and same_shape(shape_of(written), shape_of(node))
        return written if same else None
    if name in _AXES:
        return source if source is not None and _moved(node, source) == _kept(source) else None
    if name == "aten::expand":
        return source if same_shape(shape_of(source), shape_of(node)) else None
    if name == "aten::dropout":
        return source if node.args[2] is False else None
    return None


def skip_identities(node: Node) -> Node:
    """Where the elements of ``node`` come from."""
    while (source := identity_of(node)) is not None:
        node = source
    return node


def storage_owner(node: Node) -> Node:
    """The node whose memory ``node`` uses: through slices, parts and other aliases, and the waits of collectives."""
    while (lender := _lender(node)) is not None:
        node = lender
    return node


def _lender(node: Node) -> Node | None:
    """The node whose memory ``node`` uses next, None if its memory is its own.

    Schemas tell, but not of every operator that hands back its operand or parts of it (dropout in eval mode,
    type_as, unsafe_chunk, einsum): there it is the traced values that share storage.
    """
    is_part = node.target is operator.getitem
    call = operand(node) if is_part else node
    if call is None or call.op != "call_function":
        return None
    if not isinstance(call.target, OpOverload):
        return call if is_part else None  # a graph of its own: what its results share is not known
    schema = call.target._schema
    returned = [r.alias_info for r in schema.returns]
    if is_part and len(returned) > 1 and isinstance(node.args[1], int):
        returned = [returned[node.args[1]]]
    if op_name(call).endswith("c10d_functional::wait_tensor") or any(info is not None for info in returned):
        names = {name for info in returned if info is not None for name in info.before_set}
        given = arguments(call)
        lent = (given[a.name] for a in schema.arguments if a.alias_info and names & a.alias_info.before_set)
        return next((x for x in lent if isinstance(x, Node)), operand(call))
    memory = _storage(node)
    return next((x for x in call.all_input_nodes if memory is not None and _storage(x) == memory), None)


def _storage(node: Node) -> int | None:
    value = value_of(node)
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


def copies(node: Node) -> bool:
    """Whether ``node`` has memory of its own although it shows another's elements: later writes do not reach it."""
    name, source = op_name(node), operand(node)
    if name in ("aten::contiguous", "aten::reshape", "aten::flatten.using_ints", "aten::unflatten.int"):
        return source is None or not is_contiguous(source)
    return name in ("aten::clone", "aten::_to_copy", "aten::copy")


def path_to(node: Node, source: Node) -> Iterator[Node]:
    """``node`` and what it shows, down to ``source`` without it."""
    while node is not source:
        yield node
        shows = identity_of(node)
        assert shows is not None
        node = shows


def readers(node: Node) -> list[Node]:
    """Users that read the elements: not a copy's destination, which is only overwritten, nor torch.export's asserts."""
    return [u for u in node.users if not (is_assert(u) or (op_name(u) == "aten::copy" and u.args[1] is not node))]


def is_assert(node: Node) -> bool:
    return op_name(node) == "aten::_assert_tensor_metadata"


def widened(node: Any) -> Node | None:
    """x if ``node`` is x converted to float32, or is itself a float32 tensor."""
    if op_name(node) in _CASTS and dtype_of(node) is torch.float32:
        return operand(node)
    return node if isinstance(node, Node) and dtype_of(node) is torch.float32 else None


def is_cast(node: Any, dtype: torch.dtype | None) -> bool:
    """Whether ``node`` converts its operand to ``dtype``."""
    return op_name(node) in _CASTS and dtype_of(node) is dtype


def matrix_source(node: Node) -> tuple[Node, bool]:
    """(matrix, whether it is seen transposed) that ``node`` shows by views and permutations, size-1 dims aside."""
    found, swapped = (node, False), False
    while len(_kept(node)) == 2 or len(shape_of(node)) == 2:
        if len(shape_of(node)) == 2:
            found = node, swapped
        name, source = op_name(node), operand(node)
        if source is None or copies(node):
            break
        if name in _AXES:
            if len(_kept(source)) == 2:
                swapped ^= _moved(node, source) != _kept(source)
            elif len(shape_of(source)) == 2:
                swapped ^= _moved_dims(node, 2) == [1, 0]  # a dim of size 1 is a row or a column
            else:
                break
        elif name not in _VIEWS or not same_shape(*(_sizes(x) for x in (node, source))):
            break
        node = source
    return found


def _kept(node: Node) -> list[int]:
    """The dims that are not known to be 1."""
    return [i for i, size in enumerate(shape_of(node)) if not is_one(size)]


def _sizes(node: Node) -> list[Any]:
    shape = shape_of(node)
    return [shape[i] for i in _kept(node)]


def _moved(node: Node, source: Node) -> list[int]:
    """The dims of ``source`` that are not 1, in the order in which ``node`` has them."""
    kept = _kept(source)
    return [d for d in _moved_dims(node, len(shape_of(source))) if d in kept]


def _moved_dims(node: Node, rank: int) -> list[int]:
    order = list(range(rank))
    if op_name(node) == "aten::permute":
        return [int(d) % rank for d in node.args[1]]  # type: ignore[union-attr, arg-type]
    i, j = (0, rank - 1) if op_name(node) == "aten::t" else (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]
    order[i], order[j] = order[j], order[i]
    return order
