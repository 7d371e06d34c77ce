"""Tokens sent to the ranks that have their experts, and what the experts made of them brought back.

Each token goes to its k choices, then to the shared experts. Of what dispatch returns combine needs the counts alone to
send every row back; which token and choice a row was, the rank it came from knows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.moe import by_last
from npu_fused_graph.engine.kernels.moe_experts import Experts, agreed, by_expert, check, exchange, experts_of, pairs_of
from npu_fused_graph.engine.registry import Allowed, kernel


@dataclass(slots=True)
class _Arrived:
    """What came to a rank, expert by expert and rank by rank.

    counts: by rank and expert. came_from: rank, token and choice of each row. order: places of what this rank sent.
    """

    rows: Tensor
    scales: Tensor
    weights: Tensor
    came_from: Tensor
    counts: Tensor
    order: Tensor
    chosen: Tensor


def _dispatch(
    experts: Experts,
    x: Tensor,
    expert_ids: Tensor,
    smooth: Tensor | None,
    active: Tensor | None,
    weights: Tensor | None,
    quant_mode: int,
) -> _Arrived:
    check("x", f"a row for each of {len(expert_ids)} tokens", len(x) == len(expert_ids), list(x.shape))
    chosen = experts.chosen(expert_ids, active)
    order, counts = by_expert(chosen, experts)
    width = chosen.shape[1]
    tokens, choices = order // width, order % width
    check("scales", "none without quantisation", quant_mode != 0 or smooth is None, smooth is not None and "some")
    if quant_mode:
        rows, scales = _quantised(x, tokens, _smooth_rows(experts, smooth, chosen, order, expert_ids.shape[1]))
    else:
        rows, scales = x[tokens], torch.zeros(len(order))
    weighed = torch.ones(chosen.shape) if weights is None else _weights(weights, width)
    came_from = torch.stack([torch.full_like(tokens, experts.peer.rank), tokens, choices], 1).int()
    sent = [rows, scales.unsqueeze(1), weighed.flatten()[order].unsqueeze(1), came_from]
    told = agreed(experts.peer, x, width, counts)
    mine = told[:, experts.mine]
    received = exchange(experts.peer, sent, experts.by_rank(counts), mine.sum(1).tolist())
    place = by_last(mine)
    rows, scales, arrived, came_from = (x[place] for x in received)
    return _Arrived(rows, scales.squeeze(1), arrived.squeeze(1), came_from, mine, order, chosen)


def _smooth_rows(experts: Experts, smooth: Tensor | None, chosen: Tensor, order: Tensor, k: int) -> Tensor | None:
    """Of each row its expert's smooth scales: shared experts have the first."""
    if smooth is None:
        return None
    needed = experts.shared + experts.moe
    check("scales", f"a row for each of {needed} experts", smooth.shape[0] == needed, list(smooth.shape))
    choices = order % chosen.shape[1]
    moe = chosen.flatten()[order] - experts.shared_ranks + experts.shared
    return smooth[torch.where(choices < k, moe, choices - k)]


def _quantised(x: Tensor, tokens: Tensor, smooth: Tensor | None) -> tuple[Tensor, Tensor]:
    """int8 rows and their scales. A2 and A3 multiply by 127 / max(abs(row)) and return the reciprocal of that."""
    wide = x.float() if smooth is None else x[tokens].float() * smooth
    most = wide.abs().amax(-1, keepdim=True)
    factor = (127 / most).masked_fill(most == 0, 0)
    rows, scales = (wide * factor).round_().to(torch.int8), factor.reciprocal().masked_fill(most == 0, 0).squeeze(-1)
    return (rows[tokens], scales[tokens]) if smooth is None else (rows, scales)


def _weights(weights: Tensor, width: int) -> Tensor:
    """Of k choices and shared experts, which count in full."""
    return torch.cat([weights, weights.new_ones(len(weights), width - weights.shape[1])], 1)


def _padded(rows: Tensor, size: int) -> Tensor:
    """``rows``, then zeros."""
    check("global_bs", f"room for the {len(rows)} rows that came", len(rows) <= size, f"{size} rows")
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])


