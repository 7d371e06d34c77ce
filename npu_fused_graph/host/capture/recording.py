"""The mode under which calls are recorded instead of executed, and what it refuses because a device would."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type

from npu_fused_graph.errors import CaptureError
from npu_fused_graph.host.capture import lines
from npu_fused_graph.host.capture.clocks import Clocks
from npu_fused_graph.host.capture.communicators import check_warm
from npu_fused_graph.host.capture.tape import Call, Close, Gate, Group, Open, Outside, Tape, Wait, tensors_in

_ALLOCATIONS = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_strided", "empty_like", "empty_permuted", "new_empty", "new_empty_strided")
)
_HERE = frozenset(("npugraph_ex", "air", "streams", "profiler"))
"""Namespaces of operators that tell the host something: events, scopes, marks of the profiler."""

_NOT_RECORDED = frozenset(("_c10d_functional::wait_tensor", "aten::record_stream"))

allocation_listeners: list[Callable[[Tensor], Any]] = []
"""Called with every tensor that gets memory of the device while a graph is captured."""

current: Recording | None = None
"""The capture that is under way in this process; a device has one at a time, too."""


class Recording(TorchDispatchMode):
    """Between capture_begin and capture_end.

    stream: the one that is captured. is_relaxed: capture_error_mode is not "global", so that synchronous copies pass.
    updatable: operators whose arguments can be changed later. is_inside: it works on a call now. events: kept alive,
    since clocks know them by their id.
    """

    supports_higher_order_operators = True

    def __init__(self, stream: int, *, is_relaxed: bool = False, updatable: frozenset[str] = frozenset()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape()
        self.clocks = Clocks(stream)
        self.is_relaxed = is_relaxed
        self.thread = threading.get_ident()
        self.is_inside = False
        self._fake = FakeTensorMode()
        self._aliases: dict[tuple[Any, ...], Tensor] = {}
        self._on_device: set[int] = set()
        self._group: list[Call] | None = None
        self._updatable = updatable
        self.groups: list[Group] = []
        self.events: list[Any] = []

    # -- what is outside of operators ----------------------------------------------------------------------------

    def wait_for(self, gate: Gate) -> None:
        self.tape.steps.append(Wait(gate))

    def close(self, gate: Gate) -> None:
        self.tape.steps.append(Close(gate))

    def open(self, gate: Gate) -> None:
        self.tape.steps.append(Open(gate))

    def begin_group(self) -> None:
        if self._group is not None:
            raise CaptureError("[capture] graph_task_group_begin: expected no open group, got one. End it first.")
        self._group = []

    def end_group(self) -> list[Call]:
        """The calls since begin_group, which can be given other arguments later."""
        if self._group is None:
            raise CaptureError("[capture] graph_task_group_end: expected an open group, got none. Begin one.")
        group, self._group = self._group, None
        return group

    def end(self) -> Tape:
        """The finished tape. Raises CaptureError where a stream was not joined or a task group not ended."""
        if self._group is not None:
            raise CaptureError("[capture] capture_end: expected no open task group, got one. End it first.")
        self.clocks.check_joined()
        for address, *_ in self._aliases:
            if address in self.tape.outside:
                self.tape.outside[address].count += 1
        self.clocks.forget()  # inputs must not stay because they were looked at
        return self.tape

    # -- operators -----------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self.is_inside = self.is_inside, True
        try:
            return self._dispatched(func, types, args, kwargs or {})
        finally:
            self.is_inside = before

    def _dispatched(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented
        if any(isinstance(x, FakeTensor) for x in tensors_in((args, kwargs))):
            return func(*args, **kwargs)  # something is traced meanwhile
        if not isinstance(func, torch._ops.OpOverload):
            return self._taken_apart(func, args, kwargs)
        name = func._schema.name
        if name in _NOT_RECORDED:
            return args[0] if func._schema.returns else None
        if func.namespace in _HERE:
            return func(*args, **kwargs)
        if name == "aten::lift_fresh":
            return self._constant(args[0])
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:  # seen in inference mode; a part of it may be a copy
                return func.decompose(*args, **kwargs)
        if func.is_view or torch.Tag.inplace_view in func.tags:  # the shape of a tensor, which is the host's matter
            return func(*args, **kwargs)
        if name in _ALLOCATIONS:
            with torch.inference_mode(False), torch.no_grad():
                return self._own(func(*args, **kwargs), is_on_device=_is_on_device(args, kwargs))
        line = lines.current()
        self._check_allowed(func, args, kwargs, line)
        return self._record(func, args, kwargs, line)

    def _taken_apart(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Of higher-order operators those that stand for a call of an operator that writes; others are refused."""
        from torch._higher_order_ops import auto_functionalize

        dense = getattr(auto_functionalize, f"{func.name()}_dense", None)
        if dense is None:
            raise not_captured(
                func.name(), lines.current(), "control flow", "a captured graph runs without the host",
                "Compute both sides and choose with torch.where, or call it outside the capture.",
            )  # fmt: skip
        with self:
            return dense(*args, **kwargs)

    def _constant(self, x: Tensor) -> Tensor:
        """What ``torch.tensor`` made becomes part of the graph, and is itself again in each replay."""
        with torch.inference_mode(False), torch.no_grad():
            value = self._own(x.clone(), is_on_device=False)
        place = self._own(x, is_on_device=False)
        self.tape.steps.append(Call(torch.ops.aten.copy_.default, (self._kept(place), value), {}, ()))
        return place

    def _check_allowed(self, func: Any, args: Any, kwargs: Any, line: str) -> None:
        if torch.Tag.data_dependent_output in func.tags or func._schema.name in ("aten::item", "aten::equal"):
            raise not_captured(
                str(func), line, "a value the host reads", "a captured graph runs without the host",
                "Keep the value in a tensor (torch.where, index_select), or read it outside the capture.",
            )  # fmt: skip
        if func._schema.name in ("c10d::barrier", "c10d::monitored_barrier_"):
            raise not_captured(
                str(func), line, "a call that waits for the device", "the host waits for other ranks",
                "Call it outside the capture.",
            )  # fmt: skip
        is_to_device = str(kwargs.get("device", "")).startswith("npu") and func._schema.name == "aten::_to_copy"
        if is_to_device and args[0].untyped_storage().data_ptr() not in self._on_device:
            forbid(str(func), "the host waits for the copy", "Make the tensor before the capture.", is_copy=True)
        if torch.Tag.nondeterministic_seeded in func.tags and not _is_without_dropout(func, args):
            raise not_captured(
                str(func), line, "a random operator", "its numbers would be the same in each replay",
                "Draw them outside the capture and copy them in.",
            )  # fmt: skip
        check_warm(func, args, kwargs, line)

    def _record(self, func: Any, args: Any, kwargs: Any, line: str) -> Any:
        reads = tensors_in((args, kwargs))
        results, outs = self._results(func, args, kwargs, line)
        is_c10d = func.namespace == "c10d"  # whose schemas do not say what they write
        writes = [x for x in outs if x is not None] + (reads if is_c10d else _mutated(func, args, kwargs))
        self.clocks.check_call(reads, writes, line, str(func))
        if tensors_in(results) and not writes:
            return results  # views, of which its schema does not tell: nothing is computed
        kept_args, kept_kwargs = pytree.tree_map_only(Tensor, functools.partial(self._kept, line=line), (args, kwargs))
        call = Call(func, kept_args, kept_kwargs, [x if x is None else self._kept(x) for x in outs], line)
        if func._schema.name in self._updatable:
            self.groups.append(Group(call, Gate()))
            self.tape.steps += [Wait(self.groups[-1].gate), Close(self.groups[-1].gate)]
        self.tape.steps.append(call)
        if self._group is not None:
            self._group.append(call)
        return results

    def _results(self, func: Any, args: Any, kwargs: Any, line: str) -> tuple[Any, list[Tensor | None]]:
        """What the call gives: its own arguments, where its schema says so, and memory of the right shape."""
        if func.namespace == "c10d":
            results = _c10d_results(func, args)
            return results, [None] * len(tensors_in(results))
        schema, given = func._schema, _by_alias(func, args, kwargs)
        names = [None if r.alias_info is None else frozenset(r.alias_info.before_set) for r in schema.returns]
        fakes, fake_given = self._fake_results(func, args, kwargs, line)
        for name, x in given.items():
            self._resize(x, fake_given.get(name))
        if names and all(name is not None and name in given for name in names):
            results = [given[name] for name in names]
            return (results[0] if len(results) == 1 else tuple(results)), [None] * len(results)
        inputs = {self._kept(x).untyped_storage()._cdata: x for x in tensors_in((args, kwargs))}
        fake_inputs = {self._fake.from_tensor(self._kept(x)).untyped_storage()._cdata: key for key, x in inputs.items()}
        outs: list[Tensor | None] = []

        def real(x: Any) -> Any:
            nonlocal outs
            if not isinstance(x, Tensor):
                outs += [None] * (x is None)
                return x
            source = inputs.get(fake_inputs.get(x.untyped_storage()._cdata, -1))
            with torch.inference_mode(False), torch.no_grad():
                if source is not None:  # a view its schema does not tell of
                    outs.append(None)
                    return torch.empty(0, dtype=x.dtype).set_(
                        source.untyped_storage(), x.storage_offset(), x.size(), x.stride()
                    )
                out = self._own(
                    torch.empty_strided(x.size(), x.stride(), dtype=x.dtype),
                    is_on_device=_is_on_device(args, kwargs),
                )
            outs.append(out)
            return out

        flat, structure = pytree.tree_flatten(fakes)
        for i, name in enumerate(names if len(names) == len(flat) else ()):
            if name is not None and name in given:
                flat[i] = _Given(given[name])
        made = []
        for x in flat:
            if isinstance(x, _Given):
                outs.append(None)
                made.append(x.value)
            else:
                made.append(real(x))
        return pytree.tree_unflatten(made, structure), outs

    def _fake_results(self, func: Any, args: Any, kwargs: Any, line: str) -> tuple[Any, dict[Any, Any]]:
        """What the call gives for tensors without data, and what it has made of the arguments it writes."""
        fakes = pytree.tree_map_only(Tensor, lambda x: self._fake.from_tensor(self._kept(x)), (args, kwargs))
        try:
            with torch.inference_mode(False), torch._C._AutoDispatchBelowAutograd(), self._fake:
                written = _by_alias(func, *fakes)
                if written:  # their shape may be changed
                    fakes = pytree.tree_map_only(Tensor, lambda x: x.detach(), fakes)
                    written = _by_alias(func, *fakes)
                return func(*fakes[0], **fakes[1]), written
        except (DynamicOutputShapeException, DataDependentOutputException):
            raise not_captured(
                str(func), line, "a result whose shape or value depends on values", "a captured graph's are fixed",
                "Use a form with a fixed shape (torch.where, topk), or call it outside the capture.",
            ) from None  # fmt: skip
        except (UnsupportedOperatorException, NotImplementedError, RuntimeError) as error:
            is_missing = isinstance(error, (UnsupportedOperatorException, NotImplementedError))
            if not is_missing and "no fake impl" not in str(error):
                raise
            if not func._schema.returns:
                return None, {}  # it gives nothing that has a shape
            raise CaptureError(
                f"[capture] {func}{_at(line)}: expected an operator with a fake (Meta) implementation, got one "
                f"without: {str(error).partition(chr(10))[0]}. Register one with torch.library.register_fake."
            ) from None

    def _resize(self, x: Any, fake: Any) -> None:
        """Give an ``out`` argument the shape its operator gives it, now, while memory may be had."""
        if not isinstance(x, Tensor) or not isinstance(fake, Tensor) or x.size() == fake.size():
            return
        is_own = x.untyped_storage().data_ptr() in self.tape.owned
        with torch.inference_mode(False), torch.no_grad():
            x.resize_(fake.size())
        if is_own or x.untyped_storage()._cdata not in self.tape.outside:
            self._own(x)

    def _own(self, x: Tensor, *, is_on_device: bool = True) -> Tensor:
        storage = x.untyped_storage()
        self.tape.owned[storage.data_ptr()] = storage
        if is_on_device:
            self._on_device.add(storage.data_ptr())
            for listener in allocation_listeners:
                listener(x)
        return x

    def _kept(self, x: Tensor, line: str = "") -> Tensor:
        """``x`` as the tape keeps it: a tensor of its own, whose shape nobody changes and that does not hold ``x``."""
        storage = x.untyped_storage()
        key = (storage._cdata, x.storage_offset(), x.size(), x.stride(), x.dtype, x.is_conj(), x.is_neg())
        if key not in self._aliases:
            with torch.inference_mode(False), torch.no_grad():
                self._aliases[key] = x.detach()
        if storage.data_ptr() not in self.tape.owned:
            known = self.tape.outside.setdefault(storage._cdata, Outside(storage, line))
            known.line = known.line or line
        return self._aliases[key]


