"""aten ops whose converter in TorchAir fails for some legal calls (a default left out, a dtype, symbolic sizes)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from npu_fused_graph.converters import aten_reduce
from npu_fused_graph.converters.aten_lowering import (
    by_decomposition,
    ge,
    ints,
    lower,
    sizes,
    stock,
    to,
    torch_dtype,
    typed,
    unsupported,
)

aten = torch.ops.aten


def nan_to_num(x: Any, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Any:
    """NanToNum wants all three numbers, in single precision, and knows no float64."""
    dtype = torch_dtype(x)
    if dtype.is_complex:
        raise unsupported("nan_to_num", "self", "real numbers", dtype, "Apply it to torch.view_as_real(x).")
    if not dtype.is_floating_point:
        return x
    limits = torch.finfo(dtype)
    nan = 0.0 if nan is None else nan
    posinf, neginf = (limits.max if posinf is None else posinf), (limits.min if neginf is None else neginf)
    if dtype is torch.float64:
        return lower(_replaced, (x, nan, posinf, neginf), {})
    return ge.NanToNum(x, nan=nan, posinf=posinf, neginf=neginf)


def _replaced(x: torch.Tensor, nan: float, posinf: float, neginf: float) -> torch.Tensor:
    x = torch.where(x == torch.inf, posinf, torch.where(x == -torch.inf, neginf, x))
    return torch.where(torch.isnan(x), nan, x)


def grid_sampler(ge_type: str) -> Callable[..., Any]:
    """TorchAir widens float16 only; GE's samplers take no bfloat16 either."""

    def convert(x: Any, grid: Any, interpolation_mode: int, padding_mode: int, align_corners: bool) -> Any:
        dtype = torch_dtype(x)
        work = torch.float64 if dtype is torch.float64 else torch.float32
        result = getattr(ge, ge_type)(
            to(x, work),
            to(grid, work),
            interpolation_mode=("bilinear", "nearest", "bicubic")[interpolation_mode],
            padding_mode=("zeros", "border", "reflection")[padding_mode],
            align_corners=align_corners,
        )
        return to(typed(result, work), dtype)

    return convert


def convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Any,
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Any,
    groups: int,
    meta_outputs: Any = None,
) -> Any:
    """Of a transposed one in one or two dims TorchAir computes the size in int32 and int64 at once."""
    if not transposed or meta_outputs.rank > 4:
        return stock(
            aten.convolution.default, x,
            weight, bias, list(stride), padding, list(dilation), transposed, output_padding, groups,
            meta_outputs=meta_outputs,
        )  # fmt: skip
    return _transposed(x, weight, bias, stride, padding, dilation, output_padding, groups, torch_dtype(meta_outputs))


def _transposed(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dtype: torch.dtype,
) -> Any:
    from torchair._ge_concrete_graph.utils import specific_op_input_layout, specific_op_output_layout

    lists: list[list[int]] = [list(values) for values in (stride, padding, dilation, output_padding)]
    x, weight, bias = (part if part is None else to(part, dtype) for part in (x, weight, bias))
    shapes = [sizes(x), sizes(weight)]
    is_line = x.rank == 3
    if is_line:
        x, weight = ge.Unsqueeze(x, axes=[2]), ge.Unsqueeze(weight, axes=[2])
        shapes = [[*shape[:2], 1, shape[2]] for shape in shapes]
        lists = [[first, *values] for first, values in zip((1, 0, 1, 0), lists, strict=True)]
    strides, pads, dilations, extra = lists
    (n, _, *places), (_, channels, *kernel) = shapes
    lengths = [
        _plus(_times(_plus(place, -1), s), _times(_plus(k, -1), d), 1 + more - 2 * pad)
        for place, k, s, pad, d, more in zip(places, kernel, strides, pads, dilations, extra, strict=True)
    ]
    result = ge.Conv2DTranspose(
        to(ints([n, _times(channels, groups), *lengths]), torch.int32),
        x,
        weight,
        bias,
        None,
        strides=[1, 1, *strides],
        pads=[pads[0], pads[0], pads[1], pads[1]],
        dilations=[1, 1, *dilations],
        groups=groups,
        data_format="NCHW",
        output_padding=[0, 0, *extra],
    )
    specific_op_input_layout(result, indices=[0] if bias is None else [0, 3], layout="ND")
    specific_op_input_layout(result, indices=[1, 2], layout="NCHW")
    specific_op_output_layout(result, indices=0, layout="NCHW")
    return ge.Squeeze(result, axis=[2]) if is_line else result


def _times(size: Any, factor: int) -> Any:
    return size * factor if isinstance(size, int) else typed(ge.Mul(size, to(factor, torch.int64)), torch.int64)


def _plus(size: Any, *others: Any) -> Any:
    for other in others:
        if isinstance(size, int) and isinstance(other, int):
            size = size + other
        else:
            size = typed(ge.Add(to(size, torch.int64), to(other, torch.int64)), torch.int64)
    return size


def to_copy(x: Any, *, memory_format: Any = None, meta_outputs: Any = None, **options: Any) -> Any:
    """A graph's tensors have no strides: every memory format is the same."""
    return stock(aten._to_copy.default, x, **options, meta_outputs=meta_outputs)


def index_add(x: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1, meta_outputs: Any = None) -> Any:
    """TorchAir's own packs the sizes of a scalar, which has none."""
    if x.rank == 0:
        return lower(_add_to_scalar, (x, index, source, alpha), {})
    return stock(aten.index_add.default, x, dim, index, source, alpha=alpha, meta_outputs=meta_outputs)


def _add_to_scalar(x: torch.Tensor, index: torch.Tensor, source: torch.Tensor, alpha: Any) -> torch.Tensor:
    each = source.reshape(()) if index.dim() == 0 else source.expand(index.shape).sum(dtype=x.dtype)
    return torch.add(x, each, alpha=alpha)


def native_dropout_backward(grad: Any, mask: Any, scale: float, meta_outputs: Any = None) -> Any:
    """TorchAir's own takes every mask for bits, as they are on a device, and divides by a ``scale`` that may be 0."""
    if torch_dtype(mask) is torch.uint8 and mask.rank == 1 and mask.meta.shape != grad.meta.shape:
        return stock(aten.native_dropout_backward.default, grad, mask, scale, meta_outputs=meta_outputs)
    return lower(_times_mask, (grad, mask, scale), {})


def _times_mask(grad: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    if not grad.is_floating_point():  # torch's own trace then has another dtype than eager
        raise unsupported("native_dropout_backward", "grad_output", "a floating dtype", grad.dtype, "Cast it first.")
    scaled = grad * scale
    return scaled * mask.to(scaled.dtype)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten._to_copy.default: to_copy,
    aten.index_add.default: index_add,
    aten.std.correction: aten_reduce.std,
    aten.replication_pad1d.default: by_decomposition(aten.replication_pad1d.default),
    aten.native_dropout_backward.default: native_dropout_backward,
    aten.nan_to_num.default: nan_to_num,
    aten.grid_sampler_2d.default: grid_sampler("GridSampler2D"),
    aten.grid_sampler_3d.default: grid_sampler("GridSampler3D"),
    aten.convolution.default: convolution,
}
