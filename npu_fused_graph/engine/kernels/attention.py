"""Attention of the inference operators: dense, packed and paged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.attention_scores import FEW_ROWS, SPARSE_MODES, Sight, attention, hidden_4d
from npu_fused_graph.engine.kernels.attention_tokens import (
    PACKED,
    Sequences,
    in_a_pack,
    in_pages,
    in_rows,
    laid_out,
    tokens,
)
from npu_fused_graph.engine.registry import Ints, kernel, unsupported

LAYOUTS = ("BSH", "BSND", "BNSD", "BNSD_BSND", "TND")
FUSED_LAYOUTS = (
    *LAYOUTS, "NTD", "NSD", "TND_NTD", "NTD_TND", "BSH_BNSD", "BSND_BNSD", "BSH_NBSD", "BSND_NBSD", "BNSD_NBSD"
)  # fmt: skip
"""The layout of query, key and value, then that of the result where it is another one."""
WASTE = 2
"""Sequences of different lengths are padded to one batch unless that multiplies the work by more."""
ROOM = 2**20
"""Elements of keys and values of such a batch, at most."""


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
) -> tuple[Tensor, Tensor]:
    """(attention, log-sum-exp [B, N, Sq, 1] or [T, N, 1]). A row without visible keys gives 0 and +inf.

    rope: further columns of query and key.
    """
    layout, _, out_layout = layout.partition("_")
    is_packed, is_paged = layout in PACKED, block_table is not None

    def rows(x: Tensor) -> Tensor:
        return tokens(x, layout, num_heads, ge_type, "num_heads")

    def kv_rows(x: Tensor) -> Tensor:
        return x if is_paged else tokens(x, layout, kv_heads, ge_type, "num_key_value_heads")

    kv_heads = num_key_value_heads or num_heads
    q, k, v = rows(query), kv_rows(key), kv_rows(value)
    if is_packed:
        queries = in_a_pack(q, q_lengths, ge_type, "actual_seq_lengths")
    elif q.shape[1] == 1:
        # a single query has no lengths and, without rope, no sparse mode, as documented
        queries = in_rows(q, None, ge_type, "actual_seq_lengths")
        if rope is None:
            sparse_mode, mask = 1, mask if sparse_mode < 2 else None
    else:
        queries = in_rows(q, q_lengths, ge_type, "actual_seq_lengths")
    batch = len(queries.lengths)
    keys: Sequences
    if block_table is not None:
        keys = in_pages(k, block_table, kv_lengths, batch, kv_heads, block_size, ge_type)
    elif is_packed:
        keys = in_a_pack(k, kv_lengths, ge_type, "actual_seq_lengths_kv")
    else:
        keys = in_rows(k, kv_lengths, ge_type, "actual_seq_lengths_kv")
    if len(keys.lengths) != batch:
        raise unsupported(ge_type, "actual_seq_lengths_kv", f"{batch} of them, one per sequence", keys.lengths)

    hidden = None
    if sparse_mode > 1 and mask is None:
        raise unsupported(ge_type, "atten_mask", f"a mask with sparse_mode {sparse_mode}", None)
    if sparse_mode < 2 and mask is not None:
        if is_packed:
            raise unsupported(ge_type, "atten_mask", f"none with sparse_mode {sparse_mode} in layout {layout}", mask)
        hidden = hidden_4d(mask, q.shape[1], max(keys.lengths, default=0) if is_paged else k.shape[1], ge_type)
    sight = Sight.of(sparse_mode, hidden, pre_tokens, next_tokens)
    if sight.from_the_end and pse_shift is None:
        # what lies in front of the first query's window is not even read
        sizes = zip(keys.lengths, queries.lengths, strict=True)
        keys = keys.without_first([min(max(0, n - own - sight.before), n) for n, own in sizes])

    q_parts, k_parts = [queries], [keys]
    if rope is not None:
        q_parts, k_parts = [queries, queries.of(rows(rope[0]))], [keys, keys.of(kv_rows(rope[1]))]
    values = None if _is_same(k, v) else keys.of(v)
    width = keys.of(v).width
    out = queries.of(q.new_zeros(*q.shape[:3], width))
    lse = queries.of(torch.full(q.shape[:3], float("inf")))
    columns = sum(part.width * kv_heads for part in (*k_parts, *([] if values is None else [values])))
    for members in _batches(queries, keys, columns):
        q_own, kv_own = [queries.lengths[i] for i in members], [keys.lengths[i] for i in members]
        q, k = _columns(q_parts, members), _columns(k_parts, members)
        v = k if values is None else values.take(members)
        shift = _of_members(pse_shift, members, max(q_own), max(kv_own))
        causal = shift is None and q.shape[1] > FEW_ROWS and sight.is_causal(q_own, kv_own)
        seen = None if causal else sight.seen(members, q_own, kv_own)
        results, sums = attention(
            q, k, v, seen, shift, sink, scale=scale, width=width, causal=causal, with_lse=with_lse
        )  # fmt: skip
        out.put(members, results)
        if sums is not None:
            lse.put(members, sums)
    if not with_lse:
        return laid_out(out.x, out_layout or layout), torch.empty(0)
    lse_ = lse.x[0] if is_packed else lse.x.transpose(1, 2)
    return laid_out(out.x, out_layout or layout), lse_.unsqueeze(-1)


def _is_same(x: Tensor, y: Tensor) -> bool:
    """Whether both are the same memory: the latent cache that serves as key and as value."""
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype


def _columns(parts: Sequence[Sequences], members: Sequence[int]) -> Tensor:
    taken = [part.take(members) for part in parts]
    return torch.cat(taken, -1) if len(taken) > 1 else taken[0]


def _of_members(shift: Tensor | None, members: Sequence[int], rows: int, columns: int) -> Tensor | None:
    if shift is None:
        return None
    shift = shift[torch.tensor(members)] if shift.shape[0] > 1 else shift
    return shift[..., :rows, :columns]


def _batches(queries: Sequences, keys: Sequences, columns: int) -> list[list[int]]:
    """Sequences to compute together, of those with queries and keys. columns: of a token's key and value.

    What lies evenly in memory is one batch. Else sequences are copied: as many as stay in the processor's caches.
    """
    sizes = {i: pair for i, pair in enumerate(zip(queries.lengths, keys.lengths, strict=True)) if all(pair)}
    if keys.is_in_place and len(set(sizes.values())) == 1:
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


@kernel(
    "FusedInferAttentionScore",
    ignored=(
        "inner_precise",
        "out_dtype",  # says something of quantised results only
        # the attributes below qualify inputs that the kernel refuses
        "antiquant_mode",
        "key_antiquant_mode",
        "value_antiquant_mode",
        "query_quant_mode",
    ),
    allowed={"input_layout": FUSED_LAYOUTS, "sparse_mode": SPARSE_MODES, "pse_type": (0,)},
    unfed=(
        "dequant_scale1",
        "quant_scale1",
        "dequant_scale2",
        "quant_scale2",
        "quant_offset2",
        "antiquant_scale",
        "antiquant_offset",
        "query_padding_size",
        "kv_padding_size",
        "key_antiquant_scale",
        "key_antiquant_offset",
        "value_antiquant_scale",
        "value_antiquant_offset",
        "key_shared_prefix",
        "value_shared_prefix",
        "actual_shared_prefix_len",
        "key_rope_antiquant_scale",
        "dequant_scale_query",
        "q_start_idx",
        "kv_start_idx",
    ),
)
def fused_infer_attention_score(
    query: Tensor,
    key: list[Tensor],
    value: list[Tensor],
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Ints | None = None,
    actual_seq_lengths_kv: Ints | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    query_padding_size: Tensor | None = None,
    kv_padding_size: Tensor | None = None,
    key_antiquant_scale: Tensor | None = None,
    key_antiquant_offset: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    value_antiquant_offset: Tensor | None = None,
    key_shared_prefix: Tensor | None = None,
    value_shared_prefix: Tensor | None = None,
    actual_shared_prefix_len: Tensor | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    key_rope_antiquant_scale: Tensor | None = None,
    dequant_scale_query: Tensor | None = None,
    learnable_sink: Tensor | None = None,
    q_start_idx: Tensor | None = None,
    kv_start_idx: Tensor | None = None,
    *,
    num_heads: int,
    scale: float = 1.0,
    pre_tokens: int = 2147483647,
    next_tokens: int = 2147483647,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    block_size: int = 0,
    softmax_lse_flag: bool = False,
    pse_type: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention of prefill and decoding, over dense, packed or paged keys and values."""
    ge_type = "FusedInferAttentionScore"
    if len(key) != 1 or len(value) != 1:
        raise unsupported(ge_type, "key", "one tensor", len(key))
    if (query_rope is None) != (key_rope is None):
        raise unsupported(ge_type, "query_rope", "key_rope with it, or neither", query_rope)
    if learnable_sink is not None and softmax_lse_flag:
        raise unsupported(ge_type, "softmax_lse_flag", "False with learnable_sink", True)
    return attend(
        query,
        key[0],
        value[0],
        pse_shift,
        atten_mask,
        actual_seq_lengths,
        actual_seq_lengths_kv,
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        scale=scale,
        layout=input_layout,
        sparse_mode=sparse_mode,
        pre_tokens=pre_tokens,
        next_tokens=next_tokens,
        ge_type=ge_type,
        with_lse=softmax_lse_flag,
        block_table=block_table,
        block_size=block_size,
        rope=None if query_rope is None or key_rope is None else (query_rope, key_rope),
        sink=learnable_sink,
    )


