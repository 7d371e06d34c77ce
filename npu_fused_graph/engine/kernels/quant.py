"""Quantisation."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.dtypes import to_torch
from npu_fused_graph.engine.registry import Allowed, kernel, unsupported


def dequantised(
    product: Tensor,
    scale: Tensor | None,
    per_token_scale: Tensor | None,
    bias: Tensor | None,
    offset: Tensor | None,
    dtype: torch.dtype,
    ge_type: str,
) -> Tensor:
    """An int32 product brought to ``dtype``: an int32 bias before the scales, any other after them.

    A 64-bit scale is a packed quantisation parameter (see TransQuantParamV2).
    """
    if bias is not None and bias.dtype is torch.int32:
        product = product + bias
        bias = None
    if dtype is torch.int32:
        if bias is not None or per_token_scale is not None or scale is not None:
            raise unsupported(ge_type, "dtype", "no scale and no float bias with an int32 result", dtype)
        return product
    if scale is None:
        raise unsupported(ge_type, "scale", f"a scale for a result in {dtype}", None)
    if scale.dtype.itemsize == 8:
        scale, packed_offset = unpacked(scale)
        offset = packed_offset if offset is None else offset
    result = product * scale.float()
    if per_token_scale is not None:
        result = result * per_token_scale.unsqueeze(-1)
    if bias is not None:
        result = result + bias
    if dtype is torch.int8:
        if offset is not None:
            result = result + offset
        return integers(result, dtype)
    return result.to(dtype)


def unpacked(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, offset) of packed quantisation parameters: 19 float bits from bit 13 on, 9-bit offset from bit 37 on."""
    bits = parameter.contiguous().view(torch.int64)
    scale = (bits & 0xFFFFE000).to(torch.uint32).view(torch.float32)
    offset = (bits >> 37) & 0x1FF
    return scale, torch.where(offset > 255, offset - 512, offset).float()


_INT4 = to_torch("int4")
_RANGE = {torch.int8: (-128, 127), torch.uint8: (0, 255), torch.int32: (-(1 << 31), (1 << 31) - 1), _INT4: (-8, 7)}


