"""Recorded calls that wrote windows, executed again: on all ranks of a group with fresh windows, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph import comm
from npu_fused_graph.comm.threads import LocalGroup, LocalRank
from npu_fused_graph.engine.kernels.simulated import CHIP, WITH_KERNEL, Call, launch_one_sided
from npu_fused_graph.errors import HostError
from npu_fused_graph.host.one_operator import OneOperator
from npu_fused_graph.host.record import RecordedCall, wanted, what_it_did

Calls = Mapping[int, Mapping[str, Any]]
"""Arguments by Python name, of each rank of the group that calls the operator."""


def callers(module: ModuleType, size: int, arguments: Mapping[str, Any]) -> list[int]:
    """The ranks of a group of ``size`` that call the operator, as one of them tells it."""
    ranks: list[int] = _window_sizes(module, size, arguments)[0]
    return ranks


def check_alike(module: ModuleType, calls: Sequence[RecordedCall]) -> None:
    """Raise HostError for ranks whose calls cannot be one turn: attributes say where the tables are, and how large."""
    first, names = calls[0], [a.python_name for a in module.SPEC.attrs if a.python_name != module.SPEC.communicator]
    for call in calls:
        for name in names:
            if call.attrs[name] != first.attrs[name]:
                raise HostError(
                    f"[replay] {call.path}: expected {name} {first.attrs[name]} as on rank {first.rank}, got "
                    f"{call.attrs[name]}. Record both ranks in one run."
                )


def again(method: str, module: ModuleType, calls: Calls, size: int) -> Iterable[Sequence[Tensor]] | None:
    """What the calls did, by this method, rank by rank; None where the operator has no such form."""
    if method not in _METHODS or (method == "kernel" and module.SPEC.stem not in WITH_KERNEL):
        return None
    group = LocalGroup(size)
    sizes = _window_sizes(module, size, next(iter(calls.values())))[1]
    group.run(lambda rank: rank.register_windows(sizes[rank.rank]))
    with torch.no_grad():
        _METHODS[method](module, calls, group)
    return [list(what_it_did(module.delivered, calls[r], group.ranks[r]).values()) for r in calls]


def _window_sizes(module: ModuleType, size: int, arguments: Mapping[str, Any]) -> Any:
    return module.window_sizes(size, **wanted(module.window_sizes, arguments))


def _reference(module: ModuleType, calls: Calls, group: LocalGroup) -> None:
    def call(rank: LocalRank) -> None:
        if rank.rank in calls:
            module.reference(**wanted(module.reference, {**calls[rank.rank], "rank": rank}))

    group.run(call)


def _engine(module: ModuleType, calls: Calls, group: LocalGroup) -> None:
    spec = module.SPEC
    op = getattr(torch.ops.npu_fused_graph, spec.operator_name).default
    names = {r: f"replay {r}" for r in calls}
    graphs = {}
    for r, arguments in calls.items():
        one = OneOperator(op, (), {**arguments, spec.communicator: names[r]})
        graphs[r] = one.tensors, one.compile()

    def call(rank: LocalRank) -> None:
        if rank.rank in calls:
            tensors, graph = graphs[rank.rank]
            graph(tensors)

    with comm.provide({name: group.ranks[r] for r, name in names.items()}):
        group.run(call)


def _kernel(module: ModuleType, calls: Calls, group: LocalGroup) -> None:
    """All ranks in one launch, so that the simulator sees what they do to each other."""
    spec = module.SPEC
    nodes = {
        r: Call(
            {t.name: arguments[t.python_name] for t in spec.inputs},
            {a.name: arguments[a.python_name] for a in spec.attrs},
        )
        for r, arguments in calls.items()
    }
    launch_one_sided(spec, CHIP, nodes, {r.rank: r.windows.memory(r.rank) for r in group.ranks}, group.size)


_METHODS: dict[str, Callable[[ModuleType, Calls, LocalGroup], None]] = {
    "reference": _reference,
    "engine": _engine,
    "kernel": _kernel,
}
