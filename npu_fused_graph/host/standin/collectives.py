"""Collectives of hccl groups: torch's operators for them, with what HCCL refuses and gloo lets pass.

``torch.distributed`` and its functional collectives meet in the operators of the ``c10d`` namespace. Before these reach
gloo's kernels, in the dispatch key right above them, tensors must be contiguous and the ranks compare operation, dtypes
and sizes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d as c10d

from npu_fused_graph.host.standin.agreement import AHEAD, Agreement, pair_hash

Start = Callable[[], Any]


class _Deferred(dist.Work):
    """A collective that starts once all ranks have come to it, while its caller goes on.

    kept: where it stays until somebody waits: C++ holds its own half only.
    """

    def __init__(self, call: int, text: str, start: Start, kept: set[_Deferred]) -> None:
        super().__init__()
        self.call, self.text = call, text
        self._start: Start | None = start
        self._modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        self._kept = kept
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._work: Any = None
        kept.add(self)

    def run(self, agreement: Agreement, started: Callable[[], None]) -> None:
        """On the thread that works them off."""
        try:
            inference, grad = self._modes
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                try:
                    agreement.meet(self.call, self.text)
                    assert self._start is not None
                    self._work = self._start()
                finally:
                    self._start = None  # and with it the tensors
                    started()
                self._work.wait()  # which may write the results
        except BaseException as error:
            self._error = error
        self._done.set()

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        done = self._done.wait(timeout.total_seconds() or None)
        if done:
            self._kept.discard(self)
        if self._error is not None:
            raise self._error
        return done

    def is_completed(self) -> bool:
        return self._done.is_set()

    def get_future(self) -> Any:
        """For C++, which learns of an error from a callback only."""
        made: torch.futures.Future[Any] = torch.futures.Future()

        def end(_: Any) -> Any:
            self.wait()
            with suppress(RuntimeError):  # not all of gloo's have one
                return self._work.get_future().value()
            return []

        def complete() -> None:
            self._done.wait()
            made.set_result(None)

        threading.Thread(target=complete, daemon=True).start()
        return made.then(end)


class Collectives:
    """Of one hccl group on this rank: one after the other, in the order of the calls."""

    def __init__(self, agreement: Agreement | None, rank: int) -> None:
        self.rank = rank
        self._agreement = agreement  # None: one rank alone
        self._lock = threading.Lock()
        self._waiting: deque[_Deferred] = deque()
        self._changed = threading.Condition()
        self._is_working = False
        self._kept: set[_Deferred] = set()

    def run(
        self, text: str, tensors: Iterable[Tensor], start: Start, is_async: bool, counts: list[list[int]] | None
    ) -> Any:
        """The work of a collective. text: what is equal on all ranks. counts: sent to and expected from each."""
        strided = next((x for x in tensors if not _is_contiguous(x)), None)
        agreement = self._agreement
        if agreement is None:
            _refuse_strided(strided)
            return start()
        with self._lock:
            if strided is not None:
                text = f"{text} of a tensor that is not contiguous"
                agreement.tell(agreement.post(text, 0), text)
                _refuse_strided(strided)
            pairs = 0
            if counts is not None and {len(x) for x in counts} == {agreement.size}:
                pairs = pair_hash(self.rank, *counts)
            elif counts is not None:
                text += f" between {len(counts[0])} and {len(counts[1])} ranks"
            call = agreement.post(text, pairs)
            if counts is not None:
                text += f", sends {counts[0]}, expects {counts[1]}"
            if not self._waiting and not (is_async and not agreement.has_met(call)):
                agreement.meet(call, text)
                return start()
            item = _Deferred(call, text, start, self._kept)
            self._defer(item, agreement)
        return item

    def _defer(self, item: _Deferred, agreement: Agreement) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < AHEAD)
            self._waiting.append(item)
            if not self._is_working:
                threading.Thread(target=self._work_off, args=(agreement,), daemon=True).start()
                self._is_working = True

    def _work_off(self, agreement: Agreement) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._is_working = False
                    self._changed.notify_all()
                    return
                item = self._waiting[0]
            item.run(agreement, self._has_started)

    def drain(self, seconds: float) -> None:
        """Wait for what was deferred: who leaves must not take it along."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._is_working, seconds)

    def _has_started(self) -> None:
        with self._changed:
            self._waiting.popleft()
            self._changed.notify_all()


