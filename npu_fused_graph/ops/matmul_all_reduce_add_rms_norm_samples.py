"""Valid calls of MatmulAllReduceAddRmsNorm, one rank's shard each: every scenario, layout and form of scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16)


class _Random:
    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def floats(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(dtype)

    def integers(self, *shape: int, dtype: torch.dtype = torch.int8, limit: int = 128) -> Tensor:
        return torch.randint(-limit, limit, shape, generator=self._generator).to(dtype)

    def scales(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return (torch.rand(shape, generator=self._generator) * 0.015 + 0.005).to(dtype)


def samples() -> Iterator[dict[str, Any]]:
    """Keyword arguments without ``hcom``. Values are seeded, weights and activations are never all zero."""
    random = _Random()
    for dtype in _FLOATS:
        yield from _float(random, dtype)
        yield from _full(random, dtype)
        yield from _weight_only(random, dtype)


def _common(random: _Random, b: int, s: int, n: int, dtype: torch.dtype, **arguments: Any) -> dict[str, Any]:
    """residual and gamma to the rest, and an epsilon that is not the default where there is a bias."""
    epsilon = 1e-6 if arguments.get("bias") is None else 1e-5
    residual, gamma = random.floats(b, s, n, dtype=dtype), random.floats(n, dtype=dtype)
    return {"residual": residual, "gamma": gamma, "bias": None, "epsilon": epsilon} | arguments


def _float(random: _Random, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    for x1_shape, (b, s), n, is_transposed, with_bias in (
        ((8, 32), (2, 4), 16, False, False),
        ((2, 4, 32), (2, 4), 16, True, False),
        ((2, 4, 33), (1, 8), 17, True, True),
        ((1, 1), (1, 1), 1, False, True),
        ((0, 32), (1, 0), 16, False, False),
        ((4, 32), (1, 4), 0, False, True),
    ):
        k = x1_shape[-1]
        x2 = random.floats(n, k, dtype=dtype).t() if is_transposed else random.floats(k, n, dtype=dtype)
        bias = random.floats(n, dtype=dtype) if with_bias else None
        yield _common(random, b, s, n, dtype, x1=random.floats(*x1_shape, dtype=dtype), x2=x2, bias=bias)


def _full(random: _Random, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    from npu_fused_graph.ops import trans_quant_param_v2

    for shape, is_transposed, with_bias, is_unsigned in (
        ((1,), False, False, False),
        ((16,), True, True, True),
        ((1, 16), True, False, False),
        ((1, 16), False, True, True),
    ):
        x2 = random.integers(16, 40).t() if is_transposed else random.integers(40, 16)
        scale = random.scales(*shape, dtype=torch.float32) * 0.1
        if dtype is torch.float16:
            words = trans_quant_param_v2.reference(scale)
            scale = words.view(torch.uint64) if is_unsigned else words
        else:
            scale = scale.to(dtype)
        bias = random.integers(16, dtype=torch.int32, limit=4000) if with_bias else None
        x1 = random.integers(2, 4, 40)
        yield _common(random, 2, 4, 16, dtype, x1=x1, x2=x2, bias=bias, dequant_scale=scale)


def _weight_only(random: _Random, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    for shape, group_size, is_transposed, with_offset, is_int4 in (
        ((1,), 0, False, False, False),
        ((16,), 0, True, True, False),
        ((1, 16), 0, False, True, False),
        ((3, 16), 32, False, True, False),
        ((3, 16), 32, True, True, False),
        ((2, 16), 64, True, False, False),
        ((16,), 0, False, True, True),
        ((3, 16), 32, True, True, True),
    ):
        k, n = 72, 16  # k is no multiple of the group sizes
        if is_int4:
            stored = random.integers(*((n, k // 8) if is_transposed else (k, n // 8)), dtype=torch.int32, limit=2**31)
        else:
            stored = random.integers(*((n, k) if is_transposed else (k, n)))
        arguments: dict[str, Any] = {
            "x1": random.floats(8, k, dtype=dtype),
            "x2": stored.t() if is_transposed else stored,
            "antiquant_scale": random.scales(*shape, dtype=dtype),
            "antiquant_offset": random.integers(*shape, dtype=dtype, limit=9) if with_offset else None,
            "antiquant_group_size": group_size,
            "bias": random.floats(n, dtype=dtype) if with_offset else None,
        }
        yield _common(random, 2, 4, n, dtype, **arguments)
