"""Attention over the keys an indexer chose, and the indexer: DeepSeek Sparse Attention on latent keys of one head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.matmul import int_matmul
from npu_fused_graph.engine.registry import kernel, unsupported

_EVERY_TOKEN = (9223372036854775807,)
_LAYOUTS = {"layout_query": ("BSND", "TND"), "sparse_mode": (0, 3)}
_WINDOW = {"pre_tokens": _EVERY_TOKEN, "next_tokens": _EVERY_TOKEN}
_AT_ONCE = 1 << 24
"""Elements of an intermediate; queries are taken in parts of that."""


class _Part(NamedTuple):
    """Queries of one sequence and its keys. rows: of the flattened queries. keys: of the flattened keys. visible: how
    many of those each query sees.
    """

    rows: slice
    keys: Tensor
    visible: Tensor


def _spans(layout: str, x: Tensor, lengths: Tensor | None, name: str, ge_type: str) -> list[tuple[int, int]]:
    """(first flattened row, number of rows) per sequence; lengths of TND are ends."""
    if layout == "BSND":
        size = x.shape[1]
        given = [size] * x.shape[0] if lengths is None else lengths.tolist()
        return [(batch * size, length) for batch, length in enumerate(given)]
    if lengths is None:
        raise unsupported(ge_type, name, f"lengths with layout {layout}", None)
    ends = lengths.tolist()
    if layout == "PA_BSND":
        return [(0, length) for length in ends]
    return [(start, end - start) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _parts(
    ge_type: str,
    query: Tensor,
    key: Tensor,
    query_lengths: Tensor | None,
    key_lengths: Tensor | None,
    block_table: Tensor | None,
    layout_query: str,
    layout_key: str,
    sparse_mode: int,
    length_name: str,
) -> Iterator[_Part]:
    """One per sequence."""
    if key.shape[-2] != 1:
        raise unsupported(ge_type, "key", "keys of one head", key)
    queries = _spans(layout_query, query, query_lengths, "actual_seq_lengths_query", ge_type)
    spans = _spans(layout_key, key, key_lengths, length_name, ge_type)
    if len(queries) != len(spans):
        raise unsupported(ge_type, length_name, f"{len(queries)} sequences, as many as of queries", len(spans))
    for batch, ((start, count), (first, length)) in enumerate(zip(queries, spans, strict=True)):
        keys = torch.arange(first, first + length)
        if layout_key == "PA_BSND":
            if block_table is None:
                raise unsupported(ge_type, "block_table", f"one with layout {layout_key}", None)
            block_size = key.shape[1]
            keys = block_table[batch].long()[keys // block_size] * block_size + keys % block_size
        visible = torch.full((count,), length)
        if sparse_mode == 3:
            visible = (torch.arange(count) + (length - count + 1)).clamp_(0)
        yield _Part(slice(start, start + count), keys, visible)


def _pieces(part: _Part, elements: int) -> Iterator[_Part]:
    """``part`` in as many as are needed where each query takes ``elements`` of memory."""
    step = max(1, _AT_ONCE // max(1, elements))
    for i in range(part.rows.start, part.rows.stop, step):
        end = min(i + step, part.rows.stop)
        yield part._replace(rows=slice(i, end), visible=part.visible[i - part.rows.start : end - part.rows.start])


@kernel(
    "LightningIndexer",
    same_dtype=("query", "key"),
    allowed={**_LAYOUTS, **_WINDOW, "layout_key": ("BSND", "TND", "PA_BSND")},
)
def lightning_indexer(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    actual_seq_lengths_query: Tensor | None = None,
    actual_seq_lengths_key: Tensor | None = None,
    block_table: Tensor | None = None,
    *,
    layout_query: str = "BSND",
    layout_key: str = "BSND",
    sparse_count: int = 2048,
    sparse_mode: int = 3,
    pre_tokens: int = 9223372036854775807,
    next_tokens: int = 9223372036854775807,
    return_values: bool = False,
) -> tuple[Tensor, Tensor]:
    """(the keys with the highest scores, best first, then -1; their scores, then -inf).

    score = sum over heads of weight * relu(q . k), in float32; of equal ones the first key.
    """
    keys, factors = key.flatten(0, -2), weights.flatten(0, -2).float()

    def scores_of(part: _Part) -> Callable[[slice], Tensor]:
        wide = keys[part.keys].float().t()

        def scores(rows: slice) -> Tensor:
            products = torch.matmul(query.flatten(0, -3)[rows].float(), wide).relu_()
            return torch.bmm(factors[rows].unsqueeze(1), products).squeeze(1)

        return scores

    parts = _parts(
        "LightningIndexer", query, key, actual_seq_lengths_query, actual_seq_lengths_key, block_table, layout_query,
        layout_key, sparse_mode, "actual_seq_lengths_key",
    )  # fmt: skip
    indices, values = _indexed(query, parts, scores_of, sparse_count)
    return indices, values.to(query.dtype) if return_values else query.new_zeros(0)


@kernel(
    "QuantLightningIndexer",
    same_dtype=("weights", "query_dequant_scale", "key_dequant_scale"),
    allowed={
        **_LAYOUTS, **_WINDOW, "layout_key": ("BSND", "TND", "PA_BSND"), "query_quant_mode": (0,),
        "key_quant_mode": (0,),
    },
)  # fmt: skip
def quant_lightning_indexer(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    query_dequant_scale: Tensor,
    key_dequant_scale: Tensor,
    actual_seq_lengths_query: Tensor | None = None,
    actual_seq_lengths_key: Tensor | None = None,
    block_table: Tensor | None = None,
    *,
    query_quant_mode: int,
    key_quant_mode: int,
    layout_query: str = "BSND",
    layout_key: str = "BSND",
    sparse_count: int = 2048,
    sparse_mode: int = 3,
    pre_tokens: int = 9223372036854775807,
    next_tokens: int = 9223372036854775807,
) -> Tensor:
    """As LightningIndexer, of int8 and float16 scales: one per query and head, one per key.

    With the roundings of CANN's kernel on A2 and A3: weight * query's scale and relu(q . k) / 1024 are float16.
    """
    name = "QuantLightningIndexer"
    for parameter, x, dtype in (
        ("query", query, torch.int8),
        ("key", key, torch.int8),
        ("weights", weights, torch.half),
    ):
        if x.dtype is not dtype:
            raise unsupported(name, parameter, str(dtype), x)
    keys, key_scales = key.flatten(0, -2), key_dequant_scale.reshape(-1)
    factors = (weights * query_dequant_scale.view(weights.shape)).flatten(0, -2).float()

    def scores_of(part: _Part) -> Callable[[slice], Tensor]:
        wide, scale = keys[part.keys].t(), key_scales[part.keys].float()

        def scores(rows: slice) -> Tensor:
            products = int_matmul(query.flatten(0, -3)[rows], wide).float().relu_().mul_(1 / 1024)
            return torch.bmm(factors[rows].unsqueeze(1), products.half().float()).squeeze(1) * scale

        return scores

    parts = _parts(
        name, query, key, actual_seq_lengths_query, actual_seq_lengths_key, block_table, layout_query, layout_key,
        sparse_mode, "actual_seq_lengths_key",
    )  # fmt: skip
    return _indexed(query, parts, scores_of, sparse_count)[0]


def _indexed(
    query: Tensor, parts: Iterator[_Part], scores_of: Callable[[_Part], Callable[[slice], Tensor]], count: int
) -> tuple[Tensor, Tensor]:
    """(keys in int32, scores) [..., 1, count]; scores_of: of a part, those of some of its queries with all its keys."""
    lead = query.shape[:-2]
    indices = torch.full((lead.numel(), count), -1, dtype=torch.int32)
    values = torch.full(indices.shape, -torch.inf)
    for part in parts:
        scores = scores_of(part)
        for piece in _pieces(part, query.shape[-2] * part.keys.numel()):
            best, order = _best(scores(piece.rows), piece.visible, count)
            indices[piece.rows, : order.shape[1]], values[piece.rows, : order.shape[1]] = order, best
    return indices.view(*lead, 1, count), values.view(*lead, 1, count)


def _best(scores: Tensor, visible: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(score, key in int32) of at most ``count`` per row: -inf and -1 where fewer are visible."""
    hidden = torch.arange(scores.shape[1]) >= visible.unsqueeze(1)
    best, order = scores.masked_fill_(hidden, -torch.inf).sort(dim=-1, descending=True, stable=True)
    best, order = best[:, :count], order[:, :count]
    return best, order.masked_fill(torch.arange(order.shape[1]) >= visible.unsqueeze(1), -1).int()


