"""Windows: memory of one rank that its peers write, without a name in the file system.

A window is an anonymous file of its owner. Peers open it through the owner's entry in /proc, map it, and say so; then
the owner closes the file. What is left are mappings, which end with their processes, however these end. A window stays
writable for its peers after its owner has left.

Behind the bytes of a window lie a few that only this module reads: whether the owner left in order, and what its peers
declared there.
"""

from __future__ import annotations

import mmap
import os
import platform
import select
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import process as mp_process
from multiprocessing import util as mp_util
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from npu_fused_graph.comm.this_process import rank_text, timeout
from npu_fused_graph.errors import CommunicationError, argument_error, lost_peer

ALIGNMENT = 512
"""Bytes a window's memory is rounded up to."""

_NOTE = 24
"""Words of a rank in a window: how many numbers it declared, up to 22 of them, and whether it is ready."""

_ORDERED = ("x86_64", "AMD64", "i686")
"""CPUs on which other processors see stores in the order they were made."""

_LOOK = 0.05
"""Seconds between two looks at whether those waited for still live."""

State = Literal["running", "stopped", "left", "gone"]
"""Of the process behind a window: left = it ended, or let go of its windows, in order; gone = it was killed, or an
exception ended it."""

Bytes = NDArray[numpy.uint8]


class Windows:
    """What this rank and its peers registered: their memory, and whether they are still there.

    Memory may be written by others at any time. Whoever writes a table writes the word that says so last; stores are
    seen in the order they were made (x86-64 keeps it by itself; elsewhere windows are refused).
    """

    def __init__(
        self, rank: int, size: int, mapped: Mapping[int, Mapped], state: Callable[[int], State], names: Sequence[int]
    ) -> None:
        """mapped: of this rank and its peers, by rank of the group of ``size``. names: global ranks, for texts.

        answering: of each micro batch the rank that will answer for each token and expert, as far as this rank knows.
        """
        self.rank = rank
        self.peers = tuple(sorted(set(mapped) - {rank}))
        self.own = mapped[rank].memory[: mapped[rank].size]
        self._memory: dict[int, Bytes] = {r: m.memory.numpy().view(numpy.uint8)[: m.size] for r, m in mapped.items()}
        self._control = {r: m.control(size) for r, m in mapped.items()}
        self._state = state
        self._names = names
        self._declared: dict[int, tuple[int, ...]] = {}
        self.answering: dict[int, NDArray[numpy.int32]] = {}
        _alive.add(self)

    def memory(self, rank: int) -> Bytes:
        """The window of this rank or a peer. KeyError for others."""
        return self._memory[rank]

    def state(self, rank: int) -> State:
        """Of a peer."""
        state = self._state(rank)
        if state in ("running", "gone") and self._control[rank].state[0] == _LEFT:
            return "left"
        return state

    def leave(self) -> None:
        """Tell the peers that this rank ends as it should. They may still write its window."""
        self._control[self.rank].state[0] = _LEFT

    def has_declared(self, at: int, numbers: tuple[int, ...]) -> bool:
        """Whether this is what this rank declared last."""
        return self._declared.get(at) == numbers

    def say_ready(self, at: int) -> None:
        """Tell peer ``at`` that this rank's tables may be written."""
        self._control[at].notes[self.rank, _NOTE - 1] = 1

    def is_ready(self, rank: int) -> bool:
        """Whether peer ``rank`` has said so."""
        return bool(self._control[self.rank].notes[rank, _NOTE - 1] == 1)

    def declare(self, at: int, numbers: tuple[int, ...]) -> None:
        """Leave up to 22 numbers in the window of peer ``at``, in place of those left there before."""
        row = self._control[at].notes[self.rank]
        row[0] = 0
        row[1 : 1 + len(numbers)] = numbers
        row[0] = len(numbers)
        self._declared[at] = numbers

    def declared(self, at: int) -> dict[int, tuple[int, ...]]:
        """What ranks, this one among them, have left in the window of peer ``at``."""
        rows = self._control[at].notes
        return {r: tuple(rows[r, 1 : 1 + int(rows[r, 0])].tolist()) for r in numpy.flatnonzero(rows[:, 0]).tolist()}

    def name(self, rank: int) -> str:
        """``rank 3``, as the world counts."""
        return f"rank {self._names[rank]}"

    def wait(self, stem: str, is_done: Callable[[], bool], what: Callable[[], tuple[str, Sequence[int]]]) -> None:
        """Return when ``is_done``.

        what: what is missing, for the text, and the ranks it would come from as far as they are known. Raises
        CommunicationError when one of these has left, any peer was killed, or ``NFG_TIMEOUT`` seconds have passed; it
        names the ranks.
        """
        if is_done():
            return
        limit = timeout().total_seconds()
        begin = looked = time.monotonic()
        pause = 0.0
        while not is_done():
            time.sleep(pause)
            pause = min(pause + 2e-6, 1e-3)
            now = time.monotonic()
            if now - looked > _LOOK:
                looked = now
                ended = [r for r in self.peers if self.state(r) == "gone"]
                ended += [r for r in what()[1] if self.state(r) == "left"]
                if ended and not is_done():  # it may have come, then ended
                    raise self._lost(stem, what()[0], ended, "")
            if now - begin > limit:
                text, ranks = what()
                raise self._lost(stem, text, ranks, f" within {limit:g} s")

    def check_there(self, stem: str, ranks: Sequence[int]) -> None:
        """Raise CommunicationError if one of ``ranks`` was killed, or ended by an exception."""
        gone = [r for r in ranks if self.state(r) == "gone"]
        if gone:
            raise self._lost(stem, "ranks that live", gone, "")

    def _lost(self, stem: str, what: str, ranks: Sequence[int], within: str) -> CommunicationError:
        told = "; ".join(f"{self.name(r)} {_STATES[self.state(r)]}" for r in ranks)
        return lost_peer(f"[{stem}] window{rank_text()}: expected {what}{within}, got none{told and ': '}{told}.")


