"""Guards for what TorchAir makes of mutated inputs, of as_strided, and of what torch asserts of sizes.

The first two are T9 and T10 in docs/torchair_defects.md.
"""

from __future__ import annotations

import operator
import re

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from npu_fused_graph.errors import UnsupportedModeError, warn_once
from npu_fused_graph.passes.fx import aten, is_call, storage_owner, value_of
from npu_fused_graph.passes.location import source_line

_COMPARISONS = (operator.ge, operator.gt, operator.le, operator.lt, operator.eq, operator.ne)
_GENERATED = re.compile(r"Runtime assertion failed for expression (.*) on node '\w+'")
_SAME_TENSOR = ("aten::detach", "aten::alias")


def separate_assigned_values(gm: GraphModule, *, only_look: bool = False) -> int:
    """Give every mutated input a value of its own, in place (T9); how many had none. only_look: change nothing.

    TorchAir maps a value that is copied into an input to a graph result with that input as its target. One result has
    one target: of several inputs that receive the same value all but the last would keep their old contents.
    """
    assigned: set[Node] = set()
    count = 0
    for node in gm.graph.find_nodes(op="call_function", target=aten.copy_.default):
        target, value = node.args[:2]
        if not isinstance(target, Node) or target.op != "placeholder" or not isinstance(value, Node):
            continue
        root = value
        while is_call(root, *_SAME_TENSOR):
            assert isinstance(root.args[0], Node)
            root = root.args[0]
        if root in assigned:
            count += 1
        if root in assigned and not only_look:
            with gm.graph.inserting_before(node):
                own = gm.graph.call_function(aten.clone.default, (value,))
            own.meta["val"] = value_of(value)
            node.args = (target, own, *node.args[2:])
        assigned.add(root)
    if count and not only_look:
        gm.recompile()
    return count


def refuse_strides_of_what_is_not_dense(gm: GraphModule) -> None:
    """Raise UnsupportedModeError for as_strided on a tensor that is not contiguous from its storage's start (T10)."""
    for node in strides_of_what_is_not_dense(gm):
        value, where = value_of(node.args[0]), source_line(node)
        raise UnsupportedModeError(
            f"[backend] as_strided{f' at {where}' if where else ''}: expected a contiguous tensor, got one with "
            f"strides {list(value.stride())} and offset {value.storage_offset()}. Call .contiguous() on it, or slice "
            "and transpose."
        )


def refuse_strides_of_copied_inputs(gm: GraphModule) -> None:
    """Raise UnsupportedModeError for as_strided on an input that is not contiguous from its storage's start (D3).

    A captured graph copies inputs into contiguous memory of its own; strides would pick other elements there.
    """
    for node in strides_of_copied_inputs(gm):
        where = source_line(node)
        raise UnsupportedModeError(
            f"[backend] as_strided{f' at {where}' if where else ''}: expected a contiguous input, got one with strides "
            f"{list(value_of(node.args[0]).stride())}. Call .contiguous() on it before the compiled region, or slice "
            "and transpose."
        )


def strides_of_copied_inputs(gm: GraphModule) -> list[Node]:
    """Calls of as_strided on an input of the graph that is not contiguous from its storage's start."""
    found = strides_of_what_is_not_dense(gm)
    return [node for node in found if storage_owner(node.all_input_nodes[0]).op == "placeholder"]


def strides_of_what_is_not_dense(gm: GraphModule) -> list[Node]:
    """Calls of as_strided on a tensor that is not contiguous from its storage's start.

    Strides and offset refer to memory; in a GE graph every tensor is dense, so they would pick other elements.
    """
    found = []
    for node in gm.graph.find_nodes(op="call_function", target=aten.as_strided.default):
        value = value_of(node.args[0])
        if isinstance(value, torch.Tensor):
            offset = value.storage_offset()
            if not value.is_contiguous() or (isinstance(offset, int) and offset != 0):
                found.append(node)
    return found


def drop_assertions(gm: GraphModule) -> None:
    """Take out assertions about numbers only the values say, and their comparisons; the user's with a warning.

    A graph on a device cannot raise, so they have no lowering; and TorchAir evaluates a comparison of symbolic numbers
    as Python, on objects that do not compare. torch itself asserts that the results of nonzero have a size.
    """
    assertions = gm.graph.find_nodes(op="call_function", target=aten._assert_scalar.default)
    reads_values = bool(gm.graph.find_nodes(op="call_function", target=aten._local_scalar_dense.default))
    unchecked: dict[str, str] = {}
    for node in assertions:
        if not _is_torchs(node, reads_values):
            unchecked.setdefault(source_line(node), _GENERATED.sub(r"\1", str(node.args[1])))
    for where, text in unchecked.items():
        place = f"assertion at {where}" if where else "assertion"
        warn_once(
            f"[backend] {place}: expected one about numbers known while compiling, got {text!r}. A graph on a device "
            "cannot raise: it is not checked. Check it outside of the compiled region.",
            stacklevel=2,
        )
    for node in reversed(assertions):
        gm.graph.erase_node(node)
    if assertions:
        for node in reversed(gm.graph.nodes):
            if node.target in _COMPARISONS and not node.users:
                gm.graph.erase_node(node)
        gm.recompile()


def _is_torchs(assertion: Node, reads_values: bool) -> bool:
    """Whether torch asserts it of a size itself. Its limits of results' sizes look like an ``assert`` with >= or <=."""
    condition = assertion.args[0]
    if not isinstance(condition, Node):
        return bool(condition)  # known, and it holds
    if condition.target not in (operator.ge, operator.le):
        return False
    if condition.target is operator.ge and condition.args[1] == 0:
        return True
    return not reads_values and "source_fn_stack" not in assertion.meta


def refuse_unknown_numbers(gm: GraphModule) -> None:
    """Raise UnsupportedModeError for comparisons of sizes the graph computes, and for strides only the values say."""
    for node in gm.graph.nodes:
        is_stride = node.target in (aten.sym_storage_offset.default, aten.sym_stride.int)
        if node.target in _COMPARISONS or (is_stride and free_unbacked_symbols(value_of(node))):
            where = source_line(node)
            name = f"operator.{node.target.__name__}" if node.target in _COMPARISONS else str(node.target)
            values = [value for value in map(value_of, (node, *node.all_input_nodes)) if value is not None]
            is_of_values = bool(free_unbacked_symbols(values))
            got = "one that only the values say" if is_of_values else "a comparison of sizes that are symbols"
            cure = "Keep it out of the compiled region" + ("." if is_of_values else ", or compile with dynamic=False.")
            place = f"{name} at {where}" if where else name
            raise UnsupportedModeError(f"[backend] {place}: expected numbers known while compiling, got {got}. {cure}")
