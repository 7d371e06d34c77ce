"""Streams and events of a device on which everything is done when a call returns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from npu_fused_graph.host.standin import state


class Stream:
    """A label: work given to it is done at once."""

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any) -> None:
        if device is not None:
            state.device_index(device)
        self.device = device
        self.priority = priority
        self.stream_id = kwargs.get("stream_id", 0)
        self.npu_stream = self.stream_id

    def wait_event(self, event: Any) -> None:
        """It has happened."""

    def wait_stream(self, stream: Any) -> None:
        """It is idle."""

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """It is idle."""

    def __enter__(self) -> Stream:
        self._inside = stream(self)
        self._inside.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._inside.__exit__(*error)


class ExternalStream(Stream):
    """A stream made elsewhere."""

    def __init__(self, stream_ptr: int, device: Any = None, **kwargs: Any) -> None:
        super().__init__(device, stream_id=stream_ptr)


class Event:
    """A point in time of this process."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, **_: Any):
        self._time: float | None = None

    def record(self, stream: Any = None) -> None:
        if not torch.compiler.is_compiling():  # in a graph nothing takes time
            self._time = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        """It has happened."""

    def reset(self, stream: Any = None) -> None:
        self._time = None

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """It has happened."""

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this event to ``end_event``, of wall-clock time on the CPU."""
        if self._time is None or end_event._time is None:
            raise RuntimeError("[run] event: expected two recorded events, got one that was not. Call record() first.")
        return (end_event._time - self._time) * 1000


ExternalEvent = Event

_default = Stream()
_current = _default


def current_stream(device: Any = None) -> Stream:
    return _current


def default_stream(device: Any = None) -> Stream:
    return _default


def set_stream(stream: Stream) -> None:
    global _current
    _current = stream


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


# -- limits of cores -----------------------------------------------------------------------------------------

_CORES = {"cube_core_num": 24, "vector_core_num": 48}
_limits: dict[str, dict[str, int]] = {}


def get_device_limit(device: Any = None) -> dict[str, int]:
    """Cores a device's kernels may use: what was set, else those of an Ascend 910B."""
    return dict(_limits.get("device", _CORES))


def set_device_limit(device: Any, cube_num: int = -1, vector_num: int = -1) -> None:
    """Remembered; no kernel here has cores to count."""
    _limits["device"] = _limited(get_device_limit(), cube_num, vector_num)


def get_stream_limit(stream: Any) -> dict[str, int]:
    return dict(_limits.get("stream", get_device_limit()))


def set_stream_limit(stream: Any, cube_num: int = -1, vector_num: int = -1) -> None:
    """Remembered, like set_device_limit."""
    _limits["stream"] = _limited(get_stream_limit(stream), cube_num, vector_num)


def reset_stream_limit(stream: Any) -> None:
    _limits.pop("stream", None)


def _limited(limit: dict[str, int], cube_num: int, vector_num: int) -> dict[str, int]:
    wanted = {"cube_core_num": cube_num, "vector_core_num": vector_num}
    return {name: limit[name] if number < 0 else number for name, number in wanted.items()}
