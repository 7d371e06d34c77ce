"""Runs one captured graph for all ranks of a group in lock step, in one thread: the number oracle of the fusion pass.

Every node's value is a list with one entry per rank. Ordinary operators run rank by rank; collectives are computed on
the list. So a graph before and after fusion can be compared on any number of ranks without processes, and without
the operators' own code: the fused operators follow the formulas of fused_formula.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from tests.passes import fused_formula

GROUP_ARGUMENTS = {"hcom", "hcomm", "group", "group_name", "ranks", "group_ep", "group_tp", "process_group"}
"""How operators that communicate call their group: one that is not in COLLECTIVES cannot be run rank by rank."""


class LockstepError(Exception):
    """The graph cannot be run, or contradicts what it says about itself."""


def run(gm: GraphModule, inputs_per_rank: Sequence[Sequence[Any]], *, check_values: bool = True) -> list[list[Any]]:
    """The results of ``gm`` on every rank, as lists.

    inputs_per_rank: for each rank what the placeholders get; the tensors are copied first, since a graph may write to
    them. check_values: compare shape, dtype and strides of every tensor with the node's ``meta["val"]``. Raises
    LockstepError for a collective that is not known, for ranks whose tensors do not fit together, and for a value that
    is not what its node's meta says.
    """
    ranks = [_copies(inputs) for inputs in inputs_per_rank]
    values: dict[Node, list[Any]] = {}
    arguments = 0
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            values[node] = [inputs[arguments] for inputs in ranks]
            arguments += 1
        elif node.op == "get_attr":
            attribute = operator.attrgetter(node.target)(gm)
            values[node] = [attribute.clone() if isinstance(attribute, Tensor) else attribute for _ in ranks]
        elif node.op == "call_function":
            _check_arguments(node)
            values[node] = _call(node, [_of_rank(node, values, rank) for rank in range(len(ranks))])
        elif node.op == "output":
            results = [_of_rank(node, values, rank)[0][0] for rank in range(len(ranks))]
            return [list(r) if isinstance(r, (tuple, list)) else [r] for r in results]
        else:
            raise LockstepError(f"{node.op} {node.target}: only operators can be run")
        if check_values:
            _check(node, values[node])
    raise LockstepError("the graph has no output")


def _copies(inputs: Sequence[Any]) -> list[Any]:
    """Copies that keep strides, and keep one tensor that is passed twice one tensor."""
    copies: dict[int, Any] = {}
    for x in inputs:
        if isinstance(x, Tensor) and id(x) not in copies:
            copies[id(x)] = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype).copy_(x)
    return [copies.get(id(x), x) for x in inputs]


def _of_rank(node: Node, values: dict[Node, list[Any]], rank: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def value(x: Node) -> Any:
        return values[x][rank]

    return map_arg(node.args, value), map_arg(node.kwargs, value)  # type: ignore[return-value]


def _call(node: Node, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
    target = node.target
    if isinstance(target, HigherOrderOperator):
        raise LockstepError(f"{node.name}: {target} is not known")
    if isinstance(target, OpOverload):
        collective = COLLECTIVES.get((target.namespace, target._opname))
        if collective is not None:
            return collective(target, [_bound(target, *call) for call in calls])
        names = {a.name for a in target._schema.arguments}
        if "c10d" in target.namespace or names & GROUP_ARGUMENTS:
            raise LockstepError(f"{node.name}: the collective {target} is not known")
    assert callable(target)
    return [target(*args, **kwargs) for args, kwargs in calls]


def _bound(target: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name, defaults included."""
    parameters = target._schema.arguments
    bound = {p.name: p.default_value for p in parameters if p.has_default_value()}
    bound |= dict(zip((p.name for p in parameters), args, strict=False)) | kwargs
    missing = [p.name for p in parameters if p.name not in bound]
    if missing:
        raise LockstepError(f"{target}: no value for {missing}")
    return bound


