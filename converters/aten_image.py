"""Resampling, padding and patch extraction of aten.

The upsampling ops that are missing here (nearest, nearest-exact, bilinear, bicubic) are taken apart by torch itself
before a backend sees them.
"""

from __future__ import annotations

import torch
from npu_fused_graph.converters.aten_lowering import by_decomposition

aten = torch.ops.aten

CONVERTERS = {
    op: by_decomposition(op)
    for op in (
        aten.upsample_linear1d.default,
        aten.upsample_trilinear3d.default,
        aten.reflection_pad1d.default,
        aten.reflection_pad3d.default,
        aten.replication_pad2d.default,
        aten.replication_pad3d.default,
        aten.im2col.default,
        aten.col2im.default,
    )
}
