"""Samples for engine/kernels/quant.py."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from tests.engine.op_case import FLOATS, Make, OpCase

ONE = ("float32",)


def packed(scale: float, offset: int = 0) -> int:
    bits = struct.unpack("<I", struct.pack("<f", scale))[0]
    return (bits & 0xFFFFE000) | 1 << 46 | (offset & 0x1FF) << 37


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


def _asymmetric(x: Tensor) -> list[Tensor]:
    low, high = x.min(-1).values, x.max(-1).values
    scale = (high - low) / 255
    offset = 127 - high / scale
    y = (x / scale.unsqueeze(-1) + offset.unsqueeze(-1)).round().to(torch.int8)
    return [y, scale, offset]


def _blocks(x: Tensor, min_scale: float) -> list[Tensor]:
    pieces, scales = [], []
    for block in x.split(128, -1):
        scale = block.abs().max(-1, keepdim=True).values / 127
        if min_scale:
            scale = scale.clamp(max=1 / min_scale)
        pieces.append(_in_range(block / scale, -128, 127, torch.int8))
        scales.append(scale)
    return [torch.cat(pieces, -1), torch.cat(scales, -1)]


def _in_range(value: Tensor, low: int, high: int, dtype: torch.dtype) -> Tensor:
    return value.round().clamp(low, high).to(dtype)


CASES = [
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
        "DynamicQuantV2",
        lambda m: {"x": m(2, 3, 8)},
        _asymmetric,
        {"dst_type": 2, "is_symmetrical": False, "quant_mode": "pertoken", "dst_type_max": 0.0},
        outputs=("y", "scale", "offset"),
    ),
    OpCase(
        "DynamicQuantV2",
        lambda m: {"x": m(3, 8), "smooth_scales": m(8, low=0.5, high=2)},
        lambda x, smooth_scales: _asymmetric(x * smooth_scales),
        outputs=("y", "scale", "offset"),
        dtypes=("float32",),  # the others round the product
        name="smooth",
    ),
    OpCase(
        "DynamicQuantV2",
        lambda m: {
            "x": m(2, 3, 8),
            "smooth_scales": torch.tensor([[1.0], [2.0], [4.0]]).expand(3, 8).contiguous().to(m.dtype),
            "group_index": torch.tensor([2, 2, 6], dtype=torch.int32),
        },
        lambda x, smooth_scales, group_index: _asymmetric(_smooth_rows(x, smooth_scales, group_index)),
        outputs=("y", "scale", "offset"),
        name="groups",
    ),
    OpCase(
        "DynamicQuantV2",
        lambda m: {"x": torch.zeros(2, 4, dtype=m.dtype)},
        lambda x: [torch.full((2, 4), 127, dtype=torch.int8), torch.full((2,), 1e-12), torch.full((2,), 127.0)],
        outputs=("y", "scale", "offset"),
        name="zeros",
    ),
    OpCase(
        "DynamicBlockQuant",
        lambda m: {"x": _exact(m, 2, 256)},
        lambda x: _blocks(x, 0.0),
        {"dst_type": 2, "round_mode": "rint", "row_block_size": 1, "col_block_size": 128, "dst_type_max": 0.0},
        outputs=("y", "scale"),
    ),
    OpCase(
        "DynamicBlockQuant",
        lambda m: {"x": m(2, 3, 130)},
        lambda x: _blocks(x, 64.0),
        {"dst_type": 2, "min_scale": 64.0},
        outputs=("y", "scale"),
        name="least_scale_odd_columns",
    ),
    OpCase(
        "Quantize",
        lambda m: {"x": m(3, 5), "scales": m(3, 1, low=0.02, high=0.03).float()},
        lambda x, scales: _in_range(x / scales, -128, 127, torch.int8),
        {"dtype": "torch.qint8", "axis": 0},
    ),
    OpCase(
        "Quantize",
        lambda m: {
            "x": m(3, 5),
            "scales": m(5, low=0.02, high=0.03).float(),
            "zero_points": m.ints(5, low=0, high=255, dtype=torch.uint8),
        },
        lambda x, scales, zero_points: _in_range(x / scales + zero_points, 0, 255, torch.uint8),
        {"dtype": "torch.quint8", "axis": -1},
        name="vectors",
    ),
    OpCase(
        "Quantize",
        lambda m: {
            "x": torch.tensor([[-3.0, 0.5, 1.5, 3.0]], dtype=m.dtype),
            "scales": torch.tensor([[1e-30, 1.0, 1.0, 1e-30]]),
            "zero_points": torch.zeros(1, 4, dtype=torch.int32),
        },
        lambda x, scales, zero_points: torch.tensor([[-(2**31), 0, 2, 2**31 - 1]], dtype=torch.int32),
        {"dtype": "torch.qint32"},
        name="saturation_and_ties",
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
            "deq_scale": torch.tensor([packed(0.5), packed(0.25)]).to(torch.uint64),
        },
        lambda x, deq_scale: x * torch.tensor([0.5, 0.25], dtype=torch.float64),
        dtypes=ONE,
        name="packed",
    ),
    OpCase(
        "TransQuantParamV2",
        lambda m: {"scale": torch.tensor([1.0, 0.3, -2.7])},
        lambda scale: torch.tensor([packed(v) for v in scale.tolist()]),
        {"round_mode": 0},
        dtypes=ONE,
    ),
    OpCase(
        "TransQuantParamV2",
        lambda m: {"scale": torch.tensor([0.3]), "offset": torch.tensor([-5.6, 300.0, -999.0])},
        lambda scale, offset: torch.tensor([packed(scale.item(), v) for v in (-6, 255, -256)]),
        dtypes=ONE,
        name="offset",
    ),
    OpCase(
        "TransQuantParamV2",
        lambda m: {"scale": torch.tensor([1 + 3 * 2**-11, 1 + 2**-11, 1 + 5 * 2**-12])},
        lambda scale: torch.tensor([packed(1 + 2**-9), packed(1.0), packed(1 + 2**-10)]),
        {"round_mode": 1},
        dtypes=ONE,
        name="round_to_even",
    ),
]
