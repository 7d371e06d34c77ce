"""Samples of the attention kernels over packed sequences, paged caches, rope parts and sinks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.engine.op_case import Make, OpCase

HALVES = ("float16", "bfloat16")
BLOCK = 16
PACKED = ("TND", "NTD")
SCALE = 0.3


def one_sequence(
    q: Tensor, k: Tensor, v: Tensor, mode: int, pre: int, after: int, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention [S, N, Dv] and log-sum-exp [S, N] of q [S, N, D], k [L, KV, D] and v, pair by pair."""
    rows, heads, _ = q.shape
    columns = k.shape[0]
    out, lse = torch.zeros(rows, heads, v.shape[-1], dtype=q.dtype), torch.full((rows, heads), math.inf).to(q.dtype)
    for i in range(rows):
        corner = columns - rows if mode > 2 else 0
        keys = range(columns)
        if mode in (2, 3):
            keys = [j for j in keys if j <= i + corner]
        elif mode == 4:
            keys = [j for j in keys if i + corner - pre <= j <= i + corner + after]
        for head in range(heads if len(keys) else 0):
            kv = head * k.shape[1] // heads
            weights = [math.exp(SCALE * float((q[i, head] * k[j, kv]).sum())) for j in keys]
            total = sum(weights)
            lse[i, head] = math.log(total)
            total += 0.0 if sink is None else math.exp(float(sink[head]))
            out[i, head] = sum(w / total * v[j, kv] for w, j in zip(weights, keys, strict=True))
    return out, lse


def _to_tokens(x: Tensor, layout: str, heads: int) -> Tensor:
    """[B, S, N, D], or [1, T, N, D]."""
    match layout:
        case "BSH":
            return x.reshape(*x.shape[:2], heads, -1)
        case "BNSD":
            return x.permute(0, 2, 1, 3)
        case "TND":
            return x[None]
        case "NTD" | "NSD":
            return x.permute(1, 0, 2)[None]
    return x


def _from_tokens(x: Tensor, layout: str) -> Tensor:
    order = {"BNSD": (0, 2, 1, 3), "NBSD": (2, 0, 1, 3), "NTD": (2, 0, 1, 3), "NSD": (2, 0, 1, 3)}.get(layout)
    x = x if order is None else x.permute(order)
    if layout == "BSH":
        return x.flatten(2)
    return {"TND": lambda: x[0], "NTD": lambda: x[:, 0], "NSD": lambda: x[:, 0]}.get(layout, lambda: x)().contiguous()