def _results(
    arrived: _Arrived,
    size: int,
    assist: Tensor,
    expert_token_nums_type: int,
    tp_world_size: int,
    more_counts: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """more_counts: numbers behind the counts, for chips that add up on the way; None: no weights were given."""
    tokens = arrived.counts.sum(0)
    ends = torch.zeros(arrived.counts.numel() + (more_counts or 0), dtype=torch.int32)
    ends[: arrived.counts.numel()] = arrived.counts.t().flatten().cumsum(0)
    return (
        _padded(arrived.rows, size),
        _padded(arrived.scales, size),
        assist,
        tokens if expert_token_nums_type else tokens.cumsum(0),
        ends,
        torch.zeros(tp_world_size, dtype=torch.int32),
        torch.zeros(0) if more_counts is None else _padded(arrived.weights, size),
    )


def _combine(
    experts: Experts,
    expand_x: Tensor,
    expert_ids: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    active: Tensor | None,
    shared_expert_x: Tensor | None = None,
    ori_x: Tensor | None = None,
    copies: range = range(0),
) -> Tensor:
    """Sum over a token's experts of weight * row, in float32; a token that is not active gets zeros."""
    chosen = experts.chosen(expert_ids, active)
    order, counts = by_expert(chosen, experts)
    tokens, width = chosen.shape
    ranks = experts.peer.size
    mine = experts.mine
    ends = ep_send_counts[: (mine.stop - mine.start) * ranks].long()
    sends = ends.diff(prepend=ends.new_zeros(1)).view(-1, ranks)
    weights = _weights(expert_scales, width).flatten().unsqueeze(1)
    check("expert_scales", f"{tokens} rows of {width}", len(weights) == tokens * width, list(expert_scales.shape))
    agreed(experts.peer, expand_x, width)
    (back,) = exchange(experts.peer, [expand_x[by_last(sends)]], sends.sum(0).tolist(), experts.by_rank(counts))
    parts = torch.zeros(tokens * width, expand_x.shape[1])
    parts[order] = back.float() * weights[order]
    if ori_x is not None and copies:
        is_copy = torch.zeros(chosen.shape, dtype=torch.bool)
        is_copy[:, : expert_ids.shape[1]] = (expert_ids >= copies.start) & (expert_ids < copies.stop)
        if active is not None:
            is_copy &= pairs_of(active, width)
        place = is_copy.flatten().nonzero().squeeze(1)
        parts[place] = ori_x.reshape(tokens, parts.shape[1])[place // width].float() * weights[place]
    y = parts.view(tokens, width, parts.shape[1]).sum(1)
    if shared_expert_x is not None:
        y = y + shared_expert_x.reshape(y.shape)
    if active is not None:
        y = y.masked_fill(~pairs_of(active, width).any(1, keepdim=True), 0)
    return y.to(expand_x.dtype)


_COVERED: Allowed = {"tp_world_size": (0, 1), "expert_shard_type": (0,)}
_OF_DISPATCH = _COVERED | {"quant_mode": (0, 2), "expert_token_nums_type": (0, 1)}
_OF_COMBINE = _COVERED | {"out_dtype": (0,), "comm_quant_mode": (0,), "group_list_type": (0,)}
_RESERVED = ("activation_scale", "weight_scale", "group_list")
_OF_TP = ("group_tp", "tp_rank_id")  # of a group of one rank


@kernel("MoeDistributeDispatch", allowed=_OF_DISPATCH, ignored=_OF_TP, pure=False, is_collective=True)
def moe_distribute_dispatch(
    x: Tensor,
    expert_ids: Tensor,
    scales: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    expert_scales: Tensor | None = None,
    *,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    tp_world_size: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows for this rank's experts, their scales, each choice's turn with its expert, counts, weights."""
    experts = experts_of(
        group_ep, ep_world_size, ep_rank_id, moe_expert_num, shared_expert_num, shared_expert_rank_num, True
    )
    tokens, k = expert_ids.shape
    batch = global_bs or tokens * ep_world_size
    if ep_rank_id < shared_expert_rank_num:
        size = batch // shared_expert_rank_num
    else:
        size = batch * min(experts.per_rank, k)
    arrived = _dispatch(experts, x, expert_ids, scales, x_active_mask, expert_scales, quant_mode)
    more = None if expert_scales is None else batch * 2 * k * (ep_world_size // 8)
    turns = _turns(arrived)[:, :k].flatten()
    return _results(arrived, size, turns, expert_token_nums_type, tp_world_size, more)


@kernel(
    "MoeDistributeDispatchV2",
    allowed=_OF_DISPATCH | {"const_expert_num": (0,)},
    ignored=(*_OF_TP, "comm_alg", "y_dtype"),
    unfed=("elastic_info", "performance_info"),
    pure=False,
    is_collective=True,
)
def moe_distribute_dispatch_v2(
    x: Tensor,
    expert_ids: Tensor,
    scales: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    expert_scales: Tensor | None = None,
    elastic_info: Tensor | None = None,
    performance_info: Tensor | None = None,
    *,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    tp_world_size: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows for this rank's experts, their scales, (rank, token, choice) of each, counts, weights.

    Experts from moe_expert_num on are nobody's: their tokens stay.
    """
    experts = experts_of(group_ep, ep_world_size, ep_rank_id, moe_expert_num, shared_expert_num, shared_expert_rank_num)
    tokens, k = expert_ids.shape
    batch = global_bs or tokens * ep_world_size
    if ep_rank_id < shared_expert_rank_num:
        size = batch // ep_world_size * -(-ep_world_size // (shared_expert_rank_num // shared_expert_num))
    else:
        size = batch * min(experts.per_rank, k)
    arrived = _dispatch(experts, x, expert_ids, scales, x_active_mask, expert_scales, quant_mode)
    assist = _padded(arrived.came_from.flatten(), max(tokens * k, size * 128))
    more = None if expert_scales is None else batch * 2 * k * (ep_world_size // 8)
    return _results(arrived, size, assist, expert_token_nums_type, tp_world_size, more)


def _turns(arrived: _Arrived) -> Tensor:
    """Of each token and choice, how many of this rank's rows its expert gets before it."""
    flat = arrived.chosen.flatten()
    counts = torch.bincount(flat)
    turns = torch.zeros(flat.shape, dtype=torch.int32)
    starts = (counts.cumsum(0) - counts)[flat[arrived.order]]
    turns[arrived.order] = (torch.arange(len(arrived.order)) - starts).int()
    return turns.view(arrived.chosen.shape)


@kernel(
    "MoeDistributeCombine", allowed=_OF_COMBINE, ignored=(*_OF_TP, "global_bs"), unfed=_RESERVED, pure=False,
    is_collective=True,
)  # fmt: skip
def moe_distribute_combine(
    expand_x: Tensor,
    expert_ids: Tensor,
    expand_idx: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    tp_send_counts: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    activation_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    group_list: Tensor | None = None,
    expand_scales: Tensor | None = None,
    *,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    tp_world_size: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    out_dtype: int = 0,
    comm_quant_mode: int = 0,
    group_list_type: int = 0,
) -> Tensor:
    """Sum over its experts of weight * row for each token of this rank."""
    experts = experts_of(
        group_ep, ep_world_size, ep_rank_id, moe_expert_num, shared_expert_num, shared_expert_rank_num, True
    )
    return _combine(experts, expand_x, expert_ids, ep_send_counts, expert_scales, x_active_mask)


@kernel(
    "MoeDistributeCombineV2",
    allowed=_OF_COMBINE | {"const_expert_num": (0,)},
    ignored=(*_OF_TP, "global_bs", "comm_alg"),
    unfed=(
        *_RESERVED, "elastic_info", "const_expert_alpha_1", "const_expert_alpha_2", "const_expert_v",
        "performance_info",
    ),
    pure=False,
    is_collective=True,
)  # fmt: skip
def moe_distribute_combine_v2(
    expand_x: Tensor,
    expert_ids: Tensor,
    assist_info_for_combine: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    tp_send_counts: Tensor | None = None,
    x_active_mask: Tensor | None = None,
    activation_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    group_list: Tensor | None = None,
    expand_scales: Tensor | None = None,
    shared_expert_x: Tensor | None = None,
    elastic_info: Tensor | None = None,
    ori_x: Tensor | None = None,
    const_expert_alpha_1: Tensor | None = None,
    const_expert_alpha_2: Tensor | None = None,
    const_expert_v: Tensor | None = None,
    performance_info: Tensor | None = None,
    *,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    tp_world_size: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    out_dtype: int = 0,
    comm_quant_mode: int = 0,
    group_list_type: int = 0,
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
) -> Tensor:
    """Sum over its experts of weight * row for each token of this rank, + shared_expert_x.

    Of the experts from moe_expert_num on, the first zero_expert_num give nothing, the others the token of ori_x itself.
    """
    experts = experts_of(group_ep, ep_world_size, ep_rank_id, moe_expert_num, shared_expert_num, shared_expert_rank_num)
    first = moe_expert_num + zero_expert_num
    copies = range(first, first + copy_expert_num)
    check("ori_x", "the tokens, for copy_expert_num", ori_x is not None or not copies, None)
    return _combine(
        experts, expand_x, expert_ids, ep_send_counts, expert_scales, x_active_mask, shared_expert_x, ori_x, copies
    )
