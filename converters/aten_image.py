"""Resampling, padding and patch extraction of aten."""

from __future__ import annotations

import math
from typing import Any

import torch
from npu_fused_graph.converters.aten_lowering import (
    HALF_AND_FLOAT,
    by_decomposition,
    computed_in,
    ge,
    ints,
    is_tensor,
    lower,
    to,
    torch_dtype,
    typed,
)

aten = torch.ops.aten


def upsample_bilinear2d(
    x: Any, output_size: Any, align_corners: bool, scales_h: float | None = None, scales_w: float | None = None
) -> Any:
    """ResizeBilinearV2, which only knows the ratio of the sizes; another scale is interpolated from gathered pixels.

    It always answers in float32.
    """
    if is_tensor(output_size) or not _is_ratio(x, output_size, (scales_h, scales_w), align_corners):
        from torch._decomp import decomposition_table

        decomposed = decomposition_table[aten.upsample_bilinear2d.default]
        return lower(decomposed, (x, output_size, align_corners, scales_h, scales_w), {})
    from torchair._ge_concrete_graph.utils import specific_op_input_layout, specific_op_output_layout

    work = computed_in(torch_dtype(x), HALF_AND_FLOAT, "upsample_bilinear2d")
    y = ge.ResizeBilinearV2(
        to(x, work),
        to(ints(output_size), torch.int32),
        align_corners=align_corners,
        half_pixel_centers=not align_corners,
    )
    specific_op_input_layout(y, indices=0, layout="NCHW")
    specific_op_output_layout(y, indices=0, layout="NCHW")
    return to(typed(y, torch.float32), torch_dtype(x))


def _is_ratio(x: Any, output_size: Any, scales: tuple[float | None, ...], align_corners: bool) -> bool:
    """Whether the scale factors, if given, are output size / input size; aligned corners ignore them."""
    given = [(n, m, s) for n, m, s in zip(x.symsize[-2:], output_size, scales, strict=True) if s is not None]
    return align_corners or all(isinstance(n, int) and math.isclose(m / n, s, rel_tol=1e-9) for n, m, s in given)


CONVERTERS = {aten.upsample_bilinear2d.default: upsample_bilinear2d} | {
    op: by_decomposition(op)
    for op in (
        aten.upsample_nearest1d.default,
        aten.upsample_nearest3d.default,
        aten._upsample_nearest_exact1d.default,
        aten._upsample_nearest_exact2d.default,
        aten._upsample_nearest_exact3d.default,
        aten.upsample_linear1d.default,
        aten.upsample_trilinear3d.default,
        aten.upsample_bicubic2d.default,
        aten.reflection_pad1d.default,
        aten.reflection_pad3d.default,
        aten.replication_pad2d.default,
        aten.replication_pad3d.default,
        aten.im2col.default,
        aten.col2im.default,
    )
}
