"""Collectives on CPU that end: within ``NFG_TIMEOUT`` every rank has its result or an error that names the culprit.

A group string (as in a GE node's ``group`` attribute or an operator's ``hcom`` argument) is resolved to a c10d
process group. A private gloo mesh over the same ranks then carries our data, so that a time-out or an abort never
touches the user's own group. Ranks compare what they are about to do before data moves, because gloo ends the
process on mismatched sizes. What cannot travel over the mesh (who is there, why a rank gave up) goes through the
group's store: see :class:`_Board`.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from npu_fused_graph.errors import CommunicationError, InvalidArgumentError
from npu_fused_graph.ir.graph import Graph, Node
from npu_fused_graph.ir.text import node_text

_REDUCE_OPS = {
    "sum": dist.ReduceOp.SUM,
    "prod": dist.ReduceOp.PRODUCT,
    "max": dist.ReduceOp.MAX,
    "min": dist.ReduceOp.MIN,
}
# gloo cannot reduce these; the wider type gives the same result after the cast back (wrap-around included)
_REDUCED_AS = {torch.int16: torch.int32, torch.uint16: torch.int64, torch.uint32: torch.int64, torch.bool: torch.int64}
_REDUCIBLE = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.uint8,
}  # fmt: skip
_TAG = re.compile(r"tag=(?P<tag>.*);rank_list=(?P<ranks>\d+(,\d+)*)\Z")
_WORLD_NAMES = ("hccl_world_group",)
_SYMMETRIC = re.compile(r"All_?Reduce|All_?Gather|Reduce_?Scatter|All_?To_?All|Broadcast", re.IGNORECASE)
_GRACE = 3.0  # seconds a rank that hosts the store stays after a failure, so that the others can read why
_PROBE = 0.2  # seconds without an answer after which a rank counts as running


def timeout() -> timedelta:
    """How long a collective may take: ``NFG_TIMEOUT`` seconds, 60 by default."""
    text = os.environ.get("NFG_TIMEOUT", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise InvalidArgumentError(
            f"[comm] NFG_TIMEOUT: expected a positive number of seconds, got {text!r}. Unset it or fix it."
        )
    return timedelta(seconds=seconds)


def rank_text() -> str:
    """`` on rank 1 of 4`` when a default process group exists, else nothing."""
    return f" on rank {dist.get_rank()} of {dist.get_world_size()}" if dist.is_initialized() else ""


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


def communicator(name: str) -> Communicator:
    """The communicator of a group string; one per process group. Raises CommunicationError once it has failed."""
    found = _find(name)
    found.check_usable()
    return found


def _find(name: str) -> Communicator:
    alive = c10d._world.pg_map
    found = _by_name.get(name)
    if found is None or found.group not in alive:
        group = resolve(name)
        for key in [key for key, stale in _by_name.items() if stale.group not in alive]:
            del _by_name[key]
        _forget_at_exit()
        found = next((c for c in _by_name.values() if c.group is group), None) or Communicator(group)
        _by_name[name] = found
    return found


@lru_cache(maxsize=1)
def _forget_at_exit() -> None:
    """A gloo group that is still there when the interpreter is torn down may abort the process (seen in torch 2.13)."""
    atexit.register(_by_name.clear)


# -- what the ranks tell each other besides data -----------------------------------------------------------


class _Board:
    """The group's store, as a board where ranks pin who they are and why they gave up.

    ``at/<rank>``: the rank has joined, and where its beacon listens. ``end/<rank>``: its last word, one of
    ``failed <reason>`` (the fault is there), ``waited <what>`` (it timed out), ``heard`` (it ended because others did).
    Ranks are group ranks here; texts name global ones.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank = group.rank()
        self.ranks: list[int] = dist.get_process_group_ranks(group)
        self.name = f"group {group.group_name!r} (ranks {self.ranks})"
        self.broken: str | None = None
        self._addresses: dict[int, str] = {}
        self._spoke = False
        root: Any = c10d._world.pg_map[group][1]
        self._hosts_store = _hosts(root)
        try:
            client = root.clone()  # a connection of our own: its time-out is ours and nobody else waits on it
            client.set_timeout(timeout())
            place = f"nfg/{group.group_name}/{'-'.join(map(str, self.ranks))}"
            # a store outlives destroy_process_group; what earlier groups of that name left in it must not be read
            life = c10d.PrefixStore(place, client).add(f"life/{self.rank}", 1)
        except RuntimeError as error:
            raise CommunicationError(
                f"[comm] {self.name}{rank_text()}: no store to meet in ({_first_line(error)})."
            ) from None
        self.store = c10d.PrefixStore(f"{place}/{life}", client)

    def _others(self) -> list[int]:
        return [r for r in range(len(self.ranks)) if r != self.rank]

    def join(self, place: str, members: Sequence[int]) -> None:
        """Say that this rank is at ``place`` and wait for the other members. Raises RuntimeError."""
        self.store.set(f"{place}/at/{self.rank}", _beacon_address())
        self.store.wait([f"{place}/at/{r}" for r in members], timeout())
        for r in members:
            self._addresses[r] = self.store.get(f"{place}/at/{r}").decode()

    def speak(self, word: str) -> None:
        """Pin this rank's last word; later ones are ignored."""
        if self._spoke:
            return
        self._spoke = True
        try:
            self.store.set(f"end/{self.rank}", word)
            self.store.check([f"end/{self.rank}"])  # the answer proves that the word has arrived
        except RuntimeError:
            pass  # the store's host is gone: closing the connections is all that is left to say

    def words(self) -> dict[int, str]:
        """Last words of the other ranks."""
        found = {}
        try:
            for r in self._others():
                if self.store.check([f"end/{r}"]):
                    found[r] = self.store.get(f"end/{r}").decode()
        except RuntimeError:
            pass  # no store, no words
        return found

    def causes(self, place: str, members: Sequence[int], *, timed_out: bool) -> list[str]:
        """Why an operation of ``members`` failed here, as far as it can be told."""
        others = [r for r in members if r != self.rank]
        if timed_out:
            self._await_words(others, 1.0)  # the others' time-outs end about now
        words = self.words()
        failed = [f"rank {self.ranks[r]} failed: {w[7:]}" for r, w in words.items() if w.startswith("failed ")]
        silent = [r for r in others if r not in words]
        absent = [r for r in silent if not self._has_joined(place, r)]
        ended = [r for r in silent if r not in absent and not self._is_running(r)]
        found = failed or (
            [f"rank {self.ranks[r]} never used this group" for r in absent]
            + [f"rank {self.ranks[r]} ended without a word (killed, or left early)" for r in ended]
        )
        if not found and timed_out:
            found = [f"rank {self.ranks[r]} is running but did not arrive" for r in silent]
        return found or [f"rank {self.ranks[r]} gave up: {w[7:]}" for r, w in words.items() if w.startswith("waited ")]

    def leave(self, reason: str) -> None:
        """This rank stops using the group: say why and wake those who wait for it to join."""
        self.speak("heard" if self.broken else f"failed {reason[:2000]}")
        self.broken = self.broken or reason
        try:
            for place in ["all", *(_pair_place(self.rank, r) for r in self._others())]:
                if not self.store.check([f"{place}/at/{self.rank}"]):
                    self.store.set(f"{place}/at/{self.rank}", "")
        except RuntimeError:
            pass  # the store's host is gone

    def linger(self) -> None:
        """Keep the store alive, if it lives in this process, until the others have read what they need."""
        if self._hosts_store:
            self._await_words([r for r in self._others() if self._addresses.get(r) and self._is_running(r)], _GRACE)

    def exchange_texts(self, key: str, text: str, members: Sequence[int]) -> dict[int, str]:
        """Every member's text under ``key``. Raises RuntimeError."""
        self.store.set(f"{key}/{self.rank}", text)
        self.store.wait([f"{key}/{r}" for r in members], timeout())
        return {r: self.store.get(f"{key}/{r}").decode() for r in members}

    def _await_words(self, ranks: list[int], seconds: float) -> None:
        try:
            if ranks:
                self.store.wait([f"end/{r}" for r in ranks], min(timeout(), timedelta(seconds=seconds)))
        except RuntimeError:
            pass  # not all of them speak, or the store is gone

    def _has_joined(self, place: str, rank: int) -> bool:
        try:
            return rank in self._addresses or self.store.check([f"{place}/at/{rank}"])
        except RuntimeError:
            return True  # nothing can be told without the store

    def _is_running(self, rank: int) -> bool:
        """False if the rank's process on this host has ended for certain."""
        host, _, port = self._addresses.get(rank, "").rpartition(" ")
        if host != socket.gethostname():
            return True
        try:
            with socket.create_connection(("127.0.0.1", int(port)), _PROBE) as probe:
                probe.settimeout(_PROBE)
                return bool(probe.recv(1))  # nobody sends: this ends by time-out, or at once when the process ends
        except TimeoutError:
            return True
        except OSError:
            return False