@kernel(
    "PromptFlashAttention",
    ignored=("inner_precise",),
    allowed={"input_layout": LAYOUTS, "sparse_mode": SPARSE_MODES},
    unfed=("deq_scale1", "quant_scale1", "deq_scale2", "quant_scale2", "quant_offset2"),
)
def prompt_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Ints | None = None,
    actual_seq_lengths_kv: Ints | None = None,
    deq_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    deq_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    *,
    num_heads: int,
    scale_value: float = 1.0,
    pre_tokens: int = 214748647,
    next_tokens: int = 0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 1,
    sparse_mode: int = 0,
) -> Tensor:
    return attend(
        query,
        key,
        value,
        pse_shift,
        atten_mask,
        actual_seq_lengths,
        actual_seq_lengths_kv,
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        scale=scale_value,
        layout=input_layout,
        sparse_mode=sparse_mode,
        pre_tokens=pre_tokens,
        next_tokens=next_tokens,
        ge_type="PromptFlashAttention",
    )[0]


@kernel(
    "IncreFlashAttention",
    ignored=("inner_precise",),
    allowed={"input_layout": ("BSH", "BSND", "BNSD")},
    unfed=(
        "dequant_scale1",
        "quant_scale1",
        "dequant_scale2",
        "quant_scale2",
        "quant_offset2",
        "antiquant_scale",
        "antiquant_offset",
        "kv_padding_size",
    ),
)
def incre_flash_attention(
    query: Tensor,
    key: list[Tensor],
    value: list[Tensor],
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Ints | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    kv_padding_size: Tensor | None = None,
    *,
    num_heads: int,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 1,
    block_size: int = 0,
) -> Tensor:
    """One query token; actual_seq_lengths are those of key and value."""
    if len(key) != 1 or len(value) != 1:
        raise unsupported("IncreFlashAttention", "key", "one tensor", len(key))
    return attend(
        query,
        key[0],
        value[0],
        pse_shift,
        atten_mask,
        None,
        actual_seq_lengths,
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        scale=scale_value,
        layout=input_layout,
        sparse_mode=1,
        pre_tokens=0,
        next_tokens=0,
        ge_type="IncreFlashAttention",
        block_table=block_table,
        block_size=block_size,
    )[0]
