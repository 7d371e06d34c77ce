"""Products with 4-bit weights, and grouped products with what follows them: float64 oracles after the documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.host.npu_cases.base import (
    HALVES,
    Case,
    Cases,
    int8,
    int32,
    normal,
    positive,
    rounded,
    short,
    steps,
    wide,
)
from tests.host.npu_cases.low_bits import dynamic, gated, int4, packed


def rows_by_expert(x: np.ndarray, weights: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    parts, begin = [], 0
    for weight, size in zip(weights, sizes, strict=True):
        parts.append(x[begin : begin + size] @ weight)
        begin += size
    return np.concatenate(parts)


def float_words(scales: np.ndarray) -> Tensor:
    """float32 bits in 64-bit words."""
    return torch.from_numpy(scales.astype(np.float32).view(np.int32).astype(np.int64))


def powers(*shape: int) -> np.ndarray:
    """Scales by which a product with a small integer is exact in 16 bits."""
    return np.resize([2.0**-6, 2.0**-5, 2.0**-4], shape)


# -- npu_weight_quant_batchmatmul ------------------------------------------------------------------------------


def weight_quant_cases() -> Cases:
    name = "npu_weight_quant_batchmatmul"
    for dtype in HALVES:
        x, weight = normal(3, 64, dtype=dtype), int8(64, 8)
        bias = normal(8, dtype=torch.float32 if dtype is torch.bfloat16 else dtype)
        for form, shape in (("tensor", (1,)), ("channel", (1, 8))):
            scale, offset = powers(*shape), np.resize([3.0, -2.0], shape)
            value = wide(x) @ ((wide(weight) + offset) * scale)
            args = (x, weight, torch.from_numpy(scale).to(dtype), torch.from_numpy(offset).to(dtype))
            yield f"{form} {short(dtype)}", Case(name, args, ((value, dtype),))
            yield f"{form}, bias {short(dtype)}", Case(name, args, ((value + wide(bias), dtype),), {"bias": bias})
        scale = powers(2, 8)
        value = wide(x) @ (wide(weight) * np.repeat(scale, 32, axis=0))
        args = (x, weight, torch.from_numpy(scale).to(dtype))
        yield f"groups {short(dtype)}", Case(name, args, ((value, dtype),), {"antiquant_group_size": 32})

        elements, scale = int4(64, 16), powers(1, 16)
        value = wide(x) @ (elements * scale)
        factor = torch.from_numpy(scale).to(dtype)
        turned = packed(elements.T.copy()).t()
        for form, words in (("int4", packed(elements)), ("int4, transposed", turned)):
            yield f"{form} {short(dtype)}", Case(name, (x, words, factor), ((value, dtype),))

    x, weight = steps(3, 64, most=2, step=0.5, dtype=torch.float16), int8(64, 8, most=8)
    scale = torch.full((1,), 0.5, dtype=torch.float16)
    quant, shift = torch.from_numpy(np.resize([0.25, 0.125], 8)).float(), steps(8, most=9, step=1)
    value = wide(x) @ (wide(weight) * 0.5) * wide(quant) + wide(shift)
    expected = ((rounded(value), torch.int8),)
    yield "int8", Case(name, (x, weight, scale), expected, {"quant_scale": quant, "quant_offset": shift})
    words = quant.view(torch.int32).to(torch.int64) + 2**46 + (shift.long() % 512) * 2**37
    yield "int8, packed", Case(name, (x, weight, scale), expected, {"quant_scale": words})


# -- grouped products --------------------------------------------------------------------------------------------


def grouped_matmul_cases() -> Cases:
    name, sizes = "npu_grouped_matmul", (2, 0, 4)
    counts: dict[str, Any] = {
        "split_item": 3, "group_type": 0, "group_list_type": 1, "group_list": torch.tensor(sizes),
    }  # fmt: skip
    x, weight = int8(6, 64), int8(3, 64, 16)
    product = rows_by_expert(wide(x), wide(weight), sizes)
    kwargs = {**counts, "output_dtype": torch.int32, "tuning_config": [2]}
    yield "int32", Case(name, ([x], [weight]), [(product, torch.int32)], kwargs)
    scale, token = positive(3, 16, around=1e-3, dtype=torch.bfloat16), positive(6, around=0.3)
    value = product * np.repeat(wide(scale), sizes, axis=0) * wide(token)[:, None]
    kwargs = {**counts, "scale": [scale], "per_token_scale": [token], "output_dtype": torch.bfloat16}
    relu = {**kwargs, "act_type": 1}
    yield "int8, relu", Case(name, ([x], [weight]), [(np.maximum(value, 0), torch.bfloat16)], relu)
    silu = {**kwargs, "act_type": 5}
    yield "int8, silu", Case(name, ([x], [weight]), [(value / (1 + np.exp(-value)), torch.bfloat16)], silu)

    elements = int4(3, 64, 16)
    for dtype in HALVES:
        x = normal(6, 64, dtype=dtype)
        for form, blocks in (("channel", None), ("blocks", 4)):
            factor = powers(3, 16) if blocks is None else powers(3, blocks, 16)
            whole = factor[:, None] if blocks is None else np.repeat(factor, 64 // blocks, axis=1)
            value = rows_by_expert(wide(x), elements * whole, sizes)
            kwargs = {**counts, "antiquant_scale": [torch.from_numpy(factor).to(dtype)]}
            case = Case(name, ([x], [packed(elements)]), [(value, dtype)], kwargs)
            yield f"int4 weight, {form} {short(dtype)}", case
        turned = packed(elements.transpose(0, 2, 1).copy()).transpose(1, 2)
        factor = powers(3, 16)
        value = rows_by_expert(wide(x), elements * factor[:, None], sizes)
        kwargs = {**counts, "antiquant_scale": [torch.from_numpy(factor).to(dtype)]}
        yield f"int4 weight, transposed {short(dtype)}", Case(name, ([x], [turned]), [(value, dtype)], kwargs)

    rows, factor = int4(6, 64), powers(3, 16)
    value = rows_by_expert(rows, elements * factor[:, None], sizes) * wide(token)[:, None]
    kwargs = {
        **counts, "scale": [float_words(factor)], "per_token_scale": [token], "output_dtype": torch.float16,
    }  # fmt: skip
    case = Case(name, ([packed(rows)], [packed(elements)]), [(value, torch.float16)], kwargs)
    yield "int4 by int4", case

    x = int8(6, 64)
    for out in HALVES:
        for blocks in (1, 2):
            factor = positive(3, blocks, 16, around=1e-3).numpy().astype(np.float64)
            cut = (factor.astype(np.float32).view(np.int32) >> 13 << 13).view(np.float32).astype(np.float64)
            plain = elements * np.repeat(cut, 64 // blocks, axis=1)
            value = rows_by_expert(wide(x), plain, sizes) * wide(token)[:, None]
            kwargs = {
                **counts, "scale": [float_words(factor)], "bias": [torch.from_numpy(8 * plain.sum(1)).float()],
                "per_token_scale": [token], "output_dtype": out,
            }  # fmt: skip
            case = Case(name, ([x], [packed(elements)]), [(value, out)], kwargs)
            yield f"int8 by int4, {blocks} blocks {short(out)}", case


def finalize_routing_cases() -> Cases:
    name, sizes = "npu_grouped_matmul_finalize_routing", (2, 1, 3)
    x, weight, scale, token = int8(6, 32), int8(3, 32, 8), positive(3, 8, around=1e-3), positive(6, around=0.3)
    logit, row = normal(6), torch.tensor([0, 2, 1, 2, 3, 0])
    value = rows_by_expert(wide(x), wide(weight), sizes) * np.repeat(wide(scale), sizes, axis=0)
    value = value * wide(token)[:, None] * wide(logit)[:, None]
    y = np.zeros((4, 8))
    np.add.at(y, row.numpy(), value)
    kwargs: dict[str, Any] = {
        "scale": scale, "pertoken_scale": token, "logit": logit, "row_index": row, "output_bs": 4,
    }  # fmt: skip
    counts = torch.tensor(sizes)
    yield "counts", Case(name, (x, weight, counts), ((y, torch.float32),), kwargs)
    ends = {**kwargs, "group_list_type": 0}
    yield "ends", Case(name, (x, weight, counts.cumsum(0)), ((y, torch.float32),), ends)
    shared = normal(2, 8, dtype=torch.bfloat16)
    y = y.copy()
    y[1:3] += 0.5 * wide(shared)
    given = {**kwargs, "shared_input": shared, "shared_input_weight": 0.5, "shared_input_offset": 1}
    yield "shared", Case(name, (x, weight, counts), ((y, torch.float32),), given)


def swiglu_quant_cases() -> Cases:
    name, sizes = "npu_grouped_matmul_swiglu_quant_v2", (2, 1, 3)
    x, weight, scale, token = int8(6, 32), int8(3, 32, 16), positive(3, 16, around=1e-3), positive(6, around=0.3)
    value = rows_by_expert(wide(x), wide(weight), sizes) * np.repeat(wide(scale), sizes, axis=0)
    expected = dynamic(gated(value * wide(token)[:, None], True))
    counts = torch.tensor(sizes)
    yield "ends", Case(name, (x, [weight], [scale], token, counts.cumsum(0)), expected)
    yield "counts", Case(name, (x, [weight], [scale], token, counts), expected, {"group_list_type": 1})


def dequant_bias_cases() -> Cases:
    x, scale, token = int32(4, 8, most=9999), positive(8, around=1e-3), positive(4, around=0.5)
    for out in HALVES:
        whole, plain = int32(8, most=999), normal(8)
        value = (wide(x) + wide(whole)) * wide(scale) * wide(token)[:, None]
        kwargs = {"output_dtype": out}
        yield f"int32 {short(out)}", Case("npu_dequant_bias", (x, scale, token, whole), ((value, out),), kwargs)
        value = wide(x) * wide(scale) + wide(plain)
        yield f"float {short(out)}", Case("npu_dequant_bias", (x, scale, None, plain), ((value, out),), kwargs)


def cases() -> Cases:
    for family in (
        weight_quant_cases, grouped_matmul_cases, finalize_routing_cases, swiglu_quant_cases, dequant_bias_cases,
    ):  # fmt: skip
        yield from family()
