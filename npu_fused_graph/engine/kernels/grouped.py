"""Products of groups of rows, each with a weight of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from npu_fused_graph.engine.kernels.fused import antiquantised
from npu_fused_graph.engine.kernels.matmul import bmm, int_matmul, mm
from npu_fused_graph.engine.kernels.quant import dequantised, unpacked
from npu_fused_graph.engine.registry import Ints, kernel, unsupported

_GROUPED_DTYPES = {-1: torch.int8, 0: torch.float16, 1: torch.bfloat16, 2: torch.int32}
"""Result dtype of an int8 product by the attribute ``dtype``; other products keep the dtype of x."""
_ROWS = (torch.int8, torch.float16, torch.bfloat16, torch.float32)


@kernel(
    "GroupedMatmul",
    ignored=("tuning_config",),
    allowed={
        "split_item": (0, 1, 2, 3),
        "dtype": (-1, 0, 1, 2),
        "group_type": (-1, 0, 2),
        "group_list_type": (0, 1, 2),
        "act_type": (0, 1, 2, 4, 5),
    },
)
def grouped_matmul(
    x: list[Tensor],
    weight: list[Tensor],
    bias: list[Tensor],
    scale: list[Tensor],
    offset: list[Tensor],
    antiquant_scale: list[Tensor],
    antiquant_offset: list[Tensor],
    group_list: Ints | None = None,
    per_token_scale: Tensor | None = None,
    *,
    split_item: int = 0,
    dtype: int = 0,
    transpose_weight: bool = False,
    transpose_x: bool = False,
    group_type: int = -1,
    group_list_type: int = 0,
    act_type: int = 0,
) -> tuple[list[Tensor]]:
    """One product per group; rows (columns for group_type 2) that no group names give zeros.

    group_list: ends (type 0), sizes (type 1) or pairs of group and size (type 2). TorchAir feeds lists that are
    not used as one empty tensor. int4 rows and weights come as int8.
    """
    if x[0].dtype not in _ROWS:
        raise unsupported("GroupedMatmul", "x", "int8, float16, bfloat16 or float32", x[0])
    if transpose_x:
        x = [t.mT for t in x]
    if transpose_weight:
        weight = [t.mT for t in weight]
    groups = list(weight[0]) if len(weight) == 1 and weight[0].dim() == 3 else weight
    extras = _Extras(
        per_group(bias, len(groups)),
        per_group(scale, len(groups)),
        per_group(offset, len(groups)),
        per_group(antiquant_scale, len(groups)),
        per_group(antiquant_offset, len(groups)),
        per_token_scale,
        act_type,
    )
    out_dtype = _GROUPED_DTYPES[dtype] if x[0].dtype is torch.int8 else x[0].dtype
    if group_type == 2:
        return ([*_split_k(x[0], weight, group_list, group_list_type, split_item)],)
    if len(x) > 1 or group_list is None:
        if len(x) != len(groups):
            raise unsupported("GroupedMatmul", "x", f"{len(groups)} tensors, one per weight", len(x))
        parts = [extras.product(t, groups[i], i, slice(None), out_dtype) for i, t in enumerate(x)]
        return (parts if split_item < 2 else [torch.cat(parts)],)
    rows = x[0]
    spans = spans_of(group_list, group_list_type, len(groups), rows.shape[0])
    if split_item < 2:
        return ([extras.product(rows[a:b], groups[i], i, slice(a, b), out_dtype) for i, a, b in spans],)
    out = torch.empty(rows.shape[0], groups[0].shape[1], dtype=out_dtype)
    end = 0
    for i, a, b in spans:
        if b > a:
            out[a:b] = extras.product(rows[a:b], groups[i], i, slice(a, b), out_dtype)
        end = b
    out[end:] = 0
    return ([out],)


_ACTIVATIONS: dict[int, Callable[[Tensor], Tensor] | None] = {
    0: None,
    1: torch.relu,
    2: functools.partial(functional.gelu, approximate="tanh"),
    4: lambda x: x * torch.sigmoid(1.702 * x),
    5: functional.silu,
}
"""By ``act_type``: of quantised products only, before the result is rounded."""


class _Extras:
    """What surrounds the bare product of one group: bias, dequantisation, or a weight to dequantise first."""

    def __init__(
        self,
        bias: list[Tensor] | None,
        scale: list[Tensor] | None,
        offset: list[Tensor] | None,
        antiquant_scale: list[Tensor] | None,
        antiquant_offset: list[Tensor] | None,
        per_token_scale: Tensor | None,
        act_type: int,
    ) -> None:
        self.bias = bias
        self.scale = scale
        self.offset = offset
        self.antiquant_scale = antiquant_scale
        self.antiquant_offset = antiquant_offset
        self.per_token_scale = per_token_scale
        self.act_type = act_type

    def product(self, x: Tensor, weight: Tensor, group: int, rows: slice, dtype: torch.dtype) -> Tensor:
        bias = None if self.bias is None else self.bias[group]
        if x.dtype is torch.int8:
            return self._quantised(x, weight, group, rows, bias, dtype)
        if self.act_type:
            raise unsupported("GroupedMatmul", "act_type", f"0 for x in {x.dtype}", self.act_type)
        if weight.dtype is torch.int8:
            weight = self._plain_weight(weight, group).to(x.dtype)
        if weight.dtype is not x.dtype:
            raise ValueError(f"weight: expected {x.dtype}, the dtype of x, or torch.int8, got {weight.dtype}.")
        return mm(x, weight, bias) if x.dim() == 2 else bmm(x, weight, bias)

    def _quantised(
        self, x: Tensor, weight: Tensor, group: int, rows: slice, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        scale, offset = (None if part is None else part[group] for part in (self.scale, self.offset))
        token = None if self.per_token_scale is None else self.per_token_scale.reshape(-1)[rows]
        activation = _ACTIVATIONS[self.act_type]
        if activation is not None and not dtype.is_floating_point:
            raise unsupported("GroupedMatmul", "act_type", f"0 for results in {dtype}", self.act_type)
        is_blocked = scale is not None and scale.dim() == 2 and scale.shape[0] > 1
        if scale is not None and (is_blocked or is_four_bit(scale, bias)):
            if bias is not None and bias.dtype is not torch.float32:
                raise unsupported("GroupedMatmul", "bias", "float32 with scales per block of K", bias)
            value = four_bit_product(x, weight, scale, bias, offset)
            value = value if token is None else value * token.unsqueeze(-1)
        else:
            inner = dtype if activation is None else torch.float32
            scale = None if scale is None else scale.flatten()
            value = dequantised(int_matmul(x, weight), scale, token, bias, offset, inner, "GroupedMatmul")
        return (value if activation is None else activation(value)).to(dtype)

    def _plain_weight(self, weight: Tensor, group: int) -> Tensor:
        if self.antiquant_scale is None:
            raise unsupported("GroupedMatmul", "antiquant_scale", "a scale for an int8 weight", None)
        scale = self.antiquant_scale[group]
        offset = None if self.antiquant_offset is None else self.antiquant_offset[group]
        return antiquantised(weight, scale, offset, weight.shape[0] // scale.shape[0] if scale.dim() == 2 else 0)


def is_four_bit(scale: Tensor, bias: Tensor | None) -> bool:
    """Whether int8 rows meet an int4 weight: other 64-bit scales give int8 results, with an int32 bias."""
    return scale.dtype.itemsize == 8 and bias is not None and bias.dtype is torch.float32


def four_bit_product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, offset: Tensor | None) -> Tensor:
    """x @ (weight * scale) + offset * (sum of x's row) in float32; scale: (N) or (blocks of K, N), float32 bits.

    bias: sums of 8 * weight * scale over K. CANN's kernel lowers the low halves of x by 8 and adds it in their place;
    this takes away what the bias should be, and adds what it is.
    """
    if scale.dtype.itemsize == 8:
        scale, _ = unpacked(scale)
    scale = scale.float().reshape(-1, scale.shape[-1])
    block = weight.shape[0] // len(scale)
    left = x.unflatten(1, (len(scale), block)).transpose(0, 1)
    right = weight.unflatten(0, (len(scale), block))
    value = (int_matmul(left, right) * scale.unsqueeze(1)).sum(0)
    if bias is not None:
        value = value + (bias - 8 * (right.sum(1) * scale).sum(0))
    return value if offset is None else value + x.sum(1, keepdim=True) * offset.reshape(-1)


def per_group(values: list[Tensor], count: int) -> list[Tensor] | None:
    """One tensor per group from a tensor list; None for a list that is not used."""
    if not values or values[0].numel() == 0:
        return None
    return list(values[0]) if len(values) == 1 and values[0].dim() > 1 and values[0].shape[0] == count else values


def spans_of(group_list: Ints, kind: int, count: int | None, length: int) -> list[tuple[int, int, int]]:
    """(group, begin, end) along the grouped axis of that length. count: of weights, None = one for all groups.

    The groups may end before the axis does. Raises ValueError for other lists.
    """
    values: list[int] = list(group_list)
    if kind == 2:
        groups, sizes = values[0::2], values[1::2]
    else:
        groups, sizes = list(range(len(values))), values
    spans = []
    begin = 0
    for group, size in zip(groups, sizes, strict=True):
        end = size if kind == 0 else begin + size
        if not begin <= end <= length:
            what = "ends that do not decrease" if kind == 0 else "sizes that are not negative"
            raise ValueError(f"group_list: expected {what}, {length} in all at most, got {values}.")
        spans.append((group, begin, end))
        begin = end
    if count is not None:
        if kind != 2 and len(spans) != count:
            raise ValueError(f"group_list: expected {count} groups, as weights are given, got {len(spans)}.")
        if kind == 2 and not all(0 <= group < count for group in groups):
            raise ValueError(f"group_list: expected groups of 0 to {count - 1}, got {groups}.")
    return spans


def _split_k(x: Tensor, weight: list[Tensor], group_list: Ints | None, kind: int, split_item: int) -> list[Tensor]:
    """Groups along K: x [M, K]; one weight [K, N] gives [G, M, N], several [Ki, N] give one matrix each."""
    if len(weight) > 1:
        parts = []
        begin = 0
        for w in weight:
            parts.append(mm(x[:, begin : begin + w.shape[0]], w))
            begin += w.shape[0]
        return parts if split_item < 2 else [torch.stack(parts)]
    if group_list is None:
        raise unsupported("GroupedMatmul", "group_list", "a list with group_type 2 and one weight", None)
    spans = spans_of(group_list, kind, None, x.shape[1])
    out = torch.empty(len(spans), x.shape[0], weight[0].shape[1], dtype=x.dtype)
    for i, a, b in spans:
        out[i] = mm(x[:, a:b], weight[0][a:b])
    return list(out) if split_item < 2 else [out]
