"""MatmulAllReduceAddRmsNorm in float64, for judging what any implementation of it computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.ops.int4 import packed_axis, unpacked_int4
from npu_fused_graph.ops.trans_quant_param_v2 import unpack_quant_param

_ROWS = 512
"""Rows at a time: float64 of everything would not fit beside the ranks' inputs."""


def exact(calls: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Tensor, Tensor]]:
    """(y, norm_out) in float64 of one call, rank by rank. calls: arguments by Python name, in rank order.

    Each rank adds its own residual and weighs with its own gamma, as the kernel does when they differ.
    """
    n = calls[0]["residual"].size(-1)
    total = torch.zeros(calls[0]["residual"].numel() // max(n, 1), n, dtype=torch.float64)
    for call in calls:
        weight, x1 = _weight(call), call["x1"].reshape(-1, call["x1"].size(-1))
        for rows in _chunks(total):
            total[rows] += _scaled(x1[rows].double() @ weight, call)
    for call in calls:
        y = total + call["residual"].reshape(total.shape)
        norm_out = torch.empty_like(y)
        for rows in _chunks(y):
            rms = (y[rows].square().mean(-1, keepdim=True) + call["epsilon"]).sqrt()
            norm_out[rows] = y[rows] / rms * call["gamma"]
        yield y.reshape(call["residual"].shape), norm_out.reshape(call["residual"].shape)


def _chunks(x: Tensor) -> Iterator[slice]:
    for begin in range(0, x.size(0), _ROWS):
        yield slice(begin, begin + _ROWS)


def _weight(call: Mapping[str, Any]) -> Tensor:
    """x2 as real numbers."""
    x2, scale, offset = call["x2"], call["antiquant_scale"], call["antiquant_offset"]
    if x2.dtype is torch.int32:
        x2 = unpacked_int4(x2, packed_axis(x2, call["x1"].size(-1)))
    weight: Tensor = x2.double()
    if scale is None:
        return weight

    def per_row(parameter: Tensor) -> Tensor:
        size = call["antiquant_group_size"]
        return (parameter.repeat_interleave(size, 0)[: weight.size(0)] if size else parameter).double()

    return (weight if offset is None else weight + per_row(offset)) * per_row(scale)


def _scaled(product: Tensor, call: Mapping[str, Any]) -> Tensor:
    if call["bias"] is not None:
        product = product + call["bias"].double()
    scale = call["dequant_scale"]
    if scale is None:
        return product
    return product * (scale if scale.dtype is torch.bfloat16 else unpack_quant_param(scale)[0]).double()
