"""The mode under which calls are recorded instead of executed, and what it refuses because a device would."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
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
from npu_fused_graph.host.capture.tape import Call, Close, Gate, Group, Tape, Wait, tensors_in

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
    updatable: operators whose arguments can be changed later. events: kept alive, since clocks know them by their id.
    """

    supports_higher_order_operators = True

    def __init__(self, stream: int, *, is_relaxed: bool = False, updatable: frozenset[str] = frozenset()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape()
        self.clocks = Clocks(stream)
        self.is_relaxed = is_relaxed
        self._fake = FakeTensorMode()
        self._outside: dict[tuple[Any, ...], Tensor] = {}
        self._group: list[Call] | None = None
        self._updatable = updatable
        self.groups: list[Group] = []
        self.events: list[Any] = []

    # -- what is outside of operators ----------------------------------------------------------------------------

    def wait_for(self, gate: Gate) -> None:
        self.tape.steps.append(Wait(gate))

    def close(self, gate: Gate) -> None:
        self.tape.steps.append(Close(gate))

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
        """The finished tape. Raises CaptureError where a stream was not joined."""
        self.clocks.check_joined()
        for address, *_ in self._outside:
            storage, count, line = self.tape.outside[address]
            self.tape.outside[address] = storage, count + 1, line
        self.clocks.forget()  # inputs must not stay because they were looked at
        return self.tape

    # -- operators -----------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented
        if any(isinstance(x, FakeTensor) for x in tensors_in((args, kwargs))):
            return func(*args, **kwargs)  # something is traced meanwhile
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)  # a higher-order operator shows its parts
        name = func._schema.name
        if name in _NOT_RECORDED:
            return args[0] if func._schema.returns else None
        if func.namespace in _HERE:
            return func(*args, **kwargs)
        if func.is_view:  # lift_fresh gives a constant, which becomes part of the graph
            view = func(*args, **kwargs)
            return self._own(view, is_on_device=False) if name == "aten::lift_fresh" else view
        if torch.Tag.inplace_view in func.tags:  # the shape of a tensor, which is the host's matter
            return func(*args, **kwargs)
        if name in _ALLOCATIONS:
            with torch.inference_mode(False), torch.no_grad():
                return self._own(func(*args, **kwargs), is_on_device=_is_on_device(args, kwargs))
        line = lines.current()
        self._check_allowed(func, args, kwargs, line)
        return self._record(func, args, kwargs, line)

    def _check_allowed(self, func: Any, args: Any, kwargs: Any, line: str) -> None:
        if torch.Tag.data_dependent_output in func.tags or func._schema.name in ("aten::item", "aten::equal"):
            raise not_captured(
                str(func), line, "a value the host reads", "a captured graph runs without the host",
                "Keep the value in a tensor (torch.where, index_select), or read it outside the capture.",
            )  # fmt: skip
        if torch.Tag.nondeterministic_seeded in func.tags and not _is_without_dropout(func, args):
            raise not_captured(
                str(func), line, "a random operator", "its numbers would be the same in each replay",
                "Draw them outside the capture and copy them in.",
            )  # fmt: skip
        check_warm(func, args, kwargs, line)

    def _record(self, func: Any, args: Any, kwargs: Any, line: str) -> Any:
        reads = tensors_in((args, kwargs))
        results, outs = self._results(func, args, kwargs, line)
        writes = [x for x in outs if x is not None] + _mutated(func, args, kwargs)
        self.clocks.check_call(reads, writes, line, str(func))
        if outs and not writes:
            return results  # views, of which its schema does not tell: nothing is computed
        kept_args, kept_kwargs = pytree.tree_map_only(Tensor, functools.partial(self._kept, line=line), (args, kwargs))
        call = Call(func, kept_args, kept_kwargs, outs, line)
        if func._schema.name in self._updatable:
            self.groups.append(Group(call, Gate()))
            self.tape.steps += [Wait(self.groups[-1].gate), Close(self.groups[-1].gate)]
        self.tape.steps.append(call)
        if self._group is not None:
            self._group.append(call)
        return results

    def _results(self, func: Any, args: Any, kwargs: Any, line: str) -> tuple[Any, list[Tensor | None]]:
        """What the call gives: its own arguments, where its schema says so, and memory of the right shape."""
        schema, given = func._schema, _by_alias(func, args, kwargs)
        names = [None if r.alias_info is None else frozenset(r.alias_info.before_set) for r in schema.returns]
        if names and all(name is not None and name in given for name in names):
            results = [given[name] for name in names]
            return (results[0] if len(results) == 1 else tuple(results)), [None] * len(results)
        fakes = self._fake_results(func, args, kwargs, line)
        inputs = {x.untyped_storage()._cdata: x for x in tensors_in((args, kwargs))}
        fake_inputs = {self._fake.from_tensor(x).untyped_storage()._cdata: key for key, x in inputs.items()}
        outs: list[Tensor | None] = []

        def real(x: Any) -> Any:
            if not isinstance(x, Tensor):
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
        if func.namespace == "c10d":
            flat = [_done() if isinstance(x, torch.ScriptObject) else x for x in flat]
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

    def _fake_results(self, func: Any, args: Any, kwargs: Any, line: str) -> Any:
        if func.namespace == "c10d":
            return _c10d_results(func, args)
        if not func._schema.returns:
            return None
        try:
            with torch.inference_mode(False), torch._C._AutoDispatchBelowAutograd(), self._fake:
                fake_args, fake_kwargs = pytree.tree_map_only(Tensor, self._fake.from_tensor, (args, kwargs))
                return func(*fake_args, **fake_kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException):
            raise not_captured(
                str(func), line, "a result whose shape or value depends on values", "a captured graph's are fixed",
                "Use a form with a fixed shape (torch.where, topk), or call it outside the capture.",
            ) from None  # fmt: skip
        except (UnsupportedOperatorException, NotImplementedError) as error:
            raise CaptureError(
                f"[capture] {func}{_at(line)}: expected an operator with a fake (Meta) implementation, got one "
                f"without: {str(error).partition(chr(10))[0]}. Register one with torch.library.register_fake."
            ) from None

    def _own(self, x: Tensor, *, is_on_device: bool = True) -> Tensor:
        storage = x.untyped_storage()
        self.tape.owned[storage.data_ptr()] = storage
        for listener in allocation_listeners if is_on_device else ():
            listener(x)
        return x

    def _kept(self, x: Tensor, *, line: str) -> Tensor:
        """``x`` as the tape keeps it: memory from outside by one tensor of its own, so that it does not hold ``x``."""
        storage = x.untyped_storage()
        if storage.data_ptr() in self.tape.owned or x.is_meta:
            return x
        key = (storage._cdata, x.storage_offset(), x.size(), x.stride(), x.dtype, x.is_conj(), x.is_neg())
        if key not in self._outside:
            with torch.inference_mode(False), torch.no_grad():
                self._outside[key] = x.detach()
            self.tape.outside.setdefault(storage._cdata, (storage, 0, line))
        return self._outside[key]


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


