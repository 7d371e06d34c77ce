"""A rank for references of operators: what it gathers is said by a function of its own tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from npu_fused_graph.comm import Rank, Windows

Lists = list[list[Tensor]]


class Gathering(Rank):
    """gather: from this rank's tensors to those of all ranks; default: it is alone."""

    rank = 0

    def __init__(self, gather: Callable[[Sequence[Tensor]], Lists] = lambda xs: [list(xs)]) -> None:
        self._gather = gather

    def gather(self, xs: Sequence[Tensor]) -> Lists:
        return self._gather(xs)

    def register_windows(self, size: int, peers: Sequence[int] | None = None) -> Windows:
        raise NotImplementedError

    @property
    def windows(self) -> Windows:
        raise NotImplementedError


class Reducing(Gathering):
    """all_reduce: from this rank's tensor to the sum."""

    def __init__(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._all_reduce = all_reduce

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._all_reduce(x)
