"""``npu-fused-graph replay DIR``: recorded calls are executed again in one process, by every implementation."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from npu_fused_graph import comm, ops
from npu_fused_graph.comm.threads import LocalGroup, LocalRank
from npu_fused_graph.errors import HostError
from npu_fused_graph.host import replay_windows
from npu_fused_graph.host.one_operator import OneOperator
from npu_fused_graph.host.record import RecordedCall, wanted
from npu_fused_graph.ops import STEMS, module_of
from npu_fused_graph.testing import TOLERANCE

METHODS = ("reference", "decompose", "float64", "engine")
"""reference: the roundings of the kernel. decompose: basic torch operations. float64: no roundings. engine: the GE
node TorchAir's converter makes, on the CPU engine."""

KERNEL = "kernel"
"""Not among them: our AscendC kernel, on the simulator."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A method's results against the recorded ones. max_error: largest absolute difference, over ranks and outputs."""

    method: str
    max_error: float
    is_close: bool


@dataclass(slots=True)
class ReplayedCall:
    """One call on all its ranks. missing: ranks of the group without a record; such a call is not executed."""

    op: str
    node: str
    ranks: list[int]
    missing: list[int] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def is_close(self) -> bool:
        return not self.missing and all(c.is_close for c in self.comparisons)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def replay(
    folder: Path, methods: Sequence[str] = METHODS, *, log: Callable[[str], None] = lambda text: None
) -> Iterator[ReplayedCall]:
    """Execute every recorded call again. Raises HostError for what is no record, or a damaged one.

    log: told what begins; a call of 8 ranks with a gigabyte of tensors takes minutes.
    """
    paths = sorted(folder.glob("*_*/*.json"))
    if not (folder / "run.json").is_file() or not paths:
        raise HostError(
            f"[replay] {folder}: expected a folder written by `npu-fused-graph run --record`, got one without calls."
        )
    groups: dict[Any, list[RecordedCall]] = defaultdict(list)
    for path in paths:
        call = RecordedCall(path)
        if call.op not in STEMS:
            raise HostError(f"[replay] {path}: expected one of {', '.join(STEMS)}, got {call.op}. Update the package.")
        groups[_key(call)].append(call)
    for calls in groups.values():
        yield _replay(sorted(calls, key=lambda c: c.rank or 0), methods, log)


def _key(call: RecordedCall) -> Any:
    if call.group is None:
        return str(call.path)
    return call.op, call.group["name"], tuple(call.group["ranks"]), call.group["turn"]


def _replay(calls: list[RecordedCall], methods: Sequence[str], log: Callable[[str], None]) -> ReplayedCall:
    first = calls[0]
    module = module_of(first.op)
    group = [first.rank or 0] if first.group is None else first.group["ranks"]
    ranks = group
    if module.SPEC.is_one_sided:
        replay_windows.check_alike(module, calls)
        ranks = [group[place] for place in replay_windows.callers(module, len(group), first.attrs)]
    result = ReplayedCall(first.op, first.node, ranks)
    present = {c.rank for c in calls} if first.group is not None else set(ranks)
    result.missing = [r for r in ranks if r not in present]
    if result.missing:
        return result
    ops.register()
    arguments = [c.arguments() for c in calls]
    recorded = [c.outputs() for c in calls]
    for method in methods:
        log(f"{first.op} on {len(ranks)} ranks: {method} ...")
        if module.SPEC.is_one_sided:
            places = {group.index(c.rank): a for c, a in zip(calls, arguments, strict=True)}
            computed = replay_windows.again(method, module, places, len(group))
        else:
            # in-place forms write into their arguments, and each method starts from what was recorded
            given = [{**a, **{name: a[name].clone() for name in module.SPEC.mutated}} for a in arguments]
            computed = _METHODS[method](module, given) if method in _METHODS else None
        if computed is not None:
            result.comparisons.append(compare(method, computed, recorded, len(ranks)))
        elif method == KERNEL:
            log(f"{first.op}: its kernel is not here yet")
    return result


# -- the methods: results per rank, None where an operator has no such form -----------------------------------

Arguments = Sequence[Mapping[str, Any]]
Results = Iterable[Sequence[Tensor]]


