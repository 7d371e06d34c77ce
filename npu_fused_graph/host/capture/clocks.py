"""Streams of a capture: which work of the one another has waited for.

A replay executes calls in the order of the program, whatever stream they are on. That is one of the orders a device may
choose only if streams wait where they need each other's results, which is checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.errors import CaptureError
from npu_fused_graph.host.capture import lines

_Clock = dict[int, int]


class _Use:
    """A call that read or wrote memory."""

    def __init__(self, stream: int, at: int, tensor: Tensor, line: str, what: str) -> None:
        self.stream, self.at, self.tensor, self.line, self.what = stream, at, tensor, line, what


class Clocks:
    """Of one capture that began on the stream ``origin``."""

    def __init__(self, origin: int) -> None:
        self._origin = origin
        self._known: dict[int, _Clock] = {origin: {}}
        self._events: dict[Any, _Clock] = {}
        self._began: dict[int, str] = {}
        self._writes: dict[int, list[_Use]] = {}
        self._reads: dict[int, list[_Use]] = {}
        self.stream = origin

    def recorded(self, event: Any, stream: int) -> None:
        """An event was recorded on ``stream``."""
        self._events.pop(event, None)
        if stream in self._known:
            self._events[event] = dict(self._known[stream])

    def waited(self, event: Any, stream: int, *, was_recorded: bool) -> None:
        """``stream`` waits for an event; one of this capture takes it into the capture.

        was_recorded: at some time. Raises CaptureError for one that was, outside: a graph cannot wait for it.
        """
        found = self._events.get(event)
        if found is None and was_recorded and stream in self._known:
            raise CaptureError(
                f"[capture] wait{_at(lines.current())}: expected an event that was recorded on a stream of the "
                "capture, got one recorded outside. Wait before the capture begins, or use torch.npu.ExternalEvent."
            )
        if found is None:
            return
        if stream not in self._known:
            self._known[stream] = {}
            self._began[stream] = lines.current()
        clock = self._known[stream]
        for other, at in found.items():
            clock[other] = max(at, clock.get(other, 0))

    def check_call(self, reads: Sequence[Tensor], writes: Sequence[Tensor], line: str, what: str) -> None:
        """Count a call on the current stream. Raises CaptureError if it needs what its stream has not waited for."""
        clock = self._known.get(self.stream)
        at = f" at {line}" if line else ""
        if clock is None:
            raise CaptureError(
                f"[capture] {what}{at}: expected a stream that belongs to the capture, got one that has not waited for "
                "it. Record an event on the captured stream and let this one wait for it first."
            )
        now = clock[self.stream] = clock.get(self.stream, 0) + 1
        if len(self._known) > 1:
            for x, others in [(x, self._writes) for x in reads] + [
                (x, uses) for x in writes for uses in (self._writes, self._reads)
            ]:
                for use in others.get(x.untyped_storage()._cdata, ()):
                    if clock.get(use.stream, 0) < use.at and _overlap(x, use.tensor):
                        raise CaptureError(
                            f"[capture] {what}{at}: expected to run after {use.what}{_at(use.line)} on another stream, "
                            "whose memory it uses, got no wait between them. Record an event behind the one and let "
                            "this stream wait for it."
                        )
        for uses, tensors in ((self._reads, reads), (self._writes, writes)):
            for x in tensors:
                kept = uses.setdefault(x.untyped_storage()._cdata, [])
                kept[:] = [use for use in kept if use.stream != self.stream or not _same(use.tensor, x)]
                kept.append(_Use(self.stream, now, x, line, what))

    def forget(self) -> None:
        """Let go of the tensors."""
        self._writes.clear()
        self._reads.clear()

    def check_joined(self) -> None:
        """Raise CaptureError for a stream whose work the captured one has not waited for."""
        joined = self._known[self._origin]
        for stream, clock in self._known.items():
            if stream != self._origin and joined.get(stream, 0) < clock.get(stream, 0):
                raise CaptureError(
                    f"[capture] stream {stream}{_at(self._began.get(stream, ''), 'that joined the capture at')}: "
                    "expected it to be joined before the capture ends, got work nobody waits for. Record an event at "
                    "its end and let the captured stream wait for it."
                )


def _at(line: str, how: str = "at") -> str:
    return f" {how} {line}" if line else ""


def _same(a: Tensor, b: Tensor) -> bool:
    return (a.storage_offset(), a.size(), a.stride()) == (b.storage_offset(), b.size(), b.stride())


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage share bytes."""
    if a.numel() == 0 or b.numel() == 0:
        return False
    (first, last), (begin, end) = _span(a), _span(b)
    if last <= begin or end <= first:
        return False
    if (a.is_contiguous() and b.is_contiguous()) or a.element_size() != b.element_size():
        return True
    start, stop = min(first, begin) // a.element_size(), max(last, end) // a.element_size()
    touched = [torch.zeros(stop - start, dtype=torch.bool) for _ in range(2)]
    for mask, x in zip(touched, (a, b), strict=True):
        mask.as_strided(x.size(), x.stride(), x.storage_offset() - start).fill_(True)
    return bool((touched[0] & touched[1]).any())


def _span(x: Tensor) -> tuple[int, int]:
    """First byte, and the one behind the last."""
    last = sum((n - 1) * step for n, step in zip(x.size(), x.stride(), strict=True))
    first = int(x.storage_offset())
    return first * x.element_size(), (first + last + 1) * x.element_size()
