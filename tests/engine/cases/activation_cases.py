"""Samples for engine/kernels/activation.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.engine.cases.math_cases import UNSIGNED, special
from tests.engine.op_case import FLOATS, Make, OpCase


def plain(m: Make) -> dict[str, Tensor]:
    return {"x": m(4, 6, low=-5, high=5)}


def input_x(m: Make) -> dict[str, Tensor]:
    return {"input_x": m(4, 6, low=-5, high=5)}


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    return scale * torch.where(x > 0, x, alpha * (torch.exp(input_scale * x) - 1))


def threshold(x: Tensor, threshold: Tensor, value: Tensor | None = None) -> Tensor:
    return torch.where(x > threshold, x, torch.zeros_like(x) if value is None else value.to(x.dtype))


THRESHOLD = [
    OpCase(
        "ThresholdV2",
        lambda m: {**plain(m), "threshold": torch.tensor(1, dtype=m.dtype), "value": torch.tensor(-2, dtype=m.dtype)},
        threshold,
        dtypes=(*FLOATS, "int32", "int64"),
        const=const,
        name="constant" if const else "data",
    )
    for const in ((), ("threshold", "value"), ("threshold",))
] + [
    OpCase(
        "ThresholdV2",
        lambda m: {**plain(m), "threshold": torch.tensor(0.25), "value": torch.tensor(0.5)},
        threshold,
        const=("threshold", "value"),
        name="float_numbers",
    ),
    OpCase("ThresholdV2", lambda m: {**plain(m), "threshold": m()}, threshold, name="no_value"),
    OpCase(
        "ThresholdV2", lambda m: {**plain(m), "threshold": m()}, threshold, const=("threshold",), name="const_no_value"
    ),
    OpCase("ThresholdV2D", plain, lambda x: torch.where(x > 0.5, x, -1.5), {"threshold": 0.5, "value": -1.5}),
]

CASES = [
    OpCase("Sigmoid", plain, sigmoid),
    OpCase("Relu", plain, lambda x: torch.where(x > 0, x, torch.zeros_like(x)), dtypes=(*FLOATS, "int32", "int8")),
    OpCase(
        "Relu",
        lambda m: {"x": m.ints(5, low=0, high=9, dtype=m.dtype)},
        lambda x: x,
        dtypes=UNSIGNED,
        exact=True,
        name="unsigned",
    ),
    OpCase("Relu", lambda m: {"x": special(m)}, torch.relu, name="special"),
    OpCase("Relu6", lambda m: {"x": m(5, 5, low=-9, high=9)}, lambda x: x.clamp(0, 6)),
    OpCase("Mish", plain, lambda x: x * torch.tanh(torch.log1p(torch.exp(x)))),
    OpCase("HardSwish", plain, lambda x: x * (x + 3).clamp(0, 6) / 6),
    OpCase("LogSigmoid", plain, lambda x: -torch.log1p(torch.exp(-x))),
    OpCase("Softplus", plain, lambda x: torch.log1p(torch.exp(x))),
    OpCase(
        "Softplus",
        lambda m: {"x": torch.tensor([-50.0, 0.0, 50.0], dtype=m.dtype)},
        lambda x: torch.tensor([0.0, math.log(2), 50.0]),
        name="ends",
    ),
    OpCase("SoftplusV2", plain, lambda x: torch.log1p(torch.exp(x))),
    OpCase(
        "SoftplusV2",
        plain,
        lambda x: torch.where(2 * x > 3, x, torch.log1p(torch.exp(2 * x)) / 2),
        {"beta": 2.0, "threshold": 3.0},
        name="attrs",
    ),
    OpCase("Softsign", plain, lambda x: x / (1 + x.abs())),
    OpCase("Selu", plain, lambda x: elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)),
    OpCase("Gelu", plain, gelu),
    OpCase("Gelu", plain, lambda x: torch.nn.functional.gelu(x), widen=False, exact=True, name="eager"),
    OpCase("GeluV2", plain, gelu),
    OpCase("GeluV2", plain, gelu_tanh, {"approximate": "tanh"}, name="tanh"),
    OpCase("FastGelu", plain, lambda x: x * sigmoid(1.702 * x)),
    OpCase("Swish", plain, lambda x: x * sigmoid(x)),
    OpCase("Swish", plain, lambda x: x * sigmoid(1.5 * x), {"scale": 1.5}, name="scale"),
    OpCase("Swish", plain, lambda x: torch.nn.functional.silu(x), widen=False, exact=True, name="eager"),
    OpCase("HardSigmoid", input_x, lambda input_x: (input_x / 6 + 0.5).clamp(0, 1), outputs=("output_y",)),
    OpCase(
        "HardSigmoid",
        input_x,
        lambda input_x: (input_x / 6 + 0.5).clamp(0, 1).float(),
        dtypes=("int32",),
        outputs=("output_y",),
        name="int",
    ),
    OpCase(
        "HardSigmoid",
        input_x,
        lambda input_x: (input_x * 0.3 + 0.4).clamp(0, 1),
        {"alpha": 0.3, "beta": 0.4},
        outputs=("output_y",),
        name="attrs",
    ),
    OpCase(
        "HardSigmoid",
        input_x,
        lambda input_x: torch.nn.functional.hardsigmoid(input_x),
        outputs=("output_y",),
        widen=False,
        exact=True,
        name="eager",
    ),
    OpCase("LeakyRelu", plain, lambda x: x.clamp(min=0)),
    OpCase("LeakyRelu", plain, lambda x: torch.where(x > 0, x, 0.2 * x), {"negative_slope": 0.2}, name="slope"),
    OpCase("Elu", plain, elu),
    OpCase(
        "Elu", plain, lambda x: elu(x, 1.5, 2.0, 0.5), {"alpha": 1.5, "scale": 2.0, "input_scale": 0.5}, name="attrs"
    ),
    OpCase("CeluV2", plain, elu),
    OpCase("CeluV2", plain, lambda x: elu(x, 2.0, 1.0, 0.5), {"alpha": 2.0}, name="alpha"),
    OpCase("HardShrink", input_x, lambda input_x: torch.where(input_x.abs() > 0.5, input_x, 0.0)),
    OpCase(
        "HardShrink",
        input_x,
        lambda input_x: torch.where(input_x.abs() > 2, input_x, 0.0),
        {"lambd": 2.0},
        name="lambd",
    ),
    OpCase("SoftShrink", input_x, lambda input_x: input_x.sign() * (input_x.abs() - 0.5).clamp(min=0)),
    OpCase(
        "SoftShrink",
        input_x,
        lambda input_x: input_x.sign() * (input_x.abs() - 2).clamp(min=0),
        {"lambd": 2.0},
        name="lambd",
    ),
    *THRESHOLD,
    *[
        OpCase("PRelu", lambda m, s=shape, w=weight: {"x": m(*s), "weight": m(*w)}, expected, name=name)  # type: ignore[misc]
        for name, shape, weight, expected in (
            ("shared", (2, 3, 4), (1,), lambda x, weight: torch.where(x > 0, x, weight * x)),
            ("channel", (2, 3, 4), (3,), lambda x, weight: torch.where(x > 0, x, weight.reshape(3, 1) * x)),
            ("kernel", (2, 3, 4), (1, 3, 1), lambda x, weight: torch.where(x > 0, x, weight * x)),
            ("1d", (5,), (1,), lambda x, weight: torch.where(x > 0, x, weight * x)),
        )
    ],
    OpCase("GLU", plain, lambda x: x[:, :3] * sigmoid(x[:, 3:])),
    OpCase("GLU", plain, lambda x: x[:2] * sigmoid(x[2:]), {"dim": 0}, name="dim0"),
    OpCase("GLU", plain, lambda x: x[:2] * sigmoid(x[2:]), {"dim": -2}, name="negative_dim"),
]
