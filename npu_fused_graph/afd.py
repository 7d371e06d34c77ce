"""Attention and FFN on different ranks of a mixture of experts: who holds what, and the two ends of the exchange.

:func:`plan` decides and checks everything the operators want to be told; :class:`AttentionWorker` and
:class:`FFNWorker` are the operators with the plan's numbers filled in. See docs/attention_and_ffn.md.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npu_fused_graph import comm, ops
from npu_fused_graph.errors import CommunicationError, InvalidArgumentError, argument_error
from npu_fused_graph.ops.attention_to_ffn import npu_attention_to_ffn
from npu_fused_graph.ops.attention_to_ffn_constraints import check_buffer
from npu_fused_graph.ops.attention_worker_combine import npu_attention_worker_combine
from npu_fused_graph.ops.ffn_to_attention import npu_ffn_to_attention
from npu_fused_graph.ops.ffn_worker_batching import npu_ffn_worker_batching
from npu_fused_graph.ops.ffn_worker_scheduler import ffn_worker_scheduler_
from npu_fused_graph.ops.schedule_context import ATTENTION, FFN, ScheduleContextHolder
from npu_fused_graph.ops.window_tables import LAYER, AttentionTables, FfnTables, aligned

__all__ = ["AttentionWorker", "Batch", "FFNWorker", "Plan", "ScheduleContextHolder", "plan", "windows"]


@contextmanager
def windows(group: str, size: int, peers: Sequence[int]) -> Iterator[comm.Windows]:
    """This rank's window of ``size`` bytes, zeroed, and those of its peers, inside the ``with``.

    group: as the operators take it. peers: ranks of the group; attention ranks name all FFN ranks, FFN ranks all
    attention ranks, and all of them enter. What peers write after this rank has left is lost. Raises
    InvalidArgumentError for a size below 1 or peers that are no other ranks, CommunicationError when a peer does not
    come within ``NFG_TIMEOUT`` seconds, does not name this rank, or windows of the group are registered already.
    """
    rank = comm.communicator(group)
    registered = rank.register_windows(size, peers)
    try:
        yield registered
    finally:
        rank.release_windows()


# -- the plan ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What all ranks of an exchange must have alike; made by :func:`plan`.

    experts_on: per FFN rank the experts it holds, in the order of their numbers there; routed ones are 0 to
    ``moe_experts - 1``, shared ones follow. An expert that several ranks hold is replicated: session s uses its replica
    s % n. ffn_record, attention_record: bytes of a record in the windows of FFN and attention ranks.
    """

    world_size: int
    ffn_start: int
    experts_on: tuple[tuple[int, ...], ...]
    tokens: int
    hidden: int
    k: int
    moe_experts: int
    shared: int
    micro_batches: int
    dtype: torch.dtype
    is_quantised: bool
    is_async: bool
    ffn_record: int
    attention_record: int

    @property
    def ffn_ranks(self) -> list[int]:
        """Ranks of the group."""
        return list(range(self.ffn_start, self.ffn_start + len(self.experts_on)))

    @cached_property
    def attention_ranks(self) -> list[int]:
        """Ranks of the group, in the order of their sessions."""
        return [r for r in range(self.world_size) if r not in self.ffn_ranks]

    @cached_property
    def digest(self) -> int:
        """A number that tells plans apart, above 0."""
        return int.from_bytes(hashlib.sha256(repr(self).encode()).digest()[:7], "little") + 1

    @property
    def slots(self) -> int:
        """Experts of a token, shared ones too."""
        return self.k + self.shared

    def peers(self, rank: int) -> list[int]:
        """Whom ``rank`` exchanges windows with."""
        return self.attention_ranks if rank in self.ffn_ranks else self.ffn_ranks

    @property
    def ffn_tables(self) -> FfnTables:
        sessions = len(self.attention_ranks)
        return FfnTables(sessions, self.micro_batches, self.tokens, self.slots, self.ffn_record, 1)

    @property
    def attention_tables(self) -> AttentionTables:
        return AttentionTables(self.micro_batches, self.tokens, self.slots, self.attention_record // 2)

    def window_size(self, rank: int) -> int:
        """Bytes of the window of ``rank``."""
        return (self.ffn_tables if rank in self.ffn_ranks else self.attention_tables).size

    @cached_property
    def expert_rank_table(self) -> Tensor:
        """int32 (1, moe_experts + shared, R), as npu_attention_to_ffn takes it."""
        replicas: dict[int, list[int]] = defaultdict(list)
        for rank, experts in zip(self.ffn_ranks, self.experts_on, strict=True):
            for number, expert in enumerate(experts):
                replicas[expert] += [rank, number]
        width = 1 + max(map(len, replicas.values()))
        table = torch.zeros(1, len(replicas), width, dtype=torch.int32)
        for expert, pairs in replicas.items():
            table[0, expert, : 1 + len(pairs)] = torch.tensor([len(pairs) // 2, *pairs])
        return table

    @property
    def ffn_info_shape(self) -> list[int]:
        return [len(self.attention_ranks), self.micro_batches, 2 + self.tokens * self.slots]

    @property
    def ffn_data_shape(self) -> list[int]:
        record = self.ffn_record if self.is_quantised else self.ffn_record // 2
        return [len(self.attention_ranks), self.micro_batches, self.tokens, self.slots, record]

    @property
    def attention_info_shape(self) -> list[int]:
        return [self.micro_batches, self.tokens, self.slots]

    @property
    def bytes_per_token(self) -> dict[str, int]:
        """What one token of one layer moves: to the FFN ranks and back, without flags."""
        there = self.hidden + 4 if self.is_quantised else 2 * self.hidden
        return {"to FFN": self.slots * (there + 4), "to attention": self.slots * (2 * self.hidden + 4)}


def plan(
    world_size: int,
    *,
    ffn_ranks: int,
    tokens: int,
    hidden: int,
    k: int,
    moe_experts: int,
    shared: int = 1,
    experts_on: Sequence[Sequence[int]] | None = None,
    ffn_start: int = 0,
    micro_batches: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    is_quantised: bool = False,
    is_async: bool = False,
    strict: bool = True,
) -> Plan:
    """Who holds which expert, and the sizes of all tables and records.

    world_size: ranks of the group, ``ffn_ranks`` of them FFN ranks from ``ffn_start`` on. tokens: of a micro batch, at
    most 512; shorter batches are padded and masked. experts_on: of each FFN rank the experts it holds; default: routed
    experts in blocks, shared ones one per FFN rank in turn. dtype: float16 or bfloat16. is_async: FFN ranks take each
    session as it comes. strict: what CANN's own operators of the family refuse is refused here; without it they run
    here with several micro batches and other numbers of shared experts.

    Raises InvalidArgumentError.
    """
    if not all(type(number) is int for number in (world_size, ffn_ranks, moe_experts)):
        raise _error(
            "world_size, ffn_ranks, moe_experts", "ints", repr((world_size, ffn_ranks, moe_experts)), "Pass numbers."
        )
    given = {
        "world_size": (world_size, 2, 768), "ffn_ranks": (ffn_ranks, 1, world_size - 1), "tokens": (tokens, 1, 512),
        "hidden": (hidden, 1024, 8192), "moe_experts": (moe_experts, 1, 1024), "k": (k, 1, min(16, moe_experts)),
        "shared": (shared, 1, 4), "micro_batches": (micro_batches, 1, 64),
        "ffn_start": (ffn_start, 0, world_size - ffn_ranks),
    }  # fmt: skip
    for name, (value, low, high) in given.items():
        if type(value) is not int:
            raise _error(name, "an int", repr(value), "Pass a number.")
        if not low <= value <= high:
            cures = {
                "ffn_ranks": "At least one rank must be left for attention.",
                "k": "A token's experts are different ones.",
                "shared": "The family has no place for none: a shared expert of zeros is one.",
                "tokens": "Split the batch into micro batches.",
            }  # fmt: skip
            raise _error(name, f"{low} to {high}", value, cures.get(name, "The operators take no other."))
    if dtype not in (torch.float16, torch.bfloat16):
        raise _error("dtype", "torch.float16 or torch.bfloat16", dtype, "Records are of two bytes an element.")
    if hidden % 256:
        raise _error(
            "hidden", "a multiple of 256", hidden, "An answer has hidden elements, and its record is whole 512 bytes."
        )
    if strict:
        for name, value, operator in (
            ("micro_batches", micro_batches, "npu_ffn_to_attention"),
            ("shared", shared, "npu_attention_worker_combine"),
        ):  # fmt: skip
            if value != 1:
                raise _error(
                    name, f"1 (CANN's {operator} takes no other)", value, "Pass strict=False to run it here only."
                )
    experts = moe_experts + shared
    if experts_on is None:
        block = -(-moe_experts // ffn_ranks)
        on = [list(range(i * block, min((i + 1) * block, moe_experts))) for i in range(ffn_ranks)]
        for i in range(shared):
            on[i % ffn_ranks].append(moe_experts + i)
        experts_on = on
    held = tuple(tuple(row) for row in experts_on)
    if len(held) != ffn_ranks:
        raise _error("experts_on", f"{ffn_ranks} lists, one per FFN rank", len(held), "Say what each rank holds.")
    missing = sorted(set(range(experts)) - {expert for row in held for expert in row})
    strange = sorted({expert for row in held for expert in row} - set(range(experts)))
    if missing or strange:
        raise _error(
            "experts_on", f"all experts, 0 to {experts - 1}", f"none for {missing}" if missing else f"also {strange}",
            "Shared experts follow the routed ones.",
        )  # fmt: skip
    if any(len(set(row)) != len(row) for row in held):
        raise _error("experts_on", "each expert once on a rank", [list(row) for row in held], "Drop the second.")
    made = Plan(
        world_size, ffn_start, held, tokens, hidden, k, moe_experts, shared, micro_batches, dtype, is_quantised,
        is_async, aligned(hidden + 128) if is_quantised else aligned(2 * hidden), 2 * hidden,
    )  # fmt: skip
    check_buffer("afd", "window of an FFN rank", made.ffn_tables.info_size + made.ffn_tables.records_size)
    check_buffer("afd", "window of an attention rank", made.window_size(made.attention_ranks[0]))
    return made


def _error(parameter: str, expected: str, got: object, cure: str) -> InvalidArgumentError:
    return argument_error("afd", parameter, expected, got, cure)


# -- the workers -------------------------------------------------------------------------------------------------------


class _Worker(ABC):
    """Windows and context of this rank, from entering to leaving."""

    def __init__(self, plan: Plan, group: str) -> None:
        ops.register()
        self.plan = plan
        self.group = group
        self._is_open = True
        self._rank = comm.communicator(group)
        if self._rank.size != plan.world_size:
            raise _error(
                "world_size", f"{self._rank.size}, the number of ranks of group {group!r}", plan.world_size,
                "Make the plan for this group.",
            )  # fmt: skip
        self._check_role()
        rank = self._rank.rank
        self.windows = self._rank.register_windows(plan.window_size(rank), plan.peers(rank))
        try:
            self.holder = self._holder()
            self._wait_for_peers()
        except BaseException:
            self.close(failed=True)
            raise
        self.context = self.holder.get_schedule_context_tensor()

    number: int
    """Of this rank among those of its role."""

    @abstractmethod
    def _check_role(self) -> None: ...

    def _check(self, name: str, x: Any, dtype: torch.dtype, *shape: int) -> None:
        """An argument is what the plan says."""
        if not self._is_open:
            raise _error("worker", "one that is open", "one that was closed", "Use it inside its with.")
        if not isinstance(x, Tensor):
            raise _error(name, "a tensor", type(x).__name__, "Pass one.")
        if x.dtype is not dtype:
            raise _error(name, f"dtype {dtype}", x.dtype, "Convert it, or make another plan.")
        if tuple(x.shape) != shape:
            raise _error(
                name, f"shape {list(shape)}, as the plan has it", list(x.shape), "Pad short batches, and mask them."
            )

    @abstractmethod
    def _holder(self) -> ScheduleContextHolder: ...

    def _wait_for_peers(self) -> None:
        """A peer may write only into tables that are empty: it says here that its own are."""
        for peer in self.plan.peers(self._rank.rank):
            self.windows.say_ready(peer, self.plan.digest, self.number)
        if self._rank.is_alone:
            return  # a group that communicates nothing, as nfg.explain wants it

        def late() -> list[int]:
            return [r for r in self.windows.peers if not self.windows.ready(r)[0]]

        self.windows.wait("afd", lambda: not late(), lambda: ("a worker of the other role", late()))
        others = [r for r in self.windows.peers if self.windows.ready(r)[0] != self.plan.digest]
        if others:
            raise _error(
                "plan", "the same on all ranks", f"another one than on {self.windows.name(others[0])}",
                "Call afd.plan with the same arguments everywhere.",
            )  # fmt: skip

    def _sizes(self) -> tuple[int, int, int, int, int, int, int]:
        p = self.plan
        experts = p.moe_experts + p.shared
        return len(p.attention_ranks), p.micro_batches, p.tokens, p.slots, experts, p.ffn_record, p.attention_record

    def stop(self) -> None:
        """What this rank waits for ends: an FFN rank finds no token, an attention rank's receive raises."""
        self.holder.stop_schedule()

    def close(self, *, failed: bool = False) -> None:
        """Leave: peers may go on writing this rank's window, which nobody reads. failed: tell them so."""
        if self._is_open:
            self._is_open = False
            self._rank.release_windows(failed=failed)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)


class AttentionWorker(_Worker):
    """An attention rank: ``send`` the tokens of a micro batch, ``receive`` what the experts made of them.

    Use it in a ``with``; entering waits for the FFN ranks. Micro batches are sent and received in turn, 0 to M - 1 and
    again from 0. Raises InvalidArgumentError on a rank that the plan has as an FFN rank, CommunicationError when a peer
    does not come within ``NFG_TIMEOUT`` seconds.
    """

    def __enter__(self) -> AttentionWorker:
        return self

    def _check_role(self) -> None:
        if self._rank.rank not in self.plan.attention_ranks:
            raise _error("plan", f"an attention rank, {self.plan.attention_ranks}", self._rank.rank, "Be an FFNWorker.")
        self.session = self.number = self.plan.attention_ranks.index(self._rank.rank)
        self._session_id = torch.tensor([self.session], dtype=torch.int32)
        self._micro_batch_ids = [torch.tensor([m], dtype=torch.int32) for m in range(self.plan.micro_batches)]
        self._table = self.plan.expert_rank_table
        self._layers = torch.zeros(1, dtype=torch.int32)

    def _holder(self) -> ScheduleContextHolder:
        own = self.windows.own
        return ScheduleContextHolder(
            ATTENTION, *self._sizes(), attention_window=own.data_ptr(), attention_window_size=own.numel()
        )

    def send(
        self,
        x: Tensor,
        expert_ids: Tensor,
        *,
        micro_batch: int = 0,
        layer_id: Tensor | None = None,
        active_mask: Tensor | None = None,
        scales: Tensor | None = None,
    ) -> None:
        """Send tokens (BS, H) to their routed experts (BS, K) int32, and to the shared ones.

        layer_id: (1,) int32, told to the FFN ranks. active_mask: (BS,) bool, trues first. scales: (experts, H) float32,
        with a quantised plan only.
        """
        p = self.plan
        self._check("x", x, p.dtype, p.tokens, p.hidden)
        self._check("expert_ids", expert_ids, torch.int32, p.tokens, p.k)
        if not 0 <= micro_batch < p.micro_batches:
            raise _error("micro_batch", f"0 to {p.micro_batches - 1}", micro_batch, "The plan says how many there are.")
        if not torch.compiler.is_compiling() and micro_batch in self.windows.answering:
            raise _error(
                "micro_batch", "one that was received since it was sent", micro_batch,
                "Receive first: FFN ranks may still read what was sent, and answer for it.",
            )  # fmt: skip
        npu_attention_to_ffn(
            x[None], self._session_id, self._micro_batch_ids[micro_batch],
            self._layers if layer_id is None else layer_id, expert_ids[None], self._table, self.group, p.world_size,
            p.ffn_info_shape, p.ffn_data_shape, p.attention_info_shape, p.moe_experts,
            scales=None if scales is None else scales[None],
            active_mask=None if active_mask is None else active_mask[None],
            quant_mode=2 if p.is_quantised else 0, sync_flag=int(p.is_async), ffn_start_rank_id=p.ffn_start,
        )  # fmt: skip

    def receive(self, expert_scales: Tensor) -> Tensor:
        """Wait for the answers of the next micro batch and add them up: (BS, H).

        expert_scales: weights (BS, K) float32 of the routed experts; shared ones count as they are. Rows of tokens that
        were not sent are whatever stands there.
        """
        p = self.plan
        self._check("expert_scales", expert_scales, torch.float32, p.tokens, p.k)
        if not torch.compiler.is_compiling() and not self._rank.is_alone:
            micro_batch = (int(self.context[288:292].view(torch.int32)) + 1) % p.micro_batches
            if micro_batch not in self.windows.answering:
                raise _error(
                    "receive", f"micro batch {micro_batch}, whose turn it is, to be sent before", "none",
                    "Send and receive micro batches in turn, from 0.",
                )  # fmt: skip
        shared = p.shared - 1
        if shared:  # the operator knows one shared expert: the others are routed ones of weight 1
            ones = torch.ones(expert_scales.size(0), shared, dtype=expert_scales.dtype)
            expert_scales = torch.cat([expert_scales, ones], 1)
        token_dtype = 1 if self.plan.dtype is torch.bfloat16 else 0
        y, _ = npu_attention_worker_combine(
            self.context, expert_scales, self._layers, self.plan.hidden, token_dtype=token_dtype, need_schedule=1
        )
        if not torch.compiler.is_compiling() and self.holder.is_stopped:
            raise CommunicationError("[afd] receive: expected answers, got a stop. What it returned would be no sum.")
        return y


class Batch(NamedTuple):
    """Tokens an FFN rank was sent, sorted by expert; see npu_ffn_worker_batching.

    x: (Y, H), int8 with scales when quantised. group_list: (experts of this rank, 2), rows of expert and tokens.
    layer_ids: (Y,) int32, what each row was sent with, -1 behind the rows that count: sessions need not be in step. The
    other ids say where each row came from; ``token_num`` (1,) int64 how many rows there are.
    """

    x: Tensor
    group_list: Tensor
    session_ids: Tensor
    micro_batch_ids: Tensor
    token_ids: Tensor
    expert_offsets: Tensor
    scales: Tensor
    token_num: Tensor
    layer_ids: Tensor


class FFNWorker(_Worker):
    """An FFN rank: ``receive`` the tokens of a micro batch, ``answer`` with what its experts made of them.

    Use it in a ``with``; entering waits for the attention ranks. ``experts``: those it holds, by number. Raises
    InvalidArgumentError on a rank that the plan has as an attention rank, CommunicationError when a peer does not come
    within ``NFG_TIMEOUT`` seconds.
    """

    def __enter__(self) -> FFNWorker:
        return self

    def _check_role(self) -> None:
        if self._rank.rank not in self.plan.ffn_ranks:
            raise _error("plan", f"an FFN rank, {self.plan.ffn_ranks}", self._rank.rank, "Be an AttentionWorker.")
        self.number = self._rank.rank - self.plan.ffn_start
        self.experts = self.plan.experts_on[self.number]
        self._ranks = torch.tensor(self.plan.attention_ranks, dtype=torch.int32)

    def _holder(self) -> ScheduleContextHolder:
        own = self.windows.own
        self._info = own[: self.plan.ffn_tables.info_size].view(torch.int32)
        return ScheduleContextHolder(FFN, *self._sizes(), ffn_window=own.data_ptr(), ffn_window_size=own.numel())

    def receive(self) -> Batch:
        """Wait for tokens: of the next micro batch of all sessions, or, in an async plan, of those that have sent.

        After ``stop()`` there are none, ``token_num`` is 0.
        """
        if not self._is_open:
            raise _error("worker", "one that is open", "one that was closed", "Use it inside its with.")
        p = self.plan
        dtype = 2 if p.is_quantised else 1 if p.dtype is torch.bfloat16 else 0
        if p.is_async:
            ffn_worker_scheduler_(self.context)
        shape = [len(p.attention_ranks), p.tokens, p.slots, p.hidden]
        batch = npu_ffn_worker_batching(
            self.context, max(1, len(self.experts)), shape, token_dtype=dtype, need_schedule=int(not p.is_async)
        )
        sessions, micro_batches, token_num = batch[2], batch[3], batch[7]
        # the word stays until the session sends that micro batch again, which it may not before it was answered
        words = (sessions * p.micro_batches + micro_batches) * p.ffn_info_shape[2] + LAYER
        layers = torch.index_select(self._info, 0, words)
        layers = torch.where(torch.arange(len(layers)) < token_num, layers, -1)
        return Batch(*batch, layers)

    def batches(self) -> Iterator[Batch]:
        """What comes in, until all attention ranks have left or ``stop()`` is called."""
        while True:
            try:
                batch = self.receive()
            except CommunicationError:
                if all(self.windows.state(r) == "left" for r in self.windows.peers):
                    return
                raise
            if self.holder.is_stopped:
                return
            yield batch

    def answer(self, batch: Batch, y: Tensor) -> None:
        """Send results (Y, H), in the rows of ``batch``, to the attention ranks the tokens came from."""
        p, tables = self.plan, self.plan.attention_tables
        self._check("y", y, p.dtype, len(batch.x), p.hidden)
        shape = [tables.micro_batches, tables.tokens, tables.slots]
        npu_ffn_to_attention(
            y, batch.session_ids, batch.micro_batch_ids, batch.token_ids, batch.expert_offsets, batch.token_num,
            self.group,
            p.world_size, shape, [*shape, tables.record], attn_rank_table=self._ranks,
        )  # fmt: skip

    def rows_of_experts(self, batch: Batch) -> Tensor:
        """The number of each row's expert on this rank (Y,), int64; -1 behind the rows that count."""
        ends = batch.group_list[:, 1].cumsum(0)
        rows = torch.arange(batch.x.size(0))
        place = (rows[:, None] >= ends[None, :]).sum(1)
        number = batch.group_list[:, 0][place.clamp(max=len(ends) - 1)]
        return torch.where(rows < batch.token_num, number, -1)
