"""Routing of tokens to experts: oracles after the formulas of torch_npu's documents (op-plugin)."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.host.npu_cases.base import FLOATS, HALVES, RANDOM, Case, Cases, int8, normal, short, steps, wide

ROWS, WIDTH, CHOICES, EXPERTS = 6, 8, 3, 5
PAIRS = ROWS * CHOICES


def chosen_experts() -> Tensor:
    return torch.from_numpy(np.stack([RANDOM.permutation(EXPERTS)[:CHOICES] for _ in range(ROWS)]).astype(np.int32))


def whole(dtype: torch.dtype, most: int = 127) -> Tensor:
    """Whole numbers; the largest of each row is ``most``, so that a row's scale is exact."""
    x = RANDOM.integers(-most, most + 1, (ROWS, WIDTH))
    x[:, 0] = most
    return torch.from_numpy(x).to(dtype)


def init_routing(
    x: Tensor, experts: Tensor, first: int = 0, end: int = EXPERTS, capacity: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pair at each place of expanded_x (-1: nobody), the place of each pair, and tokens per expert."""
    flat = experts.numpy().ravel()
    key = np.where((flat >= first) & (flat < end), flat, EXPERTS)
    order = np.argsort(key, kind="stable")[: (key < EXPERTS).sum()]
    counts = np.bincount(flat[order] - first, minlength=end - first)
    if not capacity:
        places, at = np.arange(len(order)), np.full(PAIRS, -1)
    else:
        rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[flat[order]]
        order, rank = order[rank < capacity], rank[rank < capacity]
        places, at = flat[order] * capacity + rank, np.full(EXPERTS * capacity, -1)
    at[places] = order
    where = np.full(PAIRS, -1)
    where[order] = places
    return at, where, counts


def rows_at(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    found = values[np.maximum(at, 0) // CHOICES]
    return np.where((at < 0).reshape(-1, *[1] * (values.ndim - 1)), 0, found)


def init_routing_cases() -> Cases:
    for dtype in FLOATS:
        experts = chosen_experts()
        x = normal(ROWS, WIDTH, dtype=dtype)
        at, where, counts = init_routing(x, experts)
        routed = (rows_at(wide(x), at), dtype)
        int32, int64, float32 = torch.int32, torch.int64, torch.float32
        none = (np.full(PAIRS, 0), float32)
        few: dict[str, Any] = {"expert_num": EXPERTS, "active_num": PAIRS}

        kwargs = few | {"expert_tokens_num_flag": True, "expert_tokens_num_type": 1}
        case = Case("npu_moe_init_routing_v2", (x, experts), (routed, (where, int32), (counts, int64), none), kwargs)
        yield f"counts {short(dtype)}", case

        kwargs = few | {"expert_tokens_num_flag": True}
        expected = (routed, (where, int32), (np.cumsum(counts), int64), none)
        yield f"running sums {short(dtype)}", Case("npu_moe_init_routing_v2", (x, experts), expected, kwargs)

        expected = (routed, (at, int32), (np.zeros(()), int64), none)
        case = Case("npu_moe_init_routing_v2", (x, experts), expected, few | {"row_idx_type": 1})
        yield f"pairs {short(dtype)}", case

        # experts 1 to 3 only, with scales that go along
        at, where, counts = init_routing(x, experts, 1, 4)
        scale = normal(ROWS)
        busy = [[e + 1, c] for e, c in enumerate(counts) if c]
        tokens = np.array(busy + [[0, 0]] * (EXPERTS - len(busy)))
        expected = (
            (rows_at(wide(x), at), dtype), (where, int32), (tokens, int64), (rows_at(wide(scale), at), float32),
        )  # fmt: skip
        kwargs = few | {
            "scale": scale, "active_expert_range": [1, 4], "expert_tokens_num_flag": True, "expert_tokens_num_type": 2,
        }  # fmt: skip
        yield f"range {short(dtype)}", Case("npu_moe_init_routing_v2", (x, experts), expected, kwargs)

        at, where, counts = init_routing(x, experts, capacity=3)
        padded = rows_at(wide(x), at).reshape(EXPERTS, 3, WIDTH)
        expected = ((padded, dtype), (where, int32), (counts, int64), (np.zeros(EXPERTS * 3), float32))
        kwargs = few | {
            "drop_pad_mode": 1, "expert_capacity": 3, "expert_tokens_num_flag": True, "expert_tokens_num_type": 1,
        }  # fmt: skip
        yield f"padded {short(dtype)}", Case("npu_moe_init_routing_v2", (x, experts), expected, kwargs)


def init_routing_quant_cases() -> Cases:
    int32, int64, float32 = torch.int32, torch.int64, torch.float32
    for dtype in FLOATS:
        experts = chosen_experts()
        x = whole(dtype)
        at, where, counts = init_routing(x, experts)
        places, no_tokens = (where, int32), (np.zeros(()), int64)

        expected = ((rows_at(wide(x), at), torch.int8), places, no_tokens, (np.ones(PAIRS), float32))
        kwargs: dict[str, Any] = {"expert_num": EXPERTS, "active_num": PAIRS, "quant_mode": 1}
        yield f"dynamic {short(dtype)}", Case("npu_moe_init_routing_v2", (x, experts), expected, kwargs)

        # smooth scales that are powers of two: the same for a whole expert, so that the quotients stay whole
        smooth = torch.from_numpy(np.exp2(RANDOM.integers(-3, 4, (EXPERTS, 1))) * np.ones((1, WIDTH))).float()
        own = wide(smooth)[experts.numpy().ravel()[at], 0]
        expected = ((rows_at(wide(x), at), torch.int8), places, no_tokens, (own, float32))
        case = Case("npu_moe_init_routing_v2", (x, experts), expected, kwargs | {"scale": smooth})
        yield f"dynamic by expert {short(dtype)}", case

        at, where, counts = init_routing(x, experts, 0, 2)
        filled = (at >= 0).astype(float)
        expected = (
            (rows_at(wide(x), at), torch.int8), (where, int32), (counts, int64), (filled * 0.5, float32),
        )  # fmt: skip
        more = {
            "scale": torch.full((1, WIDTH), 0.5), "active_expert_range": [0, 2], "expert_tokens_num_flag": True,
            "expert_tokens_num_type": 1,
        }  # fmt: skip
        yield f"dynamic range {short(dtype)}", Case("npu_moe_init_routing_v2", (x, experts), expected, kwargs | more)

        at, where, _ = init_routing(x, experts)
        values = np.clip(np.rint(wide(x) * 0.25 - 100), -128, 127)
        expected = ((rows_at(values, at), torch.int8), (where, int32), no_tokens, (np.zeros(()), float32))
        more = {"scale": torch.tensor([0.25]), "offset": torch.tensor([-100.0]), "quant_mode": 0}
        yield f"static {short(dtype)}", Case("npu_moe_init_routing_v2", (x, experts), expected, kwargs | more)


def finalize_routing_cases() -> Cases:
    """Without a bias and with drop_pad_mode 2, as inference code calls it, and by k where scales are left out."""
    for dtype in FLOATS:
        experts = chosen_experts()
        expanded = steps(PAIRS, WIDTH, most=4, step=0.25, dtype=dtype)
        _, where, _ = init_routing(expanded, experts)
        places = torch.from_numpy(where.astype(np.int32))
        weights, shared = normal(ROWS, CHOICES, dtype=dtype), normal(ROWS, WIDTH, dtype=dtype)
        picked = wide(expanded)[where].reshape(ROWS, CHOICES, WIDTH)
        y = (picked * wide(weights)[..., None]).sum(1) + wide(shared)
        args = (expanded, shared, None, None, weights, places, None, 2)
        yield f"by row {short(dtype)}", Case("npu_moe_finalize_routing", args, ((y, dtype),))

        args = (expanded, None, None, None, None, places, None, 2, CHOICES)
        yield f"k {short(dtype)}", Case("npu_moe_finalize_routing", args, ((picked.sum(1), dtype),))


def gating_top_k_cases() -> Cases:
    for dtype in FLOATS:
        x = torch.from_numpy(np.stack([RANDOM.permutation(16) for _ in range(5)]) / 4.0 - 2).to(dtype)
        bias = torch.from_numpy(RANDOM.permutation(16) / 32.0).to(dtype)
        kinds: dict[str, dict[str, Any]] = {
            "softmax": {},
            "sigmoid": {"norm_type": 1, "bias": bias, "routed_scaling_factor": 2.5},
            "groups": {
                "norm_type": 1, "bias": bias, "k_group": 2, "group_count": 4, "group_select_mode": 1, "eps": 1e-20,
            },
            "best of groups": {"k_group": 2, "group_count": 4},
        }  # fmt: skip
        for name, kwargs in kinds.items():
            logits = wide(x)
            if kwargs.get("norm_type"):
                norm = 1 / (1 + np.exp(-logits))
            else:
                norm = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            merit = norm + (wide(bias) if "bias" in kwargs else 0)
            if "k_group" in kwargs:
                groups = np.sort(merit.reshape(5, 4, 4), -1)
                worth = groups[..., -2:].sum(-1) if "group_select_mode" in kwargs else groups[..., -1]
                out = np.argsort(-worth, -1)[:, 2:]
                merit = merit.reshape(5, 4, 4).copy()
                merit[np.arange(5)[:, None], out] = -np.inf
                merit = merit.reshape(5, 16)
            experts = np.argsort(-merit, -1)[:, :3]
            y = np.take_along_axis(norm, experts, -1)
            if kwargs.get("norm_type"):
                y = y / y.sum(-1, keepdims=True)
            y = y * kwargs.get("routed_scaling_factor", 1)
            expected = ((y, dtype), (experts, torch.int32), (norm, torch.float32))
            case = Case("npu_moe_gating_top_k", (x, 3), expected, kwargs | {"out_flag": True})
            yield f"{name} {short(dtype)}", case


def gating_top_k_softmax_v2_cases() -> Cases:
    for dtype in FLOATS:
        x = torch.from_numpy(np.stack([RANDOM.permutation(16) for _ in range(5)]) / 4.0 - 2).to(dtype)
        weights = np.exp(wide(x)) / np.exp(wide(x)).sum(-1, keepdims=True)
        experts = np.argsort(-weights, -1)[:, :3]
        y = np.take_along_axis(weights, experts, -1)
        expected = ((y, dtype), (experts, torch.int32), (weights, torch.float32))
        case = Case("npu_moe_gating_top_k_softmax_v2", (x,), expected, {"k": 3, "output_softmax": True})
        yield f"softmax {short(dtype)}", case
        expected = ((y / y.sum(-1, keepdims=True), dtype), (experts, torch.int32), (np.zeros(0), torch.float32))
        case = Case("npu_moe_gating_top_k_softmax_v2", (x,), expected, {"k": 3, "renorm": 1})
        yield f"renorm {short(dtype)}", case


def first_version_cases() -> Cases:
    """row_idx numbers pairs choice by choice; expanded_row_idx is the place of each pair so numbered."""
    for dtype in FLOATS:
        x = torch.from_numpy(np.stack([RANDOM.permutation(EXPERTS) for _ in range(ROWS)]) / 4.0).to(dtype)
        e = np.exp(wide(x))
        experts = np.argsort(-e, -1)[:, :CHOICES]
        weights = np.take_along_axis(e / e.sum(-1, keepdims=True), experts, -1)
        numbers = np.arange(PAIRS).reshape(CHOICES, ROWS).T
        expected = ((weights, dtype), (experts, torch.int32), (numbers, torch.int32))
        yield short(dtype), Case("npu_moe_gating_top_k_softmax", (x,), expected, {"k": CHOICES})

        tokens, chosen = normal(ROWS, WIDTH, dtype=dtype), chosen_experts()
        flat, pairs = chosen.numpy().ravel(), numbers.ravel()
        order = np.argsort(flat, kind="stable")
        places = np.empty(PAIRS, dtype=np.int64)
        places[pairs[order]] = np.arange(PAIRS)
        rows = torch.from_numpy(numbers.astype(np.int32))
        for active in (ROWS, 2):
            kept = order[: active * CHOICES] // CHOICES
            expected = ((wide(tokens)[kept], dtype), (places, torch.int32), (flat[order], torch.int32))
            yield f"{short(dtype)} {active}", Case("npu_moe_init_routing", (tokens, rows, chosen, active), expected)


def re_routing_cases() -> Cases:
    for dtype in (*HALVES, torch.int8):
        counts = torch.tensor([[2, 0, 1], [1, 3, 2]])
        tokens = int8(9, WIDTH) if dtype is torch.int8 else normal(9, WIDTH, dtype=dtype)
        order = np.array([0, 1, 3, 4, 5, 6, 2, 7, 8])
        scales = normal(9)
        expected = (
            (wide(tokens)[order], dtype), (wide(scales)[order], torch.float32), (order, torch.int32),
            (np.array([3, 3, 3]), torch.int64),
        )  # fmt: skip
        case = Case("npu_moe_re_routing", (tokens, counts), expected, {"per_token_scales": scales})
        yield f"scales {short(dtype)}", case
        expected = (expected[0], (np.full(9, np.nan), torch.float32), expected[2], (np.array([3, 3, 3]), torch.int32))
        yield f"plain {short(dtype)}", Case("npu_moe_re_routing", (tokens, counts.int()), expected)


def expert_tokens_cases() -> Cases:
    experts = torch.tensor([0, 0, 2, 2, 2, 3, 6], dtype=torch.int32)
    case = Case("npu_moe_compute_expert_tokens", (experts, 6), ((np.array([2, 2, 5, 6, 6, 6]), torch.int32),))
    yield "missing experts", case


def cases() -> Cases:
    return chain(
        init_routing_cases(), init_routing_quant_cases(), finalize_routing_cases(), gating_top_k_cases(),
        gating_top_k_softmax_v2_cases(), re_routing_cases(), expert_tokens_cases(), first_version_cases(),
    )  # fmt: skip
