"""A rank whose part of the contracted dim is empty.

k differs between ranks, so it may not decide; and the fused ops take no k of 0. Such a rank multiplies columns
of zeros: one, or what whole groups of a quantised weight need.

What the strides of an empty tensor would be if it had elements cannot be told: torch calls every one contiguous. Where
the others are refused for a layout, the ranks differ, and say so before the first collective.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.passes.fx import value_of
from npu_fused_graph.passes.spellings.products import Product

_PER_WORD = 8
"""Elements of int4 in an int32."""


def with_zeros(x: Any, pad: list[int], call: Callable[..., Any]) -> Any:
    """``x`` with zeros behind it, as aten.constant_pad_nd counts them. call: makes the node, or the fake tensor."""
    return call(torch.ops.aten.constant_pad_nd.default, x, pad)


def zero_columns(product: Product) -> dict[str, list[int]]:
    """How "x", "weight" and the scales by name are padded: nothing unless k is 0. The weight as it is stored."""
    x, weight = value_of(product.x), value_of(product.weight)
    if not isinstance(x.shape[-1], int) or x.shape[-1] != 0:
        return {}
    group = product.scales.get("antiquant_group_size", 0)
    columns = 2 * group or 1
    axis = weight.dim() - 1 if product.is_stored_transposed else weight.dim() - 2
    rows = columns
    if weight.dtype is torch.int32 and weight.stride(axis) == 1:  # packed along k
        columns = max(columns, _PER_WORD)
        rows = columns // _PER_WORD
    pads = {"x": [0, columns], "weight": [0, 0] * (weight.dim() - 1 - axis) + [0, rows]}
    if group:
        pads |= {name: [0, 0, 0, 2] for name in ("antiquant_scale", "antiquant_offset") if name in product.scales}
    return pads
