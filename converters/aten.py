"""Converters of aten ops TorchAir has none for that work, and of a few whose own is wrong (gelu, aten_corrected).

One table per theme. A test fails when TorchAir gains a converter of its own, so that ours can go.
"""

from __future__ import annotations

import torch
from npu_fused_graph.converters import (
    aten_attention,
    aten_corrected,
    aten_decomposed,
    aten_index,
    aten_matmul,
    aten_pointwise,
    aten_random,
    aten_reduce,
    aten_shape,
)
from npu_fused_graph.converters.aten_lowering import register_converters

CONVERTERS = {
    **aten_pointwise.CONVERTERS,
    **aten_reduce.CONVERTERS,
    **aten_index.CONVERTERS,
    **aten_shape.CONVERTERS,
    **aten_decomposed.CONVERTERS,
    **aten_matmul.CONVERTERS,
    **aten_attention.CONVERTERS,
    **aten_random.CONVERTERS,
    **aten_corrected.CONVERTERS,
}


def register() -> None:
    register_converters(CONVERTERS)


def register_late() -> None:
    """Converters of ops another package defines when it is imported, which may be after us."""
    op = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    if op is not None and not hasattr(op.default, "_ge_converter"):
        register_converters({op.default: aten_matmul.grouped_mm_fallback})