def integers(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest integers in the range of ``dtype``, ties to even. int4 elements take a byte each."""
    if dtype is torch.int32:
        value = value.double()  # float32 has no 2^31 - 1
    value = value.round().clamp_(*_RANGE[dtype])
    return value.to(torch.int8).view(_INT4) if dtype is _INT4 else value.to(dtype)


def dynamically_quantised(value: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """(integers, scale) of float32 rows: the scale maps the largest magnitude to the largest integer."""
    scale = value.abs().amax(-1, keepdim=True).div_(_RANGE[dtype][1])
    return integers(value / scale.masked_fill(scale == 0, 1), dtype), scale.squeeze(-1)


_QUANTISED: Allowed = {"dst_type": (torch.int8, _INT4)}
_EPSILON = 1e-12
"""The least scale of CANN's asymmetric quantisation: equal values have one, too."""


@kernel("DynamicQuant", allowed=_QUANTISED)
def dynamic_quant(
    x: Tensor,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    *,
    dst_type: torch.dtype = torch.int8,
) -> tuple[Tensor, Tensor]:
    """Symmetric, one scale per row. group_index: ends of the row groups, each with its own smooth_scales row."""
    return dynamically_quantised(_smoothed(x, smooth_scales, group_index), dst_type)


@kernel(
    "DynamicQuantV2",
    allowed=_QUANTISED | {"quant_mode": ("pertoken",), "dst_type_max": (0.0,), "is_symmetrical": (False,)},
)
def dynamic_quant_v2(
    x: Tensor,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    *,
    dst_type: torch.dtype = torch.int8,
    is_symmetrical: bool = False,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric, a scale and an offset per row: x / scale + offset, the row's maximum at the largest integer."""
    value = _smoothed(x, smooth_scales, group_index)
    least, most = _RANGE[dst_type]
    low, high = value.aminmax(dim=-1, keepdim=True)
    scale = (high - low).div_(most - least).clamp_(min=_EPSILON)
    offset = most - high / scale
    return integers(value / scale + offset, dst_type), scale.squeeze(-1), offset.squeeze(-1)


def _smoothed(x: Tensor, smooth_scales: Tensor | None, group_index: Tensor | None) -> Tensor:
    wide = x.float()
    if smooth_scales is None:
        return wide
    if group_index is not None:
        rows = torch.arange(wide[..., 0].numel())
        group = torch.searchsorted(group_index.long(), rows, right=True).clamp_(max=smooth_scales.shape[0] - 1)
        smooth_scales = smooth_scales[group].reshape(wide.shape)
    return wide * smooth_scales


_BLOCK = 128


@kernel(
    "DynamicBlockQuant",
    allowed={
        "dst_type": (torch.int8,), "round_mode": ("rint",), "row_block_size": (1,), "col_block_size": (_BLOCK,),
        "dst_type_max": (0.0,),
    },
)  # fmt: skip
def dynamic_block_quant(
    x: Tensor,
    *,
    min_scale: float = 0.0,
    round_mode: str = "rint",
    dst_type: torch.dtype = torch.float8_e5m2,
    row_block_size: int = 1,
    col_block_size: int = _BLOCK,
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Symmetric, a scale per 128 elements of a row: min(largest magnitude / 127, 1 / min_scale)."""
    columns = x.shape[-1]
    padded = torch.nn.functional.pad(x.float(), (0, -columns % _BLOCK))
    blocks = padded.unflatten(-1, (padded.shape[-1] // _BLOCK, _BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True).div_(127)
    if min_scale:
        scale = scale.clamp_(max=1 / min_scale)
    quantised = integers(blocks / scale.masked_fill(scale == 0, 1), torch.int8)
    return quantised.flatten(-2)[..., :columns].contiguous(), scale.squeeze(-1)


_NAMED = {"torch.qint8": torch.int8, "torch.quint8": torch.uint8, "torch.qint32": torch.int32}


@kernel("Quantize", allowed={"dtype": tuple(_NAMED)})
def quantize(x: Tensor, scales: Tensor, zero_points: Tensor | None = None, *, dtype: str, axis: int = 1) -> Tensor:
    """x / scales + zero_points in integers; vectors lie along ``axis``."""
    value = x.float() / _on_axis(scales, x.dim(), axis)
    if zero_points is not None:
        value = value + _on_axis(zero_points, x.dim(), axis)
    return integers(value, _NAMED[dtype])


def _on_axis(parameter: Tensor, rank: int, axis: int) -> Tensor:
    parameter = parameter.float()
    return (
        parameter.reshape([-1 if i == axis % rank else 1 for i in range(rank)]) if parameter.dim() == 1 else parameter
    )


_ROUNDING = {"round": torch.round, "floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc}


@kernel("AscendQuantV2", allowed=_QUANTISED | {"round_mode": tuple(_ROUNDING), "axis": (-1, -2)})
def ascend_quant_v2(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    *,
    sqrt_mode: bool = False,
    round_mode: str = "round",
    dst_type: torch.dtype = torch.int8,
    axis: int = -1,
) -> Tensor:
    """x * scale + offset in integers, scale along ``axis``; sqrt_mode applies the scale twice."""
    factor = _along(scale, axis)
    value = x.float() * factor
    if sqrt_mode:
        value = value * factor
    if offset is not None:
        value = value + _along(offset, axis)
    return integers(_ROUNDING[round_mode](value), dst_type)


def _along(parameter: Tensor, axis: int) -> Tensor:
    parameter = parameter.float()
    return parameter.unsqueeze(-1) if axis == -2 and parameter.dim() == 1 else parameter


@kernel("AscendDequant")
def ascend_dequant(
    x: Tensor,
    deq_scale: Tensor,
    *,
    sqrt_mode: bool = False,
    relu_flag: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    factor = unpacked(deq_scale)[0] if deq_scale.dtype.itemsize == 8 else deq_scale.float()
    value = x * factor
    if sqrt_mode:
        value = value * factor
    if relu_flag:
        value = value.relu_()
    return value.to(dtype)
