"""Constraints that every operator with a matmul and an all-reduce has."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.errors import argument_error
from npu_fused_graph.spec import CallFacts, OpSpec

INT32_MAX = 2**31 - 1


def only_sums(spec: OpSpec, call: CallFacts) -> None:
    """reduce_op is "sum"."""
    if call.attrs["reduce_op"] != "sum":
        raise argument_error(spec.stem, "reduce_op", "'sum'", repr(call.attrs["reduce_op"]), "Only sums are reduced.")


def automatic_turns(spec: OpSpec, call: CallFacts) -> None:
    """comm_turn is 0."""
    if call.attrs["comm_turn"] != 0:
        raise argument_error(spec.stem, "comm_turn", "0 (automatic)", call.attrs["comm_turn"], "Leave it out.")


def named_communicator(spec: OpSpec, call: CallFacts) -> None:
    """The communicator is named by a string of 1 to 127 bytes."""
    name = call.attrs[spec.communicator]
    if not isinstance(name, str) or not 0 < len(name.encode()) <= 127:
        raise argument_error(
            spec.stem, spec.communicator, "a communicator name of 1 to 127 bytes", repr(name),
            "Pass the group's c10d name or get_hccl_comm_name(rank).",
        )  # fmt: skip


def one_device(spec: OpSpec, call: CallFacts) -> None:
    """All tensors are on one device."""
    given = [named for tensor in spec.tensors for named in call.facts(tensor)]
    first, device = given[0][0], given[0][1].device
    for name, facts in given:
        if facts.device != device:
            raise argument_error(
                spec.stem, name, f"a tensor on {device} (the device of {first})", f"one on {facts.device}", "Move it."
            )


def exceeds(size: Any, limit: int) -> bool:
    """Whether a size is known to be over ``limit``.

    A limit no real size reaches must not become a guard, and a size may not be known before the graph runs.
    """
    if isinstance(size, int):
        return size > limit
    from torch.fx.experimental.symbolic_shapes import guard_or_false, statically_known_true

    is_over = statically_known_true if limit >= INT32_MAX // 2 else guard_or_false
    return is_over(size > limit)


def differ(a: Any, b: Any) -> bool:
    """Whether two sizes are known to differ; what is known only when the graph runs is left to the engine."""
    if isinstance(a, int) and isinstance(b, int):
        return a != b
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return bool(guard_or_false(a != b))


def is_known(size: Any) -> bool:
    """Whether a size is a number while a graph is traced; a dynamic size of an input becomes one for this graph."""
    if isinstance(size, int):
        return True
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    try:
        int(size)
    except GuardOnDataDependentSymNode:
        return False
    return True