@lru_cache(maxsize=1)
def _beacon() -> socket.socket:
    """A socket that listens as long as this process lives: how others tell that it has ended, however it ended."""
    beacon = socket.create_server(("127.0.0.1", 0))

    def forget() -> None:  # a forked child must not answer for this process
        beacon.close()
        _beacon.cache_clear()

    os.register_at_fork(after_in_child=forget)
    return beacon


def _beacon_address() -> str:
    return f"{socket.gethostname()} {_beacon().getsockname()[1]}"


def _hosts(store: Any) -> bool:
    while isinstance(store, c10d.PrefixStore):
        store = store.underlying_store
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return isinstance(store, torch._C._distributed_c10d.TCPStore) and dist.get_rank() == 0 and not is_agents


def _pair_place(a: int, b: int) -> str:
    return f"pair/{min(a, b)}-{max(a, b)}"


# -- connections -------------------------------------------------------------------------------------------


class _Mesh:
    """Gloo connections among ``members`` (group ranks) of a board, made on first use by all of them.

    Every failure ends the board for good and becomes a CommunicationError that names the rank at fault.
    """

    def __init__(self, board: _Board, place: str, members: Sequence[int]) -> None:
        self._board = board
        self._place = place
        self._members = members
        self._me = members.index(board.rank)
        self._gloo: Any = None

    def exchange(self, what: str, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]) -> None:
        """Send contiguous tensors to members and fill those expected from them. Empty ones do not travel."""
        works: list[Any] = []
        try:
            gloo = self._connect()
            works += [gloo.send([x], self._index(r), 0) for r, x in sends.items() if x.numel()]
            works += [gloo.recv([x], self._index(r), 0) for r, x in receives.items() if x.numel()]
            for work in works:
                work.wait()
        except RuntimeError as error:
            raise self._failure(what, error) from None
        finally:
            works.clear()  # a traceback must not keep the connections open

    def all_reduce(self, what: str, x: Tensor, op: str) -> None:
        """Reduce ``x`` in place over the members."""
        options: Any = dist.AllreduceOptions()
        options.reduceOp = _REDUCE_OPS[op]
        try:
            self._connect().allreduce([x], options).wait()
        except RuntimeError as error:
            raise self._failure(what, error) from None

    def gather(self, what: str, row: Tensor) -> Tensor:
        """Every member's ``row``, stacked in member order."""
        rows = row.new_empty((len(self._members), *row.shape))
        rows[self._me] = row
        others = [r for r in self._members if r != self._board.rank]
        self.exchange(what, dict.fromkeys(others, row), {r: rows[self._index(r)] for r in others})
        return rows

    def agree(self, lines: Sequence[str], digest: int, flag: bool = False) -> bool:
        """True if any member passed ``flag``. CommunicationError unless all digests (of ``lines``) are the same."""
        rows = self.gather("agreement", torch.tensor([digest, int(flag)])).tolist()
        if any(row[0] != digest for row in rows):
            self._disagree(lines)
        return any(row[1] for row in rows)

    def refuse(self, text: str) -> CommunicationError:
        """The error of a disagreement that every member has noticed: nobody needs to be told."""
        self._board.broken = text
        return CommunicationError(f"[comm] {self._board.name}{rank_text()}: {text}.")

    def close(self) -> None:
        if self._gloo is not None:
            self._gloo.abort()
            self._gloo = None

    def _index(self, rank: int) -> int:
        return self._members.index(rank)

    def _connect(self) -> Any:
        if self._gloo is None:
            board = self._board
            board.join(self._place, self._members)
            if not board.words().keys().isdisjoint(self._members):
                raise RuntimeError("a rank gave up before it connected")
            store = c10d.PrefixStore(f"{self._place}/gloo", board.store)
            self._gloo = dist.ProcessGroupGloo(store, self._me, len(self._members), timeout())
        return self._gloo

    def _disagree(self, lines: Sequence[str]) -> None:
        try:
            texts = self._board.exchange_texts(f"{self._place}/differ", "\n".join(lines), self._members)
        except RuntimeError as error:
            raise self._failure("compare", error) from None
        columns = {self._board.ranks[r]: text.split("\n") for r, text in texts.items()}
        longest = max(map(len, columns.values()))
        rows = [{r: c[i] if i < len(c) else "nothing more" for r, c in columns.items()} for i in range(longest)]
        # a node's name may differ from rank to rank; it stands in front for the reader only
        differ = [len({text.partition(" = ")[2] or text for text in row.values()}) > 1 for row in rows]
        i = differ.index(True)
        place = f" at collective {i + 1} of {longest}" if longest > 1 else ""
        told = " | ".join(f"rank {r}: {text}" for r, text in rows[i].items())
        raise self.refuse(f"expected all ranks to run the same, got{place}: {told}")

    def _failure(self, what: str, error: RuntimeError) -> CommunicationError:
        if isinstance(error, CommunicationError):
            return error
        board, text = self._board, _first_line(error)
        timed_out = "timed out" in text.lower() or "timeout" in text.lower()
        if timed_out:
            text = f"not all ranks arrived within {timeout().total_seconds():g} s"
            board.speak(f"waited {what}, {text}")
        causes = board.causes(self._place, self._members, timed_out=timed_out)
        board.broken = "; ".join(([text] if timed_out else []) + causes) or f"a connection broke ({text})"
        return CommunicationError(f"[comm] {what} in {board.name}{rank_text()}: {board.broken}.")


