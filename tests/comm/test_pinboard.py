"""What the ranks of a group learn from its store: when words arrive, who keeps it, and what happens once it is gone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch.distributed as dist

from npu_fused_graph.comm.links import Links
from npu_fused_graph.comm.pinboard import Pinboard, beacon
from npu_fused_graph.errors import CommunicationError
from tests.ranks import run_ranks, values


@contextmanager
def board_of_rank_0(store: Any) -> Iterator[Pinboard]:
    """Rank 0's board in a group of two; the other one never comes."""
    dist.init_process_group("fake", store=store, rank=0, world_size=2)
    try:
        yield Pinboard(dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def test_a_group_whose_store_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(store: Any, key: str, amount: int) -> int:
        raise RuntimeError("connection refused\nand a stack trace")

    monkeypatch.setattr(dist.PrefixStore, "add", add)
    wanted = r"rank 0.*: expected the group's store to answer, got: connection refused\.$"
    with pytest.raises(CommunicationError, match=wanted) as caught, board_of_rank_0(dist.HashStore()):
        pass
    assert caught.value.is_lost_peer


def test_who_fails_tells_the_others_and_leaves() -> None:
    with board_of_rank_0(dist.HashStore()) as board:
        links = Links.__new__(Links)
        links._pinboard, links._members, links._place, links._gloo = board, range(2), "all", None
        assert links._failure("all_reduce", RuntimeError("broken pipe")).is_lost_peer
        assert board.store.check(["end/0", "left/0"])


class _Unanswered:
    """A client of a store whose sets arrive with its next question: a TCPStore does not wait for an answer to them."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.sent: list[tuple[str, str]] = []

    def set(self, key: str, text: str) -> None:
        self.sent.append((key, text))

    def check(self, keys: list[str]) -> bool:
        while self.sent:
            self.store.set(*self.sent.pop(0))
        return bool(self.store.check(keys))


def test_last_words_have_arrived_when_a_rank_goes_on() -> None:
    with board_of_rank_0(dist.HashStore()) as board:
        store = board.store
        board.store = _Unanswered(store)
        board.leave("the disk is on fire")
        assert store.check(["end/0", "left/0"])
        assert store.get("end/0") == b"failed the disk is on fire"


class _Gone:
    """A store whose host has ended."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, method: str) -> Any:
        def fail(*args: Any) -> None:
            self.asked.append(method)
            raise RuntimeError("Broken pipe")

        return fail


def test_a_store_that_is_gone_is_asked_once() -> None:
    """c10d prints a stack trace for every question it cannot put."""
    with board_of_rank_0(dist.HashStore()) as board:
        board.store = gone = _Gone()
        with pytest.raises(RuntimeError, match="Broken pipe"):
            board.join("all", [0, 1])
        assert board.causes("all", [0, 1], timed_out=True) == ["rank 1 did not arrive"]
        board.leave("not all ranks arrived")
        assert gone.asked == ["set"]


def test_the_stores_host_stays_while_another_rank_may_want_to_read() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    here = dist.PrefixStore("nfg/here", store)

    def be_looked_for() -> None:
        connection, _ = other.accept()
        here.set("1", "")  # the other rank has read all it needs
        connection.close()

    with (
        board_of_rank_0(store) as board,
        ThreadPoolExecutor(1) as pool,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        here.set("1", f"{socket.gethostname()} {other.getsockname()[1]}")
        board.leave("the disk is on fire")
        looked = pool.submit(be_looked_for)
        board.linger(60)
        other.shutdown(socket.SHUT_RDWR)  # who was not looked for need not wait any longer
        looked.result()


def _in_a_child(rank: int) -> tuple[int, int]:
    read, write = os.pipe()
    mine: int = beacon().getsockname()[1]
    child = os.fork()
    if not child:
        try:
            os.write(write, str(beacon().getsockname()[1]).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    return mine, int(os.read(read, 16) or 0)


def test_a_forked_process_has_a_beacon_of_its_own() -> None:
    ((parent, child),) = values(run_ranks(_in_a_child, 1))
    assert child > 0
    assert child != parent
