"""Norms, SwiGLU, rotary embeddings: float64 oracles after the formulas of torch_npu's documents (op-plugin)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tests.host.npu_cases.base import (
    FLOATS,
    HALVES,
    Case,
    Cases,
    normal,
    short,
    steps,
    wide,
)


def rms_norm_of(x: np.ndarray, gamma: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    axes = tuple(range(x.ndim - gamma.ndim, x.ndim))
    rstd = 1 / np.sqrt(np.mean(x * x, axes, keepdims=True) + epsilon)
    return x * rstd * gamma, rstd


def rms_norm_cases() -> Cases:
    forms = [(dtype, dtype, (16,), {}) for dtype in FLOATS]
    forms += [(dtype, torch.float32, (16,), {"epsilon": 0.05}) for dtype in HALVES]
    forms += [(torch.float32, torch.float32, (3, 16), {"epsilon": 0.05})]
    for dtype, gamma_dtype, shape, kwargs in forms:
        x, gamma = normal(2, 3, 16, dtype=dtype), normal(*shape, dtype=gamma_dtype)
        y, rstd = rms_norm_of(wide(x), wide(gamma), kwargs.get("epsilon", 1e-6))
        name = f"{short(dtype)}, gamma {short(gamma_dtype)} {len(shape)}d"
        yield name, Case("npu_rms_norm", (x, gamma), ((y, dtype), (rstd, torch.float32)), kwargs)


def add_rms_norm_cases() -> Cases:
    for dtype, kwargs in zip(FLOATS, ({}, {"epsilon": 0.05}, {}), strict=True):
        x1, x2 = (steps(4, 3, 16, most=8, step=0.125, dtype=dtype) for _ in range(2))  # sums are exact
        gamma = normal(16, dtype=dtype)
        x = wide(x1) + wide(x2)
        y, rstd = rms_norm_of(x, wide(gamma), kwargs.get("epsilon", 1e-6))
        expected = ((y, dtype), (rstd, torch.float32), (x, dtype))
        yield short(dtype), Case("npu_add_rms_norm", (x1, x2, gamma), expected, kwargs)


def add_rms_norm_cast_cases() -> Cases:
    """Of few bfloat16 rows the norm in float32 is the one before it is rounded."""
    for name, kwargs in {"default": {}, "epsilon": {"epsilon": 0.05}}.items():
        dtype = torch.bfloat16
        x1, x2 = (steps(4, 3, 16, most=8, step=0.125, dtype=dtype) for _ in range(2))
        gamma = normal(16, dtype=dtype)
        x = wide(x1) + wide(x2)
        y, rstd = rms_norm_of(x, wide(gamma), kwargs.get("epsilon", 1e-6))
        expected = ((y, torch.float32), (y, dtype), (rstd, torch.float32), (x, dtype))
        yield name, Case("npu_add_rms_norm_cast", (x1, x2, gamma), expected, kwargs)


def swiglu_cases() -> Cases:
    for dtype, kwargs in zip(FLOATS, ({}, {"dim": 1}, {"dim": -2}), strict=True):
        x = normal(2, 6, 8, dtype=dtype, scale=2)
        a, b = np.split(wide(x), 2, kwargs.get("dim", -1))
        yield f"{short(dtype)}, {kwargs}", Case("npu_swiglu", (x,), ((a / (1 + np.exp(-a)) * b, dtype),), kwargs)


def geglu_cases() -> Cases:
    """approximate=1: by tanh, the default; the left half is activated on request."""
    for dtype, kwargs in zip(FLOATS, ({}, {"dim": 1, "activate_left": True}, {"approximate": 0}), strict=True):
        x = normal(2, 6, 8, dtype=dtype, scale=2)
        a, b = np.split(wide(x), 2, kwargs.get("dim", -1))
        gate, value = (a, b) if kwargs.get("activate_left") else (b, a)
        share = np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))
        if kwargs.get("approximate") == 0:
            share = np.vectorize(math.erf)(gate / np.sqrt(2))
        gelu = gate * (1 + share) / 2
        yield f"{short(dtype)}, {kwargs}", Case("npu_geglu", (x,), ((gelu * value, dtype), (gelu, dtype)), kwargs)


def plain_cases() -> Cases:
    """x sigmoid(1.702 x); x weight^T + bias; another dtype; rows replaced."""
    for dtype in FLOATS:
        x = normal(4, 16, dtype=dtype, scale=2)
        yield short(dtype), Case("npu_fast_gelu", (x,), ((wide(x) / (1 + np.exp(-1.702 * wide(x))), dtype),))
        weight, bias = normal(8, 16, dtype=dtype), normal(8, dtype=dtype)
        product = wide(x) @ wide(weight).T
        yield short(dtype), Case("npu_linear", (x, weight), ((product, dtype),))
        if dtype is not torch.bfloat16:
            yield f"{short(dtype)}, bias", Case("npu_linear", (x, weight, bias), ((product + wide(bias), dtype),))
        for other in FLOATS:
            exact = wide(x.to(other))
            yield f"{short(dtype)} to {short(other)}", Case("npu_dtype_cast", (x, other), ((exact, other),))
        rows, values = torch.tensor([[3], [0]]), normal(2, 16, dtype=dtype)
        expected = wide(x).copy()
        expected[[3, 0]] = wide(values)
        yield short(dtype), Case("npu_scatter_nd_update", (x, rows, values), ((expected, dtype),))


# -- rotary embedding ----------------------------------------------------------------------------------------


def rotated(x: Tensor, cos: Tensor, sin: Tensor, mode: str = "half") -> np.ndarray:
    """half: element i turns with i + D / 2. interleave: element 2 i turns with 2 i + 1."""
    if mode == "interleave":
        turned = np.stack((-wide(x)[..., 1::2], wide(x)[..., 0::2]), -1).reshape(x.shape)
    else:
        first, second = np.split(wide(x), 2, -1)
        turned = np.concatenate((-second, first), -1)
    return wide(x) * wide(cos) + turned * wide(sin)


def angles(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cos, sin = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype)
    return cos, sin


def rotary_mul_cases() -> Cases:
    forms = {
        "BSND": ((2, 5, 3, 16), (1, 5, 1, 16), ()),
        "BNSD": ((2, 3, 5, 16), (1, 1, 5, 16), ("half",)),
        "SBND": ((5, 2, 3, 16), (5, 1, 1, 16), ()),
        "TND": ((5, 3, 16), (5, 1, 16), ("half",)),
        "BSND, interleave": ((2, 5, 3, 16), (1, 5, 1, 16), ("interleave",)),
    }
    for index, (layout, (shape, angle_shape, mode)) in enumerate(forms.items()):
        dtype = FLOATS[index % 3]
        x, (cos, sin) = normal(*shape, dtype=dtype), angles(*angle_shape, dtype=dtype)
        yield (
            f"{layout} {short(dtype)}",
            Case("npu_rotary_mul", (x, cos, sin, *mode), ((rotated(x, cos, sin, *mode), dtype),)),
        )


def apply_rotary_cases() -> Cases:
    """The returned tensors. On a device query and key are overwritten as well."""
    for dtype, rows, args in zip(FLOATS, ((2, 5), (2, 5), (10,)), ((), ("BSND", "half"), ("TND",)), strict=True):
        query, key = normal(*rows, 4, 64, dtype=dtype), normal(*rows, 2, 64, dtype=dtype)
        cos, sin = angles(*rows, 1, 64, dtype=dtype)
        expected = ((rotated(query, cos, sin), dtype), (rotated(key, cos, sin), dtype))
        yield f"{short(dtype)} {args}", Case("npu_apply_rotary_pos_emb", (query, key, cos, sin, *args), expected)


def cases() -> Cases:
    for family in (
        rms_norm_cases,
        add_rms_norm_cases,
        add_rms_norm_cast_cases,
        swiglu_cases,
        geglu_cases,
        plain_cases,
        rotary_mul_cases,
        apply_rotary_cases,
    ):
        yield from family()
