"""Collectives on CPU that end: within ``NFG_TIMEOUT`` every rank has its result or an error that names the culprit.

A group string (as in a GE node's ``group`` attribute or an operator's ``hcom`` argument) is resolved to a c10d
process group. A private gloo mesh over the same ranks then carries our data, so that a time-out or an abort never
touches the user's own group. Ranks compare what they are about to do before data moves, because gloo ends the
process on mismatched sizes or, worse, computes something.
"""

from __future__ import annotations

import atexit
import hashlib
import re
import secrets
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from npu_fused_graph.comm_mesh import REDUCE_OPS, Board, Mesh, beacon, pair_place, rank_text, timeout
from npu_fused_graph.errors import CommunicationError
from npu_fused_graph.ir.graph import Graph, Node
from npu_fused_graph.ir.text import node_text

__all__ = ["Communicator", "abort", "communicator", "handshake", "provide", "rank_text", "resolve", "timeout"]

# gloo cannot reduce these; the wider type gives the same result after the cast back (wrap-around included)
_REDUCED_AS = {torch.int16: torch.int32, torch.uint16: torch.int64, torch.uint32: torch.int64, torch.bool: torch.int64}
_REDUCIBLE = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.uint8,
}  # fmt: skip
_TAG = re.compile(r"tag=(?P<tag>.*);rank_list=(?P<ranks>\d+(,\d+)*)\Z")
_GRACE = 3.0  # seconds the process with the store stays at its end after a failure, so that others can read why
_WORLD_NAMES = ("hccl_world_group",)
_SYMMETRIC = re.compile(r"All_?Reduce|All_?Gather|Reduce_?Scatter|All_?To_?All|Broadcast", re.IGNORECASE)


# -- groups ------------------------------------------------------------------------------------------------


def resolve(name: str) -> dist.ProcessGroup:
    """The process group of a group string.

    name: a c10d group name, TorchAir's ``tag=<tag>;rank_list=0,1``, an HCCL communicator name, or
    ``hccl_world_group``. Raises CommunicationError listing the names that exist.
    """
    if not dist.is_initialized():
        raise CommunicationError(
            f"[comm] group: expected an initialised process group for {name!r}, got none. "
            "Call torch.distributed.init_process_group first."
        )
    if name in _WORLD_NAMES:
        return c10d._get_default_group()
    match = _TAG.match(name)
    ranks = [int(r) for r in match["ranks"].split(",")] if match else []
    known: list[str] = []
    for group in c10d._world.pg_map:
        known.append(group.group_name)
        if group.group_name == name or name in _hccl_names(group):
            return group
        if match and c10d._get_group_tag(group) == match["tag"] and dist.get_process_group_ranks(group) == ranks:
            return group
    raise CommunicationError(
        f"[comm] group: expected one of {known} (or its tag=..;rank_list=.. form), got {name!r}{rank_text()}. "
        "Every rank of the group must have created it."
    )


def _hccl_names(group: dist.ProcessGroup) -> list[str]:
    backends = [group._get_backend(device) for device in group._device_types]
    return [
        b.get_hccl_comm_name(dist.get_rank(), init_comm=False) for b in backends if hasattr(b, "get_hccl_comm_name")
    ]


_by_name: dict[str, Communicator] = {}
_provided: dict[str, Any] = {}


@contextmanager
def provide(ranks: Mapping[str, Any]) -> Iterator[None]:
    """Inside, group strings of ``ranks`` mean these, and no process group: see :mod:`npu_fused_graph.comm_local`."""
    _provided.update(ranks)
    try:
        yield
    finally:
        for name in ranks:
            del _provided[name]


def communicator(name: str) -> Communicator:
    """The communicator of a group string; one per process group. Raises CommunicationError once it has failed."""
    found = _find(name)
    found.check_usable()
    return found


def _find(name: str) -> Communicator:
    if name in _provided:
        found: Communicator = _provided[name]
        return found
    alive = c10d._world.pg_map
    known = _by_name.get(name)
    if known is None or known.group not in alive:
        group = resolve(name)
        for key in [key for key, stale in _by_name.items() if stale.group not in alive]:
            del _by_name[key]
        _forget_at_exit()
        known = next((c for c in _by_name.values() if c.group is group), None)
        if known is None:
            known = Communicator(group)
            weakref.finalize(group, _group_ended, known).atexit = False
        _by_name[name] = known
    return known


def _group_ended(known: Communicator) -> None:
    """Let go of a group's store with the group: a group made later at the same address must find a new one.

    After a failure the store stays until the process ends, for the other ranks to read why.
    """
    if not known.is_broken:
        for name in [name for name, other in _by_name.items() if other is known]:
            del _by_name[name]


@lru_cache(maxsize=1)
def _forget_at_exit() -> None:
    atexit.register(_forget)