Read = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(keys [s, n, d], values [s, n, D]) in the flattened rows [s, n]."""


def _attend(
    query: Tensor, read: Read, chosen: Tensor, part: _Part, block: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(attention [s, heads, D], maximum and sum of exponents [s, heads]) of the part's queries in float32.

    query: [T, heads, d]. chosen [T, n]: keys, or blocks of keys, that each query attends to; negative ones are none.
    """
    place = (chosen[part.rows].long().unsqueeze(-1) * block + torch.arange(block)).flatten(1)
    is_seen = (place >= 0) & (place < part.visible.unsqueeze(1))
    used = max(1, int((is_seen.any(0) * torch.arange(1, is_seen.shape[1] + 1)).amax()))
    place, is_seen = place[:, :used], is_seen[:, :used]
    keys, values = read(part.keys[place.where(is_seen, 0)])
    scores = torch.bmm(query[part.rows].float(), keys.float().mT).mul_(scale)
    scores.masked_fill_(~is_seen.unsqueeze(1), -torch.inf)
    most = scores.amax(-1, keepdim=True)
    most = most.masked_fill(most.isinf(), 0.0)
    weights = scores.sub_(most).exp_()
    total = weights.sum(-1, keepdim=True)
    out = torch.bmm(weights, values.float()) / total.clamp_min(torch.finfo(torch.float32).tiny)
    return out, most.squeeze(-1), total.squeeze(-1)


