"""What an operator is given to work with the other ranks of its group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from npu_fused_graph.comm.windows import Windows
from npu_fused_graph.errors import CommunicationError

ReduceMode = Literal["once", "seq"]
"""once: summed in float32 and rounded once. seq: rounded after each addition. HCCL's own order lies in between."""


class Rank(ABC):
    """A rank in its group, whatever the ranks are: processes, threads, or tensors of a test.

    rank, size: of the group, not of the world. Every method is called by all ranks together, but for those of windows.
    """

    rank: int
    size: int

    @abstractmethod
    def gather(self, xs: Sequence[Tensor]) -> list[list[Tensor]]:
        """Every rank's ``xs`` in rank order, in one exchange: tensors of one dtype, on all ranks of the same shapes."""

    @abstractmethod
    def register_windows(self, size: int, peers: Sequence[int] | None = None) -> Windows:
        """Memory of ``size`` bytes on this rank, zeroed, that its ``peers`` write, and theirs for this rank.

        peers: ranks of the group, by default all others; each calls it and names this one. Once per group.
        """

    @property
    @abstractmethod
    def windows(self) -> Windows:
        """What was registered. Raises CommunicationError where nothing was."""

    def sums(self, xs: Sequence[Tensor], mode: ReduceMode = "once") -> list[Tensor]:
        """For each of ``xs`` the sum over the ranks in rank order, in its dtype; one exchange."""
        return [sum_ranks(parts, mode) for parts in zip(*self.gather(xs), strict=True)]

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the ranks of one tensor, rounded as this group's own all-reduce does."""
        return self.sums([x])[0]

    def barrier(self) -> None:
        """Go on when all ranks are here."""
        self.gather([torch.empty(0)])


def sum_ranks(parts: Sequence[Tensor], mode: ReduceMode) -> Tensor:
    """The sum of the ranks' parts, in their dtype."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
        if mode == "seq":
            total = total.to(part.dtype).float()
    return total.to(parts[0].dtype)


def no_windows(where: str) -> CommunicationError:
    """The error where windows are needed and none were registered."""
    return CommunicationError(
        f"[comm] windows: expected a group whose ranks registered their windows, got {where}. "
        "Enter npu_fused_graph.afd.windows(...) first, or call _window_register_and_exchange as on a device."
    )