def _table(lengths: Sequence[int], pages: int) -> Tensor:
    """Pages of each sequence, in no order; what lies behind is no page."""
    numbers = iter(torch.randperm(pages, generator=torch.Generator().manual_seed(5)).tolist())
    width = max(-(-n // BLOCK) for n in lengths) + 1
    rows = [[next(numbers) for _ in range(-(-n // BLOCK))] for n in lengths]
    return torch.tensor([row + [-9] * (width - len(row)) for row in rows], dtype=torch.int32)


def pages_of(parts: Sequence[Tensor], form: str, table: Tensor, pages: int, wide: int = 16) -> Tensor:
    """Tokens [length, KV heads, D] of each sequence in a cache, which is NaN (or 99) elsewhere. wide: columns in NZ."""
    _, heads, width = parts[0].shape
    x = torch.full((pages, BLOCK, heads, width), math.nan if parts[0].is_floating_point() else 99).to(parts[0].dtype)
    for part, row in zip(parts, table.tolist(), strict=True):
        for j, token in enumerate(part):
            x[row[j // BLOCK], j % BLOCK] = token
    if form == "bsh":
        return x.flatten(2)
    x = x.transpose(1, 2).contiguous()
    return x if form == "bnsd" else x.unflatten(3, (-1, wide)).transpose(2, 3).contiguous()


def _from_pages(x: Tensor, row: Sequence[int], length: int, heads: int) -> Tensor:
    """[length, heads, D]."""
    if x.dim() == 5:
        x = x.transpose(2, 3).flatten(3)
    x = x.unflatten(2, (heads, -1)) if x.dim() == 3 else x.transpose(1, 2)
    return torch.stack([x[row[j // BLOCK], j % BLOCK] for j in range(length)] or [x[0, 0]])[:length]


def case(
    name: str,
    layout: str,
    q_lengths: Sequence[int],
    kv_lengths: Sequence[int],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 16,
    v_width: int | None = None,
    rope: int = 0,
    cache: str = "",
    mode: int = 0,
    band: tuple[int, int] = (2147483647, 2147483647),
    sink: bool = False,
    lse: bool = False,
    behind: int = 0,
    rows: int | None = None,
    dtypes: tuple[str, ...] = HALVES,
    ge_type: str = "FusedInferAttentionScore",
) -> OpCase:
    """cache: the form of the pages, "" without them. behind: tokens of no sequence. rows: Sq of a padded layout."""
    source, _, target = layout.partition("_")
    packed, batch = source in PACKED, len(q_lengths)
    rows = rows or max(q_lengths)
    table = _table(kv_lengths, 12) if cache else None
    widths = {"key": width, "value": v_width or width} | ({"key_rope": rope} if rope else {})

    def inputs(m: Make) -> dict[str, Any]:
        def tokens(n: int, lengths: Sequence[int], count: int, size: int) -> Tensor:
            shape = (1, sum(lengths) + behind) if packed else (batch, count)
            return _from_tokens(m(*shape, n, size, low=-1, high=1), source)

        found: dict[str, Any] = {"query": tokens(heads, q_lengths, rows, width)}
        for part, size in widths.items():
            if table is not None:
                parts = [m(length, kv_heads, size, low=-1, high=1) for length in kv_lengths]
                found[part] = pages_of(parts, cache, table, 12)
            else:
                found[part] = tokens(kv_heads, kv_lengths, max(kv_lengths), size)
        if ge_type != "PromptFlashAttention":
            found["key"], found["value"] = [found["key"]], [found["value"]]
        if rope:
            found["query_rope"] = tokens(heads, q_lengths, rows, rope)
        if mode:
            found["atten_mask"] = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
        for key, lengths in (("actual_seq_lengths", q_lengths), ("actual_seq_lengths_kv", kv_lengths)):
            given = torch.tensor(list(lengths))
            found[key] = given.cumsum(0) if packed and (table is None or key == "actual_seq_lengths") else given
        if table is not None:
            found["block_table"] = table
        if sink:
            found["learnable_sink"] = m(heads, low=-1, high=2)
        if ge_type == "IncreFlashAttention":
            found["actual_seq_lengths"] = found.pop("actual_seq_lengths_kv")
        return found

    def expected(query: Tensor, **rest: Any) -> list[Tensor]:
        key, value = (x[0] if isinstance(x, list) else x for x in (rest["key"], rest["value"]))
        q = _to_tokens(query, source, heads)
        if rope:
            q = torch.cat([q, _to_tokens(rest["query_rope"], source, heads)], -1)
        shape = (*q.shape[:3], v_width or width)
        out, sums = torch.zeros(shape, dtype=q.dtype), torch.full(shape[:3], math.inf).to(q.dtype)
        begin, kv_begin = 0, 0
        for b, (own, kv_own) in enumerate(zip(q_lengths, kv_lengths, strict=True)):

            def part(x: Tensor, b: int = b, start: int = kv_begin, length: int = kv_own) -> Tensor:
                if table is not None:
                    return _from_pages(x, table[b].tolist(), length, kv_heads)
                return _to_tokens(x, source, kv_heads)[0 if packed else b][start : start + length]

            k, v = part(key), part(value)
            k = torch.cat([k, part(rest["key_rope"])], -1) if rope else k
            row = 0 if packed else b
            places = slice(begin, begin + own)
            out[row, places], sums[row, places] = one_sequence(
                q[row, places], k, v, mode, *band, rest.get("learnable_sink")
            )
            if packed:
                begin, kv_begin = begin + own, kv_begin + (0 if table is not None else kv_own)
        attention = _from_tokens(out, target or source)
        if ge_type != "FusedInferAttentionScore":
            return [attention]
        if not lse:
            return [attention, torch.empty(0)]
        return [attention, sums[0].unsqueeze(-1) if packed else sums.transpose(1, 2).unsqueeze(-1)]

    attrs: dict[str, Any] = {"num_heads": heads, "num_key_value_heads": kv_heads, "input_layout": layout}
    if cache:
        attrs["block_size"] = BLOCK
    outputs: tuple[str, ...] = ("attention_out",)
    attrs["scale" if ge_type == "FusedInferAttentionScore" else "scale_value"] = SCALE
    if ge_type != "IncreFlashAttention":
        attrs |= {"sparse_mode": mode, "pre_tokens": band[0], "next_tokens": band[1]}
    if ge_type == "FusedInferAttentionScore":
        attrs["softmax_lse_flag"] = lse
        outputs = ("attention_out", "softmax_lse")
    return OpCase(ge_type, inputs, expected, attrs, outputs=outputs, dtypes=dtypes, name=name)


CASES = [
    case("tnd", "TND", (3, 1, 4), (5, 2, 4)),
    case("tnd_even", "TND", (3, 3), (3, 3), mode=3, dtypes=("float32", *HALVES)),
    case("tnd_long", "TND", (20, 18), (20, 18), mode=3, heads=2),
    case("tnd_long_even", "TND", (20, 20), (20, 20), mode=2, heads=2, lse=True),
    case("tnd_ragged", "TND", (1, 30, 2), (2, 30, 9), mode=3, heads=2, lse=True),
    case("tnd_empty_sequences", "TND", (2, 0, 3, 2), (4, 3, 0, 2), behind=2, lse=True),
    case("tnd_no_sequence", "TND", (0, 0), (0, 3), behind=1),
    case("tnd_lse", "TND", (3, 4), (5, 4), mode=3, lse=True, dtypes=("float32", *HALVES)),
    case("tnd_value_width", "TND", (3, 4), (3, 4), mode=3, width=24, v_width=16),
    case("tnd_wide_value", "TND", (3, 4), (3, 4), width=16, v_width=24),
    case("tnd_band", "TND", (5, 7), (6, 7), mode=4, band=(2, 1)),
    case("tnd_window", "TND", (7, 3), (9, 3), mode=4, band=(1, 0), lse=True),
    case("tnd_no_key_in_reach", "TND", (5, 2), (3, 2), mode=3, lse=True),
    case("ntd", "NTD", (3, 2), (4, 2), lse=True),
    case("ntd_tnd_rope", "NTD_TND", (3, 5), (3, 5), mode=3, kv_heads=4, rope=8),
    case("tnd_ntd", "TND_NTD", (2, 3), (4, 5), lse=True),
    case("nsd", "NSD", (5,), (6,), lse=True),
    case("bsh_bnsd", "BSH_BNSD", (3, 2), (4, 3), lse=True),
    case("bsnd_bnsd", "BSND_BNSD", (3, 2), (4, 3)),
    case("bsh_nbsd", "BSH_NBSD", (3, 2), (4, 3)),
    case("bsnd_nbsd", "BSND_NBSD", (3, 2), (4, 3)),
    case("bnsd_nbsd", "BNSD_NBSD", (3, 2), (4, 3), mode=3),
    case("sink", "TND", (3, 4), (5, 4), mode=3, sink=True),
    case("sink_without_keys", "TND", (5, 2), (3, 2), mode=4, band=(3, 0), sink=True),
    case("sink_long", "TND", (18, 18), (18, 18), mode=3, heads=2, kv_heads=1, sink=True),
    # decoding from pages
    case("pages_tnd", "TND", (1, 1, 1), (20, 33, 7), cache="bsh", mode=3),
    case("pages_even", "TND", (1, 1), (32, 32), cache="bsh"),
    case("pages_of_one_count", "TND", (1, 1, 1), (18, 31, 32), cache="bsh", mode=3),
    case("pages_bsnd_one_query", "BSND", (1, 1), (16, 33), cache="bsh", mode=3, kv_heads=4),
    case("pages_one_query_lse", "TND", (1, 1), (20, 33), cache="bsh", mode=3, lse=True),
    case("pages_without_tokens", "TND", (1, 1), (0, 5), cache="bsh", mode=3),
    case("pages_value_width", "TND", (1, 1), (20, 33), cache="bsh", width=24, v_width=16),
    case("pages_tnd_ntd", "TND_NTD", (1, 1), (20, 33), cache="bsh", mode=3),
    case("pages_one", "TND", (1,), (19,), cache="bsh", mode=3, dtypes=("float32", *HALVES)),
    case("pages_uneven", "TND", (1, 1, 1), (3, 90, 2), cache="bnsd", mode=3),
    case("pages_speculative", "TND", (2, 2), (20, 35), cache="bsh", mode=3, lse=True),
    case("pages_prefill", "TND", (20, 3), (20, 30), cache="bnsd", mode=3, heads=2, kv_heads=1),
    case("pages_window", "TND", (1, 1, 1), (20, 33, 4), cache="bsh", mode=4, band=(3, 0)),
    case("pages_window_even", "TND", (2, 2), (40, 40), cache="nz", mode=4, band=(3, 0)),
    case("pages_sink", "TND", (1, 1), (20, 33), cache="bsh", mode=4, band=(17, 0), sink=True),
    case("pages_ntd", "NTD_TND", (2, 1), (20, 33), cache="bnsd", mode=3),
    case("pages_empty", "TND", (1, 1), (0, 5), cache="bsh", lse=True),
    case("pages_bsh", "BSH", (1, 1), (20, 33), cache="bsh"),
    case("pages_bsnd", "BSND", (3, 2), (20, 33), cache="bsh", mode=3),
    case("pages_bnsd", "BNSD", (1, 1), (20, 33), cache="bnsd"),
    case("mla_nz", "TND_NTD", (1, 1), (20, 33), cache="nz", kv_heads=1, width=32, rope=16),
    case("mla_nz_speculative", "TND_NTD", (2, 2), (20, 33), cache="nz", kv_heads=1, width=32, rope=16, mode=3),
    case("mla_bsnd", "BSND_NBSD", (2, 2), (20, 33), cache="nz", kv_heads=1, width=32, rope=16, mode=3),
    case("mla_bsh", "BSH", (1, 1), (20, 33), cache="bsh", kv_heads=1, width=32, rope=16),
    case("mla_one_query_window", "BSND", (1, 1), (20, 33), cache="bsh", kv_heads=1, rope=16, mode=4, band=(4, 0)),
    case("mla_bnsd", "BNSD_NBSD", (2, 1), (20, 33), cache="bnsd", kv_heads=1, width=32, rope=16, mode=3),
    case("pages", "BSH", (1, 1), (20, 33), cache="bsh", ge_type="IncreFlashAttention"),
    case("pages_bnsd", "BNSD", (1, 1), (20, 33), cache="bnsd", ge_type="IncreFlashAttention"),
    case("tnd", "TND", (3, 1, 4), (5, 2, 4), mode=3, ge_type="PromptFlashAttention"),
]