def _attention(
    query: Tensor, size: int, read: Read, parts: Iterator[_Part], sparse_indices: Tensor, block: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(attention [T, heads, size], maximum, sum [T, heads]); zeros for queries of no part or without keys."""
    query, chosen = query.flatten(0, -3), sparse_indices.flatten(0, -3).squeeze(1)
    out = query.new_zeros(*query.shape[:2], size)
    most, total = (torch.zeros(out.shape[:2]) for _ in range(2))
    for part in parts:
        if not part.keys.numel():
            continue
        for piece in _pieces(part, max(query.shape[1:]) * chosen.shape[1] * block):
            found = _attend(query, read, chosen, piece, block, scale)
            out[piece.rows], most[piece.rows], total[piece.rows] = found[0].to(out.dtype), *found[1:]
    return out, most, total


@kernel(
    "SparseFlashAttention",
    same_dtype=("query", "key", "value", "query_rope", "key_rope"),
    unfed=("sinks",),
    allowed={**_LAYOUTS, **_WINDOW, "layout_kv": ("BSND", "TND", "PA_BSND"), "attention_mode": (2,)},
)
def sparse_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    sparse_indices: Tensor,
    block_table: Tensor | None = None,
    actual_seq_lengths_query: Tensor | None = None,
    actual_seq_lengths_kv: Tensor | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    scale_value: float,
    sparse_block_size: int = 1,
    layout_query: str = "BSND",
    layout_kv: str = "BSND",
    sparse_mode: int = 3,
    pre_tokens: int = 9223372036854775807,
    next_tokens: int = 9223372036854775807,
    attention_mode: int = 0,
    return_softmax_lse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(attention, maximum, sum): softmax(scale * (q . k + q_rope . k_rope)) v over the chosen keys, rounded once.

    A query that sees none of its keys gives zeros. Without return_softmax_lse the last two have no elements.
    """
    name = "SparseFlashAttention"
    if query_rope is None or key_rope is None:
        raise unsupported(name, "query_rope", "query_rope and key_rope with attention_mode 2", None)
    keys, ropes = key.flatten(0, -2), key_rope.flatten(0, -2)
    values = keys if value is None else value.flatten(0, -2)
    parts = _parts(
        name, query, key, actual_seq_lengths_query, actual_seq_lengths_kv, block_table, layout_query, layout_kv,
        sparse_mode, "actual_seq_lengths_kv",
    )  # fmt: skip
    out, most, total = _attention(
        torch.cat((query, query_rope), -1), query.shape[-1],
        lambda rows: (torch.cat((keys[rows], ropes[rows]), -1), values[rows]), parts, sparse_indices,
        sparse_block_size, scale_value,
    )  # fmt: skip
    if not return_softmax_lse:
        return out.view(query.shape), torch.zeros(0), torch.zeros(0)
    if layout_query == "TND":
        return out.view(query.shape), most.unsqueeze(0), total.unsqueeze(0)
    most, total = (x.unflatten(0, query.shape[:2]).unsqueeze(1) for x in (most, total))
    return out.view(query.shape), most, total


@kernel(
    "KvQuantSparseFlashAttention",
    unfed=("key_dequant_scale", "value_dequant_scale", "sinks"),
    allowed={
        **_LAYOUTS, **_WINDOW, "layout_kv": ("BSND", "TND", "PA_BSND"), "attention_mode": (2,), "key_quant_mode": (2,),
        "value_quant_mode": (2,), "quant_scale_repo_mode": (1,),
    },
)  # fmt: skip
def kv_quant_sparse_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sparse_indices: Tensor,
    key_dequant_scale: Tensor | None = None,
    value_dequant_scale: Tensor | None = None,
    block_table: Tensor | None = None,
    actual_seq_lengths_query: Tensor | None = None,
    actual_seq_lengths_kv: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    scale_value: float,
    key_quant_mode: int,
    value_quant_mode: int,
    sparse_block_size: int = 1,
    layout_query: str = "BSND",
    layout_kv: str = "BSND",
    sparse_mode: int = 3,
    pre_tokens: int = 9223372036854775807,
    next_tokens: int = 9223372036854775807,
    attention_mode: int = 0,
    quant_scale_repo_mode: int = 1,
    tile_size: int = 128,
    rope_head_dim: int = 64,
) -> Tensor:
    """As SparseFlashAttention, of keys in bytes: int8 elements, a rope part as query's, a float32 scale per tile.

    They are values as well, without the rope part, which is last in query; dequantised to query's dtype.
    """
    name = "KvQuantSparseFlashAttention"
    size = query.shape[-1] - rope_head_dim
    widths = size, 2 * rope_head_dim, size // tile_size * 4
    if key.dtype is not torch.int8 or key.shape[-1] != sum(widths):
        raise unsupported(name, "key", f"int8 with {' + '.join(map(str, widths))} elements last", key)
    keys = key.flatten(0, -2)

    def read(rows: Tensor) -> tuple[Tensor, Tensor]:
        elements, rope, scales = keys[rows].split(widths, -1)
        scale = scales.contiguous().view(torch.float32).unsqueeze(-1)
        values = (elements.unflatten(-1, (-1, tile_size)).float() * scale).flatten(-2).to(query.dtype)
        return torch.cat((values, rope.contiguous().view(query.dtype)), -1), values

    parts = _parts(
        name, query, key, actual_seq_lengths_query, actual_seq_lengths_kv, block_table, layout_query, layout_kv,
        sparse_mode, "actual_seq_lengths_kv",
    )  # fmt: skip
    out, _, _ = _attention(query, size, read, parts, sparse_indices, sparse_block_size, scale_value)
    return out.view(*query.shape[:-1], size)
