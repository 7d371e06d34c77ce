"""Quantisation, quantised products: float64 oracles after the formulas of torch_npu's documents (op-plugin)."""

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

# -- quantisation --------------------------------------------------------------------------------------------


def quantize_cases() -> Cases:
    """div_mode=False: input * scales + zero_points. Some values are ties, some saturate."""
    forms = {
        "per channel": ((6, 16), (16,), True, -1),
        "default axis": ((2, 3, 16), (16,), True, 1),
        "one scale": ((6, 16), (1,), False, -1),
        "per row": ((6, 16), (6, 1), True, -2),
        "per row, 1d": ((6, 16), (6,), False, -2),
    }
    for index, (name, (shape, scale_shape, with_zero, axis)) in enumerate(forms.items()):
        dtype = FLOATS[index % 3]
        x = steps(*shape, most=31, step=0.25, dtype=dtype)
        scales = torch.from_numpy(np.resize([-8.0, 0.5, 4.0, 2.0], scale_shape)).to(dtype)
        zero = steps(*scale_shape, most=20, step=0.5, dtype=dtype) if with_zero else None
        factor, shift = (
            np.zeros(1) if t is None else wide(t).reshape(-1, 1) if axis == -2 else wide(t) for t in (scales, zero)
        )
        value = wide(x) * factor + shift
        assert value.min() < -129 or value.max() > 128
        args = (x, scales, zero, torch.qint8) if axis == 1 else (x, scales, zero, torch.qint8, axis)
        case = Case("npu_quantize", args, ((rounded(value), torch.int8),), {"div_mode": False})
        yield f"{name} {short(dtype)}", case


def dynamic_quant_cases() -> Cases:
    for dtype in HALVES:
        for name in ("plain", "smooth", "groups"):
            x = normal(*((6, 16) if name == "groups" else (2, 3, 16)), dtype=dtype)
            kwargs: dict[str, Any] = {}
            value = wide(x)
            if name == "smooth":
                kwargs = {"smooth_scales": positive(16, around=1.0, dtype=dtype)}
                value = value * wide(kwargs["smooth_scales"])
            elif name == "groups":
                smooth = positive(3, 16, around=1.0, dtype=dtype)
                kwargs = {"smooth_scales": smooth, "group_index": torch.tensor([2, 3, 6], dtype=torch.int32)}
                value = value * wide(smooth)[[0, 0, 1, 2, 2, 2]]
            scale = np.abs(value).max(-1, keepdims=True) / 127
            expected = ((rounded_clear_of_ties(value / scale), torch.int8), (scale[..., 0], torch.float32))
            yield f"{name} {short(dtype)}", Case("npu_dynamic_quant", (x,), expected, kwargs)


def add_rms_norm_dynamic_quant_cases() -> Cases:
    for dtype in HALVES:
        for name in ("one", "both", "second"):
            x1, x2 = (steps(2, 3, 16, most=8, step=0.125, dtype=dtype) for _ in range(2))  # sums are exact
            gamma, beta = normal(16, dtype=dtype), normal(16, dtype=dtype)
            first, second = (positive(16, around=1.0, dtype=dtype) for _ in range(2))
            x = wide(x1) + wide(x2)
            norm = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * wide(gamma)
            kwargs: dict[str, Any] = {
                "one": {"output_mask": [True, False]},
                "both": {"smooth_scale1": first, "smooth_scale2": second},
                "second": {"smooth_scale2": second, "beta": beta, "output_mask": [False, True]},
            }[name]
            norm = norm + wide(beta) if "beta" in kwargs else norm
            quantised, scales = [], []
            for key, is_given in (("smooth_scale1", name != "second"), ("smooth_scale2", name != "one")):
                value = norm * (wide(kwargs[key]) if key in kwargs else 1)
                scale = np.abs(value).max(-1, keepdims=True) / 127
                quantised.append((rounded_clear_of_ties(value / scale) if is_given else np.zeros(0), torch.int8))
                scales.append((scale[..., 0] if is_given else np.zeros(0), torch.float32))
            expected = (*quantised, (x, dtype), *scales)
            yield f"{name} {short(dtype)}", Case("npu_add_rms_norm_dynamic_quant", (x1, x2, gamma), expected, kwargs)


