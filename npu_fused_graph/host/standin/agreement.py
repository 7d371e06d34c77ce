"""Whether the ranks of a group are about to run the same collective: compared in memory they share, before data moves.

Gloo compares nothing: ranks that differ in operation, dtype or size get garbage, hang or end with the process. Every
rank has a ring of words that the others read; a word holds the number of the call, a hash of what it is, and a hash of
what goes where, whose sum over all ranks is 0 when what each rank sends is what the others expect.
"""

from __future__ import annotations

import hashlib
import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import numpy
from torch.distributed import distributed_c10d as c10d

from npu_fused_graph.comm import windows
from npu_fused_graph.errors import CommunicationError, lost_peer

SLOTS = 256
"""Words of a ring: more than twice as many as a rank may be ahead of what it has compared itself.

What it compares it knows all others to have said, and these are no further ahead of what they have compared.
"""
AHEAD = SLOTS // 4

_CALLS, _HASH = 0xFFFF, 0xFFFFFF


class Agreement:
    """Of one group; made with it, by all its ranks. Calls are numbered from 1. members: global ranks, for texts."""

    def __init__(
        self, store: Any, rank: int, size: int, members: Callable[[], Sequence[int]], patience: timedelta
    ) -> None:
        self._store = c10d.PrefixStore("agreement", store)
        self.size = size
        self._broken = ""
        self._rank, self._members, self._patience = rank, members, patience
        mapped = windows.exchange(self._store, rank, range(size), 8 * (1 + SLOTS), patience)
        self._rings = [mapped[r].memory.numpy()[: mapped[r].size].view(numpy.uint64) for r in range(size)]
        windows.forget(mapped)
        self._others = [ring for i, ring in enumerate(self._rings) if i != rank]
        self._own = self._rings[rank]
        self._own[0] = os.getpid()
        self._call = 0

    def post(self, text: str, pairs: int) -> int:
        """Say what this rank does next; the number of the call. pairs: see :func:`pair_hash`."""
        if self._broken:
            raise lost_peer(f"[run] {text}: expected a working group, got one that gave up: {self._broken}")
        self._call += 1
        call = self._call
        self._own[1 + call % SLOTS] = (call & _CALLS) << 48 | _hash(text) << 24 | pairs & _HASH
        return call

    def has_met(self, call: int) -> bool:
        """Whether every rank has said what its ``call`` is."""
        slot, wanted = 1 + call % SLOTS, call & _CALLS
        return all(int(ring[slot]) >> 48 == wanted for ring in self._others)

    def meet(self, call: int, text: str) -> None:
        """Wait for the others. Raises CommunicationError if they do something else, have ended, or do not come."""
        if not self.has_met(call):
            try:
                self._wait(call, text)
            except BaseException as error:
                self._give_up(call, text, str(error) or type(error).__name__)
                raise
        words = [int(ring[1 + call % SLOTS]) for ring in self._rings]
        if len({word >> 24 for word in words}) > 1 or sum(words) & _HASH:
            raise self._difference(call, text)

    def _wait(self, call: int, text: str) -> None:
        begin = time.monotonic()
        looked, pause = begin, 0.0  # not a loop without a sleep: gloo's threads need the cores
        while not self.has_met(call):
            time.sleep(pause)
            pause = min(pause + 2e-6, 1e-3)
            now = time.monotonic()
            if now - looked > 0.05:
                looked = now
                self._check_alive(call, text)
            if now - begin > self._patience.total_seconds():
                raise lost_peer(
                    f"[run] {text}: expected every rank of the group within {self._patience.total_seconds():g} s, "
                    f"got none from {self._names(self._missing(call))}."
                )

    def _give_up(self, call: int, text: str, why: str) -> None:
        """Who comes later finds a difference, and this rank's later calls would be counted wrongly: it makes none."""
        self._broken = why
        with suppress(RuntimeError):
            self.tell(call, f"{text}, which gave up")
        self._own[1 + call % SLOTS] = (call & _CALLS) << 48 | (_hash(text) ^ 1) << 24

    def _missing(self, call: int) -> list[int]:
        return [i for i, ring in enumerate(self._rings) if int(ring[1 + call % SLOTS]) >> 48 != call & _CALLS]

    def _check_alive(self, call: int, text: str) -> None:
        ended = [i for i in self._missing(call) if (pid := int(self._rings[i][0])) and not _is_running(pid)]
        if ended and (ended := [i for i in ended if i in self._missing(call)]):  # it may have come, then ended
            raise lost_peer(
                f"[run] {text}: expected every rank of the group, got an end of {self._names(ended)} before it came."
            )

    def _names(self, ranks: Sequence[int]) -> str:
        members = self._members()
        return ", ".join(f"rank {members[i]}" for i in ranks)

    def _difference(self, call: int, text: str) -> CommunicationError:
        """The error all ranks raise: everybody has seen the same words."""
        with suppress(RuntimeError):
            self.tell(call, text)
        texts = {}
        for i, rank in enumerate(self._members()):
            if i == self._rank:
                texts[rank] = text
                continue
            try:
                self._store.wait([f"differ/{call}/{i}"], self._patience)
                texts[rank] = self._store.get(f"differ/{call}/{i}").decode()
            except RuntimeError:
                texts[rank] = "something else"
        told = " | ".join(f"rank {rank}: {what}" for rank, what in texts.items())
        return CommunicationError(f"[run] collective: expected all ranks to call the same, got: {told}.")

    def tell(self, call: int, text: str) -> None:
        """What this rank's ``call`` is, for those that find a difference."""
        self._store.set(f"differ/{call}/{self._rank}", text)


def pair_hash(rank: int, sends: Sequence[int], receives: Sequence[int]) -> int:
    """Of what ``rank`` sends to and expects from every rank: summed over all ranks 0 where both sides agree."""
    total = 0
    for peer, (sent, expected) in enumerate(zip(sends, receives, strict=True)):
        total += _hash(f"{rank}>{peer}:{sent}") - _hash(f"{peer}>{rank}:{expected}")
    return total & _HASH


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=3).digest(), "little")


def _is_running(pid: int) -> bool:
    """Also false of a process that has ended but was not waited for yet."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return not poll.poll(0)
    finally:
        os.close(handle)
