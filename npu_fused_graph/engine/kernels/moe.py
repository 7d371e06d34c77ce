"""Routing of tokens to experts and back."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.dtypes import FLOATS, INDICES
from npu_fused_graph.engine.registry import kernel, unsupported


def _top_experts(ge_type: str, scores: Tensor, k: int, finished: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k largest scores and their int32 places; a finished row names the expert after the last one."""
    if not 1 <= k <= scores.shape[-1]:
        raise unsupported(ge_type, "k", f"1 to {scores.shape[-1]}, the experts", k)
    experts = _first(scores, k)
    values = scores.gather(-1, experts)
    if finished is not None:
        experts = experts.masked_fill(finished.unsqueeze(-1), scores.shape[-1])
    return values, experts.to(torch.int32)


@kernel("MoeGatingTopKSoftmax", dtypes={"x": FLOATS})
def moe_gating_top_k_softmax(x: Tensor, finished: Tensor | None = None, *, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """row_idx numbers the (row, choice) pairs choice by choice."""
    values, experts = _top_experts("MoeGatingTopKSoftmax", torch.softmax(x, -1, dtype=torch.float32), k, finished)
    rows = torch.arange(experts.numel(), dtype=torch.int32).view(k, -1).t().reshape(experts.shape)
    return values.to(x.dtype), experts, rows


@kernel("MoeGatingTopKSoftmaxV2", allowed={"renorm": (0, 1)}, dtypes={"x": FLOATS})
def moe_gating_top_k_softmax_v2(
    x: Tensor, finished: Tensor | None = None, *, k: int, renorm: int, output_softmax: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """renorm: softmax over the chosen experts instead of over all. Without output_softmax the third is empty."""
    ge_type = "MoeGatingTopKSoftmaxV2"
    if renorm:
        values, experts = _top_experts(ge_type, x, k, finished)
        return torch.softmax(values, -1, dtype=torch.float32).to(x.dtype), experts, torch.empty(0)
    softmax = torch.softmax(x, -1, dtype=torch.float32)
    values, experts = _top_experts(ge_type, softmax, k, finished)
    return values.to(x.dtype), experts, softmax if output_softmax else torch.empty(0)


@kernel(
    "MoeGatingTopK",
    allowed={"group_select_mode": (0, 1), "renorm": (0,), "norm_type": (0, 1)},
    unfed=("input_ids", "tid2eid"),
    dtypes={"x": FLOATS},
)
def moe_gating_top_k(
    x: Tensor,
    bias: Tensor | None = None,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    *,
    k: int,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and numbers of the k experts with the largest norm + bias in the k_group best groups, and norm itself.

    norm_type 0: norm = softmax(x), y = norm * routed_scaling_factor; 1: norm = sigmoid(x), and y is divided by the sum
    of the k + eps first. A group is as good as its best expert, or as the sum of its best two (group_select_mode 1).
    """
    found = x.shape[-1] * min(k_group, group_count) // group_count
    if not 1 <= k <= found:
        raise unsupported("MoeGatingTopK", "k", f"1 to {found}, the experts of the groups that are kept", k)
    norm = torch.sigmoid(x.float()) if norm_type else torch.softmax(x, -1, dtype=torch.float32)
    merit = norm if bias is None else norm + bias
    if k_group < group_count:
        groups = merit.unflatten(-1, (group_count, -1))
        best = groups.topk(2, -1).values.sum(-1) if group_select_mode else groups.amax(-1)
        is_out = torch.ones_like(best, dtype=torch.bool).scatter_(-1, _first(best, k_group), False)
        merit = groups.masked_fill(is_out.unsqueeze(-1), -torch.inf).flatten(-2)
    experts = _first(merit, k)
    y = norm.gather(-1, experts)
    if norm_type:
        y = y / (y.sum(-1, keepdim=True) + eps)
    return (y * routed_scaling_factor).to(x.dtype), experts.to(torch.int32), norm


def _first(scores: Tensor, k: int) -> Tensor:
    """Places of the k largest; of equal ones, as bfloat16 has many, the first."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k]


@kernel("MoeInitRouting", dtypes={"row_idx": INDICES, "expert_idx": INDICES})
def moe_init_routing(
    x: Tensor, row_idx: Tensor, expert_idx: Tensor, *, active_num: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of x sorted by expert; expanded_row_idx says where pair row_idx went."""
    experts, order = torch.sort(expert_idx.flatten(), stable=True)
    source = row_idx.flatten()[order].long()
    place = torch.empty_like(source)
    place[source] = torch.arange(source.numel())
    active = min(x.shape[0], active_num) * expert_idx.shape[1]
    return x[source[:active] % max(x.shape[0], 1)], place.to(torch.int32), experts


@kernel("MoeComputeExpertTokens")
def moe_compute_expert_tokens(sorted_experts: Tensor, *, num_experts: int) -> Tensor:
    """For each expert, where its rows end."""
    experts = torch.arange(num_experts, dtype=sorted_experts.dtype)
    return torch.searchsorted(sorted_experts, experts, right=True, out_int32=True)


def by_last(counts: Tensor) -> Tensor:
    """Rows that lie in blocks of counts[i, j], i by i, in the order of j; of one j they stay i by i."""
    first, last = counts.shape
    return torch.arange(last).repeat(first).repeat_interleave(counts.flatten().long()).argsort(stable=True)


@kernel("MoeReRouting", allowed={"expert_token_num_type": (1,), "idx_type": (0,)})
def moe_re_routing(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    per_token_scales: Tensor | None = None,
    *,
    expert_token_num_type: int = 1,
    idx_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows that came rank by rank, expert by expert: rows, scales, where each came from, and rows per expert."""
    order = by_last(expert_token_num_per_rank)
    # rows that no count covers stay behind the others
    order = torch.cat([order, torch.arange(order.numel(), tokens.shape[0])])
    scales = torch.zeros(tokens.shape[0]) if per_token_scales is None else per_token_scales[order]
    counts = expert_token_num_per_rank.sum(0, dtype=expert_token_num_per_rank.dtype)
    return tokens[order], scales, order.to(torch.int32), counts


def _finalize(
    expanded_x: Tensor,
    expanded_row_idx: Tensor,
    x1: Tensor | None,
    x2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expert_idx: Tensor | None,
    k: int,
    by_row: bool,
    drop_pad: bool,
) -> Tensor:
    """x1 + x2 + sum over the k experts of scales * (expanded_x + bias), in float32."""
    rows = expanded_row_idx.numel() // k
    places = expanded_row_idx.view(rows, k) if by_row else expanded_row_idx.view(k, rows).t()
    flat = expanded_x.flatten(0, -2)
    picked = flat[places.clamp(min=0).long()].float()
    if bias is not None and expert_idx is not None:
        picked = picked + bias[expert_idx.long()]
    if drop_pad:
        picked = picked.masked_fill((places < 0).unsqueeze(-1), 0)
    if scales is not None:
        picked = picked * scales.unsqueeze(-1)
    y = picked.sum(1)
    if x1 is not None:
        y = y + x1
    if x2 is not None:
        y = y + x2
    return y.to(expanded_x.dtype)


@kernel("MoeFinalizeRouting")
def moe_finalize_routing(
    expanded_x: Tensor,
    x1: Tensor,
    x2: Tensor | None,
    bias: Tensor,
    scales: Tensor,
    expanded_row_idx: Tensor,
    expanded_expert_idx: Tensor,
) -> Tensor:
    return _finalize(
        expanded_x, expanded_row_idx, x1, x2, bias, scales, expanded_expert_idx, scales.shape[1], False, False
    )


@kernel("MoeFinalizeRoutingV2", allowed={"drop_pad_mode": (0, 1, 2, 3)})
def moe_finalize_routing_v2(
    expanded_x: Tensor,
    expanded_row_idx: Tensor,
    x1: Tensor | None = None,
    x2: Tensor | None = None,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
    expert_idx: Tensor | None = None,
    *,
    drop_pad_mode: int = 0,
    K: int = 1,
    k: int | None = None,
) -> Tensor:
    """drop_pad_mode: 2 and 3 number the places row by row, 0 and 1 choice by choice; 1 and 3 have dropped ones (-1).

    k: TorchAir's spelling of K.
    """
    choices = scales.shape[1] if scales is not None else K if k is None else k
    by_row, drop_pad = drop_pad_mode > 1, drop_pad_mode % 2 == 1
    return _finalize(expanded_x, expanded_row_idx, x1, x2, bias, scales, expert_idx, choices, by_row, drop_pad)
