"""What lies between the two quantised products of a gated feed-forward layer."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.quant import dynamically_quantised, integers
from npu_fused_graph.engine.registry import kernel, unsupported

_PLAIN, _INTERLEAVED, _HALVES, _CLAMPED = range(4)
"""Values of ``swiglu_mode``."""


@kernel(
    "DequantSwigluQuant",
    allowed={
        "quant_mode": ("static", "dynamic"), "dst_type": (torch.int8,), "round_mode": ("rint",), "activate_dim": (-1,),
        "swiglu_mode": (_PLAIN, _INTERLEAVED, _HALVES, _CLAMPED),
    },
)  # fmt: skip
def dequant_swiglu_quant(
    x: Tensor,
    weight_scale: Tensor | None = None,
    activation_scale: Tensor | None = None,
    bias: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    group_index: Tensor | None = None,
    *,
    activate_left: bool = False,
    quant_mode: str = "static",
    dst_type: torch.dtype = torch.int8,
    round_mode: str = "rint",
    activate_dim: int = -1,
    swiglu_mode: int = _PLAIN,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """int8(swiglu((x + int32 bias) * weight_scale * activation_scale + float bias)) and its scale per row.

    "dynamic" multiplies by quant_scale and finds the scale; "static" divides by quant_scale, adds quant_offset and
    leaves the scale zero. group_index: rows per group, or (group, rows) pairs; rows of no group give zeros.
    """
    if x.dtype is not torch.int32:
        for name, given in (("weight_scale", weight_scale), ("activation_scale", activation_scale), ("bias", bias)):
            if given is not None:
                raise unsupported("DequantSwigluQuant", name, f"none for x in {x.dtype}", given)
    rows = _Rows(x, group_index)
    value = _swiglu(
        _dequantised(x, rows.of(weight_scale), activation_scale, rows.of(bias)),
        activate_left, swiglu_mode, clamp_limit, glu_alpha, glu_bias,
    )  # fmt: skip
    factor, offset = rows.of(quant_scale), rows.of(quant_offset)
    if quant_mode == "dynamic":
        y, scale = dynamically_quantised(value if factor is None else value * factor)
    else:
        if factor is not None:
            value = value / factor
        if offset is not None:
            value = value + offset
        y, scale = integers(value, torch.int8), value.new_zeros(value.shape[:-1])
    return rows.zeroed(y), rows.zeroed(scale)


class _Rows:
    """The group of every row of ``x``; without groups all rows are of one."""

    def __init__(self, x: Tensor, group_index: Tensor | None) -> None:
        self._group: Tensor | None = None
        self._outside: Tensor | None = None
        if group_index is None:
            return
        names, sizes = group_index.unbind(1) if group_index.dim() == 2 else (None, group_index)
        ends = sizes.long().clamp(min=0).cumsum(0)
        row = torch.arange(x.shape[0])
        group = torch.searchsorted(ends, row, right=True)
        self._outside = group == len(ends)
        group.clamp_(max=len(ends) - 1)
        self._group = group if names is None else names[group].long()

    def of(self, parameter: Tensor | None) -> Tensor | None:
        """Per row what ``parameter`` has per group. Only its memory counts: models pass scales as columns, too."""
        if parameter is None:
            return None
        return parameter.flatten() if self._group is None else parameter.reshape(len(parameter), -1)[self._group]

    def zeroed(self, y: Tensor) -> Tensor:
        if self._outside is not None:
            y[self._outside] = 0
        return y


def _dequantised(
    x: Tensor, weight_scale: Tensor | None, activation_scale: Tensor | None, bias: Tensor | None
) -> Tensor:
    """In float32."""
    if bias is not None and bias.dtype is torch.int32:
        x, bias = x + bias, None
    value = x.float()
    if weight_scale is not None:
        value = value * weight_scale
    if activation_scale is not None:
        value = value * activation_scale.reshape(*x.shape[:-1], 1)
    return value if bias is None else value + bias


def _swiglu(value: Tensor, activate_left: bool, mode: int, limit: float, alpha: float, shift: float) -> Tensor:
    """swish(gate) * up; the other modes clamp as GPT-OSS does (1 with interleaved columns, 2) and Step 3.5 (3)."""
    if mode == _INTERLEAVED:
        gate, up = value[..., ::2], value[..., 1::2]
    else:
        first, second = value.chunk(2, -1)
        gate, up = (first, second) if activate_left else (second, first)
    if mode == _PLAIN:
        return torch.nn.functional.silu(gate) * up
    up = up.clamp(-limit, limit)
    if mode == _CLAMPED:
        return torch.nn.functional.silu(gate).clamp_(max=limit) * up
    gate = gate.clamp(max=limit)
    return gate * torch.sigmoid(alpha * gate) * (up + shift)
