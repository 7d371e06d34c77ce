"""The ranks of a group as threads of one process: for executing again what a group of processes did."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from npu_fused_graph.comm.protocol import Rank, no_windows
from npu_fused_graph.comm.this_process import timeout
from npu_fused_graph.comm.windows import Mapped, State, Windows, extent
from npu_fused_graph.errors import CommunicationError

T = TypeVar("T")


class LocalGroup:
    """``size`` ranks that meet in memory. A rank that fails ends the waiting of the others."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._slots: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=timeout().total_seconds())
        self.ranks = [LocalRank(self, rank) for rank in range(size)]

    def run(self, work: Callable[[LocalRank], T]) -> list[T]:
        """``work`` on every rank, each in a thread; their results in rank order. Raises what the first failed with."""
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def run_rank(rank: LocalRank) -> None:
            try:
                results[rank.rank] = work(rank)
            except BaseException as error:
                if not isinstance(error, threading.BrokenBarrierError):
                    errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in self.ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        if self._barrier.broken:
            raise CommunicationError(
                f"[comm] local group: expected {self.size} ranks to meet, got fewer in time. They run different calls."
            )
        return results

    def state(self, rank: int) -> State:
        """Whether a rank may still do what others wait for."""
        return "gone" if self._barrier.broken else "running"

    def exchange(self, rank: int, value: T) -> list[T]:
        """Every rank's value, in rank order."""
        self._slots[rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()  # nobody overwrites a slot before all have read it
        return values


class LocalRank(Rank):
    """One rank of a :class:`LocalGroup`, with what else the engine asks of a communicator."""

    group = None

    def __init__(self, group: LocalGroup, rank: int) -> None:
        self._group = group
        self.rank = rank
        self.size = group.size
        self._windows: Windows | None = None

    def register_windows(self, size: int, peers: Sequence[int] | None = None) -> Windows:
        """All ranks of the group call it."""
        own = Mapped(torch.zeros(extent(size, self.size), dtype=torch.int8), size)
        everybody = dict(enumerate(self._group.exchange(self.rank, own)))
        named = range(self.size) if peers is None else (*peers, self.rank)
        mapped = {r: everybody[r] for r in named}
        self._windows = Windows(self.rank, self.size, mapped, self._group.state, range(self.size))
        return self._windows

    @property
    def windows(self) -> Windows:
        if self._windows is None:
            raise no_windows("local ranks without")
        return self._windows

    def gather(self, xs: Sequence[Tensor]) -> list[list[Tensor]]:
        return self._group.exchange(self.rank, list(xs))

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the ranks, in float32 or wider, rounded once to ``x``'s dtype."""
        parts = self._group.exchange(self.rank, x)
        total = parts[0].double() if x.dtype.itemsize > 4 else parts[0].float()
        for part in parts[1:]:
            total = total + part
        return total.to(x.dtype)

    def check_usable(self) -> None:
        """A local group fails as a whole."""

    def begin(self, lines: Sequence[str], digest: int, known: int) -> int:
        """All ranks execute the same recorded call."""
        return 1

    def fail(self, what: str, reason: str) -> None:
        """:meth:`LocalGroup.run` tells the others."""

    def abort(self, reason: str) -> None:
        """:meth:`LocalGroup.run` tells the others."""
