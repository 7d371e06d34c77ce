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

from npu_fused_graph.errors import CaptureError, argument_error

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
        form = writing_form(self.func) if all(out is not None for out in self.outs) else None
        if form is not None:
            self.run = functools.partial(form[0]._op, *args, **kwargs, **dict(zip(form[1], self.outs, strict=True)))
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


Step = Call | Wait | Close


def _run_and_copy(func: Any, args: Any, kwargs: Any, outs: Sequence[Tensor | None], is_collective: bool) -> None:
    results = func(*args, **kwargs)
    if is_collective:
        _wait(results)
    for out, result in zip(outs, tensors_in(results), strict=True):
        if out is not None:
            out.copy_(result)


def _wait(results: Any) -> None:
    for x in pytree.tree_leaves(results):
        if isinstance(x, Tensor):
            torch.ops._c10d_functional.wait_tensor(x)
        elif isinstance(x, torch.ScriptObject):
            x.wait()  # type: ignore[attr-defined]


def tensors_in(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


@functools.cache
def writing_form(func: Any) -> tuple[Any, tuple[str, ...]] | None:
    """The overload of an operator of torch's that writes its results, and the names of these arguments."""
    if func.namespace != "aten":
        return None
    packet, wanted = func._overloadpacket, [(a.name, str(a.type)) for a in func._schema.arguments]
    for name in packet.overloads():
        other = getattr(packet, name)
        arguments = other._schema.arguments
        written = [a.name for a in arguments if a.is_out]
        if len(written) != len(func._schema.returns) or any(str(a.type) != "Tensor" for a in arguments if a.is_out):
            continue
        if [(a.name, str(a.type)) for a in arguments if not a.is_out] == wanted:
            return other, tuple(written)
    return None


class Tape:
    """The steps of a captured graph.

    owned: memory that was allocated while capturing, by address. outside: memory that was there before, with how many
    tensors of the tape refer to it and the line that uses it.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.owned: dict[int, torch.UntypedStorage] = {}
        self.outside: dict[int, tuple[torch.UntypedStorage, int, str]] = {}
        self._at: int | None = None

    def addresses(self) -> set[int]:
        """Of all memory it uses."""
        return {*self.owned, *(storage.data_ptr() for storage, *_ in self.outside.values())}

    def storage_at(self, address: int) -> torch.UntypedStorage | None:
        """Its memory at an address, None if it has none there."""
        if address in self.owned:
            return self.owned[address]
        return next((x for x, *_ in self.outside.values() if x.data_ptr() == address), None)

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
                    step.run()
                elif isinstance(step, Close):
                    step.gate.is_open = False
                elif not step.gate.is_open:
                    self._at = place
                    return

    def _check_outside(self) -> None:
        for storage, count, line in self.outside.values():
            if torch._C._storage_Use_Count(storage._cdata) <= count + 1:  # and one for ``storage``
                raise CaptureError(
                    f"[capture] input{f' of {line}' if line else ''}: expected it at the address it was captured at, "
                    "got a tensor that is gone, whose memory a device may have given to another. Keep the tensor and "
                    "copy new values into it (x.copy_(new)), or capture again."
                )

    def calls(self) -> Iterable[Call]:
        return (step for step in self.steps if isinstance(step, Call))


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