def _check_arguments(node: Node) -> None:
    """Python code generated for the graph could not name a symbol."""
    symbols = [x for x in tree_leaves((node.args, node.kwargs)) if isinstance(x, (torch.SymInt, torch.SymFloat))]
    if symbols:
        raise LockstepError(f"{node.format_node()}: the symbols {symbols} are arguments")


def _check(node: Node, values: list[Any]) -> None:
    said = node.meta.get("val")
    for value in values:
        pairs = zip(said, value, strict=True) if isinstance(said, (tuple, list)) else [(said, value)]
        for wanted, got in pairs:
            if not isinstance(wanted, Tensor):
                continue
            facts = [(tuple(x.shape), x.dtype, _strides(x)) for x in (wanted, got)]
            if facts[0] != facts[1]:
                raise LockstepError(f"{node.format_node()}: meta says {facts[0]}, the value is {facts[1]}")


def _strides(x: Tensor) -> tuple[int, ...]:
    """Of the axes where they mean something."""
    return tuple(s for s, size in zip(x.stride(), x.shape, strict=True) if size != 1) if x.numel() else ()


# -- collectives ----------------------------------------------------------------------------------------------

Calls = list[dict[str, Any]]
"""The arguments of one collective call, by name, for each rank."""

REDUCTIONS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "sum": lambda parts: reduce(torch.add, parts),
    "avg": lambda parts: reduce(torch.add, parts) / len(parts),
    "max": lambda parts: reduce(torch.maximum, parts),
    "min": lambda parts: reduce(torch.minimum, parts),
    "product": lambda parts: reduce(torch.mul, parts),
}


def reduced(parts: list[Tensor], reduce_op: str) -> Tensor:
    """float32 over the ranks in order, rounded once to the tensors' dtype."""
    if len({(x.shape, x.dtype) for x in parts}) != 1:
        raise LockstepError(f"ranks reduce different tensors: {[(tuple(x.shape), x.dtype) for x in parts]}")
    if reduce_op.lower() not in REDUCTIONS:
        raise LockstepError(f"reduce op {reduce_op!r} is not known")
    wide = [x.float() if x.is_floating_point() and x.dtype is not torch.float64 else x for x in parts]
    total = REDUCTIONS[reduce_op.lower()](wide)
    return torch.empty_like(parts[0]).copy_(total)


def _same(calls: Calls, *names: str) -> None:
    for name in names:
        if any(call.get(name) != calls[0].get(name) for call in calls):
            raise LockstepError(f"ranks disagree in {name}: {[call.get(name) for call in calls]}")


def _check_size(calls: Calls) -> None:
    if any(call["group_size"] != len(calls) for call in calls):
        raise LockstepError(f"the group has {calls[0]['group_size']} ranks, the graph runs on {len(calls)}")


def _operands(target: OpOverload, calls: Calls) -> list[Any]:
    name = target._schema.arguments[0].name
    return [call[name] for call in calls]


def _op_name(target: OpOverload, calls: Calls) -> str:
    name = next(a.name for a in target._schema.arguments if a.name in ("reduce_op", "reduceOp"))
    _same(calls, name, "group_name", "tag", "ranks")
    return str(calls[0][name])


def _all_reduce(target: OpOverload, calls: Calls) -> list[Any]:
    total = reduced(_operands(target, calls), _op_name(target, calls))
    return [_clone(total) for _ in calls]


def _all_reduce_(target: OpOverload, calls: Calls) -> list[Any]:
    parts = _operands(target, calls)
    total = reduced(parts, _op_name(target, calls))
    return [part.copy_(total) for part in parts]


def _all_reduce_coalesced(target: OpOverload, calls: Calls) -> list[Any]:
    reduce_op = _op_name(target, calls)
    totals = [reduced(list(parts), reduce_op) for parts in zip(*_operands(target, calls), strict=True)]
    return [[_clone(total) for total in totals] for _ in calls]


