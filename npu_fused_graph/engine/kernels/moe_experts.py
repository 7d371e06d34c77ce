"""Who has which experts of a group, which of them each token goes to, and rows exchanged with their ranks.

The experts are numbered rank by rank: the first ranks have one shared expert each, the others MoE experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npu_fused_graph.comm import Communicator, communicator
from npu_fused_graph.errors import CommunicationError, GraphError


@dataclass(frozen=True, slots=True)
class Experts:
    """Who has which experts.

    moe, shared: how many there are. shared_ranks: ranks with a shared one, several may have the same. by_tokens: each
    shared rank gets some of a rank's tokens (the first version of the operators), else a rank sends all of them to one.
    """

    peer: Communicator
    moe: int
    shared: int
    shared_ranks: int
    by_tokens: bool = False

    @property
    def per_rank(self) -> int:
        """MoE experts of a rank that has no shared one."""
        return self.moe // (self.peer.size - self.shared_ranks)

    @property
    def mine(self) -> slice:
        """This rank's experts."""
        rank = self.peer.rank
        if rank < self.shared_ranks:
            return slice(rank, rank + 1)
        start = self.shared_ranks + (rank - self.shared_ranks) * self.per_rank
        return slice(start, start + self.per_rank)

    def by_rank(self, counts: Tensor) -> list[int]:
        """Rows per rank, of rows per expert."""
        shared, moe = counts[: self.shared_ranks], counts[self.shared_ranks :]
        return [*shared.tolist(), *moe.view(-1, self.per_rank).sum(1).tolist()]

    def chosen(self, expert_ids: Tensor, active: Tensor | None) -> Tensor:
        """The expert of each token and choice, shared ones behind; the last number + 1 where nothing is sent."""
        nowhere = self.shared_ranks + self.moe
        ids = expert_ids.long()
        found = (ids + self.shared_ranks).masked_fill((ids < 0) | (ids >= self.moe), nowhere)
        if self.shared_ranks:
            found = torch.cat([found, self._shared(len(found))], 1)
        return found if active is None else found.masked_fill(~pairs_of(active, found.shape[1]), nowhere)

    def _shared(self, tokens: int) -> Tensor:
        if self.by_tokens:
            # as the kernel has it: tokens of all ranks in a row, cut into as many pieces as there are shared ranks
            ranks, rank = self.shared_ranks, self.peer.rank
            ends = (torch.arange(1, tokens + 1) + rank * tokens // ranks) * ranks
            return (ends.add(tokens - 1) // max(tokens, 1) - 1 - rank).unsqueeze(1)
        size = self.shared_ranks // self.shared
        return (torch.arange(self.shared) * size + self.peer.rank % size).expand(tokens, -1)


def pairs_of(active: Tensor, width: int) -> Tensor:
    """The mask of tokens, or of tokens and choices, as one of tokens, choices and shared experts."""
    if active.dim() == 1:
        return active.unsqueeze(1).expand(-1, width)
    return torch.cat([active, active.any(1, keepdim=True).expand(-1, width - active.shape[1])], 1)


def experts_of(
    group: str, ranks: int, rank: int, moe: int, shared: int, shared_ranks: int, by_tokens: bool = False
) -> Experts:
    peer = communicator(group)
    check("ep_world_size", f"the size of {peer}, {peer.size}", ranks == peer.size, ranks)
    check("ep_rank_id", f"this rank's number in {peer}, {peer.rank}", rank == peer.rank, rank)
    check("shared_expert_rank_num", f"less than {ranks} ranks", 0 <= shared_ranks < ranks, shared_ranks)
    rest = ranks - shared_ranks
    check("moe_expert_num", f"a multiple of the {rest} ranks that have some", moe > 0 and moe % rest == 0, moe)
    if shared_ranks:
        fits = shared > 0 and shared_ranks % shared == 0
        check("shared_expert_num", f"a divisor of shared_expert_rank_num={shared_ranks}", fits, shared)
    return Experts(peer, moe, shared if shared_ranks else 0, shared_ranks, by_tokens)


def by_expert(chosen: Tensor, experts: Experts) -> tuple[Tensor, Tensor]:
    """Places in ``chosen`` expert by expert, and how many each has."""
    total = experts.shared_ranks + experts.moe
    counts = torch.bincount(chosen.flatten(), minlength=total + 1)[:total]
    return torch.argsort(chosen.flatten(), stable=True)[: int(counts.sum())], counts


def exchange(peer: Communicator, columns: Sequence[Tensor], sends: list[int], receives: list[int]) -> list[Tensor]:
    """The ranks' rows of ``columns``, all that belongs to a row in one message per rank."""
    packed = [c.contiguous().view(torch.uint8) for c in columns]
    widths = [c.shape[1] for c in packed]
    parts = list(torch.cat(packed, 1).split(sends))
    arrived = torch.cat(peer.all_to_all(parts, [torch.Size([n, sum(widths)]) for n in receives]))
    return [
        part.contiguous().view(column.dtype) for part, column in zip(arrived.split(widths, 1), columns, strict=True)
    ]


def agreed(peer: Communicator, rows: Tensor, width: int, counts: Tensor | None = None) -> Tensor:
    """Every rank's counts, once all have told that their rows have one dtype and size, and their tokens one width.

    Raises CommunicationError on all ranks otherwise: the bytes of rows would be read as another dtype.
    """
    mine = torch.tensor([_FLOATS.index(rows.dtype), rows.shape[1], width], dtype=torch.int64)
    (everyone,) = zip(
        *peer.gather([mine if counts is None else torch.cat([mine, counts.to(torch.int64)])]), strict=True
    )
    facts = [tuple(told[:3].tolist()) for told in everyone]
    if len(set(facts)) > 1:
        shown = ", ".join(f"rank {r}: {_FLOATS[d]}, rows of {n}, {k} choices" for r, (d, n, k) in enumerate(facts))
        raise CommunicationError(f"expected rows of one dtype and size on all ranks, got {shown}.")
    return torch.stack(everyone)[:, 3:]


_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def check(parameter: str, expected: str, holds: bool, got: object) -> None:
    if not holds:
        raise GraphError(f"{parameter}: expected {expected}, got {got}.")