_is_unattended = False


@contextmanager
def unattended() -> Iterator[None]:
    """Inside, operators on windows do nothing and wait for nobody: a model is only looked at."""
    global _is_unattended
    before, _is_unattended = _is_unattended, True
    try:
        yield
    finally:
        _is_unattended = before


def is_unattended() -> bool:
    return _is_unattended


_alive: weakref.WeakSet[Windows] = weakref.WeakSet()


def holding(address: int, size: int) -> tuple[Windows, Bytes] | None:
    """The windows of this process whose own memory has ``size`` bytes at ``address``, and these bytes."""
    for windows in list(_alive):
        memory = windows.memory(windows.rank)
        first = address - memory.ctypes.data
        if first >= 0 and first + size <= memory.nbytes:
            return windows, memory[first : first + size]
    return None


_LEFT = 1
_STATES = {
    "running": "is running but does not come",
    "stopped": "is stopped by a signal",
    "left": "has left",
    "gone": "has ended (killed, or by an exception)",
}


class _Control(NamedTuple):
    """state: one word. notes: a row of each rank of the group: how many numbers, then these."""

    state: NDArray[numpy.int64]
    notes: NDArray[numpy.int64]


class Mapped(NamedTuple):
    """A rank's memory as this process sees it, int8: ``size`` bytes for the ranks, then ours."""

    memory: Tensor
    size: int
    pid: int = 0

    def control(self, ranks: int) -> _Control:
        words = self.memory.numpy()[_rounded(self.size) :].view(numpy.int64)
        return _Control(words[:1], words[8 : 8 + ranks * _NOTE].reshape(ranks, _NOTE))


def extent(size: int, ranks: int) -> int:
    """Bytes behind a window of ``size`` bytes in a group of ``ranks``."""
    return _rounded(size) + 8 * (8 + ranks * _NOTE)


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


# -- processes -------------------------------------------------------------------------------------------------


def register(store: Any, rank: int, names: Sequence[int], peers: Sequence[int], size: int) -> Windows:
    """The windows of a rank that is a process and of its ``peers``, which must name it, too, and come in time.

    store: the group's. names: global ranks of the group. size: bytes of this rank's, may differ between ranks. Raises
    InvalidArgumentError for a size below 1 and peers that are no other ranks of the group, CommunicationError when a
    peer does not come within ``NFG_TIMEOUT`` or its memory cannot be reached, and on CPUs that reorder stores.
    """
    if platform.machine() not in _ORDERED:
        raise CommunicationError(
            f"[comm] windows: expected a CPU that keeps the order of stores (x86-64), got {platform.machine()!r}. "
            "There is no fence for others here."
        )
    ranks = len(names)
    check_peers(rank, ranks, peers)
    mapped = exchange(store, rank, sorted({*peers, rank}), size, timeout(), extra=extent(size, ranks) - size)
    lives = {r: os.pidfd_open(m.pid) for r, m in mapped.items() if r != rank}
    windows = Windows(rank, ranks, mapped, lambda r: _state(lives[r], mapped[r].pid), names)
    _end_in_order(windows, list(lives.values()))
    return windows


