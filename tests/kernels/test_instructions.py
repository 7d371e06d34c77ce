"""Every instruction of the simulator against numpy, on values that round, saturate, overflow and are no numbers."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from numpy.typing import NDArray

from npu_fused_graph.sim.launch import Argument, RankLaunch, output
from tests.kernels.built import entry

Array = NDArray[Any]
BYTES = 2048


def floats(dtype: Any, seed: int = 0) -> Array:
    """Numbers of all sizes with infinities and NaN among them."""
    generator = numpy.random.default_rng(seed)
    count = BYTES // numpy.dtype(dtype).itemsize
    limit = 4 if dtype is numpy.float16 else 30
    values = generator.standard_normal(count) * 10.0 ** generator.integers(-limit, limit, count)
    values[::37] = numpy.resize([0.0, -0.0, numpy.inf, -numpy.inf, numpy.nan, 65504, -1e-7], len(values[::37]))
    with numpy.errstate(over="ignore"):
        return values.astype(dtype)


def small(dtype: Any, seed: int = 0) -> Array:
    """Numbers around 1, halves of whole numbers among them."""
    generator = numpy.random.default_rng(seed)
    count = BYTES // numpy.dtype(dtype).itemsize
    values = generator.standard_normal(count) * 20
    values[::5] = numpy.round(values[::5]) + 0.5
    return values.astype(dtype)


def positive(dtype: Any) -> Array:
    return numpy.abs(small(dtype)) + dtype(0.125)


def integers(dtype: Any) -> Array:
    info = numpy.iinfo(dtype)
    count = BYTES // numpy.dtype(dtype).itemsize
    return numpy.random.default_rng(1).integers(info.min, info.max, count, dtype=dtype, endpoint=True)


def widened(x: Array) -> Array:
    """bfloat16 bits as float32."""
    return (x.view(numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)


def halves(x: Array) -> tuple[Array, Array]:
    return x[: len(x) // 2], x[len(x) // 2 :]


def filled(values: Array, dtype: Any) -> Array:
    """Behind the values zeros, as the kernel left them."""
    y = numpy.zeros(BYTES // numpy.dtype(dtype).itemsize, dtype)
    y[: values.size] = values.ravel()
    return y


def rows(x: Array, count: int, width: int) -> Array:
    return x[: count * width].reshape(count, width)


def pairwise(values: Array) -> Array:
    """Sums of the last axis in pairs, each rounded to the values' own type."""
    while values.shape[-1] > 1:
        odd = values[..., -1:] if values.shape[-1] % 2 else values[..., :0]
        even = values[..., : values.shape[-1] // 2 * 2]
        values = numpy.concatenate([even[..., ::2] + even[..., 1::2], odd], -1)
    return values[..., 0]


def binary(
    dtype: Any, function: Callable[[Array, Array], Array], count: int, make: Any = floats
) -> tuple[Array, Array]:
    x = make(dtype)
    a, b = halves(x)
    with numpy.errstate(all="ignore"):
        return x, filled(function(a, b)[:count].astype(dtype), dtype)


def unary(x: Array, function: Callable[[Array], Array], count: int, dtype: Any = None) -> tuple[Array, Array]:
    with numpy.errstate(all="ignore"):
        return x, filled(function(x[:count]), dtype or x.dtype.type)


def at(y: Array, places: Array, values: Array) -> Array:
    y[places] = values
    return y


def bits(truth: Array) -> Array:
    return filled(numpy.packbits(truth, bitorder="little"), numpy.uint8)


def saturated(x: Array, dtype: Any, how: Callable[[Array], Array]) -> Array:
    info = numpy.iinfo(dtype)
    with numpy.errstate(all="ignore"):
        rounded = how(x.astype(numpy.float64))
        clipped = numpy.clip(numpy.nan_to_num(rounded, nan=0.0, posinf=info.max, neginf=info.min), info.min, info.max)
        # the largest int64 is no float64
        return numpy.where(clipped >= info.max, info.max, clipped.astype(dtype)).astype(dtype)


def away(x: Array) -> Array:
    return numpy.sign(x) * numpy.floor(numpy.abs(x) + 0.5)


def to_grid(x: Array, how: str, dtype: Any) -> Array:
    """float32 to half by the two values around it."""
    near = x.astype(dtype)
    wide = near.astype(numpy.float64)
    exact = x.astype(numpy.float64)
    down, up = numpy.nextafter(near, dtype(-numpy.inf)), numpy.nextafter(near, dtype(numpy.inf))
    below = numpy.where(wide <= exact, near, down)
    above = numpy.where(wide >= exact, near, up)
    if how == "floor":
        return below
    if how == "ceil":
        return above
    if how == "trunc":
        return numpy.where(exact >= 0, below, above)
    is_odd = (below.view(numpy.uint16) & 1).astype(bool)
    return numpy.where(below == above, below, numpy.where(is_odd, below, above))  # "odd"


def bfloat16_grid(x: Array, how: str) -> Array:
    bits_ = x.view(numpy.uint32)
    cut = (bits_ & 0xFFFF0000).view(numpy.float32)
    further = ((bits_ & 0xFFFF0000) + 0x10000).view(numpy.float32)
    is_exact = cut == x
    if how == "rint":
        return torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(numpy.uint16)
    grows = (x > 0) if how == "ceil" else (x < 0) if how == "floor" else numpy.zeros_like(x, bool)
    chosen = numpy.where(is_exact | ~grows, cut, further)
    return (chosen.view(numpy.uint32) >> 16).astype(numpy.uint16)


def finite(x: Array) -> Array:
    return numpy.nan_to_num(x, nan=1.5, posinf=2.5, neginf=-3.5)


F, H, I32, I16 = numpy.float32, numpy.float16, numpy.int32, numpy.int16


def wide(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: function(a.astype(F), b.astype(F))


def strided() -> tuple[Array, Array]:
    x, y = small(F), numpy.zeros(512, F)
    for r in range(4):
        for lane in range(20):
            to = (r * 12 + lane // 8 * 2) * 8 + lane % 8
            y[to] = x[(r * 4 + lane // 8) * 8 + lane % 8] + x[256 + (r * 8 + lane // 8) * 8 + lane % 8]
    return x, y


def accumulated() -> tuple[Array, Array]:
    x = small(F)
    return x, filled(rows(x, 8, 64).max(0), F)


def copied() -> tuple[Array, Array]:
    x, y = integers(numpy.uint16), numpy.zeros(1024, numpy.uint16)
    for r in range(3):
        for lane in range(100):
            y[(r * 8 + lane // 16) * 16 + lane % 16] = x[(r * 16 + lane // 16 * 2) * 16 + lane % 16]
    return x, y


def spread() -> tuple[Array, Array]:
    x, y = small(H), numpy.zeros(1024, H)
    for i in range(16):
        y[(i // 8 * 24 + i % 8 * 3) * 16 :][:16] = x[i]
    return x, y


def gaps() -> tuple[Array, Array]:
    x, y = integers(numpy.uint8), numpy.zeros(BYTES, numpy.uint8)
    for r in range(5):
        y[r * 96 : r * 96 + 64] = x[r * 160 : r * 160 + 64]
    return x, y


def padded() -> tuple[Array, Array]:
    x, y = integers(I16).view(H), numpy.zeros(1024, H)
    for r in range(4):
        at_ = r * (32 + 64) // 2
        y[at_ : at_ + 2] = 9
        y[at_ + 2 : at_ + 11] = x[3 + r * 14 : 3 + r * 14 + 9]
        y[at_ + 11 : at_ + 16] = 9
    return x, y


def stored() -> tuple[Array, Array]:
    x = integers(numpy.uint8)
    y = numpy.full(BYTES, 0xFF, numpy.uint8)
    for r in range(6):
        y[r * 42 : r * 42 + 37] = x[r * 96 : r * 96 + 37]
    return x, y


def added() -> tuple[Array, Array]:
    x = small(F)
    return x, x + numpy.concatenate([x[:256], numpy.zeros(256, F)])


def indexed_max() -> tuple[Array, Array]:
    x, y = small(F), numpy.zeros(512, F)
    for r, row in enumerate(rows(x, 8, 64)):
        y[2 * r] = row.max()
        y[2 * r + 1 : 2 * r + 2] = numpy.array([row.argmax()], numpy.uint32).view(F)
    return x, y


def index_first() -> tuple[Array, Array]:
    x, y = small(H), numpy.zeros(1024, H)
    for r, row in enumerate(rows(x, 8, 128)):
        y[2 * r : 2 * r + 1] = numpy.array([row.argmax()], numpy.uint16).view(H)
        y[2 * r + 1] = row.max()
    return x, y


def max_of_all() -> tuple[Array, Array]:
    x, y = small(F), numpy.zeros(512, F)
    y[0] = x[:500].max()
    y[1:2] = numpy.array([x[:500].argmax()], numpy.uint32).view(F)
    return x, y


def selected() -> tuple[Array, Array]:
    x = small(F)
    mask = numpy.unpackbits(x.view(numpy.uint8)[:32], bitorder="little").astype(bool)
    return x, filled(numpy.where(mask, x[:256], x[256:]), F)


def selected_number() -> tuple[Array, Array]:
    x = small(H)
    mask = numpy.unpackbits(x.view(numpy.uint8)[:64], bitorder="little").astype(bool)
    return x, filled(numpy.where(mask, x[:512], H(-1)), H)


def axpy() -> tuple[Array, Array]:
    x = small(F)
    x[:200] = small(F, 3)[:200]
    a = x.view(H)[:200]
    a[~numpy.isfinite(a)] = 1
    return x, filled(x[256:456] + a.astype(F) * F(0.5), F)


CASES: dict[str, tuple[Array, Array]] = {
    "add half": binary(H, wide(numpy.add), 500),
    "sub float": binary(F, numpy.subtract, 250),
    "mul half": binary(H, wide(numpy.multiply), 500),
    "mul int32": (integers(I32), filled((lambda a, b: a * b)(*halves(integers(I32)))[:250], I32)),
    "max float": binary(F, numpy.maximum, 250),
    "min int16": (integers(I16), filled(numpy.minimum(*halves(integers(I16)))[:500], I16)),
    "div half": binary(H, wide(numpy.divide), 500),
    "div float": binary(F, numpy.divide, 250),
    "and uint16": (integers(numpy.uint16), filled(numpy.bitwise_and(*halves(integers(numpy.uint16)))[:500], numpy.uint16)),
    "or int16": (integers(I16), filled(numpy.bitwise_or(*halves(integers(I16)))[:500], I16)),
    "adds float": unary(floats(F), lambda x: x + F(0.1), 500),
    "muls half": unary(floats(H), lambda x: (x.astype(F) * F(H(0.1))).astype(H), 1000),
    "maxs int32": unary(integers(I32), lambda x: numpy.maximum(x, -5), 500),
    "mins float": unary(floats(F), lambda x: numpy.minimum(x, F(0.25)), 500),
    "exp float": unary(small(F), numpy.exp, 500),
    "ln float": unary(positive(F), numpy.log, 500),
    "sqrt half": unary(positive(H), lambda x: numpy.sqrt(x.astype(F)).astype(H), 1000),
    "abs float": unary(floats(F), numpy.abs, 500),
    "relu half": unary(small(H), lambda x: numpy.maximum(x, H(0)), 1000),
    "rsqrt float": unary(positive(F), lambda x: 1 / numpy.sqrt(x), 500),
    "reciprocal half": unary(positive(H), lambda x: (1 / x.astype(F)).astype(H), 1000),
    "axpy float half": axpy(),
    "duplicate bfloat16": (small(F), filled(numpy.full(777, 0x3FC0, numpy.uint16), numpy.uint16)),
    "duplicate every other": (small(F), filled(numpy.resize([7, 0], 384).astype(I16), I16)),
    "add strided": strided(),
    "mul by a block": (small(F), filled(small(F)[:448] * numpy.resize(small(F)[504:], 448), F)),
    "max accumulated": accumulated(),
    "muls every other": unary(small(H), lambda x: x * numpy.resize([2, 0], 1024).astype(H), 1024),
    "cast narrow strided": unary(floats(F), lambda x: x.astype(H), 512, H),
    "cast wide strided": unary(floats(H), lambda x: x.astype(F), 512, F),
    "copy": copied(),
    "brcb float": (small(F), filled(numpy.repeat(small(F)[:56], 8), F)),
    "brcb half spread": spread(),
    "whole sum": (small(F), filled(pairwise(rows(small(F), 8, 64)[:, :50]), F)),
    "whole sum half": (small(H), at(numpy.zeros(1024, H), numpy.arange(8) * 2, pairwise(rows(small(H), 8, 128)))),
    "whole max": indexed_max(),
    "whole min alone": (small(F), filled(rows(small(F), 8, 64)[:, :33].min(1), F)),
    "whole max index first": index_first(),
    "block sum": (small(F), filled(pairwise(small(F).reshape(64, 8)), F)),
    "block max half": (
        small(H), at(numpy.zeros(1024, H), (numpy.arange(8)[:, None] * 16 + numpy.arange(8)).ravel(), small(H).reshape(64, 16).max(1))
    ),
    "block min": (small(F), filled(small(F).reshape(8, 8, 8)[::2].min(-1), F)),
    "sum of all": (small(F), filled(small(F)[:500].sum(dtype=numpy.float64, keepdims=True), F)),
    "max of all": max_of_all(),
    "min of all": (small(H), filled(small(H)[:1000].min(keepdims=True), H)),
    "compare less": (floats(F), bits(numpy.less(*halves(floats(F))))),
    "compare unequal": (floats(H), bits(numpy.not_equal(*halves(floats(H))))),
    "compare equal int32": (integers(I32) % 3, bits(numpy.equal(*halves(integers(I32) % 3)))),
    "compare with a number": (floats(F), bits(floats(F) >= F(0.25))),
    "select": selected(),
    "select a number": selected_number(),
    "cast half float": unary(floats(H), lambda x: x.astype(F), 250, F),
    "cast float half none": unary(floats(F), lambda x: x.astype(H), 250, H),
    "cast float half rint": unary(floats(F), lambda x: x.astype(H), 250, H),
    "cast float half floor": unary(small(F), lambda x: to_grid(x, "floor", H), 250, H),
    "cast float half ceil": unary(small(F), lambda x: to_grid(x, "ceil", H), 250, H),
    "cast float half trunc": unary(small(F), lambda x: to_grid(x, "trunc", H), 250, H),
    "cast float half round": unary(small(F), lambda x: x.astype(H), 250, H),
    "cast float half odd": unary(small(F), lambda x: to_grid(x, "odd", H), 250, H),
    "cast float bfloat16 rint": unary(finite(floats(F)), lambda x: bfloat16_grid(x, "rint"), 250, numpy.uint16),
    "cast float bfloat16 floor": unary(finite(floats(F)), lambda x: bfloat16_grid(x, "floor"), 250, numpy.uint16),
    "cast float bfloat16 ceil": unary(finite(floats(F)), lambda x: bfloat16_grid(x, "ceil"), 250, numpy.uint16),
    "cast float bfloat16 trunc": unary(finite(floats(F)), lambda x: bfloat16_grid(x, "trunc"), 250, numpy.uint16),
    "cast bfloat16 float": unary(integers(numpy.uint16), widened, 250, F),
    "cast bfloat16 int32": unary(
        floats(F).view(numpy.uint16), lambda x: saturated(widened(x), I32, numpy.rint), 250, I32
    ),
    "cast float int32 rint": unary(floats(F), lambda x: saturated(x, I32, numpy.rint), 250, I32),
    "cast float int32 round": unary(small(F), lambda x: saturated(x, I32, away), 250, I32),
    "cast float int16 floor": unary(floats(F), lambda x: saturated(x, I16, numpy.floor), 250, I16),
    "cast float int64 ceil": unary(floats(F), lambda x: saturated(x, numpy.int64, numpy.ceil), 250, numpy.int64),
    "cast float float trunc": unary(small(F), numpy.trunc, 250, F),
    "cast int32 float": unary(integers(I32), lambda x: x.astype(F), 250, F),
    "cast half int8 trunc": unary(floats(H), lambda x: saturated(x, numpy.int8, numpy.trunc), 250, numpy.int8),
    "cast half uint8 rint": unary(floats(H), lambda x: saturated(x, numpy.uint8, numpy.rint), 250, numpy.uint8),
    "cast int8 half": unary(integers(numpy.int8), lambda x: x.astype(H), 250, H),
    "cast int32 half scaled": unary(
        integers(I32) // 2**16, lambda x: (x.astype(F) * F(0.5)).astype(H), 250, H
    ),
    "copy rows with gaps": gaps(),
    "copy rows with padding": padded(),
    "store rows with gaps": stored(),
    "add to memory": added(),
    "scalar access": (small(F), small(F)[::-1].copy()),
}  # fmt: skip

CLOSE = {"exp float": 1e-6, "ln float": 1e-6, "sum of all": 1e-6, "axpy float half": 1e-6}
"""Relative: where the order of a sum, or the last bit of a function, is nobody's promise."""

ROUGH = {"rsqrt float": (2**-13, 2**-11), "reciprocal half": (2**-11, 2**-8)}
"""What misses the exact value by at least and at most so much: nobody may rely on more."""


def names() -> list[str]:
    name = entry("instructions").library.instruction_name
    name.restype = ctypes.c_char_p
    found = []
    while text := name(ctypes.c_uint64(len(found))):
        found.append(text.decode())
    return found


def run(number: int, x: Array, *, is_deferred: bool = False) -> Array:
    y = numpy.full(BYTES, 0xFF, numpy.uint8)
    given, taken = torch.from_numpy(x.view(numpy.uint8).copy()), torch.from_numpy(y)
    tiling = struct.pack("Q", number)
    entry("instructions").launch(
        [RankLaunch([Argument("x", given), output("y", taken)], 1, tiling)], seed=number, is_deferred=is_deferred
    )
    return y


def test_every_instruction_has_its_case() -> None:
    assert names() == list(CASES)


@pytest.mark.parametrize("is_deferred", [False, True])
def test_instructions(is_deferred: bool) -> None:
    wrong = []
    for number, (name, (x, wanted)) in enumerate(CASES.items()):
        got = run(number, x, is_deferred=is_deferred).view(wanted.dtype)[: len(wanted)]
        if name in ROUGH:
            least, most = ROUGH[name]
            count = 500 if wanted.dtype == F else 1000
            error = numpy.abs(got[:count].astype(F) / wanted[:count].astype(F) - 1)
            is_good = bool((error <= most).all() and numpy.median(error) >= least)
        elif name in CLOSE:
            is_good = numpy.allclose(got.astype(F), wanted.astype(F), rtol=CLOSE[name], atol=1e-6)
        else:
            is_good = numpy.array_equal(got, wanted, equal_nan=wanted.dtype.kind == "f")
        if not is_good:
            wrong.append(name)
    assert not wrong
