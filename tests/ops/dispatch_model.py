"""What AttentionToFFN leaves in windows, byte by byte, told with plain loops and none of the package's code.

And calls to compare by: a plan of who holds which expert, and one call per session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

Window = NDArray[numpy.uint8]

EMPTY = 2147483647


@dataclass(frozen=True)
class Plan:
    """sessions, micro_batches, tokens, k, experts, shared: A, M, BS, K, moe_expert_num, S. start: first FFN rank.

    rows: of the table, per expert (rank of the group, number there) of each replica.
    """

    sessions: int
    micro_batches: int
    tokens: int
    k: int
    experts: int
    shared: int
    hidden: int
    record: int
    size: int
    start: int
    rows: list[list[tuple[int, int]]]
    width: int

    @property
    def slots(self) -> int:
        return self.k + self.shared

    @property
    def ffn_ranks(self) -> list[int]:
        return list(range(self.start, self.start + self.size - self.sessions))

    @property
    def attention_ranks(self) -> list[int]:
        return [r for r in range(self.size) if r not in self.ffn_ranks]

    @property
    def shapes(self) -> dict[str, list[int]]:
        a, m, bs, ks = self.sessions, self.micro_batches, self.tokens, self.slots
        return {
            "ffn_token_info_table_shape": [a, m, 2 + bs * ks],
            "ffn_token_data_shape": [a, m, bs, ks, self.record],
            "attn_token_info_table_shape": [m, bs, ks],
        }

    def table(self) -> Tensor:
        """Words behind a row's pairs are never read: they are nonsense here."""
        table = torch.full((1, len(self.rows), self.width), -77, dtype=torch.int32)
        for row, replicas in zip(table[0], self.rows, strict=True):
            row[0] = len(replicas)
            row[1 : 1 + 2 * len(replicas)] = torch.tensor(replicas, dtype=torch.int32).flatten()
        return table

    def ffn_bytes(self, is_quantised: bool) -> int:
        a, m, bs, ks = self.sessions, self.micro_batches, self.tokens, self.slots
        return self.data_at + a * m * bs * ks * self.record * (1 if is_quantised else 2)

    @property
    def data_at(self) -> int:
        return (4 * self.sessions * self.micro_batches * (2 + self.tokens * self.slots) + 511) // 512 * 512


def plan_of(generator: numpy.random.Generator, *, sessions: int, ffn: int, is_quantised: bool, **given: Any) -> Plan:
    """A plan with replicas at random places; ``given`` sizes stay."""

    def pick(name: str, low: int, high: int) -> int:
        return int(given.get(name, generator.integers(low, high + 1)))

    experts = pick("experts", 1, 12)
    k = pick("k", 1, min(6, experts))
    shared = pick("shared", 0, 4)
    hidden = pick("hidden", 1024, 1100)
    least = (hidden + 31) // 32 * 32 + 4 if is_quantised else hidden
    size, start = sessions + ffn, int(given.get("start", generator.choice([0, sessions])))
    replicas = [int(generator.integers(1, ffn + 1)) for _ in range(experts + shared)]
    rows = [
        [(start + int(generator.integers(ffn)), int(generator.integers(0, 999_999))) for _ in range(n)]
        for n in replicas
    ]
    return Plan(
        sessions, pick("micro_batches", 1, 3), pick("tokens", 1, 9), k, experts, shared, hidden,
        pick("record", least, least + 200), size, start, rows, 2 * ffn + 1,
    )  # fmt: skip