def _reference(module: Any, arguments: Arguments) -> Results | None:
    return _each_rank(arguments, lambda rank, a: module.reference(**wanted(module.reference, {**a, "rank": rank})))


def _decompose(module: Any, arguments: Arguments) -> Results | None:
    if not hasattr(module, "decompose"):
        return None

    def run(rank: LocalRank, given: Mapping[str, Any]) -> Any:
        with _WideMatmuls():  # type: ignore[no-untyped-call]
            return module.decompose(**wanted(module.decompose, {**given, "rank": rank}))

    return _each_rank(arguments, run)


class _WideMatmuls(TorchDispatchMode):
    """Products of half precision computed in float32 and rounded once: a hundred times faster on most CPUs."""

    _PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._PRODUCTS or args[0].dtype.itemsize != 2:
            return func(*args, **(kwargs or {}))
        return func(*(x.float() for x in args), **(kwargs or {})).to(args[0].dtype)


def _float64(module: Any, arguments: Arguments) -> Results | None:
    exact = getattr(module, "exact", None)
    if exact is None:
        return None
    results: Results = exact(arguments)
    return results


def _engine(module: Any, arguments: Arguments) -> Results | None:
    spec = module.SPEC
    if any(given.get("drop_seed") is not None for given in arguments):
        return None  # GE's generator draws other numbers from it
    names = [f"replay {rank}" for rank in range(len(arguments))]
    packet = getattr(torch.ops.npu_fused_graph, spec.operator_name)
    op = packet.functional if spec.mutated else packet.default
    graphs = []
    for name, given in zip(names, arguments, strict=True):
        call = OneOperator(op, (), {**given, spec.communicator: name} if spec.group_sizes else given)
        graphs.append((call.tensors, call.compile()))

    def run(rank: LocalRank, given: Mapping[str, Any]) -> Any:
        tensors, graph = graphs[rank.rank]
        return graph(tensors)

    group = LocalGroup(len(arguments))
    with comm.provide(dict(zip(names, group.ranks, strict=True))):
        return _each_rank(arguments, run, group)


_METHODS: dict[str, Callable[[Any, Arguments], Results | None]] = {
    "reference": _reference,
    "decompose": _decompose,
    "float64": _float64,
    "engine": _engine,
}


def _each_rank(
    arguments: Arguments, run: Callable[[LocalRank, Mapping[str, Any]], Any], group: LocalGroup | None = None
) -> Results:
    def work(rank: LocalRank) -> list[Tensor]:
        with torch.no_grad():
            results = run(rank, arguments[rank.rank])
        return list(results) if isinstance(results, (tuple, list)) else [results]

    return (group or LocalGroup(len(arguments))).run(work)


def compare(method: str, computed: Results, recorded: Results, ranks: int) -> Comparison:
    """Two results, rank by rank.

    Every rank rounds its part of the sum, so the tolerance is the table's times the number of ranks.

    The table is for values about 1: larger results are brought to that size by a power of two first.
    """
    largest, is_close = 0.0, True
    for theirs, ours in zip(computed, recorded, strict=True):
        for expected, actual in zip(theirs, ours, strict=True):
            if not actual.numel():
                continue
            wide, target = actual.double(), expected.double()
            largest = max(largest, float((wide - target).abs().nan_to_num().max()))
            relative, absolute = (bound * ranks for bound in TOLERANCE.get(actual.dtype, (0.0, 0.0)))
            rms = float(target.nan_to_num().square().mean().sqrt())
            size = max(1.0, 2.0 ** round(math.log2(rms))) if rms else 1.0
            is_close &= torch.allclose(wide, target, relative, absolute * size, equal_nan=True)
    return Comparison(method, largest, is_close)


def format_replay(call: ReplayedCall) -> str:
    """One line per method."""
    where = f"node {call.node}" if call.node else "eager"
    head = f"{call.op} ({where}) on rank{'s' if len(call.ranks) > 1 else ''} {', '.join(map(str, call.ranks))}"
    if call.missing:
        return f"{head}: not executed, no record of rank {', '.join(map(str, call.missing))}"
    lines = [head]
    for c in call.comparisons:
        lines.append(
            f"  {c.method:<10} max error {c.max_error:<10.3g} {'within tolerance' if c.is_close else 'DIFFERS'}"
        )
    return "\n".join(lines)
