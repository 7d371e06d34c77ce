"""Samples for engine/kernels/compare.py."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.engine.cases.math_cases import UNSIGNED, numpy, special, unsigned_pair
from tests.engine.op_case import ANY, Make, OpCase

WHOLE = ("int8", "int16", "int32", "int64", "uint8")


def near(m: Make) -> dict[str, Tensor]:
    """Equal, smaller and larger elements."""
    x = m(3, 4)
    y = x.clone()
    y[0, 0], y[1, 1], y[2, 2] = x[0, 0] + 1, x[1, 1] - 1, x[2, 2] - 1
    return {"x1": x, "x2": y}


def signs(m: Make) -> dict[str, Tensor]:
    return {"x1": torch.tensor([True, False]).reshape(2, 1), "x2": torch.tensor([True, False, True])}


def bits(m: Make) -> dict[str, Tensor]:
    low = 0 if m.dtype is torch.uint8 else -100
    return {"x1": m.ints(3, 4, low=low, high=100, dtype=m.dtype), "x2": m.ints(4, low=0, high=100, dtype=m.dtype)}


def shift(m: Make) -> dict[str, Tensor]:
    low = 0 if m.dtype is torch.uint8 or str(m.dtype).startswith("torch.u") else -60
    return {"x": m.ints(3, 4, low=low, high=60, dtype=m.dtype), "y": m.ints(4, low=0, high=4, dtype=m.dtype)}


CASES = [
    *[
        OpCase(ge_type, inputs, op, dtypes=dtypes, name=name)
        for ge_type, op in (
            ("Equal", torch.eq),
            ("NotEqual", torch.ne),
            ("Greater", torch.gt),
            ("GreaterEqual", torch.ge),
            ("Less", torch.lt),
            ("LessEqual", torch.le),
        )
        for name, inputs, dtypes in (
            ("", near, ANY),
            ("broadcast", lambda m: {"x1": m(3, 1), "x2": m(2)}, ANY),
            ("0d", lambda m: {"x1": m(), "x2": m()}, ANY),
            ("special", lambda m: {"x1": special(m), "x2": special(m).roll(1)}, ("float32", "bfloat16")),
        )
    ],
    *[
        OpCase(ge_type, unsigned_pair, numpy(op), dtypes=UNSIGNED, widen=False, name="unsigned")
        for ge_type, op in (("Equal", np.equal), ("Greater", np.greater), ("LessEqual", np.less_equal))
    ],
    OpCase("LogicalAnd", signs, lambda x1, x2: x1 & x2, dtypes=("bool",)),
    OpCase("LogicalOr", signs, lambda x1, x2: x1 | x2, dtypes=("bool",)),
    OpCase("LogicalNot", lambda m: {"x": m(3, 4)}, lambda x: x ^ True, dtypes=("bool",)),
    *[
        OpCase(ge_type, bits, numpy(op), dtypes=WHOLE, widen=False)
        for ge_type, op in (
            ("BitwiseAnd", np.bitwise_and),
            ("BitwiseOr", np.bitwise_or),
            ("BitwiseXor", np.bitwise_xor),
        )
    ],
    *[
        OpCase(ge_type, unsigned_pair, numpy(op), dtypes=UNSIGNED, widen=False, exact=True, name="unsigned")
        for ge_type, op in (
            ("BitwiseAnd", np.bitwise_and),
            ("BitwiseOr", np.bitwise_or),
            ("BitwiseXor", np.bitwise_xor),
        )
    ],
    OpCase("Invert", lambda m: {"x": bits(m)["x1"]}, numpy(np.invert), dtypes=WHOLE, widen=False),
    OpCase(
        "Invert",
        lambda m: {"x": unsigned_pair(m)["x1"]},
        numpy(np.invert),
        dtypes=UNSIGNED,
        widen=False,
        exact=True,
        name="unsigned",
    ),
    *[
        OpCase(ge_type, shift, numpy(op), outputs=("z",), dtypes=(*WHOLE, *UNSIGNED), widen=False, exact=True)
        for ge_type, op in (("RightShift", np.right_shift), ("LeftShift", np.left_shift))
    ],
    *[
        OpCase(ge_type, lambda m: {"x": special(m)}, numpy(op))
        for ge_type, op in (("IsInf", np.isinf), ("IsNan", np.isnan), ("IsFinite", np.isfinite))
    ],
    OpCase(
        "ApproximateEqual",
        lambda m: {"x1": m(3, 4), "x2": m(3, 4)},
        lambda x1, x2: (x1 - x2).abs() < 1.5,
        {"tolerance": 1.5},
        dtypes=("float32", "float16", "int32"),
    ),
    OpCase(
        "ApproximateEqual",
        lambda m: {"x1": torch.tensor([1.0, 1.0]), "x2": torch.tensor([1.000001, 1.001])},
        lambda x1, x2: torch.tensor([True, False]),
        dtypes=("float32",),
        name="default",
    ),
]
