"""Windows: memory of one rank that its peers write, without a name in the file system.

A window is an anonymous file of its owner. Peers open it through the owner's entry in /proc, map it, and say so; then
the owner closes the file. What is left are mappings, which end with their processes, however these end. A window stays
writable for its peers after its owner has left.

Behind the bytes of a window lie a few that only this module reads: whether the owner left in order, and what its peers
declared there.
"""

from __future__ import annotations

import atexit
import mmap
import operator
import os
import platform
import secrets
import select
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
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
"""Words of a rank in a window: how many numbers it declared, up to 21 of them; its number; whether it is ready."""

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
        word = self._control[rank].state[0]
        return "left" if word == _LEFT else "gone" if word == _FAILED else state

    def fail(self) -> None:
        """Tell the peers that an exception ended what this rank did with its windows."""
        self._control[self.rank].state[0] = _FAILED
        _alive.discard(self)

    def leave(self) -> None:
        """Tell the peers that this rank ends as it should. They may still write its window, which nobody reads."""
        self._control[self.rank].state[0] = _LEFT
        _alive.discard(self)

    def has_declared(self, at: int, numbers: tuple[int, ...]) -> bool:
        """Whether this is what this rank declared last."""
        return self._declared.get(at) == numbers

    def say_ready(self, at: int, word: int, number: int) -> None:
        """Tell peer ``at`` that this rank's tables may be written. word: not 0. number: this rank's, of its role."""
        self._control[at].notes[self.rank, _NOTE - 2 :] = number, word

    def ready(self, rank: int) -> tuple[int, int]:
        """Word and number of peer ``rank``; the word is 0 until it has said so."""
        number, word = self._control[self.rank].notes[rank, _NOTE - 2 :].tolist()
        return word, number

    def declare(self, at: int, numbers: tuple[int, ...]) -> None:
        """Leave up to 21 numbers in the window of peer ``at``, in place of those left there before."""
        row = self._control[at].notes[self.rank]
        row[0] = 0
        row[1 : 1 + len(numbers)] = numbers
        row[0] = len(numbers)
        self._declared[at] = numbers

    def declared(self, at: int) -> dict[int, tuple[int, ...]]:
        """What ranks, this one among them, have left in the window of peer ``at``."""
        rows = self._control[at].notes
        seen = rows.copy()
        while (rows[:, 0] != seen[:, 0]).any():  # somebody was writing
            seen = rows.copy()
        return {r: tuple(seen[r, 1 : 1 + int(seen[r, 0])].tolist()) for r in numpy.flatnonzero(seen[:, 0]).tolist()}

    def withdraw(self, at: int) -> None:
        """Take back what this rank declared."""
        self._control[at].notes[self.rank, 0] = 0
        self._declared.pop(at, None)

    def name(self, rank: int) -> str:
        """``rank 3``, as the world counts; in a group that counts otherwise that, too."""
        name = self._names[rank]
        return f"rank {name}" if name == rank else f"rank {name} ({rank} of the group)"

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


_LEFT, _FAILED = 1, 2
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
    """A rank's memory as this process sees it, int8: ``size`` bytes for the ranks, then ours. life: a pidfd."""

    memory: Tensor
    size: int
    pid: int = 0
    life: int = -1

    def control(self, ranks: int) -> _Control:
        words = self.memory.numpy()[_rounded(self.size) : extent(self.size, ranks)].view(numpy.int64)
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
    members = sorted({*check_peers(rank, ranks, peers), rank})
    mapped = exchange(store, rank, members, size, timeout(), extra=extent(size, ranks) - size)
    lives = {r: m.life for r, m in mapped.items() if r != rank}
    windows = Windows(rank, ranks, mapped, lambda r: _state(lives[r], mapped[r].pid), names)
    _end_in_order(windows, list(lives.values()))
    return windows


def check_size(size: int) -> None:
    """Raise InvalidArgumentError for a size below 1."""
    if size < 1:
        raise argument_error("comm", "window_size", "a number of bytes", size, "Pass at least 1.")


def check_peers(rank: int, ranks: int, peers: Sequence[int]) -> list[int]:
    """``peers`` as ints. Raises InvalidArgumentError unless they are other ranks of a group of ``ranks``."""
    found = []
    for peer in peers:
        number = operator.index(peer) if hasattr(peer, "__index__") else -1
        if not 0 <= number < ranks or number == rank:
            raise argument_error(
                "comm", "peer_ranks", f"other ranks of the group, 0 to {ranks - 1} without {rank}", peer,
                "Attention ranks name all FFN ranks, FFN ranks all attention ranks.",
            )  # fmt: skip
        found.append(number)
    return found


def _state(life: int, pid: int) -> State:
    poll = select.poll()
    poll.register(life, select.POLLIN)
    if poll.poll(0):
        return "gone"
    try:
        return "stopped" if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt" else "running"
    except OSError:
        return "gone"


_is_ending = False


def _end_in_order(windows: Windows, lives: list[int]) -> None:
    """Peers learn that this rank has left when nobody holds ``windows`` any more, or when the process ends."""
    ending = weakref.finalize(windows, _left, os.getpid(), windows._control[windows.rank].state, lives)
    _watch_the_end()
    if mp_process.parent_process() is not None:
        mp_util.Finalize(None, _end_of_child, (ending,), exitpriority=-50)  # there atexit does not run


