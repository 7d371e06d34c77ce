"""Softmax, gated activations, rotary embedding, pooling and resizing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.dtypes import FLOATS
from npu_fused_graph.engine.kernels.aten import aten_op
from npu_fused_graph.engine.registry import Allowed, Ints, KernelFn, kernel, unsupported

# -- softmax ---------------------------------------------------------------------------------------------


def one_axis(ge_type: str, name: str = "axes") -> Any:
    """A ``specialise`` that checks, at load, that the list attribute ``name`` has one entry."""

    def check(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
        if len(attrs[name]) != 1:
            raise unsupported(ge_type, name, "one axis", attrs[name])
        return None

    return check


@kernel("SoftmaxV2", specialise=one_axis("SoftmaxV2"))
def softmax_v2(x: Tensor, *, axes: list[int] = [-1], half_to_float: bool = False) -> Tensor:  # noqa: B006
    return torch.softmax(x, axes[0], dtype=torch.float32 if half_to_float else None)


@kernel("LogSoftmaxV2", specialise=one_axis("LogSoftmaxV2"))
def log_softmax_v2(logits: Tensor, *, axes: list[int] = [-1]) -> Tensor:  # noqa: B006
    return torch.log_softmax(logits, axes[0])


# -- gates and rotary embedding --------------------------------------------------------------------------


@kernel("SwiGlu", dtypes={"x": FLOATS})
def swi_glu(x: Tensor, *, dim: int = -1) -> Tensor:
    gate, value = x.chunk(2, dim)
    return torch.nn.functional.silu(gate).mul_(value)


@kernel("GeGluV2", allowed={"approximate": (0, 1)})
def ge_glu_v2(x: Tensor, *, dim: int = -1, approximate: int = 1, activate_left: bool = False) -> tuple[Tensor, Tensor]:
    """(value * gelu(gate), gelu(gate)), each rounded once. approximate: 0 = by erf, 1 = by tanh."""
    first, second = x.chunk(2, dim)
    gate, value = (first, second) if activate_left else (second, first)
    gelu = torch.nn.functional.gelu(gate.float(), approximate="tanh" if approximate else "none")
    return (value * gelu).to(x.dtype), gelu.to(x.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, mode: str) -> Tensor:
    """x * cos + rotate(x) * sin in float32, rounded once."""
    return _turned(x, *_wide_angles(cos, sin, mode)).to(x.dtype)


def _wide_angles(cos: Tensor, sin: Tensor, mode: str) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """cos and sin in float32 at least, sin negative for the first of a pair; [parts, 2, n], with pairs along axis 1."""
    if cos.dtype.itemsize == 2:
        cos, sin = cos.float(), sin.float()
    else:
        sin = sin.clone()
    size = sin.shape[-1]
    factor = 4 if mode == "quarter" else 2
    if size == 0 or size % factor:
        raise ValueError(f"expected a head size that is a multiple of {factor} in mode {mode}, got {size}.")
    n = 1 if mode == "interleave" else size // factor
    parts = size // (2 * n), 2, n
    sin.view(*sin.shape[:-1], *parts).select(-2, 0).neg_()
    return cos, sin, parts


def _turned(x: Tensor, cos: Tensor, sin: Tensor, parts: tuple[int, ...]) -> Tensor:
    """x * cos + swapped(x) * sin, with the angles of :func:`_wide_angles`."""
    if x.dtype.itemsize == 2:
        x = x.float()
    shape = x.shape
    swapped = x.roll(parts[2], -1) if parts[0] == 1 else x.view(*shape[:-1], *parts).flip(-2).reshape(shape)
    return (x * cos).addcmul_(swapped, sin)


@kernel("RotaryMul", same_dtype=("x", "r1", "r2"))
def rotary_mul(x: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    return _rotated(x, r1, r2, "half")


_MODES = ("half", "interleave", "quarter")


@kernel("RotaryPositionEmbedding", same_dtype=("x", "cos", "sin", "rotate"), allowed={"mode": (0, 1, 2)})
def rotary_position_embedding(
    x: Tensor, cos: Tensor, sin: Tensor, rotate: Tensor | None = None, *, mode: int = 0
) -> Tensor:
    """rotate: the matrix that turns x, whatever the mode."""
    if rotate is not None:
        wide = x.float()
        return (wide * cos.float()).addcmul_(wide @ rotate.float(), sin.float()).to(x.dtype)
    return _rotated(x, cos, sin, _MODES[mode])


@kernel(
    "ApplyRotaryPosEmb",
    same_dtype=("query", "key", "cos", "sin"),
    mutates=("query", "key"),
    pure=False,
    allowed={"layout": (1, 2, 3, 4), "rotary_mode": _MODES},
)
def apply_rotary_pos_emb(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, layout: int = 1, rotary_mode: str = "half"
) -> tuple[Tensor, Tensor]:
    """In place on query and key. In every layout cos and sin broadcast over the heads."""
    rank = 3 if layout == 4 else 4
    if query.dim() != rank:
        raise unsupported("ApplyRotaryPosEmb", "query", f"{rank} axes in layout {layout}", list(query.shape))
    if cos.shape[-1] != query.shape[-1]:
        raise unsupported("ApplyRotaryPosEmb", "cos", f"the head size {query.shape[-1]}", cos.shape[-1])
    angles = _wide_angles(cos, sin, rotary_mode)
    query.copy_(_turned(query, *angles))
    key.copy_(_turned(key, *angles))
    return query, key


# -- pooling ---------------------------------------------------------------------------------------------

_ARGMAX_DTYPES = {3: torch.int32, 9: torch.int64}


@kernel("MaxPoolWithArgmaxV1", allowed={"dtype": tuple(_ARGMAX_DTYPES)})
def max_pool_with_argmax_v1(
    x: Tensor,
    *,
    ksize: list[int],
    strides: list[int],
    pads: list[int],
    dtype: int = 3,
    dilation: list[int] = [1, 1, 1, 1],  # noqa: B006
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """The lists are [1, h, w, 1] although x is NCHW. argmax counts as torch does; CANN stores a bit mask."""
    y, argmax = torch.nn.functional.max_pool2d_with_indices(
        x, ksize[1:3], strides[1:3], pads[1:3], dilation[1:3], ceil_mode
    )
    return y, argmax.to(_ARGMAX_DTYPES[dtype])


@kernel(
    "MaxPoolWithArgmaxV3",
    allowed={"dtype": tuple(_ARGMAX_DTYPES), "data_format": ("NCHW",)},
)
def max_pool_with_argmax_v3(
    x: Tensor,
    *,
    ksize: list[int],
    strides: list[int],
    pads: list[int],
    dtype: int = 3,
    dilation: list[int] = [1, 1],  # noqa: B006
    ceil_mode: bool = False,
    data_format: str = "NCHW",
) -> tuple[Tensor, Tensor]:
    y, argmax = torch.nn.functional.max_pool2d_with_indices(x, ksize, strides, pads, dilation, ceil_mode)
    return y, argmax.to(_ARGMAX_DTYPES[dtype])


@kernel(
    "MaxPool3DWithArgmaxV2",
    allowed={"dtype": tuple(_ARGMAX_DTYPES), "data_format": ("NCDHW",)},
)
def max_pool3d_with_argmax_v2(
    x: Tensor,
    *,
    ksize: list[int],
    strides: list[int],
    pads: list[int],
    dilation: list[int] = [1, 1, 1],  # noqa: B006
    ceil_mode: bool = False,
    data_format: str = "NCDHW",
    dtype: int = 3,
) -> tuple[Tensor, Tensor]:
    y, argmax = torch.nn.functional.max_pool3d_with_indices(x, ksize, strides, pads, dilation, ceil_mode)
    return y, argmax.to(_ARGMAX_DTYPES[dtype])


def symmetric_pads(ge_type: str, pads: list[int]) -> list[int]:
    """Half of [begin, end, begin, end, ...]; refuses a begin that differs from its end."""
    if list(pads[0::2]) != list(pads[1::2]):
        raise unsupported(ge_type, "pads", "the same padding on both sides", pads)
    return list(pads[0::2])


AVG_POOL: Allowed = {"padding_mode": ("CALCULATED", "VALID"), "data_format": ("NCHW",)}
"""What AvgPoolV2 and its gradient allow."""


def has_symmetric_pads(ge_type: str) -> Any:
    """A ``specialise`` that checks, at load, that the padding is the same on both sides."""

    def check(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
        symmetric_pads(ge_type, attrs["pads"])
        return None

    return check


@kernel("AvgPoolV2", allowed=AVG_POOL, specialise=has_symmetric_pads("AvgPoolV2"))
def avg_pool_v2(
    x: Tensor,
    *,
    ksize: list[int],
    strides: list[int],
    padding_mode: str = "CALCULATED",
    pads: list[int] = [0, 0, 0, 0],  # noqa: B006
    data_format: str = "NCHW",
    global_pooling: bool = False,
    ceil_mode: bool = False,
    exclusive: bool = True,
    divisor_override: int = 0,
) -> Tensor:
    if global_pooling:
        return x.mean((-2, -1), keepdim=True)
    padding = pads[::2] if padding_mode == "CALCULATED" else [0, 0]
    return torch.nn.functional.avg_pool2d(
        x, ksize[-2:], strides[-2:], padding, ceil_mode, not exclusive, divisor_override or None
    )


@kernel("AdaptiveAvgPool2d")
def adaptive_avg_pool2d(x: Tensor, *, output_size: list[int]) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(x, output_size)  # type: ignore[arg-type]


_INTERPOLATIONS = {"bilinear": 0, "nearest": 1, "bicubic": 2}
_BORDERS = {"zeros": 0, "border": 1, "reflection": 2}


def _sampled(x: Tensor, grid: Tensor, interpolation_mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """Rounded once: the weights of half-precision neighbours are float32."""
    wide, places = (x.float(), grid.float()) if x.dtype is torch.float16 else (x, grid)
    mode, border = _INTERPOLATIONS[interpolation_mode], _BORDERS[padding_mode]
    return torch.grid_sampler(wide, places, mode, border, align_corners).to(x.dtype)


@kernel(
    "GridSampler2D",
    same_dtype=("x", "grid"),
    allowed={"interpolation_mode": tuple(_INTERPOLATIONS), "padding_mode": tuple(_BORDERS)},
)
def grid_sampler_2d(
    x: Tensor,
    grid: Tensor,
    *,
    interpolation_mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    return _sampled(x, grid, interpolation_mode, padding_mode, align_corners)


@kernel(
    "GridSampler3D",
    same_dtype=("x", "grid"),
    allowed={"interpolation_mode": ("bilinear", "nearest"), "padding_mode": tuple(_BORDERS), "data_format": ("NCDHW",)},
)
def grid_sampler_3d(
    x: Tensor,
    grid: Tensor,
    *,
    interpolation_mode: str = "bilinear",
    padding_mode: str = "zeros",
    data_format: str = "NCDHW",
    align_corners: bool = False,
) -> Tensor:
    return _sampled(x, grid, interpolation_mode, padding_mode, align_corners)


_NEAREST = aten_op("upsample_nearest2d")
_NEAREST_EXACT = aten_op("_upsample_nearest_exact2d")


@kernel("ResizeNearestNeighborV2", allowed={"align_corners": (False,)})
def resize_nearest_neighbor_v2(
    x: Tensor, size: Ints, *, align_corners: bool = False, half_pixel_centers: bool = False
) -> Tensor:
    return _NEAREST_EXACT(x, size) if half_pixel_centers else _NEAREST(x, size)
