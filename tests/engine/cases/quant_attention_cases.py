"""Samples of the attention kernels with 8-bit caches, queries and results, prefixes and padding on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.engine.cases.packed_attention_cases import BLOCK, HALVES, SCALE, one_sequence, pages_of
from tests.engine.op_case import Make, OpCase

HEADS, KV_HEADS, WIDTH = 4, 2, 32
ROOM = 40
FREE = (2147483647, 2147483647)


def _int8(m: Make, *shape: int) -> Tensor:
    return m.ints(*shape, low=-20, high=21).to(torch.int8)


def _scales(m: Make, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (m.ints(*shape, low=1, high=9) / 128.0).to(dtype)


def _offsets(m: Make, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (m.ints(*shape, low=-4, high=5) / 2.0).to(dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], mode: int = 0) -> Tensor:
    """[B, S, N, D] of keys that are cut to their lengths."""
    return torch.stack([one_sequence(q[b], k[b][:n], v[b][:n], mode, *FREE, None)[0] for b, n in enumerate(lengths)])


Along = Callable[[Tensor], Tensor]
"""A scale as something that multiplies [B, S, KV heads, D]."""


def cache_case(
    name: str,
    attrs: dict[str, Any],
    scales: Callable[[Make], dict[str, Tensor]],
    along: Callable[[dict[str, Tensor]], Sequence[Tensor | None]],
    *,
    queries: int = 1,
    pages: str = "",
    ge_type: str = "FusedInferAttentionScore",
) -> OpCase:
    """Layout BSND. along: of the scales, scale and offset of key and value, broadcastable to [B, S, KV heads, D]."""
    lengths = (ROOM, 23)
    table = torch.tensor([[4, 1, 5], [0, 3, -1]], dtype=torch.int32)

    def inputs(m: Make) -> dict[str, Any]:
        found: dict[str, Any] = {"query": m(2, queries, HEADS, WIDTH, low=-1, high=1)}
        for part in ("key", "value"):
            x = _int8(m, 2, ROOM, KV_HEADS, WIDTH)
            if pages:
                x = pages_of([x[0], x[1][:23]], pages, table, 6, wide=32)
            found[part] = [x]
        found["actual_seq_lengths_kv"] = torch.tensor(lengths)
        if pages:
            found["block_table"] = table
        if ge_type == "IncreFlashAttention":
            found["actual_seq_lengths"] = found.pop("actual_seq_lengths_kv")
        return found | scales(m)

    def expected(query: Tensor, key: list[Tensor], value: list[Tensor], **rest: Any) -> list[Tensor]:
        factors = along(rest)
        k, v = key[0].double(), value[0].double()
        if pages:
            k, v = (_unpaged(x, table) for x in (k, v))
        k, v = ((x + (0 if o is None else o)) * s for x, s, o in ((k, *factors[:2]), (v, *factors[2:])))
        return [_attend(query, k, v, lengths), torch.empty(0)][: 1 if ge_type == "IncreFlashAttention" else 2]

    attrs = {"num_heads": HEADS, "num_key_value_heads": KV_HEADS, "input_layout": "BSND"} | attrs
    attrs |= {"block_size": BLOCK if pages else 0}
    attrs["scale_value" if ge_type == "IncreFlashAttention" else "scale"] = SCALE
    outputs = ("attention_out", "softmax_lse")[: 1 if ge_type == "IncreFlashAttention" else 2]
    return OpCase(ge_type, inputs, expected, attrs, outputs=outputs, dtypes=HALVES, name=name)


def _unpaged(x: Tensor, table: Tensor) -> Tensor:
    """[B, pages * BLOCK, KV heads, D] of any form; the table's -1 wraps, and what is there does not count."""
    if x.dim() == 5:
        x = x.transpose(2, 3).flatten(3)
    x = x.unflatten(2, (KV_HEADS, -1)) if x.dim() == 3 else x.transpose(1, 2)
    return x[table.long()].flatten(1, 2)


