"""Convolutions and their gradients. Memory is NCHW / NCDHW; the lists hold an entry per axis of it."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.matmul import WIDENED
from npu_fused_graph.engine.kernels.nn import has_symmetric_pads
from npu_fused_graph.engine.registry import Allowed, Ints, kernel, unsupported

ONES_2D = [1, 1, 1, 1]
ONES_3D = [1, 1, 1, 1, 1]
ZEROS_2D = [0, 0, 0, 0]
ZEROS_3D = [0, 0, 0, 0, 0]


_NCHW: Allowed = {"data_format": ("NCHW",)}
_NCDHW: Allowed = {"data_format": ("NCDHW",)}
_NO_OFFSET: Allowed = {"offset_x": (0,)}


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    groups: int,
    transposed_padding: list[int] | None = None,
) -> Tensor:
    """Convolution, or transposed convolution with that output padding; in float32 where halves are slow."""
    dtype = x.dtype
    padding = pads[0::2]
    if padding != pads[1::2]:
        # torch.nn.functional.pad wants the last axis first
        x = torch.nn.functional.pad(x, [p for axis in range(len(pads) - 2, -1, -2) for p in pads[axis : axis + 2]])
        padding = [0] * len(padding)
    if bias is not None and bias.dtype is not dtype:
        bias = bias.to(dtype)
    if dtype in WIDENED:
        x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
    y = torch.convolution(
        x,
        weight,
        bias,
        strides[2:],
        padding,
        dilations[2:],
        transposed_padding is not None,
        transposed_padding or [0] * len(padding),
        groups,
    )
    return y.to(dtype)


@kernel("Conv2D", same_dtype=("x", "filter"), allowed=_NCHW | _NO_OFFSET, unfed=("offset_w",))
def conv2d(
    x: Tensor,
    filter: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    strides: list[int],
    pads: list[int],
    dilations: list[int] = ONES_2D,
    groups: int = 1,
    data_format: str = "NHWC",
    offset_x: int = 0,
) -> Tensor:
    """pads: top, bottom, left, right."""
    return _conv(x, filter, bias, strides, pads, dilations, groups)


@kernel("Conv3D", same_dtype=("x", "filter"), allowed=_NCDHW | _NO_OFFSET, unfed=("offset_w",))
def conv3d(
    x: Tensor,
    filter: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    strides: list[int],
    pads: list[int],
    dilations: list[int] = ONES_3D,
    groups: int = 1,
    data_format: str = "NDHWC",
    offset_x: int = 0,
) -> Tensor:
    """pads: front, back, top, bottom, left, right."""
    return _conv(x, filter, bias, strides, pads, dilations, groups)


def _transposed_conv(
    ge_type: str,
    input_size: Ints,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    groups: int,
    output_padding: list[int],
) -> Tensor:
    y = _conv(x, weight, bias, strides, pads, dilations, groups, output_padding[2:])
    if list(y.shape) != list(input_size):
        raise unsupported(ge_type, "input_size", f"the shape {list(y.shape)} that the attributes give", input_size)
    return y


@kernel(
    "Conv2DTranspose",
    same_dtype=("x", "filter"),
    allowed=_NCHW | _NO_OFFSET,
    specialise=has_symmetric_pads("Conv2DTranspose"),
    unfed=("offset_w",),
)
def conv2d_transpose(
    input_size: Ints,
    x: Tensor,
    filter: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    strides: list[int],
    pads: list[int],
    dilations: list[int] = ONES_2D,
    groups: int = 1,
    data_format: str = "NHWC",
    output_padding: list[int] = ZEROS_2D,
    offset_x: int = 0,
) -> Tensor:
    """input_size: the shape of the result."""
    return _transposed_conv(
        "Conv2DTranspose", input_size, x, filter, bias, strides, pads, dilations, groups, output_padding
    )


@kernel(
    "Conv3DTranspose",
    same_dtype=("x", "filter"),
    allowed=_NCDHW | _NO_OFFSET,
    specialise=has_symmetric_pads("Conv3DTranspose"),
    unfed=("offset_w",),
)
def conv3d_transpose(
    input_size: Ints,
    x: Tensor,
    filter: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    strides: list[int],
    pads: list[int],
    dilations: list[int] = ONES_3D,
    groups: int = 1,
    data_format: str = "NDHWC",
    output_padding: list[int] = ZEROS_3D,
    offset_x: int = 0,
) -> Tensor:
    """input_size: the shape of the result."""
    return _transposed_conv(
        "Conv3DTranspose", input_size, x, filter, bias, strides, pads, dilations, groups, output_padding
    )


# -- gradients -------------------------------------------------------------------------------------------


def _grad(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    groups: int,
    which: int,
) -> Tensor:
    """Gradient of a convolution for x (which=0) or weight (which=1); the other one's values only shape it."""
    padding = pads[0::2]
    result: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        strides[2:],
        padding,
        dilations[2:],
        False,
        [0] * len(padding),
        groups,
        [which == 0, which == 1, False],
    )
    return result[which]


@kernel(
    "Conv2DBackpropInput",
    same_dtype=("filter", "out_backprop"),
    allowed=_NCHW,
    specialise=has_symmetric_pads("Conv2DBackpropInput"),
)
def conv2d_backprop_input(
    input_size: Ints,
    filter: Tensor,
    out_backprop: Tensor,
    *,
    strides: list[int],
    pads: list[int],
    dilations: list[int] = ONES_2D,
    groups: int = 1,
    data_format: str = "NHWC",
) -> Tensor:
    x = out_backprop.new_empty(1).expand(input_size)
    return _grad(x, filter, out_backprop, strides, pads, dilations, groups, 0)


@kernel(
    "Conv2DBackpropFilter",
    same_dtype=("x", "out_backprop"),
    allowed=_NCHW,
    specialise=has_symmetric_pads("Conv2DBackpropFilter"),
)
def conv2d_backprop_filter(
    x: Tensor,
    filter_size: Ints,
    out_backprop: Tensor,
    *,
    strides: list[int],
    pads: list[int],
    dilations: list[int] = ONES_2D,
    groups: int = 1,
    data_format: str = "NHWC",
) -> Tensor:
    weight = out_backprop.new_empty(1).expand(filter_size)
    return _grad(x, weight, out_backprop, strides, pads, dilations, groups, 1)


@kernel(
    "Conv3DBackpropInput",
    same_dtype=("filter", "out_backprop"),
    allowed=_NCDHW,
    specialise=has_symmetric_pads("Conv3DBackpropInput"),
)
def conv3d_backprop_input(
    input_size: Ints,
    filter: Tensor,
    out_backprop: Tensor,
    *,
    strides: list[int],
    pads: list[int],
    dilations: list[int] = ONES_3D,
    groups: int = 1,
    data_format: str = "NDHWC",
) -> Tensor:
    x = out_backprop.new_empty(1).expand(input_size)
    return _grad(x, filter, out_backprop, strides, pads, dilations, groups, 0)


@kernel(
    "Conv3DBackpropFilter",
    same_dtype=("x", "out_backprop"),
    allowed=_NCDHW,
    specialise=has_symmetric_pads("Conv3DBackpropFilter"),
)
def conv3d_backprop_filter(
    x: Tensor,
    filter_size: Ints,
    out_backprop: Tensor,
    *,
    strides: list[int],
    pads: list[int],
    dilations: list[int] = ONES_3D,
    groups: int = 1,
    data_format: str = "NDHWC",
) -> Tensor:
    weight = out_backprop.new_empty(1).expand(filter_size)
    return _grad(x, weight, out_backprop, strides, pads, dilations, groups, 1)
