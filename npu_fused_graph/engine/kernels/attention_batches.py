"""One call of an attention operator: its sequences, and which of them are computed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.attention_decoding import ROOM, WASTE, decode
from npu_fused_graph.engine.kernels.attention_quant import Scales, attention_int8, rounded_to_int8
from npu_fused_graph.engine.kernels.attention_scores import FEW_ROWS, Sight, attention, hidden_4d
from npu_fused_graph.engine.kernels.attention_tokens import (
    PACKED,
    Sequences,
    in_a_pack,
    in_pages,
    in_rows,
    laid_out,
    tokens,
)
from npu_fused_graph.engine.registry import unsupported


class Part(Protocol):
    """Some columns of the keys or the values."""

    @property
    def width(self) -> int: ...

    def take(self, members: Sequence[int]) -> Tensor: ...


@dataclass(frozen=True)
class Prefixed:
    """The same tokens ``prefix`` [1, S, N, D] in front of every sequence."""

    prefix: Tensor
    part: Sequences

    @property
    def width(self) -> int:
        return self.part.width

    def take(self, members: Sequence[int]) -> Tensor:
        return torch.cat([self.prefix.expand(len(members), -1, -1, -1), self.part.take(members)], 1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pse_shift: Tensor | None,
    mask: Tensor | None,
    q_lengths: list[int] | None,
    kv_lengths: list[int] | None,
    *,
    num_heads: int,
    num_key_value_heads: int,
    scale: float,
    layout: str,
    sparse_mode: int,
    pre_tokens: int,
    next_tokens: int,
    ge_type: str,
    with_lse: bool = False,
    block_table: Tensor | None = None,
    block_size: int = 0,
    rope: tuple[Tensor, Tensor] | None = None,
    sink: Tensor | None = None,
    q_padding: list[int] | None = None,
    kv_padding: list[int] | None = None,
    prefix: tuple[Tensor, Tensor] | None = None,
    cache_scales: tuple[Scales, Scales] | None = None,
    query_scale: Tensor | None = None,
    result_scale: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """(attention, log-sum-exp [B, N, Sq, 1] or [T, N, 1]). A row without visible keys gives 0 and +inf.

    rope: further columns of query and key. prefix: keys and values in front of every sequence's. cache_scales: of
    int8 keys and values. query_scale: of an int8 query, per token and head; it and the scale of the keys multiply the
    rope columns, too, as the kernels of A2 and A3 want them. result_scale: scale and offset of an int8 result.
    """
    layout, _, out_layout = layout.partition("_")
    is_packed, is_paged = layout in PACKED, block_table is not None
    kv_heads = num_key_value_heads or num_heads
    if num_heads % kv_heads:
        raise unsupported(ge_type, "num_key_value_heads", f"a divisor of num_heads {num_heads}", kv_heads)

    special = (pse_shift, rope, sink, q_padding, kv_padding, prefix, cache_scales, query_scale, result_scale)
    if (
        block_table is not None
        and kv_lengths is not None
        and key.dim() == 3
        and block_size in (0, key.shape[1])
        and _is_one_query_each(query, q_lengths, layout, num_heads, sparse_mode, mask)
        and not with_lse
        and out_layout in ("", layout)
        and all(x is None for x in special)
    ):
        found = decode(query, key, value, kv_lengths, block_table, heads=num_heads, kv_heads=kv_heads, scale=scale)
        if found is not None:
            return found, torch.empty(0)

    def rows(x: Tensor) -> Tensor:
        return tokens(x, layout, num_heads, ge_type, "num_heads")

    def kv_rows(x: Tensor) -> Tensor:
        return x if is_paged else tokens(x, layout, kv_heads, ge_type, "num_key_value_heads")

    q, k, v = rows(query), kv_rows(key), kv_rows(value)
    if not is_packed and q.shape[1] == 1:
        # a single query has no lengths and, without rope, no sparse mode, as documented
        q_lengths = None
        if rope is None:
            sparse_mode, mask = 1, mask if sparse_mode < 2 else None
    queries: Sequences
    keys: Sequences
    if is_packed:
        queries = in_a_pack(q, q_lengths, ge_type, "actual_seq_lengths")
    else:
        queries = in_rows(q, q_lengths, q_padding, ge_type, "actual_seq_lengths")
    if block_table is not None:
        keys = in_pages(k, block_table, kv_lengths, len(queries.lengths), kv_heads, block_size, ge_type)
    elif is_packed:
        keys = in_a_pack(k, kv_lengths, ge_type, "actual_seq_lengths_kv")
    else:
        keys = in_rows(k, kv_lengths, kv_padding, ge_type, "actual_seq_lengths_kv")
    if len(keys.lengths) != len(queries.lengths):
        expected = f"{len(queries.lengths)} of them, one per sequence"
        raise unsupported(ge_type, "actual_seq_lengths_kv", expected, keys.lengths)

    if prefix is not None:
        if is_packed:
            raise unsupported(ge_type, "key_shared_prefix", f"none in layout {layout}", prefix[0])
        prefix = kv_rows(prefix[0]), kv_rows(prefix[1])
    shared = 0 if prefix is None else prefix[0].shape[1]
    longest = shared + (max(keys.lengths, default=0) if is_paged else k.shape[1])
    sight = _sight(sparse_mode, mask, pre_tokens, next_tokens, layout, q.shape[1], longest, ge_type)
    if is_packed or is_paged or sight.hidden is not None or pse_shift is not None:
        for name, padding in (("query_padding_size", q_padding), ("kv_padding_size", kv_padding)):
            if padding is not None:
                expected = "none with packed or paged sequences, a mask of one's own or pse_shift"
                raise unsupported(ge_type, name, expected, padding)
    if sight.from_the_end and pse_shift is None and not shared:
        # what lies in front of the first query's window is not even read
        sizes = zip(keys.lengths, queries.lengths, strict=True)
        unread = [min(max(0, n - own - sight.before), n) for n, own in sizes]
        keys = keys.without_first(unread) if any(unread) else keys

    values: Part | None = None if _is_same(k, v) else keys.of(v)
    q_parts: list[Part] = [queries]
    k_parts: list[Part] = [keys]
    width = keys.of(v).width
    if prefix is not None:
        k_parts, values = [Prefixed(prefix[0], keys)], Prefixed(prefix[1], keys.of(v))
    elif cache_scales is not None and query_scale is None:
        k_parts, values = (
            [cache_scales[0].of(keys, kv_heads, ge_type)],
            cache_scales[1].of(keys.of(v), kv_heads, ge_type),
        )
    if rope is not None:
        q_parts.append(queries.of(rows(rope[0])))
        k_parts.append(keys.of(kv_rows(rope[1])))
    q_scales = None if query_scale is None else queries.of(_per_token_and_head(query_scale, q.shape, layout))
    exact = cache_scales is not None or result_scale is not None
    dtype = torch.float32 if exact else q.dtype
    heads = q.shape[2]
    parts: list[tuple[list[int], Tensor]] = []
    sums: list[tuple[list[int], Tensor]] = []
    columns = kv_heads * sum(part.width for part in (*k_parts, values) if part is not None)
    lengths = [n + shared for n in keys.lengths]
    for members in _batches(queries.lengths, lengths, columns, in_place=keys.is_in_place and not shared):
        q_own, kv_own = [queries.lengths[i] for i in members], [lengths[i] for i in members]
        q, k = _columns(q_parts, members), _columns(k_parts, members)
        v = k if values is None else values.take(members)
        shift = _of_members(pse_shift, members, max(q_own), max(kv_own))
        causal = shift is None and q_scales is None and q.shape[1] > FEW_ROWS and sight.is_causal(q_own, kv_own)
        seen = None if causal else sight.seen(members, q_own, kv_own)
        if q_scales is not None and cache_scales is not None:
            q = q * (q_scales.take(members) * cache_scales[0].scale)
            parts.append((members, attention_int8(q, k, v, seen, scale=scale, width=width) * cache_scales[1].scale))
            continue
        own, own_sum = attention(
            q, k, v, seen, shift, sink, scale=scale, width=width, causal=causal, with_lse=with_lse, exact=exact
        )  # fmt: skip
        parts.append((members, own))
        if own_sum is not None:
            sums.append((members, own_sum))
    result = queries.joined(parts, (heads, width), 0.0, dtype)
    if result_scale is not None:
        result = rounded_to_int8(result, *result_scale, ge_type)
    elif exact:
        result = result.to(query.dtype if query.dtype.is_floating_point or rope is None else rope[0].dtype)
    result = laid_out(result, out_layout or layout)
    if not with_lse:
        return result, torch.empty(0)
    lse = queries.joined(sums, (heads,), float("inf"), torch.float32)
    return result, (lse[0] if is_packed else lse.transpose(1, 2)).unsqueeze(-1)


def _is_one_query_each(
    query: Tensor, lengths: list[int] | None, layout: str, heads: int, mode: int, mask: Tensor | None
) -> bool:
    """Whether every sequence has one query, which sees all its keys."""
    if not (mask is None if mode == 0 else mode == 3 and mask is not None):
        return False
    if layout == "TND":
        return query.shape[1] == heads and lengths == list(range(1, query.shape[0] + 1))
    return query.shape[1] == 1 and (layout == "BSH" or (layout == "BSND" and query.shape[2] == heads))


def _sight(
    mode: int,
    mask: Tensor | None,
    pre_tokens: int,
    next_tokens: int,
    layout: str,
    rows: int,
    columns: int,
    ge_type: str,
) -> Sight:
    if mode > 1 and mask is None:
        raise unsupported(ge_type, "atten_mask", f"a mask with sparse_mode {mode}", None)
    if mode > 1 or mask is None:
        return Sight.of(mode, None, pre_tokens, next_tokens)
    if layout in PACKED:
        raise unsupported(ge_type, "atten_mask", f"none with sparse_mode {mode} in layout {layout}", mask)
    return Sight.of(mode, hidden_4d(mask, rows, columns, ge_type), pre_tokens, next_tokens)


def _per_token_and_head(x: Tensor, shape: torch.Size, layout: str) -> Tensor:
    """Scales as [B, S, N, 1] for a query [B, S, N, D]; they are laid out as it is, without D."""
    batch, length, heads, _ = shape
    if layout in ("BNSD", "NTD", "NSD"):
        return x.reshape(batch, heads, length, 1).transpose(1, 2)
    return x.reshape(batch, length, heads, 1)


def _is_same(x: Tensor, y: Tensor) -> bool:
    """Whether both are the same memory: the latent cache that serves as key and as value."""
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype


def _columns(parts: Sequence[Part], members: Sequence[int]) -> Tensor:
    taken = [part.take(members) for part in parts]
    if len(taken) == 1:
        return taken[0]
    return torch.cat([x if x.dtype.is_floating_point else x.float() for x in taken], -1)


def _of_members(shift: Tensor | None, members: Sequence[int], rows: int, columns: int) -> Tensor | None:
    if shift is None:
        return None
    shift = shift[torch.tensor(members)] if shift.shape[0] > 1 else shift
    return shift[..., :rows, :columns]


def _batches(q_lengths: Sequence[int], kv_lengths: Sequence[int], columns: int, *, in_place: bool) -> list[list[int]]:
    """Sequences to compute together, of those with queries and keys.

    in_place: sequences of one length need no copy and are one batch. Else one holds as many as stay in the processor's
    caches. columns: elements of a token's key and value.
    """
    sizes = {i: pair for i, pair in enumerate(zip(q_lengths, kv_lengths, strict=True)) if all(pair)}
    if in_place and len(set(sizes.values())) == 1:
        return [list(sizes)]
    found: list[list[int]] = []
    most_q = most_kv = work = 0
    for i, (q, kv) in sizes.items():
        most_q, most_kv, work = max(most_q, q), max(most_kv, kv), work + q * kv
        count = len(found[-1]) + 1 if found else 0
        if count and count * most_q * most_kv <= WASTE * work and count * most_kv * columns <= ROOM:
            found[-1].append(i)
        else:
            found.append([i])
            most_q, most_kv, work = q, kv, q * kv
    return found