def _reduce_scatter(target: OpOverload, calls: Calls) -> list[Any]:
    _check_size(calls)
    total = reduced(_operands(target, calls), _op_name(target, calls))
    if total.size(0) % len(calls):
        raise LockstepError(f"{total.size(0)} rows do not scatter over {len(calls)} ranks")
    return [_clone(part.contiguous()) for part in total.chunk(len(calls))]


def _all_gather(target: OpOverload, calls: Calls) -> list[Any]:
    _check_size(calls)
    _same(calls, "group_name", "tag", "ranks")
    parts = _operands(target, calls)
    if len({x.shape for x in parts}) != 1:
        raise LockstepError(f"ranks gather different shapes: {[tuple(x.shape) for x in parts]}")
    return [torch.cat(parts) for _ in calls]


def _wait(target: OpOverload, calls: Calls) -> list[Any]:
    return _operands(target, calls)


def _vllm_all_reduce(target: OpOverload, calls: Calls) -> list[Any]:
    _same(calls, "group_name")
    total = reduced(_operands(target, calls), "sum")
    return [_clone(total) for _ in calls]


def _base(target: OpOverload, calls: Calls) -> list[Any]:
    _same(calls, "hcom", "reduce_op")
    total = reduced([_base_product(target, call) for call in calls], calls[0]["reduce_op"])
    return [_clone(total) for _ in calls]


def _base_product(target: OpOverload, call: dict[str, Any]) -> Tensor:
    if call["antiquant_scale"] is not None or call["dequant_scale"] is not None:
        return fused_formula.product(**{name: call[name] for name in fused_formula.PRODUCT_ARGUMENTS})
    return target(**call)  # type: ignore[no-any-return]


def _fused(target: OpOverload, calls: Calls) -> list[Any]:
    _same(calls, "hcom", "reduce_op", "epsilon", "comm_turn", "antiquant_group_size")
    fused_formula.check_call(target, calls[0], len(calls))
    if target._schema.overload_name.endswith("transposed_x2"):
        calls = [call | {"x2": call["x2"].t()} for call in calls]
    results = fused_formula.npu_mm_all_reduce_add_rms_norm(calls, lambda parts: reduced(parts, calls[0]["reduce_op"]))
    if target._schema.is_mutable or target._schema.overload_name.startswith("consuming"):
        results = [(call["residual"].copy_(y), norm) for call, (y, norm) in zip(calls, results, strict=True)]
    return [norm for _, norm in results] if target._schema.overload_name == "unaliased" else list(results)


def _grouped(target: OpOverload, calls: Calls) -> list[Any]:
    _same(calls, "hcomm", "reduce_op", "comm_turn", "split_item", "group_list")
    fused_formula.check_call(target, calls[0], len(calls))
    return fused_formula.npu_grouped_mat_mul_all_reduce(calls, lambda parts: reduced(parts, calls[0]["reduce_op"]))


def _clone(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.preserve_format)


COLLECTIVES: dict[tuple[str, str], Callable[[OpOverload, Calls], list[Any]]] = {
    **{
        (namespace, name): compute
        for namespace in ("_c10d_functional", "c10d_functional")
        for name, compute in {
            "all_reduce": _all_reduce,
            "all_reduce_": _all_reduce_,
            "all_reduce_coalesced": _all_reduce_coalesced,
            "reduce_scatter_tensor": _reduce_scatter,
            "all_gather_into_tensor": _all_gather,
            "wait_tensor": _wait,
        }.items()
    },
    ("vllm", "all_reduce"): _vllm_all_reduce,
    ("npu", "npu_mm_all_reduce_base"): _base,
    ("npu_fused_graph", "npu_mm_all_reduce_add_rms_norm"): _fused,
    ("npu_fused_graph", "npu_mm_all_reduce_add_rms_norm_in_place"): _fused,
    ("npu_fused_graph", "npu_grouped_mat_mul_all_reduce"): _grouped,
}