def check_peers(rank: int, ranks: int, peers: Sequence[int]) -> None:
    """Raise InvalidArgumentError unless ``peers`` are other ranks of a group of ``ranks``."""
    wrong = [r for r in peers if not isinstance(r, int) or not 0 <= r < ranks or r == rank]
    if wrong:
        raise argument_error(
            "comm", "peer_ranks", f"other ranks of the group, 0 to {ranks - 1} without {rank}", wrong[0],
            "Attention ranks name all FFN ranks, FFN ranks all attention ranks.",
        )  # fmt: skip


def _state(life: int, pid: int) -> State:
    poll = select.poll()
    poll.register(life, select.POLLIN)
    if poll.poll(0):
        return "gone"
    try:
        return "stopped" if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt" else "running"
    except OSError:
        return "gone"


def _end_in_order(windows: Windows, lives: list[int]) -> None:
    """Peers learn that this rank has left when nobody holds ``windows`` any more, or when the process ends."""
    ending = weakref.finalize(windows, _left, os.getpid(), windows._control[windows.rank].state, lives)
    if mp_process.parent_process() is not None:
        mp_util.Finalize(None, ending, exitpriority=-50)  # there atexit does not run


def _left(pid: int, state: NDArray[numpy.int64], lives: list[int]) -> None:
    has_failed = sys.exc_info()[1] is not None or getattr(sys, "last_value", None) is not None
    if pid == os.getpid() and not has_failed:  # a forked child has none of its parent's windows
        state[0] = _LEFT
    for descriptor in lives:
        os.close(descriptor)


def exchange(
    store: Any, rank: int, members: Sequence[int], size: int, patience: timedelta, *, extra: int = 0
) -> dict[int, Mapped]:
    """Memory of all ``members`` of a group, this rank among them, zeroed; all of them call it with the same members
    or, if not, each member with those that call it with ``rank`` among theirs.

    store: the group's. size: bytes, may differ between ranks. extra: more bytes behind. Raises InvalidArgumentError for
    a size below 1, CommunicationError when a member does not come within ``patience`` or its memory cannot be reached.
    """
    if size < 1:
        raise argument_error("comm", "window_size", "a number of bytes", size, "Pass at least 1.")
    turn = store.add(f"window/turn/{rank}", 1)
    place = f"window/{turn}"
    fd = os.memfd_create("npu_window")
    try:
        os.ftruncate(fd, size + extra)
        store.set(f"{place}/at/{rank}", f"{os.getpid()}:{fd}:{size}:{extra}:{','.join(map(str, members))}")
        mapped = {}
        for member in members:
            mapped[member] = _map(_answer(store, f"{place}/at/{member}", member, patience), member, rank)
        store.set(f"{place}/mapped/{rank}", "")
        for member in members:
            _answer(store, f"{place}/mapped/{member}", member, patience)
        return mapped
    finally:
        os.close(fd)


def _answer(store: Any, key: str, member: int, patience: timedelta) -> str:
    try:
        store.wait([key], patience)
    except RuntimeError as error:
        text = str(error).lower()
        if "timed out" not in text and "timeout" not in text:
            raise lost_peer(
                f"[comm] window: expected the group's store while waiting for rank {member} of the group, got: "
                f"{str(error).splitlines()[0]}. The process that hosts it, rank 0, must stay until all are here."
            ) from None
        raise lost_peer(
            f"[comm] window: expected rank {member} of the group to register one within "
            f"{patience.total_seconds():g} s, got none. Every rank named as a peer must call it."
        ) from None
    return str(store.get(key).decode())


def _map(answer: str, member: int, rank: int) -> Mapped:
    *numbers, members = answer.split(":")
    pid, fd, size, extra = map(int, numbers)
    if str(rank) not in members.split(","):
        raise CommunicationError(
            f"[comm] window: expected rank {member} of the group to name rank {rank} as a peer, got {members}. "
            "Two ranks exchange windows when each names the other."
        )
    try:
        handle = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR)
    except OSError as error:
        raise CommunicationError(
            f"[comm] window: expected to reach the memory of rank {member} (process {pid}), got: {error}. "
            "Ranks must run on one machine, as one user and in one pid namespace."
        ) from None
    try:
        memory = mmap.mmap(handle, size + extra)
    finally:
        os.close(handle)
    return Mapped(torch.frombuffer(memory, dtype=torch.int8), size, pid)
