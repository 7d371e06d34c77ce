"""Samples for engine/kernels/quant.py."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from tests.engine.op_case import FLOATS, Make, OpCase, dtype_value

ONE = ("float32",)


def _int8(m: Make, *shape: int) -> Tensor:
    return m.ints(*shape, low=-128, high=128, dtype=torch.int8)


def _saturated(value: Tensor) -> Tensor:
    return value.round().clamp(-128, 127).to(torch.int8)


def _packed(scale: float, offset: int = 0) -> int:
    bits = struct.unpack("<I", struct.pack("<f", scale))[0]
    return (bits & 0xFFFFE000) | 1 << 46 | (offset & 0x1FF) << 37


def _product(x1: Tensor, x2: Tensor) -> Tensor:
    return torch.einsum("...mk,...kn->...mn", x1.double(), x2.double())


def _smooth_rows(x: Tensor, scales: Tensor, ends: Tensor) -> Tensor:
    rows = x.flatten(0, -2).clone()
    begin = 0
    for group, end in enumerate(ends.tolist()):
        rows[begin:end] *= scales[group]
        begin = end
    return rows.reshape(x.shape)


def _dynamic(x: Tensor) -> list[Tensor]:
    scale = x.abs().max(-1).values / 127
    return [(x / scale.clamp(min=1e-30).unsqueeze(-1)).round().to(torch.int8), scale]


def _exact(m: Make, *shape: int) -> Tensor:
    """Multiples of 1/4 with a row maximum of 31.75, so that every quotient by the scale is a multiple of 1/1."""
    x = m.ints(*shape, low=-127, high=127).double() / 4
    x[..., 0] = 31.75
    return x.to(m.dtype)


CASES = [
    OpCase(
        "QuantBatchMatmulV3",
        lambda m: {"x1": _int8(m, 3, 5), "x2": _int8(m, 5, 7), "scale": m(7, low=1e-3, high=2e-3).float()},
        lambda x1, x2, scale: _product(x1, x2) * scale,
        {"dtype": 1},
        dtypes=ONE,
    ),
    OpCase(
        "QuantBatchMatmulV3",
        lambda m: {
            "x1": _int8(m, 2, 5, 3),
            "x2": _int8(m, 2, 7, 5),
            "scale": m(1, low=1e-3, high=2e-3).to(torch.bfloat16),
            "bias": m.ints(7, low=-99, high=99, dtype=torch.int32),
            "pertoken_scale": m(3, low=0.5, high=2).float(),
        },
        lambda x1, x2, scale, bias, pertoken_scale: (
            (_product(x1.mT, x2.mT) + bias) * scale * pertoken_scale.unsqueeze(-1)
        ),
        {"dtype": dtype_value("bfloat16"), "transpose_x1": True, "transpose_x2": True},
        dtypes=ONE,
        name="pertoken_transposes",
    ),
    OpCase(
        "QuantBatchMatmulV3",
        lambda m: {
            "x1": _int8(m, 3, 5),
            "x2": _int8(m, 5, 7),
            "scale": m(7, low=1e-3, high=2e-3).float(),
            "bias": m(7).float(),
        },
        lambda x1, x2, scale, bias: _product(x1, x2) * scale + bias,
        {"dtype": 27},
        dtypes=ONE,
        name="float_bias",
    ),
    OpCase(
        "QuantBatchMatmulV3",
        lambda m: {
            "x1": _int8(m, 3, 5),
            "x2": _int8(m, 5, 2),
            "scale": torch.tensor([_packed(0.125), _packed(0.0625)]),
            "offset": torch.tensor([3.0]),
        },
        lambda x1, x2, scale, offset: _saturated(_product(x1, x2) * torch.tensor([0.125, 0.0625]) + offset),
        {"dtype": 2},
        dtypes=ONE,
        name="int8_result",
    ),
    OpCase(
        "QuantBatchMatmulV3",
        lambda m: {
            "x1": _int8(m, 3, 5),
            "x2": _int8(m, 5, 2),
            "scale": torch.tensor([_packed(0.0078125, -9), _packed(0.0078125, 200)]).to(torch.uint64),
        },
        lambda x1, x2, scale: _saturated(_product(x1, x2) * 0.0078125 + torch.tensor([-9, 200])),
        {"dtype": 2},
        dtypes=ONE,
        name="packed_offset",
    ),
    OpCase(
        "DynamicQuant",
        lambda m: {"x": _exact(m, 2, 3, 8)},
        _dynamic,
        {"dst_type": 2},
        outputs=("y", "scale"),
        dtypes=FLOATS,
    ),
    OpCase(
        "DynamicQuant",
        lambda m: {"x": _exact(m, 3, 8), "smooth_scales": torch.full((8,), 2.0, dtype=m.dtype)},
        lambda x, smooth_scales: _dynamic(x * smooth_scales),
        outputs=("y", "scale"),
        name="smooth",
    ),
    OpCase(
        "DynamicQuant",
        lambda m: {
            "x": _exact(m, 2, 3, 8),
            "smooth_scales": torch.tensor([[1.0], [2.0], [4.0]]).expand(3, 8).contiguous().to(m.dtype),
            "group_index": torch.tensor([2, 2, 6], dtype=torch.int32),
        },
        lambda x, smooth_scales, group_index: _dynamic(_smooth_rows(x, smooth_scales, group_index)),
        outputs=("y", "scale"),
        name="groups",
    ),
    OpCase(
        "DynamicQuant",
        lambda m: {"x": torch.zeros(2, 4, dtype=m.dtype)},
        _dynamic,
        outputs=("y", "scale"),
        name="zeros",
    ),
    OpCase(
        "AscendQuantV2",
        lambda m: {"x": m(3, 5), "scale": m(5, low=8, high=9), "offset": m(5)},
        lambda x, scale, offset: (x.float() * scale.float() + offset.float()).round().to(torch.int8),
        {"sqrt_mode": False, "round_mode": "round", "dst_type": 2, "axis": -1},
    ),
    OpCase(
        "AscendQuantV2",
        lambda m: {"x": m(2, 3, 5), "scale": m(3, low=2, high=3)},
        lambda x, scale: torch.floor(x.float() * scale.float()[:, None] * scale.float()[:, None]).to(torch.int8),
        {"sqrt_mode": True, "round_mode": "floor", "axis": -2},
        name="sqrt_floor_rows",
    ),
    OpCase(
        "AscendQuantV2",
        lambda m: {
            "x": torch.tensor([[-300.0, 0.5, 1.5, 300.0]], dtype=m.dtype),
            "scale": torch.ones(1, dtype=m.dtype),
        },
        lambda x, scale: torch.tensor([[-128, 0, 2, 127]], dtype=torch.int8),
        name="saturation_and_ties",
    ),
    OpCase(
        "AscendQuantV2",
        lambda m: {"x": torch.tensor([[-1.5, 1.25]], dtype=m.dtype), "scale": torch.ones(1, dtype=m.dtype)},
        lambda x, scale: torch.tensor([[-1, 2]], dtype=torch.int8),
        {"round_mode": "ceil"},
        name="ceil",
    ),
    OpCase(
        "AscendQuantV2",
        lambda m: {"x": torch.tensor([[-1.5, 1.75]], dtype=m.dtype), "scale": torch.ones(1, dtype=m.dtype)},
        lambda x, scale: torch.tensor([[-1, 1]], dtype=torch.int8),
        {"round_mode": "trunc"},
        name="trunc",
    ),
    OpCase(
        "AscendDequant",
        lambda m: {
            "x": m.ints(3, 5, low=-999, high=999, dtype=torch.int32),
            "deq_scale": m(5, low=0.1, high=0.2).half(),
        },
        lambda x, deq_scale: (x * deq_scale * deq_scale).clamp(min=0),
        {"sqrt_mode": True, "relu_flag": True, "dtype": 1},
        dtypes=ONE,
    ),
    OpCase(
        "AscendDequant",
        lambda m: {
            "x": m.ints(3, 2, low=-999, high=999, dtype=torch.int32),
            "deq_scale": torch.tensor([_packed(0.5), _packed(0.25)]).to(torch.uint64),
        },
        lambda x, deq_scale: x * torch.tensor([0.5, 0.25], dtype=torch.float64),
        dtypes=ONE,
        name="packed",
    ),
    OpCase(
        "TransQuantParamV2",
        lambda m: {"scale": torch.tensor([1.0, 0.3, -2.7])},
        lambda scale: torch.tensor([_packed(v) for v in scale.tolist()]),
        {"round_mode": 0},
        dtypes=ONE,
    ),
    OpCase(
        "TransQuantParamV2",
        lambda m: {"scale": torch.tensor([0.3]), "offset": torch.tensor([-5.6, 300.0, -999.0])},
        lambda scale, offset: torch.tensor([_packed(scale.item(), v) for v in (-6, 255, -256)]),
        dtypes=ONE,
        name="offset",
    ),
    OpCase(
        "TransQuantParamV2",
        lambda m: {"scale": torch.tensor([1 + 3 * 2**-11, 1 + 2**-11, 1 + 5 * 2**-12])},
        lambda scale: torch.tensor([_packed(1 + 2**-9), _packed(1.0), _packed(1 + 2**-10)]),
        {"round_mode": 1},
        dtypes=ONE,
        name="round_to_even",
    ),
]