def _is_contiguous(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.is_contiguous() or (x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()]))


def _refuse_strided(x: Tensor | None) -> None:
    """As torch_npu does."""
    if x is not None:
        raise RuntimeError(
            f"Tensors must be contiguous: got shape {list(x.shape)} with strides {list(x.stride())}. "
            "Call .contiguous(), and copy the result back where it is wanted."
        )


# -- the operators ---------------------------------------------------------------------------------------------

_OPERATORS: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "allreduce_": ("allreduce", ("tensors",), c10d.AllreduceOptions),
    "allreduce_coalesced_": ("allreduce_coalesced", ("tensors",), c10d.AllreduceCoalescedOptions),
    "allgather_": ("allgather", ("output_tensors", "input_tensors"), c10d.AllgatherOptions),
    "_allgather_base_": ("_allgather_base", ("output_tensor", "input_tensor"), c10d.AllgatherOptions),
    "allgather_coalesced_": ("allgather_coalesced", ("output_lists", "input_list"), c10d.AllgatherOptions),
    "allgather_into_tensor_coalesced_": ("_allgather_base", ("outputs", "inputs"), c10d.AllgatherOptions),
    "reduce_": ("reduce", ("tensors",), c10d.ReduceOptions),
    "reduce_scatter_": ("reduce_scatter", ("output_tensors", "input_tensors"), c10d.ReduceScatterOptions),
    "_reduce_scatter_base_": ("_reduce_scatter_base", ("output_tensor", "input_tensor"), c10d.ReduceScatterOptions),
    "reduce_scatter_tensor_coalesced_": ("_reduce_scatter_base", ("outputs", "inputs"), c10d.ReduceScatterOptions),
    "broadcast_": ("broadcast", ("tensors",), c10d.BroadcastOptions),
    "scatter_": ("scatter", ("output_tensors", "input_tensors"), c10d.ScatterOptions),
    "gather_": ("gather", ("output_tensors", "input_tensors"), c10d.GatherOptions),
    "alltoall_": ("alltoall", ("output_tensors", "input_tensors"), c10d.AllToAllOptions),
    "alltoall_base_": (
        "alltoall_base", ("output", "input", "output_split_sizes", "input_split_sizes"), c10d.AllToAllOptions,
    ),
    "barrier": ("barrier", (), c10d.BarrierOptions),
}  # fmt: skip
"""For each operator the method of gloo's, the arguments it is given, and the class of its options."""
_ONE_BY_ONE = ("allgather_into_tensor_coalesced_", "reduce_scatter_tensor_coalesced_")
"""Of several pairs of tensors, by a method of gloo's for one: those for several Python cannot call."""
_BY_MEMORY = ("_allgather_base", "_reduce_scatter_base")
"""Methods of which HCCL wants as many elements as there are, in tensors of any shape; gloo compares the first axes."""
_OPTIONS = {"root_rank": "rootRank", "root_tensor": "rootTensor", "device_ids": "device_ids", "async_op": "asyncOp"}
_MAY_DIFFER = {"gather_": ("output_tensors",), "scatter_": ("input_tensors",)}
"""Arguments that ranks do not have alike: the root's alone."""
_SENT = {"alltoall_": ("input_tensors", "output_tensors"), "alltoall_base_": ("input", "output")}
"""What a rank sends to and gets from each of the others: as much as these expect, and not the same on all ranks."""

_library: Any = None


def install() -> None:
    """Come before gloo's kernels of torch's collectives."""
    global _library
    _library = torch.library.Library("c10d", "IMPL")
    for name in _OPERATORS:
        _library.impl(name, _checked(name), "BackendSelect", with_keyset=True)


