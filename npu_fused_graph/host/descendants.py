"""The processes below this one on Linux: none may be left when a run ends."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL = 0.05


def adopt_orphans() -> None:
    """From now on processes whose parents end become children of this one."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> None:
    """In a new child: it gets SIGTERM when this process dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def of_this_process() -> list[int]:
    """Pids of all living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    children.setdefault(int(parent), []).append(int(entry.name))
    found, todo = [], [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def end_all(patience: float) -> int:
    """Wait ``patience`` seconds for all descendants to end, then end them. Returns how many had to be ended."""
    remaining = _wait(patience)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not (alive := of_this_process()):
            break
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        _wait(patience)
    return remaining


def _wait(seconds: float) -> int:
    """Until all have ended, down to the last thread of each. Returns how many still run."""
    deadline = time.monotonic() + seconds
    while True:
        are_left = _reap()
        alive = of_this_process()
        if not (alive or are_left) or time.monotonic() >= deadline:
            return len(alive)
        time.sleep(_POLL)


def _reap() -> bool:
    """Take note of all children that have ended. Returns whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
