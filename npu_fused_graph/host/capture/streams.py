"""Streams and events of a device on which everything is done when a call returns.

A capture notes on which stream a call is made and what waits for what; an ExternalEvent holds a replay up.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch

from npu_fused_graph.host.capture import recording
from npu_fused_graph.host.capture.recording import forbid
from npu_fused_graph.host.capture.tape import Gate, go_on
from npu_fused_graph.host.standin import state

_PRIVATE_USE = 20  # torch's number of the device type npu is a name of
_numbers = itertools.count(1)
_WAITS = "a captured graph runs without the host"


class Stream(torch.Stream):
    """A label: work given to it is done at once. Derived from torch's class, which Dynamo knows."""

    priority: int

    def __new__(
        cls, device: Any = None, priority: int = 0, *, stream_id: int | None = None, device_index: int | None = None,
        device_type: int = _PRIVATE_USE, **ignored: Any,
    ) -> Stream:  # fmt: skip
        number = next(_numbers) if stream_id is None else stream_id
        index = state.device_index(device) if device_index is None else device_index
        made = super().__new__(cls, stream_id=number, device_index=index, device_type=device_type)
        made.priority = priority
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Everything is done in __new__, as by torch_npu's class."""

    @property
    def npu_stream(self) -> int:
        """The number of the stream, in the place of its address."""
        return self.stream_id

    def wait_event(self, event: Any) -> None:
        """Work given to it from now on comes after the event."""
        event.wait(self)

    def wait_stream(self, stream: Any) -> None:
        """Work given to it from now on comes after what ``stream`` has now."""
        self.wait_event(stream.record_event())

    def record_event(self, event: Any = None) -> Any:
        event = Event() if event is None else event
        event.record(self)
        return event

    def query(self) -> bool:
        forbid("Stream.query", _WAITS, "Ask outside the capture.")
        return True

    def synchronize(self) -> None:
        """It is idle."""
        forbid("Stream.synchronize", _WAITS, "Wait outside the capture.")

    def __enter__(self) -> Stream:
        self._inside = stream(self)
        self._inside.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._inside.__exit__(*error)


class ExternalStream(Stream):
    """A stream made elsewhere."""

    def __new__(cls, stream_ptr: int, device: Any = None, **kwargs: Any) -> ExternalStream:
        return super().__new__(cls, device, stream_id=stream_ptr)  # type: ignore[return-value]


class Event(torch.Event):
    """A point in the work of a stream."""

    _time: float | None

    def __new__(
        cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, **ignored: Any
    ) -> Event:
        made = super().__new__(cls, device="cpu")
        made._time = None
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Everything is done in __new__, as by torch_npu's class."""

    def record(self, stream: Any = None) -> None:
        if torch.compiler.is_compiling():
            return  # in a graph nothing takes time
        self._time = time.perf_counter()
        if recording.current is not None:
            recording.current.clocks.recorded(id(self), _number(stream))
            recording.current.events.append(self)  # or another would get its id

    def wait(self, stream: Any = None) -> None:
        if recording.current is not None:
            recording.current.clocks.waited(id(self), _number(stream), was_recorded=self._time is not None)

    def reset(self, stream: Any = None) -> None:
        self._time = None

    def query(self) -> bool:
        forbid("Event.query", _WAITS, "Ask outside the capture.")
        return True

    def synchronize(self) -> None:
        """It has happened."""
        forbid("Event.synchronize", _WAITS, "Wait outside the capture.")

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this event to ``end_event``, of wall-clock time on the CPU."""
        forbid("Event.elapsed_time", _WAITS, "Ask outside the capture.")
        if self._time is None or end_event._time is None:
            raise RuntimeError("[run] event: expected two recorded events, got one that was not. Call record() first.")
        return float(end_event._time - self._time) * 1000


class ExternalEvent(Event):
    """An event a captured graph waits for and somebody outside records."""

    _gate: Gate

    def __new__(cls, *args: Any, **kwargs: Any) -> ExternalEvent:
        made: Any = super().__new__(cls)
        made._gate = Gate()
        return made  # type: ignore[no-any-return]

    def record(self, stream: Any = None) -> None:
        self._time = time.perf_counter()
        if recording.current is not None:
            recording.current.open(self._gate)
            return
        self._gate.is_open = True
        go_on()

    def wait(self, stream: Any = None) -> None:
        if recording.current is not None:
            recording.current.wait_for(self._gate)

    def reset(self, stream: Any = None) -> None:
        if recording.current is not None:
            recording.current.close(self._gate)
        else:
            self._gate.is_open = False


default = Stream(stream_id=0)
_current: Stream = default


def current_stream(device: Any = None) -> Stream:
    return _current


def default_stream(device: Any = None) -> Stream:
    return default


def set_stream(stream: Stream) -> None:
    global _current
    _current = stream
    if recording.current is not None:
        recording.current.clocks.stream = stream.stream_id


@contextlib.contextmanager
def stream(stream: Stream | None) -> Iterator[None]:
    """``stream`` is the current one inside."""
    before = _current
    if stream is not None:
        set_stream(stream)
    try:
        yield
    finally:
        set_stream(before)


def _number(stream: Any) -> int:
    return int((_current if stream is None else stream).stream_id)


# npugraph_ex replaces calls of these by text, in which FX has put the module torch_npu has them in
for _made, _module in (
    (Stream, "streams"), (ExternalStream, "streams"), (Event, "streams"), (ExternalEvent, "streams"),
    (current_stream, "utils"), (default_stream, "utils"), (set_stream, "utils"), (stream, "utils"),
):  # fmt: skip
    _made.__module__ = f"torch_npu.npu.{_module}"