def _checked(name: str) -> Callable[..., Any]:
    operator = getattr(torch.ops.c10d, name).default
    schema = operator._schema
    has_results = len(schema.returns) > 1
    names = [a.name for a in schema.arguments]
    tensor_names = [a.name for a in schema.arguments if "Tensor" in str(a.type)]
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}

    def kernel(keys: Any, *args: Any) -> Any:
        found = {**defaults, **dict(zip(names, args, strict=False))}
        group = dist.ProcessGroup.unbox(found["process_group"])
        backend = group._get_backend(_CPU) if _CPU in group._device_types else None
        if not isinstance(backend, dist.ProcessGroupGloo):
            return operator.redispatch(keys & _KEYS_BELOW, *args)
        text, tensors = _described(name, tensor_names, found)
        own = getattr(backend, "collectives", None)
        if own is None:  # a gloo group beside the hccl ones
            work = _start(name, backend, found)
        else:
            counts = _counts(group.size(), found, *_SENT[name]) if name in _SENT else None
            work = own.run(text, tensors, lambda: _start(name, backend, found), found.get("async_op", True), counts)
        return (args[0], work.boxed()) if has_results else work.boxed()

    return kernel


_CPU = torch.device("cpu")
_KEYS_BELOW = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)


def _start(name: str, backend: Any, found: dict[str, Any]) -> Any:
    """The work of gloo's method. Not gloo's kernel: called from Python it would keep the lock gloo's threads want."""
    method, names, make = _OPERATORS[name]
    options = make()
    if "reduce_op" in found:
        options.reduceOp = dist.ReduceOp(dist.ReduceOp.RedOpType(found["reduce_op"].op()))
    for argument, field_name in _OPTIONS.items():
        if argument in found:
            setattr(options, field_name, found[argument])
    if found.get("timeout", -1) >= 0:
        options.timeout = timedelta(milliseconds=found["timeout"])
    call, arguments = getattr(backend, method), [found[argument] for argument in names]
    if method in _BY_MEMORY:
        arguments = [_in_a_row(x) if isinstance(x, Tensor) else [_in_a_row(item) for item in x] for x in arguments]
    if name not in _ONE_BY_ONE:
        return call(*arguments, options)
    *others, last = [call(output, x, options) for output, x in zip(*arguments, strict=True)]
    for work in others:
        work.wait()
    return last


def _in_a_row(x: Tensor) -> Tensor:
    """The elements of a dense tensor, in the order of its memory."""
    return x.detach().as_strided((x.numel(),), (1,))


def _described(name: str, tensor_names: Sequence[str], found: dict[str, Any]) -> tuple[str, list[Tensor]]:
    """What has to be equal on all ranks, in words, and all tensors."""
    if name == "barrier":
        return name, []
    tensors: list[Tensor] = []
    words = [name.strip("_")]
    differ = _MAY_DIFFER.get(name, ())
    for argument in tensor_names:
        given = _flat(found[argument])
        tensors += given
        if argument not in differ:
            words += sorted({_dtype(x) for x in given}) if name in _SENT else [_facts(x) for x in given]
    if "reduce_op" in found:
        words.append(_REDUCTIONS[int(found["reduce_op"].op())])
    if "root_rank" in found:
        words.append(f"root {found['root_rank']}")
    return " ".join(words), tensors


_REDUCTIONS = {op.value: name.lower() for name, op in dist.ReduceOp.RedOpType.__members__.items()}


def _flat(value: Any) -> list[Tensor]:
    """The tensors of an argument: one, a list, lists of lists, or None."""
    if isinstance(value, Tensor):
        return [value]
    return [x for item in value or () for x in _flat(item)]


def _dtype(x: Tensor) -> str:
    return str(x.dtype)[len("torch.") :]


def _facts(x: Tensor) -> str:
    return f"{_dtype(x)}[{x.numel()}]"


def _counts(size: int, found: dict[str, Any], sent: str, received: str) -> list[list[int]]:
    """How many elements go to every rank, and how many are expected from it."""
    counts = []
    for name, splits in ((sent, "input_split_sizes"), (received, "output_split_sizes")):
        value = found[name]
        if isinstance(value, Tensor):
            width = value[:1].numel() if value.dim() else 1
            counts.append([n * width for n in found[splits]] or [value.numel() // size] * size)
        else:
            counts.append([x.numel() for x in value])
    return counts
