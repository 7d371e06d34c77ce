"""Samples for engine/kernels/grouped_moe.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.engine.cases.grouped_cases import eight_by_four
from tests.engine.op_case import Make, OpCase

ONE = ("float32",)
HALF = ("bfloat16",)
"""Cases whose shared expert has a dtype of its own."""


def _int8(m: Make, *shape: int) -> Tensor:
    return m.ints(*shape, low=-128, high=128, dtype=torch.int8)


def _routed(value: Tensor, given: dict[str, Any], rows: int, weight: float = 1.0, first: int = 0) -> Tensor:
    """Row by row."""
    y = torch.zeros(rows, value.shape[1], dtype=torch.float64)
    shared = given.get("shared_input")
    if shared is not None:
        for r in range(shared.shape[0]):
            y[first + r] += weight * shared[r]
    for r in range(value.shape[0]):
        logit = given["logit"][r] if given.get("logit") is not None else 1.0
        y[int(given["row_index"][r])] += logit * value[r]
    return y


def _value(x: Tensor, w: Tensor, scale: Tensor, token: Tensor | None, sizes: list[int]) -> Tensor:
    """The rows of experts, which have ``sizes`` rows each."""
    result, r = torch.zeros(sum(sizes), w.shape[2], dtype=torch.float64), 0
    for expert, size in enumerate(sizes):
        for _ in range(size):
            result[r] = (x[r].double()[:, None] * w[expert].double()).sum(0) * scale[expert]
            result[r] = result[r] * (1 if token is None else token[r])
            r += 1
    return result


def _swiglu_quantised(value: Tensor, rows: int, smooth: Tensor | None = None) -> list[Tensor]:
    half = value.shape[1] // 2
    gate, up = value[:, :half], value[:, half:]
    gated = gate / (1 + torch.exp(-gate)) * up
    if smooth is not None:
        gated = gated * smooth
    scale = gated.abs().max(1).values / 127
    y, scales = torch.zeros(rows, half, dtype=torch.int8), torch.zeros(rows, dtype=torch.float64)
    y[: len(gated)] = (gated / scale[:, None]).round().to(torch.int8)
    scales[: len(gated)] = scale
    return [y, scales]


def _scales(m: Make, *shape: int) -> Tensor:
    return m(*shape, low=1e-3, high=2e-3).float()


SIZES = [2, 0, 3]
SPREAD = [0, 0, 2, 2, 2]

CASES = [
    OpCase(
        "GroupedMatmulFinalizeRouting",
        lambda m: {
            "x": _int8(m, 5, 4),
            "w": _int8(m, 3, 4, 6),
            "scale": _scales(m, 3, 6),
            "pertoken_scale": m(5, low=0.5, high=2).float(),
            "group_list": torch.tensor(SIZES),
            "shared_input": m(2, 6),
            "logit": m(5).float(),
            "row_index": torch.tensor([3, 1, 1, 0, 3]),
        },
        lambda **given: _routed(
            _value(given["x"], given["w"], given["scale"], given["pertoken_scale"], SIZES), given, 4, 0.5, 1
        ),
        {"output_bs": 4, "shared_input_weight": 0.5, "shared_input_offset": 1, "group_list_type": 1, "dtype": 0},
        dtypes=HALF,
        name="counts_shared",
    ),
    OpCase(
        "GroupedMatmulFinalizeRouting",
        lambda m: {
            "x": _int8(m, 6, 4),
            "w": _int8(m, 3, 6, 4),
            "scale": _scales(m, 3, 6),
            "group_list": torch.tensor([2, 2, 5]),
            "row_index": torch.tensor([3, 1, 1, 0, 3, 5], dtype=torch.int32),
        },
        lambda **given: _routed(_value(given["x"], given["w"].mT, given["scale"], None, SIZES), given, 6),
        {"group_list_type": 0, "transpose_w": True, "transpose_x": False, "tuning_config": [4]},
        dtypes=ONE,
        name="ends_fewer_rows",
    ),
    OpCase(
        "GroupedMatmulFinalizeRouting",
        lambda m: {
            "x": _int8(m, 4, 6),
            "w": _int8(m, 3, 4, 6),
            "scale": _scales(m, 3, 6),
            "group_list": torch.tensor([2, 2, 5]),
            "row_index": torch.tensor([3, 1, 1, 0, 3, 5], dtype=torch.int32),
        },
        lambda **given: _routed(_value(given["x"].mT, given["w"], given["scale"], None, SIZES), given, 6),
        {"group_list_type": 0, "transpose_x": True},
        dtypes=ONE,
        name="transposed_rows",
    ),
    OpCase(
        "GroupedMatmulFinalizeRouting",
        lambda m: {
            **eight_by_four(m, blocks=1, shift=True),
            "pertoken_scale": m(5, low=0.5, high=2).float(),
            "group_list": torch.tensor(SIZES),
            "logit": m(5).float(),
            "row_index": torch.tensor([3, 1, 1, 0, 3]),
        },
        lambda **given: _routed(
            (
                _value(given["x"], given["w"], given["scale"].to(torch.int32).view(torch.float32)[:, 0], None, SIZES)
                + 0.5
                + given["x"].double().sum(1, keepdim=True) * given["offset"][SPREAD, 0]
            )
            * given["pertoken_scale"][:, None],
            given,
            5,
        ),
        {"output_bs": 5},
        dtypes=ONE,
        name="int4",
    ),
    OpCase(
        "GroupedMatmulSwigluQuantV2",
        lambda m: {
            "x": _int8(m, 6, 4),
            "x_scale": m(6, low=0.5, high=2).float(),
            "group_list": torch.tensor([2, 2, 5]),
            "weight": [_int8(m, 3, 4, 8)],
            "weight_scale": [_scales(m, 3, 8)],
            "weight_assist_matrix": [torch.empty(0)],
        },
        lambda x, x_scale, weight, weight_scale, **rest: _swiglu_quantised(
            _value(x, weight[0], weight_scale[0], x_scale, SIZES), 6
        ),
        {"quant_dtype": 2, "dequant_mode": 0, "quant_mode": 0, "group_list_type": 0, "tuning_config": [0]},
        outputs=("y", "y_scale"),
        dtypes=ONE,
        name="ends",
    ),
    OpCase(
        "GroupedMatmulSwigluQuantV2",
        lambda m: {
            "x": _int8(m, 5, 4),
            "x_scale": m(5, low=0.5, high=2).float(),
            "group_list": torch.tensor(SIZES),
            "weight": [_int8(m, 3, 8, 4)],
            "weight_scale": [_scales(m, 3, 8)],
            "smooth_scale": [m(3, 4, low=0.5, high=2).float()],
        },
        lambda x, x_scale, weight, weight_scale, smooth_scale, **rest: _swiglu_quantised(
            _value(x, weight[0].mT, weight_scale[0], x_scale, SIZES), 5, smooth_scale[0][SPREAD]
        ),
        {"quant_dtype": 2, "group_list_type": 1, "transpose_weight": True},
        outputs=("y", "y_scale"),
        dtypes=ONE,
        name="counts_smooth",
    ),
]
