"""Records of fused calls: what ``npu-fused-graph run --record DIR`` writes.

``DIR/run.json``: the command, the seed, versions. Per rank a folder ``DIR/rank_<r>`` (``process_<pid>`` without a
process group) with three files per call, numbered in order: ``<n>_<op>.inputs.safetensors``, written before the
call; ``<n>_<op>.outputs.safetensors``; ``<n>_<op>.json``, written last: op, attributes, group, and of each input
dtype, shape and whether the file holds its transpose. Names are those of the operator's Python arguments; the tensors
of a list ``x`` are ``x.0``, ``x.1``, ..., its facts a list. The outputs of an operator that writes windows are what its
module's ``delivered`` finds there.
"""

from __future__ import annotations

import inspect
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch import distributed as dist

from npu_fused_graph import comm
from npu_fused_graph.comm import Rank
from npu_fused_graph.errors import HostError
from npu_fused_graph.ops import module_of
from npu_fused_graph.ops.observers import Finish, ObservedCall

FORMAT = 1


class Recorder:
    """A listener of operator calls that writes each to disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers: Counter[Path] = Counter()
        self._turns: Counter[str] = Counter()

    def __call__(self, call: ObservedCall) -> Finish | None:
        delivered = getattr(module_of(call.spec.stem), "delivered", None)
        if call.spec.has_effects and delivered is None:
            return None  # what it does is in windows that others change
        rank = dist.get_rank() if dist.is_initialized() else None
        folder = self._folder / (f"process_{os.getpid()}" if rank is None else f"rank_{rank}")
        folder.mkdir(exist_ok=True)
        place = folder / f"{self._numbers[folder]:05d}_{call.spec.stem}"
        self._numbers[folder] += 1
        _save({name: _stored(x) for name, x in _flat(call.tensors)}, _file(place, "inputs"))
        facts: dict[str, Any] = {
            "format": FORMAT,
            "op": call.spec.stem,
            "ge_type": call.spec.ge_type,
            "node": call.node,
            "rank": rank,
            "group": self._group(call),
            "attrs": dict(call.attrs),
            "inputs": {name: _facts(x) for name, x in call.tensors.items()},
            "outputs": [o.python_name for o in call.spec.python_outputs],
        }

        def finish(results: tuple[Any, ...]) -> None:
            named = dict(_flat(dict(zip(facts["outputs"], results, strict=True))))
            if delivered is not None:
                named = what_it_did(delivered, {**call.tensors, **call.attrs}, self._rank(call))
            _save({name: x.contiguous() for name, x in named.items()}, _file(place, "outputs"))
            facts["outputs"] = list(named)
            place.with_suffix(".json").write_text(json.dumps(facts, indent=1), encoding="utf-8")

        return finish

    def _rank(self, call: ObservedCall) -> Rank:
        return comm.communicator(call.attrs[call.spec.communicator])

    def _group(self, call: ObservedCall) -> dict[str, Any] | None:
        """The ranks, and the how manieth recorded call of that group this is: it matches the ranks' records."""
        if call.group is None:
            return None
        ranks = dist.get_process_group_ranks(call.group)
        name = call.group.group_name
        self._turns[name] += 1
        return {"name": name, "ranks": ranks, "turn": self._turns[name] - 1}


def what_it_did(
    delivered: Callable[..., dict[str, Tensor]], arguments: Mapping[str, Any], rank: Rank
) -> dict[str, Tensor]:
    """Of a call without results: what an operator's ``delivered`` finds in the windows."""
    return delivered(**wanted(delivered, {**arguments, "rank": rank}))


def wanted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function of an operator takes."""
    return {name: value for name, value in arguments.items() if name in inspect.signature(function).parameters}


def _file(place: Path, what: str) -> str:
    return f"{place}.{what}.safetensors"


def _save(tensors: dict[str, Tensor], file: str) -> None:
    """The format has no tensors that share memory; a call may have (one tensor as x1 and residual)."""
    seen: set[int] = set()
    for name, x in tensors.items():
        storage = x.untyped_storage()._cdata
        if storage in seen:
            tensors[name] = x.clone()
        seen.add(storage)
    save_file(tensors, file)


def _flat(tensors: Mapping[str, Tensor | Sequence[Tensor] | None]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of what is there, those of lists one by one."""
    for name, x in tensors.items():
        if isinstance(x, Tensor):
            yield name, x
        elif x is not None:
            yield from ((f"{name}.{i}", part) for i, part in enumerate(x))


def _is_transposed(x: Tensor) -> bool:
    return not x.is_contiguous() and x.dim() >= 2 and x.transpose(-1, -2).is_contiguous()


def _stored(x: Tensor) -> Tensor:
    """Files hold contiguous tensors: the transpose of a transposed one, so that its layout is kept."""
    return (x.transpose(-1, -2) if _is_transposed(x) else x).detach().contiguous()


def _facts(x: Tensor | Sequence[Tensor] | None) -> Any:
    if x is None:
        return None
    if not isinstance(x, Tensor):
        return [_facts(part) for part in x]
    dtype = str(x.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(x.shape), "is_transposed": _is_transposed(x)}


class RecordedCall:
    """One rank's record of one call, read when asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HostError(f"[replay] {path}: expected a record of a call, got: {error}. Record again.") from None
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise HostError(f"[replay] {path}: expected a record of format {FORMAT}, got another. Record again.")
        try:
            self.op: str = facts["op"]
            self.node: str = facts["node"]
            self.rank: int | None = facts["rank"]
            self.group: dict[str, Any] | None = facts["group"]
            self.attrs: dict[str, Any] = facts["attrs"]
            self._inputs: dict[str, Any] = facts["inputs"]
            self._outputs: list[str] = facts["outputs"]
        except KeyError as error:
            raise HostError(f"[replay] {path}: expected {error} in the record, got none. Record again.") from None

    def arguments(self) -> dict[str, Any]:
        """Tensors and attributes by Python name, as the operator was called."""
        names: dict[str, Any] = {}
        for name, facts in self._inputs.items():
            names |= {f"{name}.{i}": f for i, f in enumerate(facts)} if isinstance(facts, list) else {name: facts}
        present = {name: facts for name, facts in names.items() if facts is not None}
        loaded = dict(zip(present, self._load("inputs", list(present)), strict=True))
        for name, facts in present.items():
            if facts["is_transposed"]:
                loaded[name] = loaded[name].transpose(-1, -2)
        tensors: dict[str, Any] = {
            name: [loaded[f"{name}.{i}"] for i in range(len(facts))] if isinstance(facts, list) else loaded.get(name)
            for name, facts in self._inputs.items()
        }
        return {**tensors, **self.attrs}

    def outputs(self) -> list[Tensor]:
        """The results, in GE order, those of a list one by one."""
        return self._load("outputs", self._outputs)

    def _load(self, what: str, names: list[str]) -> list[Tensor]:
        file = _file(self.path.with_suffix(""), what)
        try:
            loaded: dict[str, Tensor] = load_file(file)
        except Exception as error:  # the library has one class for each way a file can be damaged
            raise HostError(f"[replay] {file}: expected the tensors of a record, got: {error}. Record again.") from None
        missing = [name for name in names if name not in loaded]
        if missing:
            raise HostError(f"[replay] {file}: expected {', '.join(missing)} in the record, got none. Record again.")
        return [loaded[name] for name in names]
