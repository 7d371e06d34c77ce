"""Quantisation."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.matmul import int_matmul
from npu_fused_graph.engine.registry import kernel, unsupported


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
        return result.round_().clamp_(-128, 127).to(dtype)
    return result.to(dtype)


def unpacked(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, offset) of packed quantisation parameters: 19 float bits from bit 13 on, 9-bit offset from bit 37 on."""
    bits = parameter.contiguous().view(torch.int64)
    scale = (bits & 0xFFFFE000).to(torch.uint32).view(torch.float32)
    offset = (bits >> 37) & 0x1FF
    return scale, torch.where(offset > 255, offset - 512, offset).float()


@kernel(
    "QuantBatchMatmulV3",
    same_dtype=("x1", "x2"),
    allowed={"dtype": (torch.float16, torch.bfloat16, torch.int8)},
)
def quant_batch_matmul_v3(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    *,
    dtype: torch.dtype,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
) -> Tensor:
    """(x1 @ x2 + int32 bias) * scale * pertoken_scale + float bias; the offset belongs to int8 results."""
    product = int_matmul(x1.mT if transpose_x1 else x1, x2.mT if transpose_x2 else x2)
    return dequantised(product, scale, pertoken_scale, bias, offset, dtype, "QuantBatchMatmulV3")


@kernel("DynamicQuant", allowed={"dst_type": (torch.int8,)})
def dynamic_quant(
    x: Tensor,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    *,
    dst_type: torch.dtype = torch.int8,
) -> tuple[Tensor, Tensor]:
    """Symmetric, one scale per row. group_index: ends of the row groups, each with its own smooth_scales row."""
    wide = x.float()
    if smooth_scales is not None:
        if group_index is not None:
            rows = torch.arange(wide[..., 0].numel())
            group = torch.searchsorted(group_index.long(), rows, right=True).clamp_(max=smooth_scales.shape[0] - 1)
            smooth_scales = smooth_scales[group].reshape(wide.shape)
        wide = wide * smooth_scales
    scale = wide.abs().amax(-1, keepdim=True).div_(127)
    quantised = (wide / scale.masked_fill(scale == 0, 1)).round_()
    return quantised.to(torch.int8), scale.squeeze(-1)


_ROUNDING = {"round": torch.round, "floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc}


@kernel("AscendQuantV2", allowed={"dst_type": (torch.int8,), "round_mode": tuple(_ROUNDING), "axis": (-1, -2)})
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
    """x * scale + offset in int8, scale along ``axis``; sqrt_mode applies the scale twice."""
    factor = _along(scale, axis)
    value = x.float() * factor
    if sqrt_mode:
        value = value * factor
    if offset is not None:
        value = value + _along(offset, axis)
    return _ROUNDING[round_mode](value).clamp_(-128, 127).to(torch.int8)


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
