"""Samples for engine/kernels/nn.py."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from tests.engine.op_case import FLOATS, Make, OpCase


def _softmax(x: Tensor, dim: int) -> Tensor:
    e = torch.exp(x - x.max(dim, keepdim=True).values)
    return e / e.sum(dim, keepdim=True)


def _ge_glu(x: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False) -> list[Tensor]:
    """The tanh form as it is defined; the other by erf."""
    half = x.shape[dim] // 2
    left, right = x.split([half, half], dim)
    gate, value = (left, right) if activate_left else (right, left)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    share = torch.tanh(inner) if approximate else torch.erf(gate / math.sqrt(2))
    gelu = gate * (1 + share) / 2
    return [gelu * value, gelu]


def _half_turn(x: Tensor) -> Tensor:
    a, b = x.tensor_split(2, -1)
    return torch.cat([-b, a], -1)


def _pair_turn(x: Tensor) -> Tensor:
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def _quarter_turn(x: Tensor) -> Tensor:
    return torch.cat([_half_turn(part) for part in x.tensor_split(2, -1)], -1)


def _rope(turn: Any) -> Any:
    return lambda query, key, cos, sin: [query * cos + turn(query) * sin, key * cos + turn(key) * sin]


def _rope_inputs(m: Make) -> dict[str, Tensor]:
    return {"query": m(2, 3, 4, 8), "key": m(2, 3, 2, 8), "cos": m(2, 3, 1, 8), "sin": m(2, 3, 1, 8)}


def _windows(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool) -> list[list[int]]:
    """Input positions of every output position of one axis, padding included as positions outside."""
    span = dilation * (kernel - 1) + 1
    count = (size + 2 * pad - span) / stride
    steps = (math.ceil(count) if ceil_mode else math.floor(count)) + 1
    if ceil_mode and (steps - 1) * stride >= size + pad:
        steps -= 1
    return [[i * stride - pad + j * dilation for j in range(kernel)] for i in range(steps)]


def max_pool(
    x: Tensor, kernel: Any, stride: Any, pad: Any, dilation: Any = (1, 1), ceil_mode: bool = False
) -> list[Tensor]:
    h, w = x.shape[-2:]
    ys = _windows(h, kernel[0], stride[0], pad[0], dilation[0], ceil_mode)
    xs = _windows(w, kernel[1], stride[1], pad[1], dilation[1], ceil_mode)
    y = x.new_empty(*x.shape[:2], len(ys), len(xs))
    argmax = torch.empty(y.shape, dtype=torch.int64)
    for i, rows in enumerate(ys):
        for j, columns in enumerate(xs):
            places = [r * w + c for r in rows for c in columns if 0 <= r < h and 0 <= c < w]
            best = x.flatten(2)[..., places].max(-1)
            y[..., i, j] = best.values
            argmax[..., i, j] = torch.tensor(places)[best.indices]
    return [y, argmax]


def avg_pool(
    x: Tensor, kernel: Any, stride: Any, pad: Any, ceil_mode: bool = False, exclusive: bool = True, divisor: int = 0
) -> Tensor:
    h, w = x.shape[-2:]
    ys = _windows(h, kernel[0], stride[0], pad[0], 1, ceil_mode)
    xs = _windows(w, kernel[1], stride[1], pad[1], 1, ceil_mode)
    result = []
    for rows in ys:
        for columns in xs:
            inside = [r * w + c for r in rows for c in columns if 0 <= r < h and 0 <= c < w]
            padded = [1 for r in rows for c in columns if r < h + pad[0] and c < w + pad[1]]
            count = divisor or (len(inside) if exclusive else len(padded))
            result.append(x.flatten(2)[..., inside].sum(-1) / count)
    return torch.stack(result, -1).unflatten(-1, (len(ys), len(xs)))


def adaptive_avg_pool(x: Tensor, size: list[int]) -> Tensor:
    h, w = x.shape[-2:]
    columns = []
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(i * h // size[0], -(-(i + 1) * h // size[0]))
            cols = slice(j * w // size[1], -(-(j + 1) * w // size[1]))
            columns.append(x[..., rows, cols].mean((-2, -1)))
    return torch.stack(columns, -1).unflatten(-1, tuple(size))


def nearest(x: Tensor, size: list[int], half_pixel: bool = False) -> Tensor:
    shift = 0.5 if half_pixel else 0.0
    rows, columns = (
        [min(int((i + shift) * full / wanted), full - 1) for i in range(wanted)]
        for full, wanted in zip(x.shape[-2:], size, strict=True)
    )
    return x[..., rows, :][..., columns]


POOL = {"ksize": [1, 3, 2, 1], "strides": [1, 2, 1, 1], "pads": [1, 1, 0, 1]}
AVG = {"ksize": [1, 1, 3, 2], "strides": [1, 1, 2, 1], "pads": [1, 1, 0, 0]}

CASES = [
    OpCase("SoftmaxV2", lambda m: {"x": m(3, 5)}, lambda x: _softmax(x, 1)),
    OpCase("SoftmaxV2", lambda m: {"x": m(3, 5, 2)}, lambda x: _softmax(x, 1), {"axes": [1]}, name="axis"),
    OpCase("SoftmaxV2", lambda m: {"x": m(0, 5)}, lambda x: x, name="no_rows"),
    OpCase(
        "SoftmaxV2",
        lambda m: {"x": m(3, 5)},
        lambda x: _softmax(x, 0).float(),
        {"axes": [0], "half_to_float": True},
        dtypes=("float16",),
        name="half_to_float",
    ),
    OpCase(
        "LogSoftmaxV2", lambda m: {"logits": m(3, 5)}, lambda logits: _softmax(logits, 1).log(), outputs=("logsoftmax",)
    ),
    OpCase(
        "LogSoftmaxV2",
        lambda m: {"logits": m(3, 5)},
        lambda logits: _softmax(logits, 0).log(),
        {"axes": [0]},
        outputs=("logsoftmax",),
        name="axis",
    ),
    OpCase("SwiGlu", lambda m: {"x": m(3, 8)}, lambda x: x[:, :4] / (1 + torch.exp(-x[:, :4])) * x[:, 4:]),
    OpCase(
        "SwiGlu",
        lambda m: {"x": m(2, 6, 5)},
        lambda x: x[:, :3] * torch.sigmoid(x[:, :3]) * x[:, 3:],
        {"dim": 1},
        name="dim",
    ),
    *(
        OpCase(
            "GeGluV2",
            lambda m: {"x": m(3, 8, 2)},
            functools.partial(_ge_glu, **attrs),
            attrs,
            outputs=("y", "gelu"),
            name=f"{attrs}",
        )
        for attrs in (
            {"dim": 1},
            {"dim": 1, "approximate": 0},
            {"dim": -2, "activate_left": True},
            {"dim": 1, "approximate": 0, "activate_left": True},
        )
    ),
    OpCase(
        "RotaryMul",
        lambda m: {"x": m(2, 3, 4, 8), "r1": m(1, 3, 1, 8), "r2": m(1, 3, 1, 8)},
        lambda x, r1, r2: x * r1 + _half_turn(x) * r2,
    ),
    OpCase(
        "RotaryPositionEmbedding",
        lambda m: {"x": m(2, 3, 4, 8), "cos": m(1, 3, 1, 8), "sin": m(1, 3, 1, 8), "rotate": None},
        lambda x, cos, sin, rotate: x * cos + _half_turn(x) * sin,
    ),
    OpCase(
        "RotaryPositionEmbedding",
        lambda m: {"x": m(2, 3, 4, 8), "cos": m(1, 3, 1, 8), "sin": m(1, 3, 1, 8)},
        lambda x, cos, sin: x * cos + _pair_turn(x) * sin,
        {"mode": 1},
        name="interleave",
    ),
    OpCase(
        "RotaryPositionEmbedding",
        lambda m: {"x": m(2, 3, 4, 8), "cos": m(1, 3, 1, 8), "sin": m(1, 3, 1, 8)},
        lambda x, cos, sin: x * cos + _quarter_turn(x) * sin,
        {"mode": 2},
        name="quarter",
    ),
    OpCase(
        "RotaryPositionEmbedding",
        lambda m: {"x": m(2, 3, 4, 8), "cos": m(1, 3, 1, 8), "sin": m(1, 3, 1, 8), "rotate": m(8, 8)},
        lambda x, cos, sin, rotate: x * cos + x @ rotate * sin,
        {"mode": 1},
        name="by_matrix",
    ),
    OpCase("ApplyRotaryPosEmb", _rope_inputs, _rope(_half_turn), outputs=("query", "key")),
    OpCase(
        "ApplyRotaryPosEmb",
        _rope_inputs,
        _rope(_pair_turn),
        {"rotary_mode": "interleave", "layout": 1},
        outputs=("query", "key"),
        name="interleave",
    ),
    OpCase(
        "ApplyRotaryPosEmb",
        lambda m: {k: v.transpose(1, 2).contiguous() for k, v in _rope_inputs(m).items()},
        _rope(_quarter_turn),
        {"rotary_mode": "quarter", "layout": 3},
        outputs=("query", "key"),
        name="quarter_bnsd",
    ),
    OpCase(
        "ApplyRotaryPosEmb",
        lambda m: {k: v.flatten(0, 1) for k, v in _rope_inputs(m).items()},
        _rope(_half_turn),
        {"layout": 4},
        outputs=("query", "key"),
        const=("key", "cos"),
        name="tnd",
    ),
    OpCase(
        "MaxPoolWithArgmaxV1",
        lambda m: {"x": m(2, 3, 7, 5)},
        lambda x: max_pool(x, (3, 2), (2, 1), (1, 0)),
        POOL,
        outputs=("y", "argmax"),
    ),
    OpCase(
        "MaxPoolWithArgmaxV1",
        lambda m: {"x": m(1, 2, 9, 8)},
        lambda x: max_pool(x, (3, 2), (2, 3), (1, 1), (2, 1), True),
        {
            "ksize": [1, 3, 2, 1],
            "strides": [1, 2, 3, 1],
            "pads": [1, 1, 1, 1],
            "dilation": [1, 2, 1, 1],
            "ceil_mode": True,
            "dtype": 9,
        },
        outputs=("y", "argmax"),
        name="dilated_ceil",
    ),
    OpCase(
        "MaxPoolWithArgmaxV3",
        lambda m: {"x": m(2, 3, 7, 5)},
        lambda x: max_pool(x, (3, 2), (2, 1), (1, 0)),
        {"ksize": [3, 2], "strides": [2, 1], "pads": [1, 0], "dtype": 9, "data_format": "NCHW"},
        outputs=("y", "argmax"),
    ),
    OpCase(
        "MaxPoolWithArgmaxV3",
        lambda m: {"x": m(1, 2, 9, 8)},
        lambda x: max_pool(x, (3, 2), (2, 3), (1, 1), (2, 1), True),
        {"ksize": [3, 2], "strides": [2, 3], "pads": [1, 1], "dilation": [2, 1], "ceil_mode": True},
        outputs=("y", "argmax"),
        name="dilated_ceil",
    ),
    OpCase("AvgPoolV2", lambda m: {"x": m(2, 3, 7, 5)}, lambda x: avg_pool(x, (3, 2), (2, 1), (1, 0)), AVG),
    OpCase(
        "AvgPoolV2",
        lambda m: {"x": m(2, 3, 8, 5)},
        lambda x: avg_pool(x, (3, 2), (2, 1), (1, 0), ceil_mode=True, exclusive=False),
        AVG | {"ceil_mode": True, "exclusive": False},
        name="inclusive_ceil",
    ),
    OpCase(
        "AvgPoolV2",
        lambda m: {"x": m(2, 3, 7, 5)},
        lambda x: avg_pool(x, (3, 2), (2, 1), (1, 0), divisor=4),
        AVG | {"divisor_override": 4},
        name="divisor",
    ),
    OpCase(
        "AvgPoolV2",
        lambda m: {"x": m(2, 3, 7, 5)},
        lambda x: avg_pool(x, (3, 2), (2, 1), (0, 0)),
        AVG | {"padding_mode": "VALID"},
        name="valid",
    ),
    OpCase(
        "AvgPoolV2",
        lambda m: {"x": m(2, 3, 7, 5)},
        lambda x: x.flatten(2).mean(-1)[..., None, None],
        AVG | {"global_pooling": True},
        name="global",
    ),
    OpCase(
        "AdaptiveAvgPool2d",
        lambda m: {"x": m(2, 3, 7, 5)},
        lambda x: adaptive_avg_pool(x, [3, 2]),
        {"output_size": [3, 2]},
    ),
    OpCase(
        "AdaptiveAvgPool2d",
        lambda m: {"x": m(2, 3, 7, 5)},
        lambda x: adaptive_avg_pool(x, [1, 1]),
        {"output_size": [1, 1]},
        name="one",
    ),
    OpCase(
        "ResizeNearestNeighborV2",
        lambda m: {"x": m(2, 3, 4, 5), "size": torch.tensor([7, 3], dtype=torch.int32)},
        lambda x, size: nearest(x, [7, 3]),
        const=("size",),
        dtypes=FLOATS,
    ),
    OpCase(
        "ResizeNearestNeighborV2",
        lambda m: {"x": m(2, 3, 4, 5), "size": torch.tensor([7, 3])},
        lambda x, size: nearest(x, [7, 3], True),
        {"half_pixel_centers": True},
        name="half_pixel",
    ),
]