def _is_on_device(args: Any, kwargs: Any) -> bool:
    """Whether a call's results are: those of a factory that names no device are the host's."""
    return bool(tensors_in((args, kwargs))) or str(kwargs.get("device") or "cpu") != "cpu"


class _Given:
    def __init__(self, value: Any) -> None:
        self.value = value


def _by_alias(func: Any, args: Any, kwargs: Any) -> dict[Any, Any]:
    """The arguments a schema says are written, by their alias set."""
    found = {}
    for i, a in enumerate(func._schema.arguments):
        if a.alias_info is not None and a.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(a.name)
            found[frozenset(a.alias_info.before_set)] = value
    return found


def _mutated(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    return tensors_in(list(_by_alias(func, args, kwargs).values()))


def _is_without_dropout(func: Any, args: Sequence[Any]) -> bool:
    """Attention of torch's is tagged as random, and is not where its probability of dropping is 0."""
    names = [a.name for a in func._schema.arguments]
    if "dropout_p" not in names:
        return False
    place = names.index("dropout_p")
    return place >= len(args) or args[place] == 0


def _c10d_results(func: Any, args: Sequence[Any]) -> Any:
    """As c10d's operators give them: the tensors they wrote, and work that is done."""
    done = torch._C._distributed_c10d.FakeWork().boxed()
    return done if len(func._schema.returns) == 1 else (args[0], done)


def not_captured(what: str, line: str, got: str, why: str, cure: str) -> CaptureError:
    """The one form of what a capture refuses."""
    return CaptureError(f"[capture] {what}{_at(line)}: expected work that a graph can hold, got {got}: {why}. {cure}")


def _at(line: str) -> str:
    return f" at {line}" if line else ""


def forbid(what: str, why: str, cure: str, *, is_copy: bool = False) -> None:
    """Raise CaptureError if a capture is under way. is_copy: of a kind that only capture_error_mode global refuses.

    Which also is about what other threads do meanwhile.
    """
    if current is None or (current.is_relaxed and (is_copy or threading.get_ident() != current.thread)):
        return
    if current.is_inside:
        return  # the recorder's own work
    raise not_captured(what, lines.current(), "a call that waits for the device", why, cure)
