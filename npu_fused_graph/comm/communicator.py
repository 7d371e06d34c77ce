"""Collectives on CPU that end: within ``NFG_TIMEOUT`` every rank has its result or an error that names the culprit.

Connections of our own over the ranks of a c10d process group carry the data, so that a time-out or an abort never
touches the user's group. Ranks compare what they are about to do before data moves, because gloo ends the process on
mismatched sizes or, worse, computes something.
"""

from __future__ import annotations

import hashlib
import secrets
import weakref
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from npu_fused_graph.comm.links import REDUCE_OPS, Links, pair_place
from npu_fused_graph.comm.pinboard import Pinboard
from npu_fused_graph.comm.protocol import Rank, no_windows
from npu_fused_graph.comm.this_process import rank_text
from npu_fused_graph.comm.windows import Mapped, Windows, check_peers, check_size, extent, register
from npu_fused_graph.errors import CommunicationError

# gloo cannot reduce these; the wider type gives the same result after the cast back (wrap-around included)
_REDUCED_AS = {torch.int16: torch.int32, torch.uint16: torch.int64, torch.uint32: torch.int64, torch.bool: torch.int64}
_REDUCIBLE = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.uint8,
}  # fmt: skip


class Communicator(Rank):
    """Collectives over the ranks of one process group, on CPU tensors. Results are new tensors.

    Roots, sources and destinations are ranks of the group, as in TorchAir's graphs. A group of the ``fake`` backend
    gives results of the right shape without talking to anybody.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = weakref.ref(group)
        self._name = group.group_name
        self.rank: int = group.rank()
        self.size: int = group.size()
        self.ranks: list[int] = dist.get_process_group_ranks(group)
        self._trusted = 0  # collectives that need no comparison: the handshake has vouched for them
        self._alone = self.size == 1 or c10d._world.pg_map[group][0] == "fake"
        self._pinboard: Pinboard | None = None
        self._links: dict[str, Links] = {}
        self._windows: Windows | None = None

    def __str__(self) -> str:
        return f"group {self._name!r} (ranks {self.ranks})"

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group; None once it was destroyed."""
        return self._group()

    @property
    def is_alone(self) -> bool:
        """Whether it talks to nobody: a group of one rank, or of the ``fake`` backend."""
        return self._alone

    @property
    def is_connected(self) -> bool:
        """Whether it has talked to the other ranks."""
        return bool(self._links)

    @property
    def is_broken(self) -> bool:
        return self._pinboard is not None and self._pinboard.broken is not None

    def check_usable(self) -> None:
        """Raise CommunicationError if an earlier failure ended this group."""
        if self._pinboard is not None and self._pinboard.broken:
            raise CommunicationError(
                f"[comm] {self}{rank_text()}: expected a working group, got one that failed: {self._pinboard.broken}. "
                "Restart the ranks, or call destroy_process_group and init_process_group on all of them."
            )

    def all_reduce(self, x: Tensor, op: str = "sum") -> Tensor:
        """Element-wise ``sum`` / ``prod`` / ``max`` / ``min`` over the ranks."""
        if op not in REDUCE_OPS:
            raise CommunicationError(f"[comm] reduction: expected one of {sorted(REDUCE_OPS)}, got {op!r}.")
        dtype = _REDUCED_AS.get(x.dtype, x.dtype)
        if dtype not in _REDUCIBLE:
            raise CommunicationError(f"[comm] all_reduce: expected a real number type, got {x.dtype}. Cast the input.")
        out = x.to(dtype, memory_format=torch.contiguous_format, copy=True)
        if not self._alone:
            links = self._start(f"all_reduce {op}", x)
            if out.numel():
                links.all_reduce(f"all_reduce {op}", out, op)
        return out.to(x.dtype)

    def gather(self, xs: Sequence[Tensor]) -> list[list[Tensor]]:
        flat = torch.cat([x.flatten() for x in xs]) if len(xs) > 1 else xs[0].contiguous().view(-1)
        if self._alone:
            rows = flat.expand(self.size, -1).clone()
        else:
            links = self._start("all_gather", *xs)
            rows = links.gather("all_gather", flat) if flat.numel() else flat.expand(self.size, -1)
        sizes = [x.numel() for x in xs]
        return [[part.view(x.shape) for part, x in zip(row.split(sizes), xs, strict=True)] for row in rows]

    def register_windows(self, size: int, peers: Sequence[int] | None = None) -> Windows:
        if self._windows is not None:
            raise CommunicationError(
                f"[comm] windows: expected one registration per group, got a second one of {self}{rank_text()}. "
                "Register the largest window once, before the first layer."
            )
        check_size(size)
        if peers is None:
            peers = [r for r in range(self.size) if r != self.rank]
        if self._alone:
            peers = check_peers(self.rank, self.size, peers)
            memory = [torch.zeros(extent(size, self.size), dtype=torch.int8) for _ in range(self.size)]
            mapped = {r: Mapped(memory[r], size) for r in (*peers, self.rank)}
            self._windows = Windows(self.rank, self.size, mapped, lambda r: "running", self.ranks)
        else:
            self._windows = register(self._get_pinboard().store, self.rank, self.ranks, peers, size)
        return self._windows

    @property
    def windows(self) -> Windows:
        if self._windows is None:
            raise no_windows(f"{self} without")
        return self._windows

    def release_windows(self, *, failed: bool = False) -> None:
        """Let go of them: peers see that this rank has left, or failed, and windows may be registered again."""
        if self._windows is not None:
            self._windows.fail() if failed else self._windows.leave()
            self._windows = None

    def all_gather_rows(self, x: Tensor, rows: list[int] | None = None) -> Tensor:
        """The ranks' ``x`` one after the other along dim 0; rank r has ``rows[r]`` rows (default: all the same)."""
        if rows is None:
            return torch.cat([part for (part,) in self.gather([x])])
        rest = x.shape[1:]
        return torch.cat(self.all_to_all([x] * self.size, [torch.Size([n, *rest]) for n in rows]))

    def reduce_scatter(self, x: Tensor, op: str = "sum", sizes: list[int] | None = None) -> Tensor:
        """Reduce, then keep this rank's part of dim 0 (equal parts, or ``sizes`` rows per rank)."""
        rows = x.size(0) if x.dim() else 0
        if sizes is None:
            if not x.dim() or rows % self.size:
                raise CommunicationError(
                    f"[comm] reduce_scatter: expected dim 0 divisible by {self.size} ranks, got shape {list(x.shape)}."
                )
            sizes = [rows // self.size] * self.size
        elif len(sizes) != self.size or sum(sizes) != rows:
            raise CommunicationError(
                f"[comm] reduce_scatter: expected {self.size} counts that add up to {rows} rows, got {sizes}."
            )
        return torch.split(self.all_reduce(x, op), sizes)[self.rank].clone()

    def all_to_all(self, parts: list[Tensor], shapes: list[torch.Size]) -> list[Tensor]:
        """``parts[r]`` goes to rank r; returns what the ranks sent here, of ``shapes``."""
        parts = [p.contiguous() for p in parts]
        outs = [p.new_zeros(s) for p, s in zip(parts, shapes, strict=True)]
        if not self._alone:
            # how much goes where differs from rank to rank by design: only the type is compared here
            links = self._start("all_to_all", parts[0][:0].flatten())
            self._check_counts(links, [p.numel() for p in parts], [o.numel() for o in outs])
            others = [r for r in range(self.size) if r != self.rank]
            links.exchange("all_to_all", {r: parts[r] for r in others}, {r: outs[r] for r in others})
        for r in range(self.size) if self._alone else [self.rank]:
            if parts[r].numel() == outs[r].numel():
                outs[r].view(-1).copy_(parts[r].view(-1))
        return outs

    def broadcast(self, xs: list[Tensor], root: int) -> list[Tensor]:
        """Rank ``root``'s tensors on every rank."""
        self._check_rank("broadcast root", root)
        outs = [x.clone(memory_format=torch.contiguous_format) for x in xs]
        if not self._alone:
            what = f"broadcast from rank {self.ranks[root]}"
            links = self._start(what, *xs)
            others = [r for r in range(self.size) if r != root]
            for out in outs:
                if self.rank == root:
                    links.exchange(what, dict.fromkeys(others, out), {})
                else:
                    links.exchange(what, {}, {root: out})
        return outs

    def send(self, x: Tensor, to: int, tag: int) -> None:
        """Send to rank ``to``, which must receive the same shape, dtype and tag. Other ranks need not take part."""
        pair = self._start_pair(self.rank, to, tag, x)
        if pair is not None:
            pair.exchange(f"send to rank {self.ranks[to]}", {to: x.contiguous()}, {})

    def receive(self, like: Tensor, source: int, tag: int) -> Tensor:
        """Receive a tensor of ``like``'s shape and dtype from rank ``source``."""
        out = torch.zeros_like(like, memory_format=torch.contiguous_format)
        pair = self._start_pair(source, self.rank, tag, out)
        if pair is not None:
            pair.exchange(f"receive from rank {self.ranks[source]}", {}, {source: out})
        return out

    def begin(self, lines: Sequence[str], digest: int, known: int) -> int:
        """Agree on the collectives of a run.

        known: what this returned when this rank last had these shapes, 0 for never. Unless all ranks name the same
        run, their shapes have not been seen together, and each collective of this one compares them.
        """
        if self._alone:
            return 0
        # an int64 must hold the sum of all ranks' numbers
        notes = self._linked("all", range(self.size)).agree(lines, digest, known, secrets.randbits(48))
        if known and all(theirs == known for theirs, _ in notes):
            self._trusted = len(lines)
            return known
        self._trusted = 0
        return 1 + sum(fresh for _, fresh in notes)  # the same on all ranks, and like no other run's

    def agree(self, lines: Sequence[str]) -> None:
        """Raise CommunicationError with the first difference unless all ranks come with the same ``lines``.

        In a line ``where = what``, only what is compared.
        """
        if not self._alone:
            bare = [line.partition(" = ")[2] or line for line in lines]
            self._linked("all", range(self.size)).agree(lines, digest_of("\n".join(bare)))

    def abort(self, reason: str) -> None:
        """Tell the peers why, then close the connections so that they stop waiting now."""
        if self._alone:
            return
        self._get_pinboard().leave(reason)
        for links in self._links.values():
            links.close()

    def fail(self, what: str, reason: str) -> None:
        """Go on if all ranks fail with the same ``what`` now, else :meth:`abort`."""
        if self._alone:
            return
        self._trusted = 0
        if self.is_broken or not self._get_pinboard().agree_on_failure(what):
            self.abort(reason)

    def linger(self, seconds: float) -> None:
        """At the end of the process: let the others read why the group failed."""
        if self._pinboard is not None:
            self._pinboard.linger(seconds)

    def _alive(self) -> dist.ProcessGroup:
        group = self.group
        if group is None:
            raise CommunicationError(f"[comm] {self}: expected a living group, got one that was destroyed.")
        return group

    # -- before data moves -------------------------------------------------------------------------------

    def _get_pinboard(self) -> Pinboard:
        if self._pinboard is None:
            self._pinboard = Pinboard(self._alive())
        return self._pinboard

    def _linked(self, place: str, members: Sequence[int]) -> Links:
        if place not in self._links:
            self._links[place] = Links(self._get_pinboard(), place, members)
        return self._links[place]

    def _start(self, what: str, *xs: Tensor) -> Links:
        links = self._linked("all", range(self.size))
        if self._trusted:
            self._trusted -= 1
        else:
            text = " ".join([what, *map(_facts, xs)])
            links.agree([text], digest_of(text))
        return links

    def _start_pair(self, source: int, to: int, tag: int, x: Tensor) -> Links | None:
        for what, rank in (("source", source), ("destination", to)):
            self._check_rank(what, rank)
        if source == to:
            raise CommunicationError(
                f"[comm] {self}{rank_text()}: expected another rank to talk to, got rank {to} itself."
            )
        if self._alone:
            return None
        pair = self._linked(pair_place(source, to), sorted((source, to)))
        text = f"rank {self.ranks[source]} sends to rank {self.ranks[to]}, tag {tag}: {_facts(x)}"
        pair.agree([text], digest_of(text))
        return pair

    def _check_rank(self, what: str, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise CommunicationError(f"[comm] {what}: expected a rank of {self}, 0..{self.size - 1}, got {rank}.")

    def _check_counts(self, links: Links, sends: list[int], receives: list[int]) -> None:
        """Counts are data: they may change from run to run, so they are compared every time."""
        rows = links.gather("all_to_all counts", torch.tensor([sends, receives])).tolist()
        for source in range(self.size):
            for to in range(self.size):
                sent, expected = rows[source][0][to], rows[to][1][source]
                if sent != expected:
                    raise links.refuse(
                        f"rank {self.ranks[source]} sends {sent} elements to rank {self.ranks[to]}, "
                        f"which expects {expected}"
                    )


def _facts(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


def digest_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")