def _both(x: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return x[0].reshape(shape), x[1].reshape(shape)


def _unsplit(shape: tuple[int, ...]) -> Callable[[dict[str, Tensor]], Sequence[Tensor | None]]:
    def along(given: dict[str, Tensor]) -> Sequence[Tensor | None]:
        scale, offset = given["antiquant_scale"], given.get("antiquant_offset")
        (ks, vs), (ko, vo) = _both(scale, shape), (None, None) if offset is None else _both(offset, shape)
        return ks, ko, vs, vo

    return along


def _split(own: Along, of_value: Along | None = None) -> Callable[[dict[str, Tensor]], Sequence[Tensor | None]]:
    def along(given: dict[str, Tensor]) -> Sequence[Tensor | None]:
        of = {"key": own, "value": of_value or own}
        found = [(n, k, given.get(f"{n}_antiquant_{k}")) for n in ("key", "value") for k in ("scale", "offset")]
        return [None if x is None else of[n](x) for n, _, x in found]

    return along


def _pair(m: Make, *shape: int, offset: bool = False, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    found = {f"{part}_antiquant_scale": _scales(m, *shape, dtype=dtype) for part in ("key", "value")}
    if offset:
        found |= {f"{part}_antiquant_offset": _offsets(m, *shape, dtype=dtype) for part in ("key", "value")}
    return found


def _modes(key: int, value: int | None = None) -> dict[str, int]:
    return {"key_antiquant_mode": key, "value_antiquant_mode": key if value is None else value}


CHANNELS = (KV_HEADS, WIDTH)
SPAN = 3 * BLOCK
"""Tokens that the pages of a row have room for."""
TABLE = torch.tensor([[4, 1, 5], [0, 3, -1]])


def _paged_scales(x: Tensor) -> Tensor:
    """[blocks, BLOCK] or [blocks, KV heads, BLOCK] along the tokens."""
    x = x.unsqueeze(-1) if x.dim() == 2 else x.transpose(1, 2)
    return x[TABLE].flatten(1, 2).unsqueeze(-1)


def _full_int8(name: str, lengths: Sequence[int], queries: int, mode: int) -> OpCase:
    """Latent attention whose query and cache are int8, in NZ pages of 32 columns."""
    width, rope, heads = 64, 16, 3
    pages = sum(-(-n // BLOCK) for n in lengths) + 1
    order = iter(torch.randperm(pages, generator=torch.Generator().manual_seed(2)).tolist())
    most = max(-(-n // BLOCK) for n in lengths)
    rows = [[next(order) for _ in range(-(-n // BLOCK))] for n in lengths]
    table = torch.tensor([row + [-1] * (most - len(row)) for row in rows], dtype=torch.int32)
    total = queries * len(lengths)

    def inputs(m: Make) -> dict[str, Any]:
        latent = [_int8(m, n, 1, width) for n in lengths]
        ropes = [m(n, 1, rope, low=-20, high=20) for n in lengths]
        cache = pages_of(latent, "nz", table, pages, wide=32)
        return {
            "query": _int8(m, total, heads, width),
            "key": [cache],
            "value": [cache.clone()],
            "actual_seq_lengths": torch.arange(1, len(lengths) + 1) * queries,
            "actual_seq_lengths_kv": torch.tensor(lengths),
            "block_table": table,
            "key_antiquant_scale": torch.tensor([0.0625]),
            "value_antiquant_scale": torch.tensor([0.125]),
            "query_rope": m(total, heads, rope, low=-20, high=20),
            "key_rope": pages_of(ropes, "nz", table, pages),
            "dequant_scale_query": _scales(m, total, heads),
        } | ({"atten_mask": torch.ones(2048, 2048, dtype=torch.bool).triu(1)} if mode else {})

    def expected(query: Tensor, key: list[Tensor], **rest: Any) -> list[Tensor]:
        out = torch.zeros(total, heads, width, dtype=torch.float64)
        for b, length in enumerate(lengths):
            latent, k_rope = (
                x.transpose(2, 3).flatten(3)[rows[b], 0].flatten(0, 1)[:length].double()
                for x in (key[0], rest["key_rope"])
            )
            for i in range(queries):
                t = b * queries + i
                seen = length - queries + i + 1 if mode else length
                for n in range(heads):
                    dots = latent[:seen] @ query[t, n].double() + k_rope[:seen] @ rest["query_rope"][t, n].double()
                    scores = dots * float(rest["dequant_scale_query"][t, n]) * 0.0625 * SCALE
                    sums = torch.zeros(width, dtype=torch.float64)
                    for start in range(0, seen, 512):  # each block has its own largest weight
                        part = scores[start : start + 512]
                        weights = (127 * (part - part.max()).exp()).half().double().round()
                        sums += (
                            (part.max() - scores.max()).exp() / 127 * (weights @ latent[start : min(start + 512, seen)])
                        )
                    out[t, n] = 0.125 * sums / (scores - scores.max()).exp().sum()
        return [out.transpose(0, 1), torch.empty(0)]

    attrs = {
        "num_heads": heads, "num_key_value_heads": 1, "scale": SCALE, "input_layout": "TND_NTD",
        "block_size": BLOCK, "query_quant_mode": 3, "sparse_mode": mode,
    }  # fmt: skip
    outputs = ("attention_out", "softmax_lse")
    return OpCase("FusedInferAttentionScore", inputs, expected, attrs, outputs=outputs, dtypes=HALVES, name=name)


def _result_int8(name: str, shape: Sequence[int], layout: str, offset: bool, ge_type: str) -> OpCase:
    """A result rounded to int8. shape: of the scale."""

    def inputs(m: Make) -> dict[str, Any]:
        found: dict[str, Any] = {"query": m(2, 3, HEADS, WIDTH, low=-1, high=1)}
        for part in ("key", "value"):
            found[part] = m(2, 6, HEADS, WIDTH, low=-1, high=1)
        if layout == "BSH":
            found = {name: x.flatten(2) for name, x in found.items()}
        if ge_type != "PromptFlashAttention":
            found |= {part: [found[part]] for part in ("key", "value")}
        found["quant_scale2"] = _scales(m, *shape) * 1000
        return found | ({"quant_offset2": _offsets(m, *shape) + 0.2} if offset else {})

    def expected(query: Tensor, key: Any, value: Any, **rest: Any) -> list[Tensor]:
        parts = (query, key, value) if isinstance(key, Tensor) else (query, key[0], value[0])
        q, k, v = (x.reshape(2, -1, HEADS, WIDTH) for x in parts)
        out = _attend(q, k, v, (6, 6)).flatten(2)
        x = out * rest["quant_scale2"].flatten() + (rest["quant_offset2"].flatten() if offset else 0.0)
        x = x.half().double().round().clamp(-128, 127).to(torch.int8)
        return [x if layout == "BSH" else x.unflatten(2, (HEADS, WIDTH)), torch.empty(0)][: len(outputs)]

    outputs = ("attention_out", "softmax_lse")[: 2 if ge_type == "FusedInferAttentionScore" else 1]
    attrs: dict[str, Any] = {"num_heads": HEADS, "num_key_value_heads": HEADS, "input_layout": layout}
    attrs["scale_value" if len(outputs) == 1 else "scale"] = SCALE
    return OpCase(ge_type, inputs, expected, attrs, outputs=outputs, dtypes=("float32",), name=name)


def _prefix(name: str, layout: str, used: int | None, lengths: Sequence[int]) -> OpCase:
    def inputs(m: Make) -> dict[str, Any]:
        def laid_out(*shape: int) -> Tensor:
            x = m(*shape, WIDTH, low=-1, high=1)
            return x.flatten(2) if layout == "BSH" else x.transpose(1, 2).contiguous()

        found: dict[str, Any] = {"query": laid_out(2, 3, HEADS)}
        for part in ("key", "value"):
            found[part] = [laid_out(2, 6, KV_HEADS)]
            found[f"{part}_shared_prefix"] = laid_out(1, 4, KV_HEADS)
        found["atten_mask"] = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
        found["actual_seq_lengths_kv"] = torch.tensor(list(lengths))
        return found | ({} if used is None else {"actual_shared_prefix_len": torch.tensor([used])})

    def expected(query: Tensor, key: list[Tensor], value: list[Tensor], **rest: Any) -> list[Tensor]:
        def tokens(x: Tensor, heads: int) -> Tensor:
            return x.unflatten(2, (heads, -1)) if layout == "BSH" else x.transpose(1, 2)

        k, v = (
            [
                torch.cat([tokens(p, KV_HEADS)[0, : used or 4], tokens(x, KV_HEADS)[b, :n]])
                for b, n in enumerate(lengths)
            ]
            for p, x in ((rest["key_shared_prefix"], key[0]), (rest["value_shared_prefix"], value[0]))
        )
        q = tokens(query, HEADS)
        out = torch.stack([one_sequence(q[b], k[b], v[b], 3, *FREE, None)[0] for b in range(2)])
        return [out.flatten(2) if layout == "BSH" else out.transpose(1, 2), torch.empty(0)]

    attrs = {"num_heads": HEADS, "num_key_value_heads": KV_HEADS, "input_layout": layout, "scale": SCALE}
    attrs["sparse_mode"] = 3
    outputs = ("attention_out", "softmax_lse")
    return OpCase("FusedInferAttentionScore", inputs, expected, attrs, outputs=outputs, dtypes=HALVES, name=name)


def _left(
    name: str, q_padding: int | None, kv_padding: int | None, ge_type: str = "FusedInferAttentionScore"
) -> OpCase:
    """Sequences that end ``padding`` places in front of the right end; what lies around them is NaN."""
    queries = 1 if ge_type == "IncreFlashAttention" else 5
    q_lengths, kv_lengths = ([2, 4] if queries > 1 else [1, 1]), [3, 5]

    def starts(full: int, padding: int | None, lengths: Sequence[int]) -> list[int]:
        return [0 if padding is None else full - max(padding, 0) - n for n in lengths]

    q_starts, kv_starts = starts(queries, q_padding, q_lengths), starts(8, kv_padding, kv_lengths)

    def inputs(m: Make) -> dict[str, Any]:
        def around(full: int, heads: int, begins: Sequence[int], lengths: Sequence[int]) -> Tensor:
            x = torch.full((2, full, heads, WIDTH), torch.nan).to(m.dtype)
            for row, begin, n in zip(x, begins, lengths, strict=True):
                row[begin : begin + n] = m(n, heads, WIDTH, low=-1, high=1)
            return x

        found: dict[str, Any] = {"query": around(queries, HEADS, q_starts, q_lengths)}
        for part in ("key", "value"):
            found[part] = [around(8, KV_HEADS, kv_starts, kv_lengths)]
        if queries > 1:
            found["actual_seq_lengths"] = torch.tensor(q_lengths)
        found["actual_seq_lengths_kv" if queries > 1 else "actual_seq_lengths"] = torch.tensor(kv_lengths)
        for key, padding in (("query_padding_size", q_padding), ("kv_padding_size", kv_padding)):
            if padding is not None:
                found[key] = torch.tensor([padding])
        return found

    def expected(query: Tensor, key: list[Tensor], value: list[Tensor], **rest: Any) -> list[Tensor]:
        out = torch.zeros_like(query)
        for b, (q, k) in enumerate(zip(q_starts, kv_starts, strict=True)):
            own, others = slice(q, q + q_lengths[b]), slice(k, k + kv_lengths[b])
            out[b, own] = one_sequence(query[b, own], key[0][b, others], value[0][b, others], 0, *FREE, None)[0]
        return [out, torch.empty(0)][: len(outputs)]

    outputs = ("attention_out", "softmax_lse")[: 2 if queries > 1 else 1]
    attrs = {"num_heads": HEADS, "num_key_value_heads": KV_HEADS, "input_layout": "BSND"}
    attrs |= {"scale" if queries > 1 else "scale_value": SCALE}
    return OpCase(ge_type, inputs, expected, attrs, outputs=outputs, dtypes=HALVES, name=name)


FUSED, INCRE, PROMPT = "FusedInferAttentionScore", "IncreFlashAttention", "PromptFlashAttention"
CASES = [
    cache_case("int8_channels", {}, lambda m: {
        "antiquant_scale": _scales(m, 2, KV_HEADS, 1, WIDTH, dtype=m.dtype),
        "antiquant_offset": _offsets(m, 2, KV_HEADS, 1, WIDTH, dtype=m.dtype),
    }, _unsplit(CHANNELS)),
    cache_case("int8_tensor", {}, lambda m: {"antiquant_scale": _scales(m, 2, dtype=m.dtype)}, _unsplit(())),
    cache_case("int8_tokens", {"antiquant_mode": 1}, lambda m: {
        "antiquant_scale": _scales(m, 2, 2, ROOM), "antiquant_offset": _offsets(m, 2, 2, ROOM),
    }, _unsplit((2, ROOM, 1, 1)), queries=3),
    cache_case("int8_split_channels", _modes(0), lambda m: _pair(m, KV_HEADS * WIDTH, offset=True),
               _split(lambda x: x.reshape(CHANNELS)), queries=3),
    cache_case("int8_key_channels_value_tokens", _modes(0, 1), lambda m: {
        "key_antiquant_scale": _scales(m, 1, KV_HEADS, WIDTH), "value_antiquant_scale": _scales(m, 1, 2, ROOM),
    }, _split(lambda x: x.reshape(CHANNELS), lambda x: x.reshape(2, ROOM, 1, 1))),
    cache_case("int8_heads", _modes(2), lambda m: _pair(m, KV_HEADS, offset=True),
               _split(lambda x: x.reshape(KV_HEADS, 1))),
    cache_case("int8_tokens_and_heads", _modes(3), lambda m: _pair(m, 2, KV_HEADS, ROOM),
               _split(lambda x: x.transpose(1, 2).unsqueeze(-1))),
    cache_case("int8_pages_tokens", _modes(1), lambda m: _pair(m, 2, SPAN), _split(lambda x: x.reshape(2, SPAN, 1, 1)),
               pages="bsh"),
    cache_case("int8_scales_in_pages", _modes(4), lambda m: _pair(m, 6, BLOCK, offset=True), _split(_paged_scales),
               pages="bnsd"),
    cache_case("int8_scales_of_heads_in_pages", _modes(5), lambda m: _pair(m, 6, KV_HEADS, BLOCK),
               _split(_paged_scales), pages="bsh"),
    cache_case("int8_nz", _modes(0), lambda m: _pair(m, KV_HEADS, WIDTH), _split(lambda x: x), pages="nz"),
    cache_case("int8", {}, lambda m: {"antiquant_scale": _scales(m, 2, KV_HEADS * WIDTH, dtype=m.dtype)},
               _unsplit(CHANNELS), ge_type=INCRE),
    cache_case("int8_pages", {}, lambda m: {"antiquant_scale": _scales(m, 2, KV_HEADS * WIDTH, dtype=m.dtype)},
               _unsplit(CHANNELS), pages="bsh", ge_type=INCRE),
    _full_int8("int8_latent", (20, 33), 1, 0),
    _full_int8("int8_latent_speculative", (20, 33), 2, 3),
    _full_int8("int8_latent_blocks", (700,), 1, 0),
    _result_int8("int8_result", (1,), "BSND", False, FUSED),
    _result_int8("int8_result_channels", (1, 1, HEADS * WIDTH), "BSH", True, FUSED),
    _result_int8("int8_result", (HEADS, WIDTH), "BSND", True, PROMPT),
    _prefix("prefix", "BNSD", None, (6, 6)),
    _prefix("prefix_lengths", "BSH", 3, (2, 6)),
    _left("left_padding", 0, 1),
    _left("left_padding_of_queries", 1, None),
    _left("left_padding", None, 2, INCRE),
]  # fmt: skip
