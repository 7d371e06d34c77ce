"""A tape: the calls of one captured graph with the memory they read and write, and how it is played."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from npu_fused_graph.errors import CaptureError, NpuFusedGraphError, argument_error

_COLLECTIVES = ("_c10d_functional", "c10d")


class Gate:
    """What a captured graph waits for on the device: an event that is recorded outside of it."""

    is_open = False


@dataclass
class Call:
    """One operator. args, kwargs: with the tensors it reads. outs: for each tensor it gives the memory that belongs to
    it, None for one that is an argument. line: of the user's.
    """

    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    outs: Sequence[Tensor | None]
    line: str = ""
    run: Callable[[], Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.update(self.args, self.kwargs)

    def update(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Other arguments from now on, as the update of a task group on a device gives them."""
        self.args, self.kwargs = args, kwargs
        is_collective = self.func.namespace in _COLLECTIVES
        form = writing_form(self.func) if len(self.outs) == 1 and self.outs[0] is not None else None
        if form is not None:
            self.run = functools.partial(form._op, *args, **kwargs, out=self.outs[0])
        elif is_collective or any(out is not None for out in self.outs):
            self.run = functools.partial(_run_and_copy, self.func, args, kwargs, self.outs, is_collective)
        else:
            self.run = functools.partial(self.func._op, *args, **kwargs)


@dataclass
class Group:
    """A call with arguments the host knows, which can be given others between replays."""

    call: Call
    gate: Gate

    def update(self, entry: Mapping[str, Any]) -> None:
        """Other values of arguments, by name. Raises InvalidArgumentError for a name the operator does not have."""
        names = [a.name for a in self.call.func._schema.arguments]
        args, kwargs = list(self.call.args), dict(self.call.kwargs)
        for name, value in entry.items():
            if name not in names:
                raise argument_error(
                    "capture", "cpu_update_input", f"arguments of {self.call.func}", repr(name), f"One of {names}."
                )
            if names.index(name) < len(args):
                args[names.index(name)] = value
            else:
                kwargs[name] = value
        self.call.update(args, kwargs)
        self.gate.is_open = True


@dataclass
class Wait:
    """The graph goes on when ``gate`` is open."""

    gate: Gate


@dataclass
class Close:
    """``gate`` is closed again."""

    gate: Gate


@dataclass
class Open:
    """``gate`` opens, which other graphs may wait for."""

    gate: Gate


Step = Call | Wait | Close | Open


@dataclass
class Outside:
    """Memory that was there before the capture. count: tensors of the tape on it. line: of the user's that uses it."""

    storage: torch.UntypedStorage
    line: str
    count: int = 0

    def __post_init__(self) -> None:
        self.address, self.nbytes = self.storage.data_ptr(), self.storage.nbytes()

    @property
    def is_there(self) -> bool:
        """Whether somebody else still holds it, where it was."""
        is_held = torch._C._storage_Use_Count(self.storage._cdata) > self.count + 1  # and one for ``storage``
        return is_held and (self.storage.data_ptr(), self.storage.nbytes()) == (self.address, self.nbytes)


def _run_and_copy(func: Any, args: Any, kwargs: Any, outs: Sequence[Tensor | None], is_collective: bool) -> None:
    results = func(*args, **kwargs)
    if is_collective:
        _wait(results)
    given = [x for x in pytree.tree_leaves(results) if x is None or isinstance(x, Tensor)]  # some give no tensor
    for out, result in zip(outs, given, strict=True):
        if out is not None and result is not None:
            out.copy_(result)


def _wait(results: Any) -> None:
    for x in pytree.tree_leaves(results):
        if isinstance(x, Tensor):
            torch.ops._c10d_functional.wait_tensor(x)
        elif isinstance(x, torch.ScriptObject):
            x.wait()  # type: ignore[attr-defined]


