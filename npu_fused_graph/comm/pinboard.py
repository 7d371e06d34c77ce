"""What the ranks of a group tell each other beside their data: who is here, and why somebody gave up."""

from __future__ import annotations

import os
import socket
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from npu_fused_graph.comm.this_process import rank_text, timeout
from npu_fused_graph.errors import lost_peer

_PROBE = 0.2  # seconds without an answer after which a process counts as running
_POLL = 0.005
_ALIKE = 2.0  # seconds a rank that failed gives the others to fail alike


class Pinboard:
    """Where the ranks of a process group pin who they are and why they gave up: a part of the group's store.

    ``at/<rank>``: it has joined, and its beacon's address. ``end/<rank>``: its last word, one of ``failed <reason>``
    (the fault is there), ``waited <what>`` (it timed out), ``heard`` (it ended because others did). ``left/<rank>``:
    it reads no more. Ranks are ranks of the group here; texts name global ones.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank: int = group.rank()
        self.ranks: list[int] = dist.get_process_group_ranks(group)
        self.name = f"group {group.group_name!r} (ranks {self.ranks})"
        self.broken: str | None = None
        root = c10d._world.pg_map[group][1]
        # Not kept while all is well: this process may be its host, and a group made later at the same address must
        # find a store of its own.
        self._root: Any = weakref.ref(root)
        self._world = dist.get_rank(), dist.get_world_size()
        self._is_host = _is_host(root)
        self._addresses: dict[int, str] = {}
        self._spoke = False
        self._failures = 0
        self._left = False
        self._kept: Any = None
        self._gone = False
        place = f"nfg/{group.group_name}/{'-'.join(map(str, self.ranks))}"
        try:
            # a connection of our own, with our own time-out
            client: Any = root.clone()  # type: ignore[attr-defined]
            client.set_timeout(timeout())
            # a store may outlive destroy_process_group: what earlier groups of that name left in it is not for us
            life = c10d.PrefixStore(place, client).add(f"life/{self.rank}", 1)
            self._here: Any = c10d.PrefixStore("nfg/here", _base(client))  # of all groups: who still needs the store
            self._here.set(str(self._world[0]), _beacon_address())
        except RuntimeError as error:
            raise lost_peer(
                f"[comm] {self.name}{rank_text()}: expected the group's store to answer, got: {first_line(error)}."
            ) from None
        self.store: Any = c10d.PrefixStore(f"{place}/{life}", client)

    def others(self) -> list[int]:
        return [r for r in range(len(self.ranks)) if r != self.rank]

    def join(self, place: str, members: Sequence[int]) -> None:
        """Say that this rank is at ``place`` and wait for the other members. Raises RuntimeError."""
        self._ask("set", f"{place}/at/{self.rank}", _beacon_address())
        texts = self._meet(f"{place}/at", members)
        self._addresses.update(texts)

    def exchange_texts(self, key: str, text: str, members: Sequence[int]) -> dict[int, str]:
        """Every member's text under ``key``. Raises RuntimeError."""
        self._ask("set", f"{key}/{self.rank}", text)
        return self._meet(key, members)

    def speak(self, word: str) -> None:
        """Pin this rank's last word; later ones are ignored."""
        if not self._spoke:
            self._spoke = True
            self._pin(f"end/{self.rank}", word)

    def agree_on_failure(self, what: str) -> bool:
        """Whether every rank comes here with the same ``what`` in time: the store has one answer for all of them."""
        self._failures += 1
        place = f"failure/{self._failures}"
        members = range(len(self.ranks))
        keys = [f"{place}/{r}" for r in members]
        try:
            self._ask("set", f"{place}/{self.rank}", what)
            self._await(keys, _ALIKE)
            is_alike = self._ask("check", keys) and {self._ask("get", key).decode() for key in keys} == {what}
            answer = self._ask("compare_set", f"{place}/answer", "", "alike" if is_alike else "not alike")
        except RuntimeError:
            return False
        return bool(answer == b"alike")

    def leave(self, reason: str) -> None:
        """This rank stops using the group: say why, unless the others know or are the reason."""
        if not self._left:
            self._left = True
            self._kept = self._root()  # the others want to read why
            self.speak("heard" if self.broken else f"failed {reason[:2000]}")
            self.broken = self.broken or reason
            self._pin(f"left/{self.rank}", "")
            with suppress(RuntimeError):  # the store is gone: nobody waits for us there
                self._here.set(str(self._world[0]), "")

    def linger(self, seconds: float) -> None:
        """If the store lives in this process, keep it until the others have read what they need.

        Ranks may wait in other groups, for ranks that wait here: those, too, must still learn who never came.
        """
        if not (self.broken and self._is_host):
            return
        deadline = time.monotonic() + seconds
        me, size = self._world
        for r in range(size):
            while r != me and time.monotonic() < deadline and self._needs_store(r):
                time.sleep(_POLL)

    def _needs_store(self, global_rank: int) -> bool:
        try:
            if not self._here.check([str(global_rank)]):
                return False
            address = self._here.get(str(global_rank)).decode()
        except RuntimeError:
            return False
        return bool(address) and _answers(address)

    def causes(self, place: str, members: Sequence[int], *, timed_out: bool) -> list[str]:
        """Why an operation of ``members`` failed here, as far as it can be told."""
        others = [r for r in members if r != self.rank]
        if timed_out:
            self._await([f"end/{r}" for r in others], 0.5)  # the others' time-outs end about now
        is_known = self._learn_addresses(place, others)
        words = self._words(self.others())
        failed = [f"rank {self.ranks[r]} failed: {w[7:]}" for r, w in words.items() if w.startswith("failed ")]
        if failed:
            return failed
        silent = [r for r in others if r not in words]
        absent = [r for r in silent if is_known and r not in self._addresses]
        ended = [r for r in silent if r not in absent and not self._is_running(r)]
        found = [f"rank {self.ranks[r]} never used this group" for r in absent]
        found += [f"rank {self.ranks[r]} has ended (killed, or finished early)" for r in ended]
        if not found and timed_out:
            known = {r: "is running but did not arrive" for r in silent if r in self._addresses}
            found = [f"rank {self.ranks[r]} {known.get(r, 'did not arrive')}" for r in silent]
        return found or [f"rank {self.ranks[r]} gave up: {w[7:]}" for r, w in words.items() if w.startswith("waited ")]

    def _meet(self, key: str, members: Sequence[int]) -> dict[int, str]:
        """Wait until every member has pinned ``key``, and read it."""
        keys = [f"{key}/{r}" for r in members]
        others = [r for r in members if r != self.rank]
        waited, limit = 0.0, timeout().total_seconds()
        begin = time.monotonic()
        while not self._ask("check", keys):
            # who leaves pinned its key before its last word: only a key that is missing after the word never comes
            if self._words(others) and not self._ask("check", keys):
                raise RuntimeError("a rank gave up before it came")
            if waited > limit:
                raise RuntimeError("timed out")
            time.sleep(_POLL + min(waited / 20, 0.1))  # a peer that compiles needs the cores more than we do
            waited = time.monotonic() - begin
        return {r: self._ask("get", f"{key}/{r}").decode() for r in members}

    def _words(self, ranks: Sequence[int]) -> dict[int, str]:
        found = {}
        try:
            for r in ranks:
                if self._ask("check", [f"end/{r}"]):
                    found[r] = self._ask("get", f"end/{r}").decode()
        except RuntimeError:
            pass  # no store, no words
        return found

    def _await(self, keys: list[str], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        try:
            while keys and not self._ask("check", keys) and time.monotonic() < deadline:
                time.sleep(_POLL)
        except RuntimeError:
            pass  # the store is gone: nothing to wait for

    def _pin(self, key: str, text: str) -> None:
        try:
            self._ask("set", key, text)
            self._ask("check", [key])  # the answer proves that it has arrived
        except RuntimeError:
            pass  # the store is gone: nobody can read it either

    def _ask(self, method: str, *args: Any) -> Any:
        """Use the store; once it has failed it is left alone, for c10d prints a stack trace each time."""
        if self._gone:
            raise RuntimeError("the process group's store is gone, its host must have ended")
        try:
            return getattr(self.store, method)(*args)
        except RuntimeError:
            self._gone = True
            raise

    def _learn_addresses(self, place: str, ranks: Sequence[int]) -> bool:
        """Read the addresses of those who have joined; False if the store cannot tell."""
        try:
            for r in ranks:
                if r not in self._addresses and self._ask("check", [f"{place}/at/{r}"]):
                    self._addresses[r] = self._ask("get", f"{place}/at/{r}").decode()
        except RuntimeError:
            return False
        return True

    def _is_running(self, rank: int) -> bool:
        """False if the rank's process, on this host, has ended for certain."""
        return _answers(self._addresses.get(rank, ""))


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@lru_cache(maxsize=1)
def beacon() -> socket.socket:
    """A socket that listens as long as this process lives: how others tell that it has ended, however it ended."""
    made = socket.create_server(("127.0.0.1", 0))

    def forget() -> None:  # a forked child must not answer for this process
        made.close()
        beacon.cache_clear()

    os.register_at_fork(after_in_child=forget)
    return made


def _beacon_address() -> str:
    return f"{socket.gethostname()} {beacon().getsockname()[1]}"


def _answers(address: str) -> bool:
    """Whether the process behind a beacon lives; True where that cannot be told from here."""
    host, _, port = address.rpartition(" ")
    if host != socket.gethostname():
        return True
    try:
        with socket.create_connection(("127.0.0.1", int(port)), _PROBE) as probe:
            probe.settimeout(_PROBE)
            return bool(probe.recv(1))  # nobody sends: ends by time-out, or at once when the process ends
    except TimeoutError:
        return True
    except OSError:
        return False


def _base(store: Any) -> Any:
    """The store under all prefixes."""
    while isinstance(store, c10d.PrefixStore):
        store = store.underlying_store
    return store


def _is_host(store: Any) -> bool:
    store = _base(store)
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return isinstance(store, torch._C._distributed_c10d.TCPStore) and dist.get_rank() == 0 and not is_agents