def call_of(
    plan: Plan, generator: numpy.random.Generator, session: int, *, dtype: torch.dtype, is_quantised: bool,
    has_scales: bool, is_async: bool, is_masked: bool,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of one session's call, without the group."""
    seeded = torch.Generator().manual_seed(int(generator.integers(2**31)))
    ids = torch.stack([torch.randperm(plan.experts, generator=seeded)[: plan.k] for _ in range(plan.tokens)])
    x = torch.randn(1, plan.tokens, plan.hidden, generator=seeded).to(dtype)
    if plan.tokens > 1:
        x[0, 1] = 0
    mask = None
    if is_masked:
        mask = torch.arange(plan.tokens)[None] < int(generator.integers(0, plan.tokens + 1))
    scales = torch.rand(1, plan.experts + plan.shared, plan.hidden, generator=seeded) + 0.25 if has_scales else None

    def one(value: int) -> Tensor:
        return torch.tensor([value], dtype=torch.int32)

    return {
        "x": x, "session_id": one(session), "micro_batch_id": one(int(generator.integers(plan.micro_batches))),
        "layer_id": one(int(generator.integers(0, 60))), "expert_ids": ids[None].int(),
        "expert_rank_table": plan.table(), "world_size": plan.size, "moe_expert_num": plan.experts, "scales": scales,
        "active_mask": mask, "quant_mode": 2 * is_quantised, "sync_flag": int(is_async),
        "ffn_start_rank_id": plan.start, **plan.shapes,
    }  # fmt: skip


def dispatch(windows: dict[int, Window], plan: Plan, rank: int, call: dict[str, Any]) -> None:
    """Do to ``windows`` what the operator does when attention rank ``rank`` calls it."""
    session, micro_batch, layer = (int(call[n]) for n in ("session_id", "micro_batch_id", "layer_id"))
    is_quantised = call["quant_mode"] == 2
    mask, x = call["active_mask"], call["x"][0]
    active = plan.tokens if mask is None else sum(mask[0].tolist())
    slot = 4 * (session * plan.micro_batches + micro_batch) * (2 + plan.tokens * plan.slots)
    hit = set()
    for t in range(active):
        for j in range(plan.slots):
            expert = int(call["expert_ids"][0, t, j]) if j < plan.k else plan.experts + j - plan.k
            replicas = plan.rows[expert]
            target, number = replicas[session % len(replicas)]
            hit.add(target)
            window = windows[target]
            place = ((session * plan.micro_batches + micro_batch) * plan.tokens + t) * plan.slots + j
            at = plan.data_at + place * plan.record * (1 if is_quantised else 2)
            if is_quantised:
                smooth = None if call["scales"] is None else call["scales"][0, expert].numpy()
                values, scale = quantised(x[t], smooth)
                window[at : at + plan.hidden] = values.view(numpy.uint8)
                behind = at + (plan.hidden + 31) // 32 * 32
                window[behind : behind + 4] = numpy.frombuffer(scale.tobytes(), numpy.uint8)
            else:
                window[at : at + 2 * plan.hidden] = x[t].contiguous().view(torch.uint8).numpy()
            word = slot + 8 + 4 * (t * plan.slots + j)
            window[word : word + 4] = numpy.frombuffer(numpy.int32(number).tobytes(), numpy.uint8)
    for target in sorted(hit) if call["sync_flag"] else plan.ffn_ranks:
        windows[target][slot : slot + 8] = numpy.frombuffer(numpy.array([1, layer], "<i4").tobytes(), numpy.uint8)
    if mask is not None:
        own = windows[rank]
        for t in range(active, plan.tokens):
            for j in range(plan.slots):
                word = 4 * ((micro_batch * plan.tokens + t) * plan.slots + j)
                own[word : word + 4] = [1, 0, 0, 0]


def quantised(row: Tensor, smooth: NDArray[numpy.float32] | None) -> tuple[NDArray[numpy.int8], numpy.float32]:
    """int8 values and their scale, in float32 as the kernel computes them."""
    if row.dtype is torch.bfloat16:
        v = (row.view(torch.int16).numpy().astype(numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
    else:
        v = row.numpy().astype(numpy.float32)
    if smooth is not None:
        v = v * smooth
    largest = numpy.max(numpy.abs(v))
    if largest == 0:
        return numpy.zeros(len(v), numpy.int8), numpy.float32(0)
    factor = numpy.float32(127) / largest
    return numpy.rint(v * factor).astype(numpy.int8), numpy.float32(1) / factor


def fresh(plan: Plan, generator: numpy.random.Generator, *, is_quantised: bool) -> dict[int, Window]:
    """Windows of noise whose flags are 0."""
    windows = {}
    for r in range(plan.size):
        size = (
            plan.ffn_bytes(is_quantised) if r in plan.ffn_ranks else 4 * plan.micro_batches * plan.tokens * plan.slots
        )
        windows[r] = generator.integers(0, 256, size, dtype=numpy.uint8)
        if r in plan.ffn_ranks:
            slots = plan.sessions * plan.micro_batches
            words = windows[r][: 4 * slots * (2 + plan.tokens * plan.slots)].view(numpy.int32)
            words.reshape(slots, -1)[:, 0] = 0
    return windows
