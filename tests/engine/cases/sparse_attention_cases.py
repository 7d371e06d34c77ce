"""Samples for engine/kernels/sparse_attention.py: an oracle that goes query by query and key by key."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.engine.cases.shape_cases import t
from tests.engine.op_case import OpCase

HALVES = ("float16", "bfloat16")
HEADS, SIZE, ROPE = 3, 16, 8


def queries(g: dict[str, Any], attrs: dict[str, Any], key: str, lengths: str) -> Iterator[tuple[tuple[int, ...], Any]]:
    """(place of a query, positions of the keys it sees -> the key at one), by every layout's own rules."""
    layout_key = attrs.get("layout_key", attrs.get("layout_kv", "BSND"))
    q_lengths, k_lengths = g["actual_seq_lengths_query"], g[lengths]
    is_tnd = attrs.get("layout_query") == "TND"
    sequences = len(q_lengths) if is_tnd else g["query"].shape[0]
    for b in range(sequences):
        start = (0 if b == 0 else int(q_lengths[b - 1])) if is_tnd else 0
        count = g["query"].shape[1] if q_lengths is None else int(q_lengths[b]) - start
        first = int(k_lengths[b - 1]) if layout_key == "TND" and b else 0
        length = g[key].shape[1] if k_lengths is None else int(k_lengths[b]) - first
        for i in range(count):
            seen = range(length if attrs.get("sparse_mode", 3) == 0 else max(0, length - count + i + 1))

            def at(name: str, j: int, b: int = b, first: int = first) -> Tensor:
                x = g[name]
                if layout_key == "PA_BSND":
                    return x[int(g["block_table"][b][j // x.shape[1]]), j % x.shape[1], 0]
                return x[first + j, 0] if layout_key == "TND" else x[b, j, 0]

            yield ((start + i,) if is_tnd else (b, i)), (seen, at)


def indexed(attrs: dict[str, Any]) -> Any:
    def expected(**g: Any) -> list[Tensor]:
        shape = (*g["query"].shape[:-2], 1, attrs["sparse_count"])
        indices, values = torch.full(shape, -1), torch.full(shape, -math.inf, dtype=torch.float64)
        for place, (seen, at) in queries(g, attrs, "key", "actual_seq_lengths_key"):
            heads = list(zip(g["weights"][place], g["query"][place], strict=True))
            scores = torch.tensor(
                [sum(float(w) * max(0.0, float(q @ at("key", j))) for w, q in heads) for j in seen],
                dtype=torch.float64,
            )
            order = sorted(seen, key=lambda j: -float(scores[j]))[: attrs["sparse_count"]]
            indices[place][0, : len(order)] = torch.tensor(order, dtype=torch.int64)
            values[place][0, : len(order)] = scores[order]
        return [indices, values if attrs.get("return_values") else torch.zeros(0)]

    return expected


def attended(attrs: dict[str, Any]) -> Any:
    def expected(**g: Any) -> list[Tensor]:
        out = torch.zeros_like(g["query"])
        most, total = (torch.zeros(g["query"].shape[:-1], dtype=torch.float64) for _ in range(2))
        block = attrs.get("sparse_block_size", 1)
        for place, (seen, at) in queries(g, attrs, "key", "actual_seq_lengths_kv"):
            chosen = [int(i) * block + k for i in g["sparse_indices"][place][0] if i >= 0 for k in range(block)]
            chosen = [j for j in chosen if j in seen]
            if not chosen:
                continue
            keys = torch.stack([torch.cat((at("key", j), at("key_rope", j))) for j in chosen])
            query = torch.cat((g["query"][place], g["query_rope"][place]), -1)
            scores = query @ keys.T * attrs["scale_value"]
            most[place] = scores.amax(-1)
            exponents = (scores - most[place][:, None]).exp()
            total[place] = exponents.sum(-1)
            values = torch.stack([at("value", j) for j in chosen])
            out[place] = exponents @ values / total[place][:, None]
        if not attrs.get("return_softmax_lse"):
            return [out, torch.zeros(0), torch.zeros(0)]
        axis = 0 if attrs.get("layout_query") == "TND" else 1
        return [out, most.unsqueeze(axis), total.unsqueeze(axis)]

    return expected


def layouts(m: Any, query: str, key: str) -> dict[str, Any]:
    """Shapes before heads, and the inputs that say which are whose: 3 and 2 queries, 7 and 4 keys."""
    ints = torch.int32
    made: dict[str, Any] = {"q": (5,) if query == "TND" else (2, 3)}
    made["k"] = {"BSND": (2, 7), "TND": (11,), "PA_BSND": (5, 4)}[key]
    made["actual_seq_lengths_query"] = t(3, 5, dtype=ints) if query == "TND" else t(3, 2, dtype=ints)
    made["lengths"] = t(7, 11, dtype=ints) if key == "TND" else t(7, 4, dtype=ints)
    made["block_table"] = t([4, 1], [2, 0], dtype=ints) if key == "PA_BSND" else None
    return made


def indexer_case(
    query: str, key: str, count: int, *, no_lengths: bool = False, weights: Any = None, **more: Any
) -> OpCase:
    attrs = {"layout_query": query, "layout_key": key, "sparse_count": count, **more}

    def inputs(m: Any) -> dict[str, Any]:
        of = layouts(m, query, key)
        return {
            "query": m(*of["q"], HEADS, SIZE),
            "key": m(*of["k"], 1, SIZE),
            "weights": m(*of["q"], HEADS).to(weights or m.dtype),
            "actual_seq_lengths_query": None if no_lengths else of["actual_seq_lengths_query"],
            "actual_seq_lengths_key": None if no_lengths else of["lengths"],
            "block_table": of["block_table"],
        }

    return OpCase(
        "LightningIndexer", inputs, indexed(attrs), attrs, outputs=("sparse_indices", "sparse_values"), dtypes=HALVES,
        name="-".join(map(str, (query, key, count, *more))),
    )  # fmt: skip


def quantised_indexer_case(query: str, key: str, count: int, **more: Any) -> OpCase:
    """Scales and weights that are powers of two, and products that float16 holds: nothing is rounded."""
    attrs = {"layout_query": query, "layout_key": key, "sparse_count": count, **more}

    def inputs(m: Any) -> dict[str, Any]:
        of = layouts(m, query, key)

        def powers(*shape: int) -> Tensor:
            return 2.0 ** m.ints(*shape, low=-3, high=3).half()

        return {
            "query": m.ints(*of["q"], HEADS, SIZE, low=-8, high=9, dtype=torch.int8),
            "key": m.ints(*of["k"], 1, SIZE, low=-8, high=9, dtype=torch.int8),
            "weights": powers(*of["q"], HEADS),
            "query_dequant_scale": powers(*of["q"], HEADS),
            "key_dequant_scale": powers(*of["k"], 1),
            "actual_seq_lengths_query": of["actual_seq_lengths_query"],
            "actual_seq_lengths_key": of["lengths"],
            "block_table": of["block_table"],
        }

    def expected(**g: Any) -> Tensor:
        g["query"] = g["query"].double() * g["query_dequant_scale"].unsqueeze(-1)
        g["key"] = g["key"].double() * g["key_dequant_scale"].unsqueeze(-1)
        result: Tensor = indexed(attrs)(**g)[0]
        return result

    return OpCase(
        "QuantLightningIndexer", inputs, expected, {**attrs, "query_quant_mode": 0, "key_quant_mode": 0},
        outputs=("sparse_indices",), dtypes=("float16",), name="-".join(map(str, (query, key, count, *more))),
    )  # fmt: skip


def quantised_attention_case(query: str, key: str, chosen: list[list[int]], **more: Any) -> OpCase:
    plain, tile = attention_case(query, key, chosen, **more), 8

    def inputs(m: Any) -> dict[str, Any]:
        given = plain.inputs(m)
        given["query"] = torch.cat((given["query"], given.pop("query_rope")), -1)
        elements = m.ints(*given["key"].shape, low=-127, high=128, dtype=torch.int8)
        scales = m(*given["key"].shape[:-1], SIZE // tile, low=0.01, high=0.03).float()
        rope = given.pop("key_rope")
        given["key"] = torch.cat((elements, rope.view(torch.int8), scales.view(torch.int8)), -1)
        given["value"] = given["key"]
        return {**given, "key_dequant_scale": None, "value_dequant_scale": None}

    def expected(**g: Any) -> Tensor:
        dtype = g["query"].dtype
        elements, rope, scales = g["key"].split((SIZE, 2 * ROPE, 4 * SIZE // tile), -1)
        scales = scales.contiguous().view(torch.float32).repeat_interleave(tile, -1)
        g["key"] = g["value"] = (elements.double() * scales.double()).to(dtype).double()
        g["key_rope"] = rope.contiguous().view(dtype).double()
        g["query"], g["query_rope"] = g["query"].double().split((SIZE, ROPE), -1)
        result: Tensor = plain.expected(**g)[0]
        return result

    attrs = {**plain.attrs, "key_quant_mode": 2, "value_quant_mode": 2, "tile_size": tile, "rope_head_dim": ROPE}
    return OpCase(
        "KvQuantSparseFlashAttention", inputs, expected, attrs, outputs=("attention_out",), dtypes=HALVES, widen=False,
        name=plain.name,
    )  # fmt: skip


def attention_case(query: str, key: str, chosen: list[list[int]], **more: Any) -> OpCase:
    """chosen: per query of a sequence, of both sequences."""
    attrs = {"layout_query": query, "layout_kv": key, "scale_value": 0.3, "attention_mode": 2, **more}

    def inputs(m: Any) -> dict[str, Any]:
        of = layouts(m, query, key)
        rows = [*chosen, *chosen[:2]] if query == "TND" else [chosen, chosen]
        return {
            "query": m(*of["q"], HEADS, SIZE),
            "key": m(*of["k"], 1, SIZE),
            "value": m(*of["k"], 1, SIZE),
            "sparse_indices": torch.tensor(rows, dtype=torch.int32).unsqueeze(-2),
            "block_table": of["block_table"],
            "actual_seq_lengths_query": of["actual_seq_lengths_query"],
            "actual_seq_lengths_kv": of["lengths"],
            "query_rope": m(*of["q"], HEADS, ROPE),
            "key_rope": m(*of["k"], 1, ROPE),
        }

    return OpCase(
        "SparseFlashAttention", inputs, attended(attrs), attrs,
        outputs=("attention_out", "softmax_max", "softmax_sum"), dtypes=HALVES,
        name="-".join(map(str, (query, key, *more))),
    )  # fmt: skip


CHOSEN = [[1, 4, 0, -1], [6, 0, -1, -1], [2, 5, 3, 1]]
CASES = [
    indexer_case("BSND", "BSND", 4, no_lengths=True),
    indexer_case("BSND", "BSND", 9, return_values=True),
    indexer_case("TND", "PA_BSND", 3, weights=torch.float32),
    indexer_case("TND", "TND", 6, sparse_mode=0, return_values=True),
    attention_case("BSND", "BSND", CHOSEN, return_softmax_lse=True),
    attention_case("TND", "PA_BSND", CHOSEN),
    attention_case("TND", "TND", CHOSEN, sparse_mode=0, return_softmax_lse=True),
    attention_case("BSND", "PA_BSND", [[0, 2, -1], [1, -1, -1], [3, 0, 1]], sparse_block_size=2),
    attention_case("TND", "PA_BSND", [[-1, -1], [3, -1], [0, -1]], sparse_block_size=2, sparse_mode=0),
    quantised_indexer_case("TND", "PA_BSND", 3),
    quantised_indexer_case("BSND", "BSND", 9, sparse_mode=0),
    quantised_attention_case("TND", "PA_BSND", CHOSEN),
    quantised_attention_case("BSND", "BSND", [[0, 2, -1], [1, -1, -1], [3, 0, 1]], sparse_block_size=2, sparse_mode=0),
]
