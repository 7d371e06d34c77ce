"""Random numbers of aten. Seeds advance as torch's do; the numbers are GE's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import by_torch, unsupported

aten = torch.ops.aten


def rand_like(x: torch.Tensor, *, dtype: torch.dtype | None = None, **_options: Any) -> torch.Tensor:
    return torch.rand(x.shape, dtype=dtype or x.dtype)


def randn_like(x: torch.Tensor, *, dtype: torch.dtype | None = None, **_options: Any) -> torch.Tensor:
    return torch.randn(x.shape, dtype=dtype or x.dtype)


def randint_low(low: Any, high: Any, size: Any, *, dtype: torch.dtype | None = None, **_options: Any) -> torch.Tensor:
    """The width must stay below 2**24: TorchAir draws a float32 and scales it."""
    if isinstance(low, int) and isinstance(high, int) and high - low > 1 << 24:
        raise unsupported("randint", "high - low", "at most 2**24", high - low, "Draw the number in two parts.")
    wanted = dtype or torch.int64
    numbers = torch.randint(high - low, size, dtype=torch.int64) + low
    result: torch.Tensor = numbers.to(wanted)
    return result


def randint_like(x: torch.Tensor, high: Any, *, dtype: torch.dtype | None = None, **_options: Any) -> torch.Tensor:
    return randint_low(0, high, x.shape, dtype=dtype or x.dtype)


def randint_like_low(
    x: torch.Tensor, low: Any, high: Any, *, dtype: torch.dtype | None = None, **_options: Any
) -> torch.Tensor:
    return randint_low(low, high, x.shape, dtype=dtype or x.dtype)


def normal_functional(x: torch.Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> torch.Tensor:
    return torch.randn(x.shape, dtype=x.dtype) * std + mean


def normal_numbers(
    mean: float, std: float, size: Any, *, generator: Any = None, dtype: torch.dtype | None = None, **_options: Any
) -> torch.Tensor:
    return torch.randn(size, dtype=dtype) * std + mean


def normal_tensors(mean: Any, std: Any = 1.0, *, generator: Any = None) -> torch.Tensor:
    mean_shape = mean.shape if isinstance(mean, torch.Tensor) else ()
    std_shape = std.shape if isinstance(std, torch.Tensor) else ()
    dtype = mean.dtype if isinstance(mean, torch.Tensor) else std.dtype
    result: torch.Tensor = torch.randn(torch.broadcast_shapes(mean_shape, std_shape), dtype=dtype) * std + mean
    return result


def exponential(x: torch.Tensor, lambd: float = 1.0, *, generator: Any = None) -> torch.Tensor:
    """Drawn in float32: in half precision 1 - u is 0 too often."""
    numbers = -torch.log1p(-torch.rand(x.shape, dtype=torch.float32)) / lambd
    return numbers.to(x.dtype)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.rand_like.default: by_torch(rand_like),
    aten.randn_like.default: by_torch(randn_like),
    aten.randint.low: by_torch(randint_low),
    aten.randint_like.default: by_torch(randint_like),
    aten.randint_like.low_dtype: by_torch(randint_like_low),
    aten.normal_functional.default: by_torch(normal_functional),
    aten.normal.float_float: by_torch(normal_numbers),
    aten.normal.Tensor_float: by_torch(normal_tensors),
    aten.normal.float_Tensor: by_torch(normal_tensors),
    aten.normal.Tensor_Tensor: by_torch(normal_tensors),
    aten.exponential.default: by_torch(exponential),
}
