"""Samples for engine/kernels/conv.py."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from tests.engine.op_case import Make, OpCase


def conv(
    x: Tensor, weight: Tensor, stride: Any, pads: Any, dilation: Any, groups: int = 1, bias: Tensor | None = None
) -> Tensor:
    """Sum over the kernel's positions. pads: begin and end of every axis."""
    x = torch.nn.functional.pad(x, [p for d in range(len(stride) - 1, -1, -1) for p in pads[2 * d : 2 * d + 2]])
    kernel = weight.shape[2:]
    out = [
        (size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    y: Any = 0
    for place in itertools.product(*(range(k) for k in kernel)):
        taps = [
            slice(p * d, p * d + (n - 1) * s + 1, s) for p, d, n, s in zip(place, dilation, out, stride, strict=True)
        ]
        window = x[(..., *taps)].unflatten(1, (groups, -1))
        tap = weight[(..., *place)].unflatten(0, (groups, -1))
        y = y + torch.einsum("bgi...,goi->bgo...", window, tap).flatten(1, 2)
    return y if bias is None else y + bias.view(-1, *[1] * len(out))


def transposed(
    x: Tensor,
    weight: Tensor,
    size: list[int],
    stride: Any,
    pads: Any,
    dilation: Any,
    groups: int,
    bias: Tensor | None = None,
) -> Tensor:
    """The transposed convolution as the derivative of the convolution."""
    image = torch.zeros(size, dtype=x.dtype, requires_grad=True)
    conv(image, weight, stride, pads, dilation, groups).backward(x)
    y = image.grad
    assert y is not None
    return y if bias is None else y + bias.view(-1, *[1] * (y.dim() - 2))


def _gradient(of: str, x: Any, weight: Any, grad: Tensor, stride: Any, pads: Any, dilation: Any, groups: int) -> Tensor:
    wanted = (x if of == "x" else weight).clone().requires_grad_()
    y = (
        conv(wanted, weight, stride, pads, dilation, groups)
        if of == "x"
        else conv(x, wanted, stride, pads, dilation, groups)
    )
    y.backward(grad)
    assert wanted.grad is not None
    return wanted.grad


def _size(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


PLAIN = {"strides": [1, 1, 1, 1], "pads": [0, 0, 0, 0], "data_format": "NCHW"}
RICH = {
    "strides": [1, 1, 2, 1],
    "pads": [1, 1, 2, 2],
    "dilations": [1, 1, 1, 2],
    "groups": 2,
    "data_format": "NCHW",
}
RICH_ARGS = ((2, 1), (1, 1, 2, 2), (1, 2), 2)
PLAIN_3D = {"strides": [1, 1, 1, 1, 1], "pads": [0] * 6, "data_format": "NCDHW"}
RICH_3D = {
    "strides": [1, 1, 2, 1, 1],
    "pads": [1, 1, 0, 0, 2, 2],
    "dilations": [1, 1, 1, 2, 1],
    "groups": 2,
    "data_format": "NCDHW",
}
RICH_3D_ARGS = ((2, 1, 1), (1, 1, 0, 0, 2, 2), (1, 2, 1), 2)


def _small(m: Make, *shape: int) -> Tensor:
    """Keeps the sums of products of half types near 1."""
    return m(*shape, low=-0.5, high=0.5)


CASES = [
    OpCase(
        "Conv2D",
        lambda m: {"x": _small(m, 2, 3, 6, 5), "filter": _small(m, 4, 3, 3, 2)},
        lambda x, filter: conv(x, filter, (1, 1), (0, 0, 0, 0), (1, 1)),
        PLAIN,
    ),
    OpCase(
        "Conv2D",
        lambda m: {"x": _small(m, 2, 4, 7, 6), "filter": _small(m, 6, 2, 3, 2), "bias": m(6), "offset_w": None},
        lambda x, filter, bias, offset_w: conv(x, filter, *RICH_ARGS, bias=bias),
        RICH | {"offset_x": 0},
        name="all_attributes",
    ),
    OpCase(
        "Conv2D",
        lambda m: {"x": _small(m, 1, 2, 5, 5), "filter": _small(m, 3, 2, 3, 2), "bias": m(3).float()},
        lambda x, filter, bias: conv(x, filter, (1, 1), (2, 1, 0, 1), (1, 1), bias=bias),
        PLAIN | {"pads": [2, 1, 0, 1]},
        name="uneven_pads",
    ),
    OpCase(
        "Conv2D",
        lambda m: {"x": _small(m, 0, 3, 6, 5), "filter": _small(m, 4, 3, 3, 2)},
        lambda x, filter: x.new_zeros(0, 4, 4, 4),
        PLAIN,
        name="no_batch",
    ),
    OpCase(
        "Conv3D",
        lambda m: {"x": _small(m, 2, 3, 4, 5, 4), "filter": _small(m, 4, 3, 2, 3, 2)},
        lambda x, filter: conv(x, filter, (1, 1, 1), (0,) * 6, (1, 1, 1)),
        PLAIN_3D,
    ),
    OpCase(
        "Conv3D",
        lambda m: {"x": _small(m, 2, 4, 4, 5, 4), "filter": _small(m, 6, 2, 2, 2, 3), "bias": m(6)},
        lambda x, filter, bias: conv(x, filter, *RICH_3D_ARGS, bias=bias),
        RICH_3D,
        name="all_attributes",
    ),
    OpCase(
        "Conv2DTranspose",
        lambda m: {"input_size": _size(2, 4, 6, 6), "x": _small(m, 2, 3, 4, 5), "filter": _small(m, 3, 4, 3, 2)},
        lambda input_size, x, filter: transposed(x, filter, [2, 4, 6, 6], (1, 1), (0, 0, 0, 0), (1, 1), 1),
        PLAIN,
        const=("input_size",),
    ),
    OpCase(
        "Conv2DTranspose",
        lambda m: {
            "input_size": _size(2, 6, 8, 3),
            "x": _small(m, 2, 4, 4, 5),
            "filter": _small(m, 4, 3, 3, 2),
            "bias": m(6),
        },
        lambda input_size, x, filter, bias: transposed(x, filter, [2, 6, 8, 3], *RICH_ARGS, bias=bias),
        RICH | {"output_padding": [0, 0, 1, 0]},
        name="all_attributes",
    ),
    OpCase(
        "Conv3DTranspose",
        lambda m: {
            "input_size": _size(2, 4, 4, 6, 5),
            "x": _small(m, 2, 4, 2, 4, 7),
            "filter": _small(m, 4, 2, 3, 2, 3),
        },
        lambda input_size, x, filter: transposed(x, filter, [2, 4, 4, 6, 5], *RICH_3D_ARGS),
        RICH_3D | {"output_padding": [0, 0, 1, 0, 0]},
    ),
    OpCase(
        "Conv2DBackpropInput",
        lambda m: {
            "input_size": _size(2, 4, 7, 6),
            "filter": _small(m, 6, 2, 3, 2),
            "out_backprop": _small(m, 2, 6, 4, 8),
        },
        lambda input_size, filter, out_backprop: _gradient(
            "x", torch.zeros(2, 4, 7, 6, dtype=torch.float64), filter, out_backprop, *RICH_ARGS
        ),
        RICH,
    ),
    OpCase(
        "Conv2DBackpropFilter",
        lambda m: {"x": _small(m, 2, 4, 7, 6), "filter_size": _size(6, 2, 3, 2), "out_backprop": _small(m, 2, 6, 4, 8)},
        lambda x, filter_size, out_backprop: _gradient(
            "weight", x, torch.zeros(6, 2, 3, 2, dtype=torch.float64), out_backprop, *RICH_ARGS
        ),
        RICH,
    ),
    OpCase(
        "Conv3DBackpropInput",
        lambda m: {
            "input_size": _size(1, 4, 4, 5, 4),
            "filter": _small(m, 6, 2, 2, 2, 3),
            "out_backprop": _small(m, 1, 6, 3, 3, 6),
        },
        lambda input_size, filter, out_backprop: _gradient(
            "x", torch.zeros(1, 4, 4, 5, 4, dtype=torch.float64), filter, out_backprop, *RICH_3D_ARGS
        ),
        RICH_3D,
    ),
    OpCase(
        "Conv3DBackpropFilter",
        lambda m: {
            "x": _small(m, 1, 4, 4, 5, 4),
            "filter_size": _size(6, 2, 2, 2, 3),
            "out_backprop": _small(m, 1, 6, 3, 3, 6),
        },
        lambda x, filter_size, out_backprop: _gradient(
            "weight", x, torch.zeros(6, 2, 2, 2, 3, dtype=torch.float64), out_backprop, *RICH_3D_ARGS
        ),
        RICH_3D,
    ),
]
