"""Samples for engine/kernels/moe_init_routing.py: pairs walked one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.engine.op_case import FLOATS, Make, OpCase

OUTPUTS = ("expanded_x", "expanded_row_idx", "expert_tokens_count_or_cumsum", "expanded_scale")
ROWS, WIDTH, CHOICES, EXPERTS = 6, 5, 3, 4


def _to_int8(value: float) -> int:
    """Cut off to half, then to the nearest integer, ties away from zero."""
    half = np.float16(value)
    if abs(float(half)) > abs(value):
        half = np.nextafter(half, np.float16(0))
    return int(np.trunc(float(half) + np.copysign(0.5, float(half))))


def _dynamic(row: Tensor) -> tuple[Tensor, float]:
    wide = row.float()
    scale = float(wide.abs().max() / 127)
    if scale == 0:
        return torch.zeros(wide.shape, dtype=torch.int8), scale
    return torch.tensor([_to_int8(float(np.float32(v) / np.float32(scale))) for v in wide]).to(torch.int8), scale


def _static(row: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    halves = row.to(torch.float16).numpy()
    scaled = (halves * scale.to(torch.float16).numpy()).astype(np.float16)
    shifted = (scaled + offset.to(torch.float16).numpy()).astype(np.float16)
    return torch.from_numpy(np.clip(np.rint(shifted), -128, 127).astype(np.int8))


def _init(
    x: Tensor,
    expert_idx: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    active_num: int = -1,
    expert_capacity: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: tuple[int, ...] | list[int] = (),
    row_idx_type: int = 0,
    expert_num: int = EXPERTS,
) -> list[Tensor]:
    first, end = active_expert_range or (0, expert_num)
    flat = expert_idx.flatten().tolist()
    pairs = [(e, i) for e in range(first, end) for i, chosen in enumerate(flat) if chosen == e]
    counts = [flat.count(e) for e in range(first, end)]
    if drop_pad_mode:
        taken: dict[int, int] = {}
        total = expert_num * expert_capacity
        placed = []
        for e, i in pairs:
            if taken.setdefault(e, 0) < expert_capacity:
                placed.append((e * expert_capacity + taken[e], e, i))
            taken[e] += 1
    else:
        total = len(flat) if active_num <= 0 else min(active_num, len(flat))
        placed = [(place, e, i) for place, (e, i) in enumerate(pairs)]
    expanded = torch.zeros(total, x.shape[1], dtype=x.dtype if quant_mode == -1 else torch.int8)
    scales = torch.zeros(total, dtype=torch.float32)
    row_idx = torch.full((len(flat),), -1, dtype=torch.int32)
    for place, e, i in placed:
        if row_idx_type:
            row_idx[place] = i
        else:
            row_idx[i] = place
        if place >= total:
            continue
        row = x[i // expert_idx.shape[1]]
        if quant_mode == -1:
            expanded[place] = row
            scales[place] = 0 if scale is None else scale[i // expert_idx.shape[1]]
        elif quant_mode == 0:
            assert scale is not None
            expanded[place] = _static(row, scale, torch.zeros(1) if offset is None else offset)
        else:
            smooth = 1 if scale is None else scale[0 if scale.shape[0] == 1 else e - first]
            expanded[place], scales[place] = _dynamic(row.float() * smooth)
    tokens = torch.zeros((), dtype=torch.int64)
    if expert_tokens_num_flag:
        tokens = torch.tensor(counts)
        if expert_tokens_num_type == 0 and not drop_pad_mode:
            tokens = tokens.cumsum(0)
        elif expert_tokens_num_type == 2:
            busy = [[e + first, c] for e, c in enumerate(counts) if c]
            tokens = torch.tensor(busy + [[0, 0]] * (expert_num - len(busy)))
    if drop_pad_mode:
        expanded = expanded.view(expert_num, expert_capacity, -1)
    return [expanded, row_idx, tokens, torch.zeros(()) if quant_mode == 0 else scales]


def _routed(m: Make) -> dict[str, Any]:
    choices = torch.stack([torch.randperm(EXPERTS, generator=m.generator)[:CHOICES] for _ in range(ROWS)])
    return {"x": m(ROWS, WIDTH), "expert_idx": choices.int()}


def _scaled(*shape: int) -> Any:
    return lambda m: _routed(m) | {"scale": Make("float32")(*shape)}


def _static_inputs(m: Make) -> dict[str, Any]:
    return _routed(m) | {"scale": torch.tensor([40.0]), "offset": torch.tensor([-3.5])}


def _case(name: str, inputs: Any = _routed, dtypes: tuple[str, ...] = FLOATS, **attrs: Any) -> OpCase:
    return OpCase(
        "MoeInitRoutingV3",
        inputs,
        lambda **tensors: _init(**tensors, **attrs),
        {"expert_num": EXPERTS, **attrs},
        outputs=OUTPUTS,
        dtypes=dtypes,
        widen=False,
        exact=True,
        name=name,
    )


CASES = [
    _case("plain"),
    _case("int8", lambda m: _routed(m) | {"x": m.ints(ROWS, WIDTH, low=-100, high=100, dtype=torch.int8)}, ("int8",)),
    _case("counts", expert_tokens_num_flag=True, expert_tokens_num_type=1, active_num=ROWS * CHOICES),
    _case("cumsum_of_a_range", expert_tokens_num_flag=True, active_expert_range=[1, 3]),
    _case("counts_of_a_range", expert_tokens_num_flag=True, expert_tokens_num_type=1, active_expert_range=[0, 2]),
    _case(
        "key_value",
        lambda m: _routed(m) | {"expert_idx": torch.tensor([[3, 1], [1, 3], [3, 0], [3, 1], [1, 0], [0, 3]]).int()},
        expert_tokens_num_flag=True,
        expert_tokens_num_type=2,
    ),
    _case("key_value_of_a_range", expert_tokens_num_flag=True, expert_tokens_num_type=2, active_expert_range=[2, 4]),
    _case("pairs_by_place", row_idx_type=1),
    _case("few_active", active_num=7, active_expert_range=[1, 4]),
    _case("scale_of_tokens", _scaled(ROWS), active_expert_range=[1, 3]),
    _case("static", _static_inputs, quant_mode=0),
    _case("static_without_offset", lambda m: _routed(m) | {"scale": torch.tensor([300.0])}, quant_mode=0),
    _case("dynamic", quant_mode=1),
    _case("dynamic_smooth", _scaled(1, WIDTH), quant_mode=1),
    _case("dynamic_smooth_by_expert", _scaled(2, WIDTH), quant_mode=1, active_expert_range=[1, 3]),
    _case("dynamic_row_of_zeros", lambda m: _routed(m) | {"x": m(ROWS, WIDTH) * 0}, quant_mode=1),
    _case("padded", drop_pad_mode=1, expert_capacity=3, expert_tokens_num_flag=True),
    _case("padded_counts", drop_pad_mode=1, expert_capacity=6, expert_tokens_num_flag=True, expert_tokens_num_type=1),
    _case("padded_scale_of_tokens", _scaled(ROWS), drop_pad_mode=1, expert_capacity=2),
    _case("padded_static", _static_inputs, drop_pad_mode=1, expert_capacity=3, quant_mode=0),
    _case("padded_dynamic", _scaled(EXPERTS, WIDTH), drop_pad_mode=1, expert_capacity=5, quant_mode=1),
]