@lru_cache(maxsize=1)
def _watch_the_end() -> None:
    atexit.register(_note_end)  # after weakref's own, so that it runs before


def _note_end() -> None:
    global _is_ending
    _is_ending = True


def _end_of_child(ending: Callable[[], Any]) -> None:
    _note_end()
    ending()


def _left(pid: int, state: NDArray[numpy.int64], lives: list[int]) -> None:
    if pid == os.getpid() and not state[0] and not (_is_ending and _has_failed()):  # a forked child has no windows
        state[0] = _LEFT
    for descriptor in lives:
        os.close(descriptor)


def _has_failed() -> bool:
    """Whether an exception ends this process."""
    error = sys.exc_info()[1]
    if isinstance(error, SystemExit):
        return error.code not in (None, 0)
    return error is not None or getattr(sys, "last_value", None) is not None


def exchange(
    store: Any, rank: int, members: Sequence[int], size: int, patience: timedelta, *, extra: int = 0
) -> dict[int, Mapped]:
    """Memory of all ``members`` of a group, this rank among them, zeroed; each of them calls it and names this rank.

    store: the group's. size: bytes, may differ between ranks. extra: more bytes behind. Whoever failed may call it
    again. Raises InvalidArgumentError for a size below 1, CommunicationError when a member does not come within
    ``patience`` or its memory cannot be reached.
    """
    check_size(size)
    word = secrets.randbits(62) + 1
    fd = os.memfd_create("npu_window")
    mapped: dict[int, Mapped] = {}
    answers: dict[int, str] = {}
    own = f"window/at/{rank}"
    try:
        os.ftruncate(fd, size + extra + 8)
        os.pwrite(fd, word.to_bytes(8, "little"), size + extra)
        store.set(own, f"{os.getpid()}:{fd}:{size}:{extra}:{word}:{','.join(map(str, members))}")
        deadline, pause = time.monotonic() + patience.total_seconds(), 0.001
        while True:
            why = _meet(store, rank, members, word, mapped, answers)
            if not why:
                return mapped
            if time.monotonic() > deadline:
                raise lost_peer(f"[comm] window: expected {why} within {patience.total_seconds():g} s, got none.")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
    except BaseException as error:
        forget(mapped)
        with suppress(RuntimeError):
            store.set(own, "")
        if isinstance(error, RuntimeError) and not isinstance(error, CommunicationError):
            raise lost_peer(
                f"[comm] window: expected the group's store, got: {str(error).splitlines()[0]}. The process that hosts "
                "it, rank 0, must stay until all are here."
            ) from None
        raise
    finally:
        os.close(fd)


def _meet(
    store: Any, rank: int, members: Sequence[int], word: int, mapped: dict[int, Mapped], answers: dict[int, str]
) -> str:
    """Map whoever is there, and say so; what is still missing, "" when all have mapped each other.

    answers: by member what it said when it was mapped; one that tries again says something else.
    """
    missing, unmapped = "", ""
    for member in members:
        answer = _read(store, f"window/at/{member}")
        if answer and answer != answers.get(member):
            forget({member: mapped.pop(member)} if member in mapped else {})
            found = _map(answer, member, rank)
            if isinstance(found, str):
                missing = missing or found
                continue
            mapped[member], answers[member] = found, answer
            store.set(f"window/mapped/{rank}/{member}", answer.split(":")[4])
        if member not in mapped:
            missing = missing or f"rank {member} of the group to register one, as every rank named as a peer must,"
        elif _read(store, f"window/mapped/{member}/{rank}") != str(word):
            unmapped = unmapped or f"rank {member} of the group, which may wait for another one, to map this window"
    return missing or unmapped


def _read(store: Any, key: str) -> str:
    return str(store.get(key).decode()) if store.check([key]) else ""


def _map(answer: str, member: int, rank: int) -> Mapped | str:
    """The memory a member offers; what is missing where it cannot be had: what it said may be of an earlier attempt."""
    *numbers, members = answer.split(":")
    pid, fd, size, extra, word = map(int, numbers)
    if str(rank) not in members.split(","):
        return f"rank {member} of the group to name rank {rank} as a peer (it names {members})"
    life = -1
    try:
        if member != rank:
            life = os.pidfd_open(pid)
        handle = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR)
        try:
            if os.pread(handle, 8, size + extra) != word.to_bytes(8, "little"):
                raise OSError("another file")
            memory = mmap.mmap(handle, size + extra + 8)
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        _close_life(life)
        return (
            f"the memory of rank {member} of the group (process {pid}: {error}; ranks run on one machine, as one user, "
            "in one pid namespace)"
        )
    return Mapped(torch.frombuffer(memory, dtype=torch.int8), size, pid, life)


def forget(mapped: Mapping[int, Mapped]) -> None:
    """Nobody will ask whether these processes live."""
    for found in mapped.values():
        _close_life(found.life)


def _close_life(life: int) -> None:
    if life >= 0:
        os.close(life)