def tensors_in(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


_WRITING = frozenset(
    (
        "mm", "addmm", "bmm", "baddbmm", "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "pow.Tensor_Scalar",
        "pow.Tensor_Tensor", "exp", "neg", "rsqrt", "sqrt", "sigmoid", "tanh", "silu", "gelu", "cos", "sin", "maximum",
        "minimum", "_softmax", "sum.dim_IntList", "mean.dim", "gather",
    )
)  # fmt: skip
"""Operators of torch's whose ``out`` form computes the same; of others it need not (binary_cross_entropy)."""


@functools.cache
def writing_form(func: Any) -> Any:
    """The overload of an operator of torch's that writes its one result into ``out``; None where there is none."""
    if func.namespace != "aten" or str(func).removeprefix("aten.").removesuffix(".default") not in _WRITING:
        return None
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments]
    for other in (getattr(func._overloadpacket, name) for name in func._overloadpacket.overloads()):
        arguments = other._schema.arguments
        rest = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        if rest == wanted and [a.name for a in arguments if a.is_out] == ["out"]:
            return other
    return None


class Tape:
    """The steps of a captured graph.

    owned: memory that was allocated while capturing, by address. outside: other memory, by its storage.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.owned: dict[int, torch.UntypedStorage] = {}
        self.outside: dict[int, Outside] = {}
        self._at: int | None = None

    def addresses(self) -> set[int]:
        """Of all memory it uses."""
        return {*self.owned, *(one.address for one in self.outside.values())}

    def storage_at(self, address: int) -> torch.UntypedStorage | None:
        """Its memory at an address, None if it has none there."""
        if address in self.owned:
            return self.owned[address]
        return next((one.storage for one in self.outside.values() if one.address == address), None)

    @property
    def is_waiting(self) -> bool:
        """Whether it has begun and waits for an event."""
        return self._at is not None

    def play(self) -> None:
        """Run the steps, up to a gate that is closed. Raises CaptureError if the last play still waits."""
        if self.is_waiting:
            raise CaptureError(
                "[capture] replay: expected the last replay to have ended, got one that waits for an event nobody "
                "recorded. Record the event (or update the graph's arguments) after each replay."
            )
        self._check_outside()
        self._at = 0
        self.go_on()
        if self.is_waiting:
            _waiting.append(self)

    def go_on(self) -> None:
        """From the gate it stands at, if that has opened."""
        at = self._at
        if at is None:
            return
        self._at = None  # of an error nothing is left
        with torch.inference_mode(), _disable_current_modes(), torch._C._DisableAutocast():
            for place in range(at, len(self.steps)):
                step = self.steps[place]
                if isinstance(step, Call):
                    _run(step)
                elif isinstance(step, Open):
                    step.gate.is_open = True
                    go_on()
                elif isinstance(step, Close):
                    step.gate.is_open = False
                elif not step.gate.is_open:
                    self._at = place
                    return

    def abandon(self) -> None:
        """Wait no longer."""
        self._at = None
        if self in _waiting:
            _waiting.remove(self)

    def _check_outside(self) -> None:
        for one in self.outside.values():
            if not one.is_there:
                raise CaptureError(
                    f"[capture] input{f' of {one.line}' if one.line else ''}: expected it at the address it was "
                    "captured at, got a tensor that is gone or moved, whose memory a device may have given to another. "
                    "Keep the tensor and copy new values into it (x.copy_(new)), or capture again (a weight autocast "
                    "has cached is gone with its context: autocast(cache_enabled=False))."
                )

    def calls(self) -> Iterable[Call]:
        return (step for step in self.steps if isinstance(step, Call))


def _run(call: Call) -> None:
    try:
        call.run()
    except NpuFusedGraphError:
        raise
    except RuntimeError as error:
        where = f" at {call.line}" if call.line else ""
        raise CaptureError(f"[capture] replay of {call.func}{where}: expected it to run, got: {error}") from error


_waiting: list[Tape] = []
"""Replays that wait for an event."""


def go_on() -> None:
    """Let replays go on whose event has been recorded."""
    for tape in list(_waiting):
        tape.go_on()
        if not tape.is_waiting:
            _waiting.remove(tape)


def check_nothing_waits(what: str) -> None:
    """Raise CaptureError if a replay waits for an event: a device would wait for ever."""
    if _waiting:
        raise CaptureError(
            f"[capture] {what}: expected every replay to have ended, got one that waits for an event nobody recorded. "
            "Record the event, or update the graph's arguments, after each replay."
        )