def fp19(scale: Tensor, round_mode: int) -> np.ndarray:
    """The bits of ``scale`` without the lowest 13, cut off or rounded to nearest even."""
    bits = scale.numpy().view(np.uint32).astype(np.int64)
    if round_mode:
        lowest = bits % 2**13
        bits = bits + 2**13 * ((lowest > 2**12) | ((lowest == 2**12) & (bits // 2**13 % 2 == 1)))
    return bits // 2**13 * 2**13


def trans_quant_param_cases() -> Cases:
    forms: list[tuple[tuple[int, ...], tuple[int, ...] | None, int]]
    forms = [((16,), None, 0), ((16,), None, 1), ((1, 16), None, 0), ((16,), (16,), 1), ((1,), (16,), 0)]
    for shape, offset_shape, round_mode in forms:
        scale = normal(*shape)
        args: tuple[Any, ...] = (scale, None, round_mode)
        words = fp19(scale, round_mode) + 2**46
        if offset_shape is not None:
            offset = normal(*offset_shape, scale=100.0)
            offset[:2] = torch.tensor([300.4, -300.4])  # out of range
            args = (scale, offset, round_mode)
            words = words + np.clip(np.rint(wide(offset)), -256, 255).astype(np.int64) % 2**9 * 2**37
        case = Case("npu_trans_quant_param", args, ((words, torch.int64),))
        yield f"{shape}, offset {offset_shape}, mode {round_mode}", case


def format_cast_cases() -> Cases:
    for dtype, shape, layout in (
        (torch.float16, (32, 16), 29),
        (torch.int8, (2, 32, 64), 29),
        (torch.float32, (5,), 2),
    ):
        x = steps(*shape, most=100, step=1, dtype=dtype)
        yield f"{short(dtype)} to {layout}", Case("npu_format_cast", (x, layout), ((wide(x), dtype),))


# -- quantised products --------------------------------------------------------------------------------------


def quant_matmul_cases() -> Cases:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32

    def case(out: torch.dtype, x1: Tensor, x2: Tensor, scale: Tensor, **kwargs: Any) -> Case:
        product, factor = wide(x1) @ wide(x2), wide(scale)
        bias, pertoken = kwargs.get("bias"), kwargs.get("pertoken_scale")
        if pertoken is not None:
            factor = factor * wide(pertoken)[:, None]
        if bias is not None and bias.dtype is torch.int32:
            value = (product + wide(bias)) * factor
        else:
            value = product * factor + (0 if bias is None else wide(bias))
        return Case("npu_quant_matmul", (x1, x2, scale), ((value, out),), {"output_dtype": out, **kwargs})

    def x(m: int = 4, k: int = 32) -> Tensor:
        return int8(m, k)

    def scale(dtype: torch.dtype = fp32, n: int = 8) -> Tensor:
        return positive(n, around=1e-3, dtype=dtype)

    token = positive(4, around=0.3)
    whole = int32(8, most=50000)
    yield "bf16", case(bf16, x(), int8(32, 8), scale())
    yield "bf16, one scale, x2 transposed", case(bf16, x(), int8(8, 32).t(), scale(n=1))
    yield "bf16, int32 bias", case(bf16, x(), int8(32, 8), scale(bf16), bias=whole)
    yield "bf16, float bias", case(bf16, x(), int8(32, 8), scale(), bias=normal(8, scale=20.0))
    yield (
        "bf16, bf16 bias, pertoken",
        case(bf16, x(), int8(32, 8), scale(bf16), bias=normal(8, dtype=bf16, scale=20.0), pertoken_scale=token),
    )
    yield "bf16, int32 bias, pertoken", case(bf16, x(), int8(32, 8), scale(), bias=whole, pertoken_scale=token)
    yield "fp16, pertoken", case(fp16, x(), int8(32, 8), scale(), pertoken_scale=token)
    yield (
        "fp16, float bias, pertoken",
        case(fp16, x(), int8(32, 8), scale(), bias=normal(8, scale=20.0), pertoken_scale=token),
    )
    batch_bias = int32(3, 1, 8, most=50000)
    yield "bf16, batches", case(bf16, int8(1, 4, 32), int8(3, 32, 8), scale(), bias=batch_bias, pertoken_scale=token)

    # Packed scales: the low bits that are not kept would move every tie away from zero.
    exact = np.resize([0.125, 0.25, 0.5], 8)
    cut = torch.from_numpy(exact * (1 + 2.0**-11)).float()
    words = torch.from_numpy(fp19(cut, 0) + 2**46)
    x1, x2 = int8(4, 32, most=4), int8(32, 8, most=4)
    product = wide(x1) @ wide(x2)
    assert (product * exact % 1 == 0.5).any()
    yield "int8, packed scale", Case("npu_quant_matmul", (x1, x2, words), ((rounded(product * exact), torch.int8),))
    total = product + wide(whole)
    yield (
        "fp16, packed scale, int32 bias",
        Case("npu_quant_matmul", (x1, x2, words), ((total * exact, fp16),), {"bias": whole, "output_dtype": fp16}),
    )
    offset = steps(8, most=30, step=0.5)
    yield (
        "int8, offset, int32 bias",
        Case(
            "npu_quant_matmul",
            (x1, x2, torch.from_numpy(exact).float()),
            ((rounded((product + wide(whole // 300)) * exact + wide(offset)), torch.int8),),
            {"bias": whole // 300, "offset": offset},
        ),
    )
    expected = ((rounded(product * exact), torch.int8),)
    yield "rounded", Case("matmul_with_packed_scale", (x1, x2, cut, 1), expected)
    yield "cut", Case("matmul_with_packed_scale", (x1, x2, cut, 0), expected)
    one = scale()
    yield (
        "bf16",
        Case("matmul_with_nz_weight", (x1, x2, one), ((product * wide(one), bf16),), {"output_dtype": bf16}),
    )


# -- grouped products ----------------------------------------------------------------------------------------


def spread(values: Sequence[Tensor], sizes: Sequence[int]) -> np.ndarray:
    """One row per row of x: the value of its group."""
    return np.repeat(np.stack([wide(v) for v in values]), sizes, axis=0)


def grouped_rows(x: Tensor, weights: Sequence[Tensor], sizes: Sequence[int]) -> np.ndarray:
    """Rows of x by the weight of their group; rows of no group are left open."""
    out = np.full((x.shape[0], weights[0].shape[1]), np.nan)
    end = 0
    for weight, size in zip(weights, sizes, strict=True):
        out[end : end + size] = wide(x[end : end + size]) @ wide(weight)
        end += size
    return out


def grouped_matmul_cases() -> Cases:
    name = "npu_grouped_matmul"
    ends, counts = {"split_item": 3, "group_type": 0}, {"split_item": 2, "group_type": 0, "group_list_type": 1}
    for dtype in FLOATS:
        bias_dtype = torch.float32 if dtype is torch.bfloat16 else dtype
        xs = [normal(2, 8, dtype=dtype), normal(5, 4, dtype=dtype)]
        weights = [normal(8, 6, dtype=dtype), normal(4, 3, dtype=dtype)]
        bias = [normal(6, dtype=bias_dtype), normal(3, dtype=bias_dtype)]
        expected = [(wide(x) @ wide(w) + wide(b), dtype) for x, w, b in zip(xs, weights, bias, strict=True)]
        kwargs = {"bias": bias, "split_item": 0, "group_type": -1}
        yield f"a tensor per group {short(dtype)}", Case(name, (xs, weights), expected, kwargs)

        x, weights = normal(9, 8, dtype=dtype), [normal(8, 5, dtype=dtype) for _ in range(3)]
        bias = [normal(5, dtype=bias_dtype) for _ in range(3)]
        kwargs = {**ends, "group_list": torch.tensor([3, 5, 9]), "bias": bias}
        expected = [(grouped_rows(x, weights, (3, 2, 4)) + spread(bias, (3, 2, 4)), dtype)]
        yield f"a weight per group {short(dtype)}", Case(name, ([x], weights), expected, kwargs)

    half = torch.float16
    x, weights = normal(9, 8, dtype=half), [normal(8, 5, dtype=half) for _ in range(3)]
    expected = [(grouped_rows(x, weights, (3, 2, 4)), half)]
    kwargs = {"split_item": 3, "group_list": [3, 5, 9]}
    yield "a weight per group, list", Case(name, ([x], weights), expected, kwargs)
    kwargs = {**ends, "group_list": torch.tensor([3, 5, 9])}
    yield "tensors to one", Case(name, (list(x.split((3, 2, 4))), weights), expected, kwargs)

    for dtype in HALVES:
        x, weight = normal(9, 8, dtype=dtype), normal(3, 8, 5, dtype=dtype)
        for sizes in ((2, 0, 7), (4, 4, 1)):  # the same shapes twice: group_list is data, not part of what is compiled
            kwargs = {**ends, "group_list": torch.tensor(sizes).cumsum(0)}
            yield (
                f"ends {sizes} {short(dtype)}",
                Case(name, ([x], [weight]), [(grouped_rows(x, weight, sizes), dtype)], kwargs),
            )
        kwargs = {**counts, "group_list": torch.tensor([1, 3, 5])}
        expected = [(grouped_rows(x, weight, (1, 3, 5)), dtype)]
        yield f"counts {short(dtype)}", Case(name, ([x], [weight]), expected, kwargs)

    xs, weights = [normal(2, 3, 8, dtype=half), normal(1, 2, 8, dtype=half)], [normal(8, 5, dtype=half)] * 2
    expected = [(wide(x) @ wide(w), half) for x, w in zip(xs, weights, strict=True)]
    yield "three axes", Case(name, (xs, weights), expected, {"group_type": -1})
    x, turned = normal(9, 8, dtype=half), normal(3, 5, 8, dtype=half).transpose(1, 2)
    kwargs = {**ends, "group_list": torch.tensor([2, 5, 9])}
    expected = [(grouped_rows(x, turned, (2, 3, 4)), half)]
    yield "transposed weight", Case(name, ([x], [turned]), expected, kwargs)

    yield from quantised_grouped_matmul_cases()


def quantised_grouped_matmul_cases() -> Cases:
    name, sizes = "npu_grouped_matmul", (2, 3, 4)
    x, weight, token = int8(9, 32), int8(3, 32, 5), positive(9, around=0.3)
    product = grouped_rows(x, weight, sizes)
    bias = [int32(5, most=50000) for _ in sizes]
    ends = {"split_item": 3, "group_type": 0, "group_list": torch.tensor([2, 5, 9])}

    for out, scale_dtype in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        scales = positive(3, 5, around=1e-3, dtype=scale_dtype)
        value = product * spread(list(scales), sizes) * wide(token)[:, None]
        kwargs = {**ends, "scale": [scales], "per_token_scale": [token], "output_dtype": out}
        yield f"int8, pertoken {short(out)}", Case(name, ([x], [weight]), [(value, out)], kwargs)
        value = (product + spread(bias, sizes)) * spread(list(scales), sizes)
        kwargs = {**ends, "scale": list(scales), "bias": bias, "output_dtype": out}
        yield f"int8, int32 bias {short(out)}", Case(name, ([x], list(weight)), [(value, out)], kwargs)

    scales = positive(3, 5, around=1e-3, dtype=torch.bfloat16)
    value = grouped_rows(x, weight[[2, 0]], (2, 7)) * spread([scales[2], scales[0]], (2, 7)) * wide(token)[:, None]
    pairs = {**ends, "group_list": torch.tensor([[2, 2], [0, 7]]), "group_list_type": 2}
    kwargs = {**pairs, "scale": [scales], "per_token_scale": [token], "output_dtype": torch.bfloat16}
    yield "int8, pairs", Case(name, ([x], [weight]), [(value, torch.bfloat16)], kwargs)

    words = torch.from_numpy(fp19(torch.full((3, 5), 2.0**-10), 0) + 2**46)
    case = Case(name, ([x], [weight]), [(rounded(product / 2**10), torch.int8)], {**ends, "scale": [words]})
    yield "int8, packed scale", case

    dtype = torch.float16
    x, offsets = normal(9, 32, dtype=dtype), steps(3, 5, most=9, step=1, dtype=dtype)
    scales = torch.from_numpy(np.resize([2.0**-6, 2.0**-4], (3, 5))).to(dtype)  # (weight + offset) * scale is exact
    plain = [(wide(w) + wide(o)) * wide(s) for w, o, s in zip(weight, offsets, scales, strict=True)]
    value = grouped_rows(x, [torch.from_numpy(w) for w in plain], sizes)
    kwargs = {**ends, "antiquant_scale": [scales], "antiquant_offset": [offsets]}
    yield "int8 weight", Case(name, ([x], [weight]), [(value, dtype)], kwargs)


def cases() -> Cases:
    for family in (
        quantize_cases, dynamic_quant_cases, add_rms_norm_dynamic_quant_cases,
        trans_quant_param_cases, format_cast_cases, quant_matmul_cases,
        grouped_matmul_cases,
    ):  # fmt: skip
        yield from family()