# -- collectives -------------------------------------------------------------------------------------------


class Communicator:
    """Collectives over the ranks of one process group, on CPU tensors. Results are new tensors.

    Roots, sources and destinations are ranks of the group, as in TorchAir's graphs. A group of the ``fake`` backend
    gives results of the right shape without talking to anybody.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank: int = group.rank()
        self.size: int = group.size()
        self.ranks: list[int] = dist.get_process_group_ranks(group)
        self._trusted = 0  # collectives that need no comparison: the handshake has vouched for them
        self._alone = self.size == 1 or c10d._world.pg_map[group][0] == "fake"
        self._board: _Board | None = None
        self._meshes: dict[str, _Mesh] = {}

    def __str__(self) -> str:
        return f"group {self.group.group_name!r} (ranks {self.ranks})"

    def check_usable(self) -> None:
        """Raise CommunicationError if an earlier failure ended this group."""
        if self._board is not None and self._board.broken:
            raise CommunicationError(
                f"[comm] {self}{rank_text()}: expected a working group, got one that failed: {self._board.broken}. "
                "Restart the ranks, or call destroy_process_group and init_process_group on all of them."
            )

    def all_reduce(self, x: Tensor, op: str = "sum") -> Tensor:
        """Element-wise ``sum`` / ``prod`` / ``max`` / ``min`` over the ranks."""
        if op not in _REDUCE_OPS:
            raise CommunicationError(f"[comm] reduction: expected one of {sorted(_REDUCE_OPS)}, got {op!r}.")
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
        if self._alone:
            return [x.clone(memory_format=torch.contiguous_format) for _ in self.ranks]
        mesh = self._start("all_gather", x)
        return list(mesh.gather("all_gather", x.contiguous()).unbind(0))

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

    def begin(self, lines: Sequence[str], digest: int, is_new: bool) -> None:
        """Agree on the collectives of a run; ``is_new``: this rank's shapes are, so compare each of them."""
        must_compare = is_new if self._alone else self._mesh("all", range(self.size)).agree(lines, digest, is_new)
        self._trusted = 0 if must_compare else len(lines)

    def abort(self, reason: str) -> None:
        """Tell the peers why, then close the connections so that they stop waiting now."""
        if self._alone:
            return
        self._trusted = 0
        board = self._get_board()
        board.leave(reason)
        for mesh in self._meshes.values():
            mesh.close()
        board.linger()

    # -- before data moves -------------------------------------------------------------------------------

    def _get_board(self) -> _Board:
        if self._board is None:
            self._board = _Board(self.group)
        return self._board

    def _mesh(self, place: str, members: Sequence[int]) -> _Mesh:
        if place not in self._meshes:
            self._meshes[place] = _Mesh(self._get_board(), place, members)
        return self._meshes[place]

    def _start(self, what: str, *xs: Tensor) -> _Mesh:
        mesh = self._mesh("all", range(self.size))
        if self._trusted:
            self._trusted -= 1
        else:
            text = " ".join([what, *map(_facts, xs)])
            mesh.agree([text], _digest(text))
        return mesh

    def _start_pair(self, source: int, to: int, tag: int, x: Tensor) -> _Mesh | None:
        for what, rank in (("source", source), ("destination", to)):
            self._check_rank(what, rank)
        if source == to:
            raise CommunicationError(
                f"[comm] {self}{rank_text()}: expected another rank to talk to, got rank {to} itself."
            )
        if self._alone:
            return None
        pair = self._mesh(_pair_place(source, to), sorted((source, to)))
        text = f"rank {self.ranks[source]} sends to rank {self.ranks[to]}, tag {tag}: {_facts(x)}"
        pair.agree([text], _digest(text))
        return pair

    def _check_rank(self, what: str, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise CommunicationError(f"[comm] {what}: expected a rank of {self}, 0..{self.size - 1}, got {rank}.")

    def _check_counts(self, mesh: _Mesh, sends: list[int], receives: list[int]) -> None:
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


def handshake(graph: Graph, groups: Mapping[str, list[Node]], inputs: Iterable[Tensor], seen: set[int]) -> None:
    """Before a run: ranks of each group agree on its collectives.

    seen: hashes of the inputs this graph ran with; the collectives are compared one by one as long as any rank's
    are new. Point-to-point nodes are left out: they compare on their own, and only two ranks run them.
    """
    plan = _plan(graph, groups)
    shapes = 0 if plan.is_static else _shapes_hash(inputs)
    for name, lines in plan.lines.items():
        try:
            communicator(name).begin(lines, plan.digests[name], shapes not in seen)
        except CommunicationError as error:
            first = groups[name][0]
            raise CommunicationError(
                f"[engine] {first.name} ({first.type} on group {name!r}){rank_text()}: {error}"
            ) from error
    if len(seen) > 4096:
        seen.clear()
    seen.add(shapes)


def abort(groups: Iterable[str], reason: str) -> None:
    """End the communicators of ``groups`` after a failure on this rank."""
    for name in groups:
        try:
            _find(name).abort(reason)
        except CommunicationError:
            continue  # the group does not exist on this rank, or its store is gone: nobody can be told


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
