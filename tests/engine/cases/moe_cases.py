"""Samples for engine/kernels/moe.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.engine.op_case import Make, OpCase


def _distinct(m: Make, *shape: int) -> Tensor:
    """Values far enough apart that no rounding makes a tie; any order of experts."""
    count = shape[-1]
    order = torch.argsort(torch.rand(*shape, generator=m.generator), -1)
    return (order.double() / count * 4 - 2).to(m.dtype)


def _gate(x: Tensor, k: int, finished: Tensor | None = None, renorm: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    weights = x.exp() / x.exp().sum(-1, keepdim=True)
    experts = x.argsort(-1, descending=True)[..., :k]
    chosen = weights.gather(-1, experts)
    if renorm:
        chosen = chosen / chosen.sum(-1, keepdim=True)
    if finished is not None:
        experts = torch.where(finished.unsqueeze(-1), x.shape[-1], experts)
    return chosen, experts.int(), weights


def _row_idx(rows: int, k: int) -> Tensor:
    return torch.tensor([[j * rows + i for j in range(k)] for i in range(rows)], dtype=torch.int32)


def _gating(x: Tensor, finished: Tensor | None = None) -> list[Tensor]:
    chosen, experts, _ = _gate(x, 2, finished)
    return [chosen, experts, _row_idx(x[..., 0].numel(), 2).reshape(experts.shape)]


def _gating_v2(x: Tensor, finished: Tensor | None = None, *, renorm: bool, softmax: bool) -> list[Tensor]:
    chosen, experts, weights = _gate(x, 2, finished, renorm)
    return [chosen, experts, weights.float() if softmax else torch.empty(0)]


def _gate_grouped(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    k: int,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    norm_type: int = 0,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> list[Tensor]:
    """Row by row; ties, where there are any, go to the first."""
    norm = 1 / (1 + (-x).exp()) if norm_type else x.exp() / x.exp().sum(-1, keepdim=True)
    size = x.shape[1] // group_count
    weights, experts = [], []
    for row in norm:
        merit = (row if bias is None else row + bias).tolist()
        groups = [sorted(merit[g * size : (g + 1) * size], reverse=True) for g in range(group_count)]
        worth = [sum(group[: 2 if group_select_mode else 1]) for group in groups]
        chosen = sorted(range(group_count), key=lambda g, worth=worth: -worth[g])[:k_group]  # type: ignore[misc]
        open_ = sorted(e for g in chosen for e in range(g * size, (g + 1) * size))
        best = sorted(open_, key=lambda e, merit=merit: -merit[e])[:k]  # type: ignore[misc]
        value = row[best]
        weights.append((value / (value.sum() + eps) if norm_type else value) * routed_scaling_factor)
        experts.append(torch.tensor(best, dtype=torch.int32))
    return [torch.stack(weights), torch.stack(experts), norm.float()]


def _gate_case(name: str, with_bias: bool = False, **attrs: Any) -> OpCase:
    def inputs(m: Make) -> dict[str, Any]:
        found = {"x": _distinct(m, 5, 16)}
        return found | {"bias": _distinct(m, 16) / 4} if with_bias else found

    return OpCase(
        "MoeGatingTopK",
        inputs,
        lambda **tensors: _gate_grouped(**tensors, **attrs),
        {**attrs, "out_flag": True},
        outputs=("y", "expert_idx", "out"),
        name=name,
    )


def _tied(x: Tensor) -> list[Tensor]:
    return _gate_grouped(x, k=3, k_group=2, group_count=4, norm_type=1)


def _re_route(
    tokens: Tensor, expert_token_num_per_rank: Tensor, per_token_scales: Tensor | None = None
) -> list[Tensor]:
    counts = expert_token_num_per_rank.tolist()
    blocks: dict[tuple[int, int], list[int]] = {}
    row = 0
    for rank, line in enumerate(counts):
        for expert, count in enumerate(line):
            blocks[expert, rank] = list(range(row, row + count))
            row += count
    order = [place for key in sorted(blocks) for place in blocks[key]]
    order += range(len(order), tokens.shape[0])
    scales = torch.zeros(tokens.shape[0]) if per_token_scales is None else per_token_scales[order]
    return [tokens[order], scales, torch.tensor(order, dtype=torch.int32), expert_token_num_per_rank.sum(0)]


def _init(x: Tensor, row_idx: Tensor, expert_idx: Tensor, active: int) -> list[Tensor]:
    pairs = sorted(zip(expert_idx.flatten().tolist(), range(expert_idx.numel()), strict=True))
    source = [row_idx.flatten()[i].item() for _, i in pairs]
    place = torch.zeros(len(source), dtype=torch.int32)
    for i, row in enumerate(source):
        place[int(row)] = i
    rows = min(x.shape[0], active) * expert_idx.shape[1]
    return [
        torch.stack([x[int(r) % x.shape[0]] for r in source[:rows]]),
        place,
        torch.tensor([e for e, _ in pairs], dtype=torch.int32),
    ]


def _finalize(
    expanded_x: Tensor,
    expanded_row_idx: Tensor,
    x1: Any = None,
    x2: Any = None,
    bias: Any = None,
    scales: Any = None,
    expert_idx: Any = None,
    *,
    k: int = 2,
    by_row: bool = False,
) -> Tensor:
    rows = expanded_row_idx.numel() // k
    flat = expanded_x.reshape(-1, expanded_x.shape[-1])
    y = torch.zeros(rows, flat.shape[1], dtype=flat.dtype)
    for i in range(rows):
        for j in range(k):
            place = int(expanded_row_idx[i * k + j if by_row else j * rows + i])
            if place >= 0:
                value = flat[place] + (0 if bias is None else bias[int(expert_idx[i, j])])
                y[i] += value * (1 if scales is None else scales[i, j])
    return y + (0 if x1 is None else x1) + (0 if x2 is None else x2)


def _permuted(m: Make, count: int) -> Tensor:
    return torch.randperm(count, generator=m.generator).int()


def _routed(m: Make) -> dict[str, Any]:
    return {
        "expanded_x": m(6, 5),
        "expanded_row_idx": _permuted(m, 6),
        "x1": m(3, 5),
        "x2": m(3, 5),
        "bias": m(4, 5),
        "scales": m(3, 2),
        "expert_idx": m.ints(3, 2, low=0, high=4, dtype=torch.int32),
    }


GATED = ("y", "expert_idx", "row_idx")
GATED_V2 = ("y", "expert_idx", "softmax_result")
RE_ROUTED = ("permute_tokens", "permute_per_token_scales", "permute_token_idx", "expert_token_num")

CASES = [
    OpCase("MoeGatingTopKSoftmax", lambda m: {"x": _distinct(m, 5, 8)}, _gating, {"k": 2}, outputs=GATED),
    OpCase(
        "MoeGatingTopKSoftmax",
        lambda m: {"x": _distinct(m, 2, 3, 8), "finished": m.ints(2, 3, low=0, high=2).bool()},
        _gating,
        {"k": 2},
        outputs=GATED,
        name="finished_3d",
    ),
    OpCase(
        "MoeGatingTopKSoftmaxV2",
        lambda m: {"x": _distinct(m, 5, 8)},
        lambda x: _gating_v2(x, renorm=False, softmax=True),
        {"k": 2, "renorm": 0, "output_softmax": True},
        outputs=GATED_V2,
    ),
    OpCase(
        "MoeGatingTopKSoftmaxV2",
        lambda m: {"x": _distinct(m, 5, 8), "finished": m.ints(5, low=0, high=2).bool()},
        lambda x, finished: _gating_v2(x, finished, renorm=True, softmax=False),
        {"k": 2, "renorm": 1, "output_softmax": False},
        outputs=GATED_V2,
        name="renorm",
    ),
    _gate_case("softmax", k=3),
    _gate_case("scaled", k=16, routed_scaling_factor=2.5),
    _gate_case("bias", True, k=4),
    _gate_case("sigmoid", k=4, norm_type=1, eps=0.25),
    _gate_case("best_of_groups", k=4, k_group=2, group_count=4),
    _gate_case("best_two_of_groups", True, k=4, k_group=2, group_count=4, group_select_mode=1, norm_type=1),
    _gate_case("all_groups", True, k=3, k_group=4, group_count=4, group_select_mode=1, routed_scaling_factor=0.5),
    OpCase(
        "MoeGatingTopK",
        lambda m: {"x": torch.tensor([[1, 2, 2, 0, 2, 1, 0, 2], [3, 3, 3, 3, 3, 3, 3, 3]]).to(m.dtype)},
        _tied,
        {"k": 3, "k_group": 2, "group_count": 4, "norm_type": 1},
        outputs=("y", "expert_idx", "out"),
        name="ties",
    ),
    OpCase(
        "MoeComputeExpertTokens",
        lambda m: {"sorted_experts": torch.tensor([0, 0, 2, 2, 2, 3, 6], dtype=torch.int32)},
        lambda sorted_experts: torch.tensor([int((sorted_experts <= e).sum()) for e in range(6)], dtype=torch.int32),
        {"num_experts": 6},
        outputs=("total_rows_before_expert",),
        dtypes=("int32",),
    ),
    OpCase(
        "MoeReRouting",
        lambda m: {"tokens": m(9, 4), "expert_token_num_per_rank": torch.tensor([[2, 0, 1], [1, 3, 2]])},
        _re_route,
        outputs=RE_ROUTED,
        dtypes=("float16", "bfloat16"),
    ),
    OpCase(
        "MoeReRouting",
        lambda m: {
            "tokens": m(9, 4),
            "expert_token_num_per_rank": torch.tensor([[2, 1], [0, 0], [1, 3]], dtype=torch.int32),
            "per_token_scales": Make("float32")(9),
        },
        _re_route,
        {"expert_token_num_type": 1, "idx_type": 0},
        outputs=RE_ROUTED,
        dtypes=("int8",),
        name="scales_and_rows_left_over",
    ),
    OpCase(
        "MoeInitRouting",
        lambda m: {
            "x": m(4, 3),
            "row_idx": _row_idx(4, 2),
            "expert_idx": m.ints(4, 2, low=0, high=3, dtype=torch.int32),
        },
        lambda x, row_idx, expert_idx: _init(x, row_idx, expert_idx, 99),
        {"active_num": 99},
        outputs=("expanded_x", "expanded_row_idx", "expanded_expert_idx"),
    ),
    OpCase(
        "MoeInitRouting",
        lambda m: {
            "x": m(4, 3),
            "row_idx": _row_idx(4, 2),
            "expert_idx": m.ints(4, 2, low=0, high=3, dtype=torch.int32),
        },
        lambda x, row_idx, expert_idx: _init(x, row_idx, expert_idx, 3),
        {"active_num": 3},
        outputs=("expanded_x", "expanded_row_idx", "expanded_expert_idx"),
        name="few_active",
    ),
    OpCase(
        "MoeFinalizeRouting",
        lambda m: {("expanded_expert_idx" if k == "expert_idx" else k): v for k, v in _routed(m).items()},
        lambda expanded_expert_idx, **rest: _finalize(**rest, expert_idx=expanded_expert_idx),
    ),
    OpCase(
        "MoeFinalizeRouting",
        lambda m: (
            {("expanded_expert_idx" if k == "expert_idx" else k): v for k, v in _routed(m).items()} | {"x2": None}
        ),
        lambda expanded_expert_idx, **rest: _finalize(**rest, expert_idx=expanded_expert_idx),
        name="no_x2",
    ),
    OpCase("MoeFinalizeRoutingV2", _routed, _finalize),
    OpCase(
        "MoeFinalizeRoutingV2",
        lambda m: {"expanded_x": m(6, 5), "expanded_row_idx": _permuted(m, 6), "x1": m(3, 5), "scales": m(3, 2)},
        lambda **inputs: _finalize(**inputs, by_row=True),
        {"drop_pad_mode": 2},
        name="by_row",
    ),
    OpCase(
        "MoeFinalizeRoutingV2",
        lambda m: {"expanded_x": m(6, 5), "expanded_row_idx": _permuted(m, 6)},
        lambda **inputs: _finalize(**inputs, k=3),
        {"K": 3},
        name="no_scales",
    ),
    OpCase(
        "MoeFinalizeRoutingV2",
        lambda m: {"expanded_x": m(6, 5), "expanded_row_idx": _permuted(m, 6)},
        lambda **inputs: _finalize(**inputs, k=3),
        {"k": 3},
        name="no_scales_of_torchair",
    ),
    OpCase(
        "MoeFinalizeRoutingV2",
        lambda m: (
            _routed(m)
            | {"expanded_x": m(4, 2, 5), "expanded_row_idx": torch.tensor([7, -1, 0, 3, 4, -1], dtype=torch.int32)}
        ),
        _finalize,
        {"drop_pad_mode": 1},
        name="dropped",
    ),
    OpCase(
        "MoeFinalizeRoutingV2",
        lambda m: {
            "expanded_x": m(4, 2, 5),
            "expanded_row_idx": torch.tensor([7, -1, 0, 3, 4, -1], dtype=torch.int32),
            "scales": m(3, 2),
        },
        lambda **inputs: _finalize(**inputs, by_row=True),
        {"drop_pad_mode": 3},
        name="dropped_by_row",
    ),
]
