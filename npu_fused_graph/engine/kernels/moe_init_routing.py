"""Rows of tokens brought to the order of their experts, counted and quantised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.dtypes import INDICES
from npu_fused_graph.engine.registry import kernel, unsupported

_TYPE = "MoeInitRoutingV3"


def _check(known: dict[str, Any], attrs: dict[str, Any]) -> None:
    """Raise UnsupportedOpError for attributes that do not go together."""
    everyone = [0, attrs["expert_num"]]
    active = list(attrs["active_expert_range"] or everyone)
    if len(active) != 2 or active[0] >= active[1]:
        raise unsupported(_TYPE, "active_expert_range", "the first expert and the one behind the last", active)
    if not attrs["drop_pad_mode"]:
        return
    if attrs["row_idx_type"]:
        raise unsupported(_TYPE, "row_idx_type", "0 with drop_pad_mode=1", attrs["row_idx_type"])
    if active != everyone:
        raise unsupported(_TYPE, "active_expert_range", f"{everyone} with drop_pad_mode=1", active)
    if attrs["expert_tokens_num_flag"] and attrs["expert_tokens_num_type"] == 2:
        raise unsupported(_TYPE, "expert_tokens_num_type", "0 or 1 with drop_pad_mode=1", 2)


@kernel(
    _TYPE,
    allowed={
        "drop_pad_mode": (0, 1),
        "expert_tokens_num_type": (0, 1, 2),
        "quant_mode": (-1, 0, 1),
        "row_idx_type": (0, 1),
    },
    dtypes={"expert_idx": INDICES},
    specialise=_check,
)
def moe_init_routing_v3(
    x: Tensor,
    expert_idx: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] = (),
    row_idx_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of x by expert, where each went, tokens per expert, scales. Rows that nobody fills are zero, places -1.

    drop_pad_mode 1: expert e owns rows e * expert_capacity to (e + 1) * expert_capacity; what does not fit is dropped.
    row_idx_type 0: the place of each (row, choice) pair; 1: the pair at each place.
    """
    first, end = active_expert_range or (0, expert_num)
    pairs, choices = expert_idx.numel(), expert_idx.shape[1]
    experts = expert_idx.flatten().long()
    experts, order = torch.sort(experts.masked_fill((experts < first) | (experts >= end), end), stable=True)
    counts = torch.bincount(experts - first, minlength=end - first + 1)[: end - first]
    experts = experts[: int(counts.sum())] - first
    order = order[: experts.numel()]
    places = torch.arange(experts.numel())
    if drop_pad_mode:
        rows = expert_num * expert_capacity
        rank = places - (counts.cumsum(0) - counts)[experts]
        kept = rank < expert_capacity
        experts, order = experts[kept], order[kept]
        places = experts * expert_capacity + rank[kept]
    else:
        rows = pairs if active_num <= 0 else min(active_num, pairs)
    indices = torch.full((pairs,), -1, dtype=torch.int32)
    if row_idx_type:
        indices[: order.numel()] = order.int()
    else:
        indices[order] = places.int()
    if not drop_pad_mode:
        experts, order, places = experts[:rows], order[:rows], places[:rows]
    source = order // choices
    values, scales = _quantised(x, source, experts, scale, offset, quant_mode)
    expanded = _placed(values, places, rows)
    if drop_pad_mode:
        expanded = expanded.view(expert_num, expert_capacity, -1)
    tokens = torch.zeros((), dtype=torch.int64)
    if expert_tokens_num_flag:
        # behind padding only counts are of use: the type is not looked at there
        tokens = _tokens(counts, 1 if drop_pad_mode else expert_tokens_num_type, first, expert_num)
    if quant_mode == 0:
        return expanded, indices, tokens, torch.zeros(())
    return expanded, indices, tokens, torch.zeros(rows) if scales is None else _placed(scales, places, rows)


def _quantised(
    x: Tensor, source: Tensor, experts: Tensor, scale: Tensor | None, offset: Tensor | None, quant_mode: int
) -> tuple[Tensor, Tensor | None]:
    """Rows ``source`` of x, and a scale for each."""
    if quant_mode == -1:
        return x[source], None if scale is None else scale[source]
    if quant_mode == 0:
        if scale is None:
            raise unsupported(_TYPE, "scale", "one with quant_mode=0", None)
        # A2 and A3 compute in half, whatever the type of x
        result = x.half() * scale.half()
        if offset is not None:
            result = result + offset.half()
        return result.round_().clamp_(-128, 127).to(torch.int8)[source], None
    wide = x.float()
    if scale is None or scale.shape[0] == 1:
        quantised, scales = _rounded(wide if scale is None else wide * scale)
        return quantised[source], scales[source]
    return _rounded(wide[source] * scale[experts])


def _rounded(wide: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows and their scales, max(abs(row)) / 127.

    A2 and A3 cut the quotient off to half before they round it to the nearest integer, ties away from zero.
    """
    scale = wide.abs().amax(-1, keepdim=True) / 127
    quotient = wide / scale.masked_fill(scale == 0, 1)
    half = (quotient.view(torch.int32) & ~0x1FFF).view(torch.float32)  # what half has no bits for, toward zero
    return (half + half.sign() * 0.5).to(torch.int8), scale.squeeze(-1)


def _tokens(counts: Tensor, kind: int, first: int, expert_num: int) -> Tensor:
    """0: running sums, 1: counts, 2: (expert, count) of the experts that have tokens, then zeros."""
    if kind == 0:
        return counts.cumsum(0)
    if kind == 1:
        return counts
    busy = counts.nonzero().squeeze(1)
    result = torch.zeros(expert_num, 2, dtype=torch.int64)
    result[: busy.numel()] = torch.stack([busy + first, counts[busy]], 1)
    return result


def _placed(values: Tensor, places: Tensor, rows: int) -> Tensor:
    """Rows at ascending places among ``rows``, the others zero."""
    if places.numel() == rows:
        return values
    return values.new_zeros(rows, *values.shape[1:]).index_copy_(0, places, values)
