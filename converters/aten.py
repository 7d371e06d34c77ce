"""Converters of aten ops TorchAir has none for that work, of a few whose own is wrong (gelu, aten_corrected)
or fails for some calls (aten_completed).

One table per theme. A test fails when TorchAir gains a converter of its own, so that ours can go.
"""

from __future__ import annotations

from typing import Any

import torch

from npu_fused_graph.converters import (
    aten_attention,
    aten_completed,
    aten_corrected,
    aten_decomposed,
    aten_fft,
    aten_found,
    aten_grad,
    aten_index,
    aten_linalg,
    aten_loss,
    aten_matmul,
    aten_pointwise,
    aten_pool,
    aten_random,
    aten_reduce,
    aten_shape,
    aten_special,
)
from npu_fused_graph.converters.aten_lowering import Converter, register_converters

CONVERTERS: dict[Any, Converter] = {
    **aten_pointwise.CONVERTERS,
    **aten_reduce.CONVERTERS,
    **aten_index.CONVERTERS,
    **aten_shape.CONVERTERS,
    **aten_decomposed.CONVERTERS,
    **aten_matmul.CONVERTERS,
    **aten_attention.CONVERTERS,
    **aten_random.CONVERTERS,
    **aten_fft.CONVERTERS,
    **aten_linalg.CONVERTERS,
    **aten_found.CONVERTERS,
    **aten_grad.CONVERTERS,
    **aten_loss.CONVERTERS,
    **aten_special.CONVERTERS,
    **aten_pool.CONVERTERS,
    **aten_completed.CONVERTERS,
    **aten_corrected.CONVERTERS,
}


def register() -> None:
    register_converters(CONVERTERS)


def register_late() -> None:
    """Converters of ops another package defines when it is imported, which may be after us."""
    op = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    if op is not None and not hasattr(op.default, "_ge_converter"):
        register_converters({op.default: aten_matmul.grouped_mm_fallback})