def _forget() -> None:
    """Leave in order: a gloo group that is still there when the interpreter is torn down may abort the process."""
    end = time.monotonic() + _GRACE
    for found in set(_by_name.values()):
        found.linger(end - time.monotonic())
    if not any(found.is_broken for found in _by_name.values()):
        beacon().close()  # before the connections, so that whoever sees them break finds this process ended
    _by_name.clear()


# -- collectives -------------------------------------------------------------------------------------------


class Communicator:
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
        self._board: Board | None = None
        self._meshes: dict[str, Mesh] = {}

    def __str__(self) -> str:
        return f"group {self._name!r} (ranks {self.ranks})"

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group; None once it was destroyed."""
        return self._group()

    @property
    def is_broken(self) -> bool:
        return self._board is not None and self._board.broken is not None

    def check_usable(self) -> None:
        """Raise CommunicationError if an earlier failure ended this group."""
        if self._board is not None and self._board.broken:
            raise CommunicationError(
                f"[comm] {self}{rank_text()}: expected a working group, got one that failed: {self._board.broken}. "
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
            mesh = self._start(f"all_reduce {op}", x)
            if out.numel():
                mesh.all_reduce(f"all_reduce {op}", out, op)
        return out.to(x.dtype)

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's ``x`` in rank order."""
        return [x for (x,) in self.all_gather_lists([x])]

    def all_gather_lists(self, xs: Sequence[Tensor]) -> list[list[Tensor]]:
        """Every rank's ``xs``, tensors of one dtype, in rank order and in one exchange."""
        flat = torch.cat([x.flatten() for x in xs]) if len(xs) > 1 else xs[0].contiguous().view(-1)
        if self._alone:
            rows = flat.expand(self.size, -1).clone()
        else:
            mesh = self._start("all_gather", *xs)
            rows = mesh.gather("all_gather", flat) if flat.numel() else flat.expand(self.size, -1)
        sizes = [x.numel() for x in xs]
        return [[part.view(x.shape) for part, x in zip(row.split(sizes), xs, strict=True)] for row in rows]

    def all_gather_rows(self, x: Tensor, rows: list[int] | None = None) -> Tensor:
        """The ranks' ``x`` one after the other along dim 0; rank r has ``rows[r]`` rows (default: all the same)."""
        if rows is None:
            return torch.cat(self.all_gather(x))
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
            mesh = self._start("all_to_all", parts[0][:0].flatten())
            self._check_counts(mesh, [p.numel() for p in parts], [o.numel() for o in outs])
            others = [r for r in range(self.size) if r != self.rank]
            mesh.exchange("all_to_all", {r: parts[r] for r in others}, {r: outs[r] for r in others})
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
            mesh = self._start(what, *xs)
            others = [r for r in range(self.size) if r != root]
            for out in outs:
                if self.rank == root:
                    mesh.exchange(what, dict.fromkeys(others, out), {})
                else:
                    mesh.exchange(what, {}, {root: out})
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
        notes = self._mesh("all", range(self.size)).agree(lines, digest, known, secrets.randbits(48))
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
            self._mesh("all", range(self.size)).agree(lines, _digest("\n".join(bare)))

    def abort(self, reason: str) -> None:
        """Tell the peers why, then close the connections so that they stop waiting now."""
        if self._alone:
            return
        self._get_board().leave(reason)
        for mesh in self._meshes.values():
            mesh.close()

    def fail(self, what: str, reason: str) -> None:
        """Go on if all ranks fail with the same ``what`` now, else :meth:`abort`."""
        if self._alone:
            return
        self._trusted = 0
        if self.is_broken or not self._get_board().agree_on_failure(what):
            self.abort(reason)

    def linger(self, seconds: float) -> None:
        """At the end of the process: let the others read why the group failed."""
        if self._board is not None:
            self._board.linger(seconds)

    def _alive(self) -> dist.ProcessGroup:
        group = self.group
        if group is None:
            raise CommunicationError(f"[comm] {self}: expected a living group, got one that was destroyed.")
        return group

    # -- before data moves -------------------------------------------------------------------------------

    def _get_board(self) -> Board:
        if self._board is None:
            self._board = Board(self._alive())
        return self._board

    def _mesh(self, place: str, members: Sequence[int]) -> Mesh:
        if place not in self._meshes:
            self._meshes[place] = Mesh(self._get_board(), place, members)
        return self._meshes[place]

    def _start(self, what: str, *xs: Tensor) -> Mesh:
        mesh = self._mesh("all", range(self.size))
        if self._trusted:
            self._trusted -= 1
        else:
            text = " ".join([what, *map(_facts, xs)])
            mesh.agree([text], _digest(text))
        return mesh

    def _start_pair(self, source: int, to: int, tag: int, x: Tensor) -> Mesh | None:
        for what, rank in (("source", source), ("destination", to)):
            self._check_rank(what, rank)
        if source == to:
            raise CommunicationError(
                f"[comm] {self}{rank_text()}: expected another rank to talk to, got rank {to} itself."
            )
        if self._alone:
            return None
        pair = self._mesh(pair_place(source, to), sorted((source, to)))
        text = f"rank {self.ranks[source]} sends to rank {self.ranks[to]}, tag {tag}: {_facts(x)}"
        pair.agree([text], _digest(text))
        return pair

    def _check_rank(self, what: str, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise CommunicationError(f"[comm] {what}: expected a rank of {self}, 0..{self.size - 1}, got {rank}.")

    def _check_counts(self, mesh: Mesh, sends: list[int], receives: list[int]) -> None:
        """Counts are data: they may change from run to run, so they are compared every time."""
        rows = mesh.gather("all_to_all counts", torch.tensor([sends, receives])).tolist()
        for source in range(self.size):
            for to in range(self.size):
                sent, expected = rows[source][0][to], rows[to][1][source]
                if sent != expected:
                    raise mesh.refuse(
                        f"rank {self.ranks[source]} sends {sent} elements to rank {self.ranks[to]}, "
                        f"which expects {expected}"
                    )


# -- the engine's side -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a graph's ranks agree on, computed once. lines / digest: per group, its symmetric collectives."""

    groups: Mapping[str, list[Node]]
    lines: dict[str, list[str]]
    digests: dict[str, int]
    is_static: bool


_plans: dict[int, _Plan] = {}


def handshake(graph: Graph, groups: Mapping[str, list[Node]], inputs: Iterable[Tensor], seen: dict[Any, int]) -> None:
    """Before a run: ranks of each group agree on its collectives.

    seen: the graph's own, empty at first: which shapes it ran with, and in which run all ranks compared theirs.
    Point-to-point nodes are left out: they compare on their own, and only two ranks run them.
    """
    plan = _plan(graph, groups)
    shapes = 0 if plan.is_static else _shapes_hash(inputs)
    if len(seen) > 4096:
        seen.clear()
    for name, lines in plan.lines.items():
        try:
            key = name, shapes
            seen[key] = communicator(name).begin(lines, plan.digests[name], seen.get(key, 0))
        except CommunicationError as error:
            first = groups[name][0]
            raise CommunicationError(
                f"[engine] {first.name} ({first.type} on group {name!r}){rank_text()}: {error}"
            ) from error


def abort(groups: Iterable[str], reason: str) -> None:
    """End the communicators of ``groups`` after a failure on this rank."""
    for name in groups:
        with suppress(CommunicationError):  # the group is not on this rank, or its store is gone: nobody can be told
            _find(name).abort(reason)


def fail(groups: Iterable[str], what: str, reason: str) -> None:
    """As :func:`abort`, but for groups whose ranks have all failed with the same ``what``: they are as they were."""
    for name in groups:
        with suppress(CommunicationError):
            _find(name).fail(what, reason)


def _plan(graph: Graph, groups: Mapping[str, list[Node]]) -> _Plan:
    plan = _plans.get(id(groups))
    if plan is None or plan.groups is not groups:
        lines = {name: [_line(n) for n in nodes if _SYMMETRIC.search(n.type)] for name, nodes in groups.items()}
        lines = {name: texts for name, texts in lines.items() if texts}
        digests = {name: _digest("\n".join(t.partition(" = ")[2] for t in texts)) for name, texts in lines.items()}
        shapes = [node.outputs[0].shape for node in graph.of_type("Data", "RefData")]
        # a scalar input may be a size of its own
        is_static = all(shape and min(shape) >= 0 for shape in shapes)
        if len(_plans) >= 64:
            _plans.pop(next(iter(_plans)))
        plan = _plans[id(groups)] = _Plan(groups, lines, digests, is_static)
    return plan


def _shapes_hash(inputs: Iterable[Tensor]) -> int:
    """Shapes, and values of integer inputs so small that they may be sizes (TorchAir feeds symbols like that)."""
    sizes = [tuple(x.shape) for x in inputs]
    values = [x.tolist() for x in inputs if x.dim() < 2 and x.numel() <= 8 and x.dtype in (torch.int64, torch.int32)]
    return hash((tuple(sizes), repr(values)))


def _line(node: Node) -> str:
    """``name = Type {attributes}``; the group is known, its spelling may differ."""
    bare = Node("", node.type, attrs={k: v for k, v in node.attrs.items() if k != "group"})
    text = node_text(bare)
    return f"{node.name} = {node.type} {text[text.find('{') :] if '{' in text else ''}".rstrip()


def _facts(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")
