"""Samples for engine/kernels/math.py: functions of one variable, complex numbers, casts and copies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.engine.cases.math_cases import special
from tests.engine.op_case import ANY, FLOATS, OpCase, dtype_value

UNARY = [
    OpCase(ge_type, lambda m, low=low, high=high: {"x": m(3, 5, low=low, high=high)}, op, dtypes=dtypes)  # type: ignore[misc]
    for ge_type, op, low, high, dtypes in (
        ("Neg", lambda x: 0 - x, -3, 3, ANY),
        ("Abs", lambda x: torch.where(x < 0, 0 - x, x), -3, 3, ANY),
        ("Sign", lambda x: (x > 0).to(x.dtype) - (x < 0).to(x.dtype), -3, 3, ANY),
        ("Square", lambda x: x * x, -3, 3, ANY),
        ("Reciprocal", lambda x: 1 / x, 0.2, 3, FLOATS),
        ("Inv", lambda x: 1 / x, 0.2, 3, FLOATS),
        ("Sqrt", torch.sqrt, 0, 3, FLOATS),
        ("Rsqrt", lambda x: 1 / torch.sqrt(x), 0.2, 3, FLOATS),
        ("Exp", torch.exp, -3, 3, FLOATS),
        ("Expm1", torch.expm1, -3, 3, FLOATS),
        ("Log", torch.log, 0.2, 3, FLOATS),
        ("Log1p", torch.log1p, -0.8, 3, FLOATS),
        ("Sin", torch.sin, -3, 3, FLOATS),
        ("Cos", torch.cos, -3, 3, FLOATS),
        ("Tan", torch.tan, -1, 1, FLOATS),
        ("Asin", torch.asin, -0.9, 0.9, FLOATS),
        ("Acos", torch.acos, -0.9, 0.9, FLOATS),
        ("Atan", torch.atan, -3, 3, FLOATS),
        ("Sinh", torch.sinh, -2, 2, FLOATS),
        ("Cosh", torch.cosh, -2, 2, FLOATS),
        ("Asinh", torch.asinh, -3, 3, FLOATS),
        ("Acosh", torch.acosh, 1.1, 3, FLOATS),
        ("Atanh", torch.atanh, -0.9, 0.9, FLOATS),
        ("Tanh", torch.tanh, -3, 3, FLOATS),
        ("Erf", torch.erf, -3, 3, FLOATS),
        ("Erfc", torch.erfc, -2, 2, FLOATS),
        ("Floor", torch.floor, -3, 3, FLOATS),
        ("Ceil", torch.ceil, -3, 3, FLOATS),
        ("Round", torch.round, -3, 3, FLOATS),
        ("Rint", torch.round, -3, 3, FLOATS),
    )
]
MORE_UNARY = [
    OpCase("Erfinv", lambda m: {"input_x": m(3, 5, low=-0.9, high=0.9)}, lambda input_x: torch.erfinv(input_x)),
    OpCase("Trunc", lambda m: {"input_x": m(3, 5)}, lambda input_x: input_x.sign() * input_x.abs().floor()),
    OpCase(
        "Round",
        lambda m: {"x": torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], dtype=m.dtype)},
        lambda x: torch.tensor([-2.0, -2.0, -0.0, 0.0, 2.0, 2.0]),
        exact=True,
        name="half_to_even",
    ),
    OpCase("Round", lambda m: {"x": m(4)}, lambda x: x, dtypes=("int32", "int64"), name="int"),
    OpCase("Exp", lambda m: {"x": special(m)}, torch.exp, name="special"),
    OpCase("Sqrt", lambda m: {"x": m(low=0.5)}, torch.sqrt, name="0d"),
    OpCase("Neg", lambda m: {"x": m(0, 3)}, torch.neg, name="empty"),
    OpCase("Sign", lambda m: {"x": special(m)}, torch.sign, name="special"),
    OpCase(
        "Sign",
        lambda m: {"x": torch.complex(torch.tensor([3.0, 0.0]), torch.tensor([4.0, 0.0]))},
        lambda x: torch.tensor([0.6 + 0.8j, 0.0]),
        dtypes=("float32",),
        name="complex",
    ),
]


def log_case(base: float, scale: float, shift: float, name: str, dtypes: tuple[str, ...] = FLOATS) -> OpCase:
    def expected(x: Tensor) -> Tensor:
        y = np.log(scale * x.double().numpy() + shift)
        return torch.from_numpy(np.asarray(y if base == -1 else y / math.log(base)))

    return OpCase(
        "Log",
        lambda m: {"x": m(3, 5, low=0.6)},
        expected,
        {"base": base, "scale": scale, "shift": shift},
        dtypes=dtypes,
        name=name,
    )


def exp_case(base: float, scale: float, shift: float, name: str) -> OpCase:
    def expected(x: Tensor) -> Tensor:
        return torch.from_numpy(np.power(math.e if base == -1 else base, scale * x.numpy() + shift))

    return OpCase("Exp", lambda m: {"x": m(3, 5)}, expected, {"base": base, "scale": scale, "shift": shift}, name=name)


LOG_EXP = [
    log_case(2.0, 1.0, 0.0, "base2"),
    log_case(10.0, 1.0, 0.0, "base10"),
    log_case(3.0, 1.0, 0.0, "base3"),
    log_case(-1.0, 0.5, 1.5, "scaled"),
    log_case(2.0, 3.0, 0.0, "base2_scaled"),
    log_case(7.0, 3.0, 0.25, "all"),
    log_case(2.0, 1.0, 0.0, "int", ("int32", "int64")),
    exp_case(2.0, 1.0, 0.0, "base2"),
    exp_case(3.0, 1.0, 0.0, "base3"),
    exp_case(-1.0, 0.5, 0.25, "scaled"),
    exp_case(2.0, 0.5, 0.25, "base2_scaled"),
    exp_case(0.7, 0.5, 1.0, "all"),
]


COMPLEX = [
    OpCase(
        ge_type,
        lambda m: {"input": torch.complex(m(2, 3), m(2, 3))},
        part,
        attrs,
        outputs=("output",),
        dtypes=("float32", "float64"),
        name=name,
    )
    for ge_type, part in (("Real", lambda input: input.real), ("Imag", lambda input: input.imag))
    for name, attrs in (("default", {}), ("double", {"Tout": dtype_value("float64")}))
]
COMPLEX += [
    OpCase(
        "Complex",
        lambda m: {"real": m(2, 3), "imag": m(3)},
        lambda real, imag: real + 1j * imag,
        attrs,
        outputs=("out",),
        dtypes=dtypes,
        name=name,
    )
    for name, attrs, dtypes in (
        ("default", {}, ("float32",)),
        ("double", {"Tout": dtype_value("complex128")}, ("float32", "float64")),
    )
]


def cast_case(source: tuple[str, ...], number: object, target: torch.dtype, name: str) -> OpCase:
    return OpCase(
        "Cast",
        lambda m: {"x": m(3, 4)},
        lambda x: x.to(target),
        {"dst_type": number},
        dtypes=source,
        widen=False,
        exact=True,
        name=name,
    )


CASTS = [
    cast_case((*ANY, "bool"), 0, torch.float32, "float32"),
    cast_case((*ANY, "bool"), 1, torch.float16, "float16"),
    cast_case((*ANY, "bool"), 27, torch.bfloat16, "bfloat16"),
    cast_case((*ANY, "bool"), 3, torch.int32, "int32"),
    cast_case((*ANY, "bool"), 9, torch.int64, "int64"),
    cast_case((*ANY, "bool"), 12, torch.bool, "bool"),
    cast_case(("int64",), 10, torch.uint64, "uint64"),
    cast_case(("float32",), dtype_value("float64"), torch.float64, "by_name"),
]


def _nibbles(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """int4 elements, held in int8 each: the low half of every byte comes first."""
    unsigned = x.view(np.uint8).astype(np.int64)
    pairs = np.stack([unsigned % 16, unsigned // 16], -1).reshape(*unsigned.shape[:-1], -1)
    return np.where(pairs < 8, pairs, pairs - 16).astype(np.int8)


BITS = [
    OpCase(
        "Bitcast",
        lambda m: {"x": m.ints(3, 2, low=-(2**31), high=2**31 - 1, dtype=torch.int32)},
        lambda x: torch.from_numpy(_nibbles(x.numpy())),
        {"type": dtype_value("int4")},
        dtypes=("int32",),
        widen=False,
        name="int4",
    ),
    OpCase(
        "Bitcast",
        lambda m: {"x": m.ints(5, 3, low=-128, high=127, dtype=torch.int8)},
        lambda x: torch.from_numpy(_nibbles(x.numpy())),
        {"type": dtype_value("int4"), "keep_dim": True},
        dtypes=("int8",),
        widen=False,
        name="int4_of_bytes",
    ),
    OpCase(
        "Bitcast",
        lambda m: {"x": m(2, 4)},
        lambda x: torch.from_numpy(x.numpy().view(np.int32)),
        {"type": dtype_value("int32")},
        dtypes=("float32", "int32"),
        widen=False,
        name="same_size",
    ),
    OpCase(
        "Bitcast",
        lambda m: {"x": m(2, 4)},
        lambda x: torch.from_numpy(x.numpy().view(np.int8)),
        {"type": dtype_value("int8")},
        dtypes=("float32", "float16", "int64"),
        widen=False,
        name="narrower",
    ),
    OpCase(
        "Bitcast",
        lambda m: {"x": m(2, 4)},
        lambda x: torch.from_numpy(x.numpy().view(np.int8)),
        {"type": dtype_value("int8"), "keep_dim": True},
        dtypes=("float32", "float16", "int64"),
        widen=False,
        name="narrower_keep_dim",
    ),
    OpCase(
        "Bitcast",
        lambda m: {"x": m.ints(2, 3, 4, low=0, high=99, dtype=torch.int8)},
        lambda x: torch.from_numpy(x.numpy().view(np.int32)),
        {"type": dtype_value("int32")},
        dtypes=("int8",),
        widen=False,
        name="wider",
    ),
    OpCase(
        "Bitcast",
        lambda m: {"x": m.ints(2, 8, low=0, high=99, dtype=torch.int8)},
        lambda x: torch.from_numpy(x.numpy().view(np.int32)),
        {"type": dtype_value("int32"), "keep_dim": True},
        dtypes=("int8",),
        widen=False,
        name="wider_keep_dim",
    ),
]
COPIES = [
    OpCase(ge_type, lambda m: {"x": m(2, 3)}, lambda x: x, dtypes=(*ANY, "bool", "uint64"), exact=True)
    for ge_type in ("Identity", "TensorMove")
]

CASES = [*UNARY, *MORE_UNARY, *LOG_EXP, *COMPLEX, *CASTS, *BITS, *COPIES]
