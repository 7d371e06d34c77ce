"""Samples for engine/kernels/random.py with results that are no matter of chance; the rest is in test_random.py."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.engine.op_case import FLOATS, Make, OpCase, dtype_value


def shape(*dims: int) -> Tensor:
    return torch.tensor(dims, dtype=torch.int64)


def number(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int64)


def bits(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint64)


def stateless(m: Make) -> dict[str, Tensor]:
    return {"shape": shape(0, 3), "key": bits(7), "counter": bits(0, 1), "alg": torch.tensor(1, dtype=torch.int32)}


def certain(prob: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "shape": shape(2, 3),
        "prob": torch.tensor(prob, dtype=dtype),
        "seed": number(7),
        "offset": number(1),
    }


def mask_inputs(m: Make) -> dict[str, Tensor]:
    return {
        "x": m(2, 3),
        "mask": torch.tensor([0b110101, *[0] * 15], dtype=torch.uint8),
        "keep_prob": torch.tensor(0.75, dtype=m.dtype),
    }


def half(m: Make) -> Tensor:
    return torch.tensor(0.5, dtype=m.dtype)


def dropped(x: Tensor, mask: Tensor, keep_prob: Tensor) -> Tensor:
    return torch.where(torch.tensor([[True, False, True], [False, True, True]]), x / keep_prob, 0.0)


def rows(m: Make) -> dict[str, Tensor]:
    """One possible outcome per row."""
    x = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]], dtype=m.dtype)
    return {"x": x, "seed": number(3), "offset": number(0)}


CASES = [
    OpCase("StatelessRandomUniformV2", stateless, lambda **_: torch.zeros(0, 3), dtypes=("float32",)),
    OpCase("StatelessRandomNormalV2", stateless, lambda **_: torch.zeros(0, 3), dtypes=("float32",)),
    OpCase("StatelessBernoulli", lambda m: certain(1.0, m.dtype), lambda **_: torch.ones(2, 3)),
    OpCase(
        "StatelessBernoulli",
        lambda m: certain(0.0, m.dtype),
        lambda **_: torch.zeros(2, 3, dtype=torch.int32),
        {"dtype": dtype_value("int32")},
        const=("shape",),
        name="int32",
    ),
    OpCase(
        "StatelessRandperm",
        lambda m: {"n": number(1), "seed": number(3), "offset": number(0)},
        lambda **_: torch.tensor([0]),
        {"layout": 1},
        dtypes=("int64",),
    ),
    OpCase(
        "StatelessRandperm",
        lambda m: {"n": number(0), "seed": number(3), "offset": number(0)},
        lambda **_: torch.zeros(0),
        {"dtype": dtype_value("float32")},
        dtypes=("int64",),
        name="empty",
    ),
    OpCase(
        "MultinomialWithReplacement",
        rows,
        lambda **_: torch.tensor([[1, 1], [2, 2]]),
        {"numsamples": 2, "replacement": True},
    ),
    OpCase("MultinomialWithReplacement", rows, lambda **_: torch.tensor([[1], [2]]), {"numsamples": 1}, name="one"),
    OpCase(
        "StatelessDropOutGenMask",
        lambda m: {**certain(1.0, m.dtype), "seed1": number(0), "offset": shape(0, 4)},
        lambda **_: torch.tensor([0b111111, *[0] * 15], dtype=torch.uint8),
    ),
    *[
        case
        for ge_type in ("DropOutDoMask", "DropOutDoMaskV3")
        for case in (
            OpCase(ge_type, mask_inputs, dropped),
            OpCase(ge_type, mask_inputs, dropped, const=("keep_prob",), name="constant"),
            OpCase(
                ge_type,
                lambda m: {"x": m(1100), "mask": torch.full((144,), 0b10, dtype=torch.uint8), "keep_prob": half(m)},
                lambda x, mask, keep_prob: torch.where(torch.arange(1100) % 8 == 1, x * 2, 0.0),
                name="bytes",
            ),
            OpCase(
                ge_type,
                lambda m: {
                    **mask_inputs(m),
                    "mask": torch.zeros(16, dtype=torch.uint8),
                    "keep_prob": torch.tensor(0.0),
                },
                lambda x, mask, keep_prob: torch.zeros(2, 3),
                name="nothing_kept",
            ),
        )
    ],
    OpCase(
        "StringFormat",
        lambda m: {"x": [torch.tensor([1, 2]), torch.tensor(0.5)]},
        lambda x: torch.tensor(list(b"a=[1 2] b=0.5"), dtype=torch.uint8),
        {"template": "a={} b={}", "placeholder": "{}", "summarize": -1},
        dtypes=FLOATS,
    ),
    OpCase(
        "Cmo",
        lambda m: {"src": torch.ones(4)},
        lambda src: [],
        {"max_size": 16, "type": 6, "offset": 4},
        outputs=(),
        dtypes=FLOATS,
    ),
    OpCase(
        "PrintV2",
        lambda m: {"x": torch.tensor(list(b"text"), dtype=torch.uint8)},
        lambda x: [],
        outputs=(),
        dtypes=("uint8",),
    ),
]
