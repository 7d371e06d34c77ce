"""Special functions of aten."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import by_torch

aten = torch.ops.aten

_SHIFT = 7
"""From here on Stirling's series is good to a few units in the last place of double precision."""

_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
"""B(2k) / (2k (2k - 1)), the factors of the odd powers of 1 / x."""


def lgamma(x: torch.Tensor) -> torch.Tensor:
    """In float64: near its zeros at 1 and 2 the terms cancel."""
    result_dtype = x.dtype if x.is_floating_point() else torch.float32
    x = x.to(torch.float64)
    is_left = x < 0.5
    y = torch.where(is_left, 1 - x, x)
    to_shift = y < _SHIFT
    product = torch.ones_like(y)
    for i in range(_SHIFT):
        product = product * (y + i)
    far = torch.where(to_shift, y + _SHIFT, y)
    inverse = 1 / far
    square = inverse * inverse
    series = torch.zeros_like(far)
    for factor in reversed(_STIRLING):
        series = series * square + factor
    right = (far - 0.5) * torch.log(far) - far + 0.5 * math.log(2 * math.pi) + series * inverse
    right = right - torch.where(to_shift, torch.log(product), torch.zeros_like(right))
    right = torch.where(y == math.inf, y, right)
    turn = torch.abs(torch.sin(math.pi * (x - torch.round(x))))  # so that nothing of a small x is lost
    left = math.log(math.pi) - torch.log(turn) - right  # inf at the whole numbers
    result = torch.where(is_left, left, right)
    return torch.where(torch.abs(x) == math.inf, torch.full_like(x, math.inf), result).to(result_dtype)


CONVERTERS: dict[Any, Callable[..., Any]] = {aten.lgamma.default: by_torch(lgamma)}
