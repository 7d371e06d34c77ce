"""Samples for engine/kernels/dequant_swiglu.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.engine.op_case import Make, OpCase

ONE = ("float32",)
OUTPUTS = ("y", "scale")
DYNAMIC: dict[str, Any] = {"quant_mode": "dynamic"}


def _x(m: Make, rows: int = 6) -> Tensor:
    return m.ints(rows, 8, low=-999, high=999, dtype=torch.int32)


def _scales(m: Make, *shape: int) -> Tensor:
    return m(*shape, low=1e-3, high=4e-3).float()


def _gated(row: list[float], left: bool, mode: int, limit: float, alpha: float, shift: float) -> list[float]:
    half = len(row) // 2
    if mode == 1:
        gates, ups = row[::2], row[1::2]
    else:
        gates, ups = (row[:half], row[half:]) if left else (row[half:], row[:half])
    result = []
    for gate, up in zip(gates, ups, strict=True):
        if mode in (1, 2):
            gate, up = min(gate, limit), max(-limit, min(up, limit))
            result.append(gate / (1 + math.exp(-alpha * gate)) * (up + shift))
        else:
            swish = gate / (1 + math.exp(-gate))
            if mode == 3:
                swish, up = min(swish, limit), max(-limit, min(up, limit))
            result.append(swish * up)
    return result


def _expected(inputs: dict[str, Any], attrs: dict[str, Any], groups: list[int | None] | None = None) -> list[Tensor]:
    """Row by row in Python's own floating point."""
    x = inputs["x"]
    y, scales = torch.zeros(x.shape[0], x.shape[1] // 2, dtype=torch.int8), torch.zeros(x.shape[0])

    def of(name: str, r: int) -> Any:
        value = inputs.get(name)
        if value is None or groups is None:
            return value
        return value[groups[r]]

    for r in range(x.shape[0]):
        if groups is not None and groups[r] is None:
            continue
        row, bias = x[r].double(), of("bias", r)
        if bias is not None and bias.dtype is torch.int32:
            row, bias = row + bias, None
        if inputs.get("weight_scale") is not None:
            row = row * of("weight_scale", r)
        if inputs.get("activation_scale") is not None:
            row = row * inputs["activation_scale"].flatten()[r]
        row = row if bias is None else row + bias
        gated = torch.tensor(
            _gated(
                row.flatten().tolist(), attrs.get("activate_left", False), attrs.get("swiglu_mode", 0),
                attrs.get("clamp_limit", 7.0), attrs.get("glu_alpha", 1.702), attrs.get("glu_bias", 1.0),
            ),
            dtype=torch.float64,
        )  # fmt: skip
        factor, offset = of("quant_scale", r), of("quant_offset", r)
        if attrs.get("quant_mode") == "dynamic":
            gated = gated if factor is None else gated * factor
            scales[r] = gated.abs().max() / 127
            gated = gated / (gated.abs().max() / 127)
        else:
            gated = gated if factor is None else gated / factor
            gated = gated if offset is None else gated + offset
        y[r] = gated.round().clamp(-128, 127).to(torch.int8)
    return [y, scales]


def _case(name: str, inputs: Any, attrs: dict[str, Any], groups: Any = None, dtypes: tuple[str, ...] = ONE) -> OpCase:
    return OpCase(
        "DequantSwigluQuant",
        inputs,
        lambda **given: _expected(given, attrs, groups),
        attrs,
        outputs=OUTPUTS,
        dtypes=dtypes,
        name=name,
    )


COUNTS = [0, 0, 2, 2, 2, None]
PAIRS = [1, 1, 1, 0, None, None]

CASES = [
    _case(
        "dynamic",
        lambda m: {
            "x": _x(m),
            "weight_scale": _scales(m, 8),
            "activation_scale": m(6, low=0.5, high=2).float(),
            "quant_scale": m(4, low=0.5, high=2).float(),
        },
        DYNAMIC | {"activate_left": True, "dst_type": 2, "round_mode": "rint", "activate_dim": -1, "swiglu_mode": 0},
    ),
    OpCase(
        "DequantSwigluQuant",
        lambda m: {
            "x": _x(m).reshape(2, 3, 8),
            "weight_scale": _scales(m, 8, 1),
            "activation_scale": m(6, low=0.5, high=2).float(),
            "quant_scale": m(1, 4, low=0.5, high=2).float(),
        },
        lambda x, weight_scale, **given: [
            part.reshape(2, 3, *part.shape[1:])
            for part in _expected({"x": x.reshape(6, 8), "weight_scale": weight_scale.flatten(), **given}, DYNAMIC)
        ],
        DYNAMIC,
        outputs=OUTPUTS,
        dtypes=ONE,
        name="three_axes_scales_as_column",
    ),
    _case(
        "dynamic_counts_int32_bias",
        lambda m: {
            "x": _x(m),
            "weight_scale": _scales(m, 3, 8),
            "activation_scale": m(6, 1, low=0.5, high=2).float(),
            "bias": m.ints(3, 8, low=-500, high=500, dtype=torch.int32),
            "quant_scale": m(3, 4, low=0.5, high=2).float(),
            "group_index": torch.tensor([2, 0, 3]),
        },
        DYNAMIC,
        COUNTS,
    ),
    _case(
        "dynamic_pairs_float_bias",
        lambda m: {
            "x": _x(m),
            "weight_scale": _scales(m, 2, 8),
            "bias": m(2, 8).to(torch.bfloat16),
            "quant_scale": m(2, low=0.5, high=2).float(),
            "group_index": torch.tensor([[1, 3], [0, 1]]),
        },
        DYNAMIC,
        PAIRS,
    ),
    _case("halves_dynamic", lambda m: {"x": m(5, 8)}, DYNAMIC, dtypes=("float16", "bfloat16")),
    _case(
        "static",
        lambda m: {
            "x": m(3, 8),
            "quant_scale": torch.tensor([0.05]),
            "quant_offset": torch.tensor([3.0]),
        },
        {"quant_mode": "static"},
        dtypes=("float16", "bfloat16"),
    ),
    _case(
        "static_counts",
        lambda m: {
            "x": _x(m),
            "weight_scale": _scales(m, 3, 8),
            "quant_scale": m(3, 4, low=0.02, high=0.05).float(),
            "quant_offset": m(3, 4).float(),
            "group_index": torch.tensor([2, 0, 3], dtype=torch.int32),
        },
        {},
        COUNTS,
    ),
    _case(
        "static_scale_per_group",
        lambda m: {
            "x": m(6, 8),
            "quant_scale": m(3, low=0.02, high=0.05).float(),
            "quant_offset": m(3).float(),
            "group_index": torch.tensor([2, 0, 3]),
        },
        {},
        COUNTS,
        dtypes=("bfloat16",),
    ),
    _case("static_bare", lambda m: {"x": m(3, 8, low=-9, high=9)}, {}, dtypes=("bfloat16",)),
    *(
        _case(
            f"mode_{mode}",
            lambda m: {"x": _x(m), "weight_scale": _scales(m, 1, 8)},
            DYNAMIC
            | {"swiglu_mode": mode, "activate_left": True, "clamp_limit": 1.5, "glu_alpha": 1.25, "glu_bias": 0.5},
        )
        for mode in (1, 2, 3)
    ),
    _case("mode_2_right", lambda m: {"x": m(3, 8)}, DYNAMIC | {"swiglu_mode": 2}, dtypes=("bfloat16",)),
]
