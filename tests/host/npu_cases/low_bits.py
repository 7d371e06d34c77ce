"""8- and 4-bit inference: float64 oracles after the formulas of torch_npu's documents (op-plugin)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.host.npu_cases.base import (
    FLOATS,
    HALVES,
    Case,
    Cases,
    int8,
    int32,
    normal,
    positive,
    rounded,
    rounded_clear_of_ties,
    short,
    steps,
    wide,
)

SEED = 21
"""Its data stay clear of ties."""


def int4(*shape: int) -> np.ndarray:
    return int8(*shape, most=7).numpy().astype(np.int64)


def packed(values: np.ndarray) -> Tensor:
    """Eight elements of the last axis in an int32, the first in the lowest bits."""
    words = (values.reshape(*values.shape[:-1], -1, 8) % 16 << np.arange(0, 32, 4)).sum(-1)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32))


def as_int32(values: np.ndarray) -> tuple[np.ndarray, torch.dtype]:
    return packed(values.astype(np.int64)).numpy(), torch.int32


# -- quantisation --------------------------------------------------------------------------------------------


def dynamic_quant_cases() -> Cases:
    for dtype in HALVES:
        x = normal(3, 5, 16, dtype=dtype)
        value = wide(x)
        scale = np.abs(value).max(-1, keepdims=True) / 7
        y = rounded_clear_of_ties(value / scale)
        expected: list[Any] = [as_int32(y), (scale[..., 0], torch.float32)]
        yield f"int4 {short(dtype)}", Case("npu_dynamic_quant", (x,), expected, {"dst_type": torch.quint4x2})

        smooth, ends = positive(3, 16, around=1.0, dtype=dtype), torch.tensor([4, 5, 15], dtype=torch.int32)
        smoothed = value * wide(smooth)[np.repeat([0, 1, 2], [4, 1, 10])].reshape(value.shape)
        for name, kwargs, given, most in (
            ("plain", {}, value, 127),
            ("smooth", {"smooth_scales": smooth[1]}, value * wide(smooth[1]), 127),
            ("groups", {"smooth_scales": smooth, "group_index": ends}, smoothed, 127),
            ("int4", {"dst_type": torch.quint4x2}, value, 7),
        ):
            high, low = given.max(-1, keepdims=True), given.min(-1, keepdims=True)
            scale = (high - low) / (2 * most + 1)
            offset = most - high / scale
            y = rounded_clear_of_ties(given / scale + offset)
            expected = [as_int32(y) if most == 7 else (y, torch.int8)]
            expected += [(scale[..., 0], torch.float32), (offset[..., 0], torch.float32)]
            case = Case("npu_dynamic_quant_asymmetric", (x,), expected, kwargs)  # type: ignore[arg-type]
            yield f"{name} {short(dtype)}", case


def quantize_cases() -> Cases:
    """div_mode=True: input / scales + zero_points; int4 exists for div_mode=False only."""
    results = {
        torch.qint8: (torch.int8, -128, 127),
        torch.quint8: (torch.uint8, 0, 255),
        torch.qint32: (torch.int32, -(2**31), 2**31 - 1),
    }
    for index, (quantised, (dtype, *limits)) in enumerate(results.items()):
        x = steps(4, 6, most=31, step=0.25, dtype=FLOATS[index])
        scales, zero = torch.from_numpy(np.resize([0.125, 0.5, 2.0], 6)).float(), int32(6, most=9)
        value = np.clip(np.rint(wide(x) / wide(scales) + wide(zero)), *limits)
        yield short(quantised), Case("npu_quantize", (x, scales, zero, quantised), ((value, dtype),))
        value = np.clip(np.rint(wide(x) / wide(scales)[:4, None]), *limits)
        case = Case("npu_quantize", (x, scales[:4], None, quantised, 0), ((value, dtype),))
        yield f"{short(quantised)} per row", case
    x, scales = steps(4, 16, most=3, step=0.25), torch.from_numpy(np.resize([4.0, 2.0], 16)).float()
    y = np.clip(np.rint(wide(x) * wide(scales)), -8, 7)
    yield "int4", Case("npu_quantize", (x, scales, None, torch.quint4x2, -1, False), (as_int32(y),))


# -- products ------------------------------------------------------------------------------------------------


def quant_matmul_cases() -> Cases:
    name, whole = "npu_quant_matmul", int32(8, most=50000)
    x1, x2, scale = int8(4, 32), int8(32, 8), positive(8, around=1e-3)
    product = wide(x1) @ wide(x2)
    int32_result = {"output_dtype": torch.int32}
    yield "int32", Case(name, (x1, x2, scale), ((product, torch.int32),), int32_result)
    case = Case(name, (x1, x2, scale), ((product + wide(whole), torch.int32),), {**int32_result, "bias": whole})
    yield "int32, bias", case
    turned = int8(8, 32)
    case = Case(name, (x1, turned.t(), scale), ((wide(x1) @ wide(turned).T, torch.int32),), int32_result)
    yield "int32, x2 transposed", case

    left, right = int4(4, 32), int4(32, 8)
    token = positive(4, around=0.3)
    for transposed in (False, True):
        weight = packed(right.T.copy()).t() if transposed else packed(right)
        for out in HALVES:
            value = (left @ right) * wide(scale) * wide(token)[:, None]
            kwargs = {"pertoken_scale": token, "output_dtype": out}
            note = f"int4 {short(out)}{', x2 transposed' * transposed}"
            yield note, Case(name, (packed(left), weight, scale), ((value, out),), kwargs)


def transpose_batchmatmul_cases() -> Cases:
    name = "npu_transpose_batchmatmul"
    for dtype in FLOATS:
        x1, x2 = normal(4, 3, 16, dtype=dtype), normal(4, 16, 32, dtype=dtype)
        value = (wide(x1) @ wide(x2)).transpose(1, 0, 2)
        yield f"defaults {short(dtype)}", Case(name, (x1, x2), ((value, dtype),))
        kwargs: dict[str, Any] = {"perm_x1": (1, 0, 2), "perm_x2": (0, 1, 2), "perm_y": (1, 0, 2)}
        first = x1.transpose(0, 1).contiguous()
        given = {**kwargs, "bias": None, "scale": None, "batch_split_factor": 1}
        yield f"x1 transposed {short(dtype)}", Case(name, (first, x2), ((value, dtype),), given)
        split = np.stack([part.reshape(3, -1) for part in np.split(value, 2, axis=1)])
        case = Case(name, (first, x2), ((split, dtype),), {**kwargs, "batch_split_factor": 2})
        yield f"split {short(dtype)}", case
    x1, x2 = (steps(*shape, most=2, step=0.5, dtype=torch.float16) for shape in ((2, 3, 16), (2, 16, 16)))
    value = (wide(x1) @ wide(x2)).transpose(1, 0, 2).reshape(3, 1, 32)
    words = torch.full((32,), 2.0).view(torch.int32).to(torch.int64) + 2**46
    yield "int8", Case(name, (x1, x2), ((rounded(value * 2), torch.int8),), {"scale": words})


# -- between the products ------------------------------------------------------------------------------------


def gated(value: np.ndarray, left: bool, mode: int = 0, limit: float = 7.0) -> np.ndarray:
    def sigmoid(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    halves = (value[:, ::2], value[:, 1::2]) if mode == 1 else np.split(value, 2, axis=-1)
    gate, up = halves if left else reversed(halves)
    if mode == 0:
        result: np.ndarray = gate * sigmoid(gate) * up
        return result
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate * sigmoid(1.702 * gate) * (up + 1.0)


def dynamic(value: np.ndarray) -> Sequence[tuple[np.ndarray, torch.dtype]]:
    scale = np.abs(value).max(-1, keepdims=True) / 127
    return ((rounded_clear_of_ties(value / scale), torch.int8), (scale[:, 0], torch.float32))


def dequant_swiglu_quant_cases() -> Cases:
    name = "npu_dequant_swiglu_quant"
    x, scale, token = int32(6, 16, most=3000), positive(3, 16, around=1e-3), positive(6, around=1.0)
    smooth = positive(3, 8, around=1.0)
    value = wide(x) * wide(scale[0]) * wide(token)[:, None]
    kwargs: dict[str, Any] = {"weight_scale": scale[0], "activation_scale": token, "quant_mode": 1}
    for left in (True, False):
        given = {**kwargs, "activate_left": left, "quant_scale": smooth[0]}
        yield f"left {left}", Case(name, (x,), dynamic(gated(value, left) * wide(smooth[0])), given)
    yield "no smoothing", Case(name, (x,), dynamic(gated(value, False)), kwargs)

    sizes = [1, 2, 3]
    scales, smooths = np.repeat(wide(scale), sizes, axis=0), np.repeat(wide(smooth), sizes, axis=0)
    value = wide(x) * scales * wide(token)[:, None]
    given = {
        "weight_scale": scale, "activation_scale": token.unsqueeze(1), "quant_scale": smooth, "quant_mode": 1,
        "group_index": torch.tensor(sizes), "activate_left": True,
    }  # fmt: skip
    yield "groups", Case(name, (x,), dynamic(gated(value, True) * smooths), given)
    for mode in (1, 2):
        given = {**kwargs, "activate_left": True, "swiglu_mode": mode, "clamp_limit": 2.0}
        value = wide(x) * wide(scale[0]) * wide(token)[:, None]
        yield f"mode {mode}", Case(name, (x,), dynamic(gated(value, True, mode, 2.0)), given)

    for dtype in HALVES:
        x = normal(5, 16, dtype=dtype)
        value = gated(wide(x), False) / 0.0625 + 2.5
        given = {"quant_scale": torch.tensor([0.0625]), "quant_offset": torch.tensor([2.5])}
        expected = ((rounded_clear_of_ties(value), torch.int8), None)
        yield f"static {short(dtype)}", Case(name, (x,), expected, given)


def cases() -> Cases:
    for family in (
        dynamic_quant_cases, quantize_cases, quant_matmul_cases, transpose_batchmatmul_cases,
        dequant_swiglu_quant_cases,
    ):  # fmt: skip
        yield from family()
