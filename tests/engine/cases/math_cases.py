"""Samples for engine/kernels/math.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.engine.op_case import ANY, FLOATS, INTS, Make, OpCase

UNSIGNED = ("uint16", "uint32", "uint64")
INF = float("inf")
NAN = float("nan")


def special(m: Make) -> Tensor:
    return torch.tensor([NAN, INF, -INF, 0.0, -1.5, 2.5], dtype=m.dtype)


def pair(m: Make) -> dict[str, Tensor]:
    """Broadcasting both ways."""
    return {"x1": m(3, 1, 4), "x2": m(2, 1)}


def unsigned_pair(m: Make) -> dict[str, Tensor]:
    return {"x1": m.ints(3, 4, low=5, high=9, dtype=m.dtype), "x2": m.ints(4, low=1, high=5, dtype=m.dtype)}


def numpy(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """An oracle for unsigned dtypes; numpy computes with them."""

    def oracle(**inputs: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(function(*(x.numpy() for x in inputs.values()))))

    return oracle


BINARY = [
    *[
        OpCase(ge_type, pair, op, dtypes=dtypes)
        for ge_type, op, dtypes in (
            ("Add", torch.add, (*ANY, "int8", "uint8")),
            ("Sub", torch.sub, ANY),
            ("Mul", torch.mul, ANY),
            ("Maximum", torch.maximum, ANY),
            ("Minimum", torch.minimum, ANY),
            ("RealDiv", torch.div, FLOATS),
            ("Div", torch.div, FLOATS),
            ("TruncateDiv", lambda x1, x2: torch.trunc(x1 / x2).to(x1.dtype), INTS),
            ("FloorDiv", lambda x1, x2: torch.floor(x1 / x2).to(x1.dtype), INTS),
            ("FloorMod", lambda x1, x2: x1 - x2 * torch.floor(x1 / x2).to(x1.dtype), INTS),
            ("Mod", lambda x1, x2: x1 - x2 * torch.trunc(x1 / x2).to(x1.dtype), INTS),
            ("TruncateMod", lambda x1, x2: x1 - x2 * torch.trunc(x1 / x2).to(x1.dtype), INTS),
            ("SquaredDifference", lambda x1, x2: (x1 - x2) * (x1 - x2), ("float32", "int32", "int64")),
            ("Atan2", torch.atan2, FLOATS),
        )
    ],
    *[
        OpCase(ge_type, pair, lambda x1, x2: torch.trunc(x1 / x2).to(x1.dtype), dtypes=INTS, name="int")
        for ge_type in ("RealDiv", "Div")
    ],
    *[
        OpCase(ge_type, pair, op, dtypes=("float32", "float64"), name="float")
        for ge_type, op in (
            ("TruncateDiv", lambda x1, x2: torch.trunc(x1 / x2)),
            ("FloorDiv", lambda x1, x2: torch.floor(x1 / x2)),
            ("FloorMod", lambda x1, x2: x1 - x2 * torch.floor(x1 / x2)),
            ("Mod", lambda x1, x2: x1 - x2 * torch.trunc(x1 / x2)),
        )
    ],
    *[
        OpCase(ge_type, unsigned_pair, numpy(op), dtypes=UNSIGNED, widen=False, exact=True, name="unsigned")
        for ge_type, op in (
            ("Add", np.add),
            ("Sub", np.subtract),
            ("Mul", np.multiply),
            ("Maximum", np.maximum),
            ("Minimum", np.minimum),
            ("TruncateDiv", np.floor_divide),
            ("Div", np.floor_divide),
            ("FloorDiv", np.floor_divide),
            ("FloorMod", np.remainder),
            ("Mod", np.remainder),
            ("Pow", np.power),
        )
    ],
    OpCase("Maximum", lambda m: {"x1": special(m), "x2": m(6)}, torch.maximum, name="special"),
    OpCase("Add", lambda m: {"x1": m(), "x2": m()}, torch.add, name="0d"),
    OpCase("Mul", lambda m: {"x1": m(0, 4), "x2": m(4)}, torch.mul, name="empty"),
    OpCase("Mul", lambda m: {"x1": m(3), "x2": m.ints(3, low=1, high=5)}, lambda x1, x2: x1 * x2, name="promoting"),
    OpCase("Mul", lambda m: {"x1": m(3, 4), "x2": m()}, torch.mul, const=("x2",), name="constant"),
    OpCase("Sub", lambda m: {"x1": m(), "x2": m(3, 4)}, torch.sub, const=("x1",), name="constant"),
    OpCase("Xlogy", lambda m: {"x1": torch.tensor([0.0, 1.0, 2.0], dtype=m.dtype), "x2": m(3, low=0.1)}, torch.xlogy),
    OpCase("AddN", lambda m: {"x": [m(2, 3), m(2, 3), m(2, 3)]}, lambda x: x[0] + x[1] + x[2], {"N": 3}, dtypes=ANY),
    OpCase("AddN", lambda m: {"x": [m(2, 3)]}, lambda x: x[0], {"N": 1}, dtypes=ANY, name="one"),
]


def power(value: float, *, dtypes: tuple[str, ...] = FLOATS, low: float = 0.2) -> list[OpCase]:
    """Exponent as a constant and as data; both must be what eager torch computes from the number, bit for bit."""

    def inputs(m: Make) -> dict[str, Tensor]:
        return {"x1": m(3, 40, low=low), "x2": torch.tensor(value, dtype=m.dtype)}

    def eager(x1: Tensor, x2: Tensor) -> Tensor:
        return torch.pow(x1, x2.item())

    def wide(x1: Tensor, x2: Tensor) -> Tensor:
        return torch.from_numpy(np.power(x1.numpy(), x2.numpy()))

    return [
        OpCase("Pow", inputs, wide, dtypes=dtypes, const=("x2",), name=f"const{value}"),
        OpCase("Pow", inputs, wide, dtypes=dtypes, name=f"data{value}"),
        OpCase("Pow", inputs, eager, dtypes=dtypes, const=("x2",), widen=False, exact=True, name=f"eager{value}"),
    ]


POW = [
    *power(2.0, low=-3),
    *power(3.0, low=-2),
    *power(0.5),
    *power(-0.5),
    *power(2, dtypes=("int32", "int64"), low=-3),
    *power(3, dtypes=("int32", "int64"), low=-3),
    OpCase("Pow", lambda m: {"x1": m(3, 1, low=0.2), "x2": m(2, low=-2, high=2)}, lambda x1, x2: x1**x2),
    OpCase("Pow", lambda m: {"x1": m(low=1), "x2": m(3)}, lambda x1, x2: x1**x2, const=("x1",), name="base"),
    OpCase(
        "Pow",
        lambda m: {"x1": m(3), "x2": torch.tensor(2.0)},
        lambda x1, x2: (x1 * x1).float(),
        dtypes=("int32", "int64"),
        const=("x2",),
        name="promoting",
    ),
]


def scaled_add(ge_type: str, sign: int) -> list[OpCase]:
    """AxpyV2 and Sxpy with the factor as constant, as data and as a vector."""

    def inputs(m: Make, *shape: int) -> dict[str, Tensor]:
        return {"x1": m(3, 1), "x2": m(4), "alpha": m(*shape, low=2, high=3)}

    def expected(x1: Tensor, x2: Tensor, alpha: Tensor) -> Tensor:
        return x1 + sign * alpha * x2

    dtypes = (*FLOATS, "int32")
    return [
        OpCase(ge_type, lambda m: inputs(m), expected, dtypes=dtypes),
        OpCase(ge_type, lambda m: inputs(m), expected, const=("alpha",), dtypes=dtypes, name="constant"),
        OpCase(ge_type, lambda m: inputs(m, 4), expected, dtypes=dtypes, name="vector"),
    ]


def fused(ge_type: str, sign: int, dtypes: tuple[str, ...]) -> list[OpCase]:
    """Addcmul (sign 1) and Addcdiv (sign -1)."""

    def inputs(m: Make, *shape: int) -> dict[str, Tensor]:
        return {
            "input_data": m(3, 4),
            "x1": m(4),
            "x2": m(3, 1, low=1, high=3),
            "value": m(*shape, low=2, high=3),
        }

    def expected(input_data: Tensor, x1: Tensor, x2: Tensor, value: Tensor) -> Tensor:
        return input_data + value * (x1 * x2 if sign > 0 else x1 / x2)

    return [
        OpCase(ge_type, lambda m: inputs(m), expected, dtypes=dtypes),
        OpCase(ge_type, lambda m: inputs(m), expected, const=("value",), dtypes=dtypes, name="constant"),
        OpCase(ge_type, lambda m: inputs(m, 4), expected, dtypes=dtypes, name="vector"),
    ]


def lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    return start + weight * (end - start)


MULTIPLY_ADD = [
    OpCase("Axpy", pair, lambda x1, x2: x1 - 0.75 * x2, {"alpha": -0.75}),
    OpCase("Axpy", pair, lambda x1, x2: x1 + 2 * x2, {"alpha": 2.0}, dtypes=("int32", "int64"), name="int"),
    *scaled_add("AxpyV2", 1),
    *scaled_add("Sxpy", -1),
    OpCase("Sxpy", pair, lambda x1, x2: x1 - x2, dtypes=(*FLOATS, "int32"), name="no_alpha"),
    OpCase("Sxpy", lambda m: {**pair(m), "alpha": None}, lambda x1, x2, alpha: x1 - x2, name="unfed_alpha"),
    OpCase("Muls", lambda m: {"x": m(3, 4)}, lambda x: x * 0.3, {"value": 0.3}),
    OpCase("Muls", lambda m: {"x": m(3, 4)}, lambda x: x * 0.3, {"value": 0.3}, widen=False, exact=True, name="eager"),
    OpCase("Muls", lambda m: {"x": m()}, lambda x: x * 0.3, {"value": 0.3}, widen=False, exact=True, name="0d"),
    OpCase("Muls", lambda m: {"x": m(3, 4)}, lambda x: x * 3, {"value": 3.0}, dtypes=("int16", "int32"), name="int"),
    OpCase(
        "Muls",
        lambda m: {"x": m(3, 4)},
        lambda x: torch.trunc(x * 1.5).to(x.dtype),
        {"value": 1.5},
        dtypes=("int16", "int32"),
        name="int_by_float",
    ),
    OpCase("Muls", lambda m: {"x": m(3)}, lambda x: x * 1e30, {"value": 1e30}, dtypes=("float32",), name="huge"),
    OpCase("Adds", lambda m: {"x": m(3, 4)}, lambda x: x + 0.3, {"value": 0.3}),
    OpCase("Adds", lambda m: {"x": m(3, 4)}, lambda x: x + 0.3, {"value": 0.3}, widen=False, exact=True, name="eager"),
    OpCase("Adds", lambda m: {"x": m(3, 4)}, lambda x: x - 3, {"value": -3.0}, dtypes=("int16", "int32"), name="int"),
    *fused("Addcmul", 1, (*FLOATS, "int32", "int64")),
    *fused("Addcdiv", -1, FLOATS),
    OpCase("Lerp", lambda m: {"start": m(3, 4), "end": m(4), "weight": m(3, 1)}, lerp),
    OpCase("Lerp", lambda m: {"start": m(3, 4), "end": m(4), "weight": torch.tensor(0.3)}, lerp, name="float_weight"),
    OpCase(
        "Lerp",
        lambda m: {"start": m(3, 4), "end": m(3, 4), "weight": torch.tensor(0.3)},
        lambda start, end, weight: torch.lerp(start, end, 0.3),
        const=("weight",),
        widen=False,
        exact=True,
        name="eager",
    ),
]


def clip(x: Tensor, clip_value_min: Tensor, clip_value_max: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, clip_value_min), clip_value_max)


def bounds(m: Make) -> dict[str, Tensor]:
    return {
        "x": m(3, 4),
        "clip_value_min": torch.tensor(-1, dtype=m.dtype),
        "clip_value_max": torch.tensor(2, dtype=m.dtype),
    }


BOUNDS = [
    case
    for ge_type in ("ClipByValue", "ClipByValueV2")
    for case in (
        OpCase(ge_type, bounds, clip, dtypes=ANY),
        OpCase(ge_type, bounds, clip, dtypes=ANY, const=("clip_value_min", "clip_value_max"), name="constant"),
        OpCase(
            ge_type,
            lambda m: {"x": m(3, 4), "clip_value_min": m(4, low=-2, high=-1), "clip_value_max": m(3, 1, low=1, high=2)},
            clip,
            name="broadcast",
        ),
        OpCase(ge_type, lambda m: {**bounds(m), "x": special(m)}, clip, name="special"),
        OpCase(
            ge_type,
            lambda m: {
                "x": m.ints(9, low=0, high=9, dtype=m.dtype),
                "clip_value_min": torch.tensor(2, dtype=m.dtype),
                "clip_value_max": torch.tensor(5, dtype=m.dtype),
            },
            numpy(np.clip),
            dtypes=UNSIGNED,
            const=("clip_value_min", "clip_value_max"),
            widen=False,
            name="unsigned",
        ),
    )
]
BOUNDS += [
    OpCase(
        "NanToNum",
        lambda m: {"x": special(m)},
        lambda x: torch.tensor([0.5, 9.0, -8.0, 0.0, -1.5, 2.5]),
        {"nan": 0.5, "posinf": 9.0, "neginf": -8.0},
        exact=True,
    ),
]

CASES = [*BINARY, *POW, *MULTIPLY_ADD, *BOUNDS]