def _done() -> Any:
    return torch._C._distributed_c10d.FakeWork().boxed()


def _c10d_results(func: Any, args: Sequence[Any]) -> Any:
    """As c10d's operators give them: the tensors they wrote, and work that is done."""
    count = len(func._schema.returns)
    if count == 1:
        return _done()
    return args[0], _done()


def not_captured(what: str, line: str, got: str, why: str, cure: str) -> CaptureError:
    """The one form of what a capture refuses."""
    return CaptureError(f"[capture] {what}{_at(line)}: expected work that a graph can hold, got {got}: {why}. {cure}")


def _at(line: str) -> str:
    return f" at {line}" if line else ""


def forbid(what: str, why: str, cure: str, *, is_copy: bool = False) -> None:
    """Raise CaptureError if a capture is under way. is_copy: of a kind that only capture_error_mode global refuses."""
    if current is not None and not (is_copy and current.is_relaxed):
        raise not_captured(what, lines.current(), "a call that waits for the device", why, cure)


_READERS = ("tolist", "numpy", "__array__", "cpu")


@contextlib.contextmanager
def reads_refused() -> Iterator[None]:
    """Inside, tensor methods that read memory past the dispatcher are refused: nothing has been computed yet."""
    original = {name: getattr(Tensor, name) for name in _READERS}

    def refusing(name: str) -> Callable[..., Any]:
        @functools.wraps(original[name])
        def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if current is not None and type(self) is not FakeTensor:
                forbid(
                    f"Tensor.{name}", "a captured graph runs without the host",
                    "Read the tensor after the replay.", is_copy=name == "cpu",
                )  # fmt: skip
            return original[name](self, *args, **kwargs)

        return read

    for name in _READERS:
        setattr(Tensor, name, refusing(name))
    try:
        yield
    finally:
        for name, method in original.items():
            setattr(Tensor, name, method)
