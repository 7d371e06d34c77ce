"""Which token of AttentionToFFN goes to which rank: what its tensors' values say (C23 to C26)."""

from __future__ import annotations

from typing import NamedTuple

import numpy
from numpy.typing import NDArray
from torch import Tensor

from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops.window_tables import INVALID

_STEM = "attention_to_ffn"

Words = NDArray[numpy.int32]


class Routes(NamedTuple):
    """Of every active token and slot [n, KS]: its expert's row of the table, its rank, its number there."""

    experts: Words
    ranks: Words
    numbers: Words


def checked_id(name: str, value: Tensor, count: int) -> int:
    """C23."""
    found = int(value[0])
    if not 0 <= found < count:
        raise argument_error(_STEM, name, f"0 to {count - 1}", found, "The table shapes say how many there are.")
    return found


def active_tokens(mask: Tensor | None, tokens: int) -> int:
    """C26: how many tokens are sent."""
    if mask is None:
        return tokens
    active = int(mask.sum())
    if not bool(mask[0, :active].all()):
        first = int(mask[0].logical_not().nonzero()[0])
        raise argument_error(
            _STEM, "active_mask", "every true before every false", f"a true behind the false of token {first}",
            "Move active tokens to the front.",
        )  # fmt: skip
    return active


def routes_of(ids: Words, table: Words, session: int, moe_experts: int, slots: int, ffn_ranks: range) -> Routes:
    """C24, C25. ids: [n, K]. table: [experts, R]."""
    experts = numpy.empty((len(ids), slots), numpy.int32)
    k = ids.shape[1]
    experts[:, :k] = ids
    experts[:, k:] = numpy.arange(moe_experts, moe_experts + slots - k)
    if not ids.size:
        return Routes(experts, experts, experts)
    if int(ids.min()) < 0 or int(ids.max()) >= moe_experts:
        token = int(numpy.flatnonzero(((ids < 0) | (ids >= moe_experts)).any(1))[0])
        raise argument_error(
            _STEM, "expert_ids", f"0 to {moe_experts - 1}", f"{ids[token].tolist()} of token {token}",
            "Shared experts are not named: every token goes to them.",
        )  # fmt: skip
    in_order = numpy.sort(ids, 1)
    twice = in_order[:, 1:] == in_order[:, :-1]
    if twice.any():
        token = int(numpy.flatnonzero(twice.any(1))[0])
        raise argument_error(
            _STEM, "expert_ids", "different experts in a row", f"{ids[token].tolist()} of token {token}",
            "Take the top k of all experts.",
        )  # fmt: skip
    replicas = table[:, 0]
    used = numpy.zeros(len(table), bool)
    used[experts] = True
    width = table.shape[1]
    is_wrong = used & ((replicas < 1) | (replicas > (width - 1) // 2))
    if is_wrong.any():
        row = int(numpy.flatnonzero(is_wrong)[0])
        raise argument_error(
            _STEM, "expert_rank_table", f"1 to {(width - 1) // 2} replicas of an expert in rows of {width}",
            f"{int(replicas[row])} in row {row}", "A row is n, then n pairs of a rank and a number.",
        )  # fmt: skip
    pair = 1 + 2 * (session % numpy.where(used, replicas, 1))
    rows = numpy.arange(len(table))
    ranks, numbers = table[rows, pair], table[rows, pair + 1]
    is_wrong = used & ((ranks < ffn_ranks.start) | (ranks >= ffn_ranks.stop) | (numbers < 0) | (numbers >= INVALID))
    if is_wrong.any():
        row = int(numpy.flatnonzero(is_wrong)[0])
        raise argument_error(
            _STEM, "expert_rank_table",
            f"an FFN rank, {ffn_ranks.start} to {ffn_ranks.stop - 1} of the group, and a number below {INVALID}",
            f"rank {int(ranks[row])}, number {int(numbers[row])} in row {row}, which session {session} uses",
            "Ranks are those of the group, wherever the FFN ranks begin.",
        )  # fmt: skip
    return Routes(experts, ranks[experts], numbers[experts])
