"""Aten ops lowered by torch's own decompositions: resampling, padding, patches, losses and a few more.

Ops missing here and upstream that torch always takes apart before a backend sees them need nothing: nearest, bilinear
and bicubic upsampling, hardshrink, softshrink.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import by_decomposition

aten = torch.ops.aten

CONVERTERS: dict[Any, Callable[..., Any]] = {
    op: by_decomposition(op)
    for op in (
        aten.upsample_linear1d.default,
        aten.upsample_trilinear3d.default,
        aten.affine_grid_generator.default,
        aten.reflection_pad1d.default,
        aten.reflection_pad3d.default,
        aten.replication_pad2d.default,
        aten.replication_pad3d.default,
        aten.im2col.default,
        aten.col2im.default,
        aten.block_diag.default,
        aten.logspace.default,
        aten.ldexp.Tensor,
        aten._euclidean_dist.default,
        aten._weight_norm_interface.default,
        aten.binary_cross_entropy.default,
        aten.binary_cross_entropy_with_logits.default,
        aten.huber_loss.default,
        aten.smooth_l1_loss.default,
        aten.soft_margin_loss.default,
        aten._chunk_cat.default,
        aten._unsafe_masked_index.default,
        aten._unsafe_masked_index_put_accumulate.default,
        aten.max_unpool2d.default,
        aten.max_unpool3d.default,
        aten.mvlgamma.default,
        aten.alias_copy.default,
        aten.expand_copy.default,
        aten.narrow_copy.default,
        aten.permute_copy.default,
        aten.split_with_sizes_copy.default,
        aten.squeeze_copy.default,
        aten.squeeze_copy.dim,
        aten.t_copy.default,
        aten.transpose_copy.int,
        aten.unbind_copy.int,
        aten.unsqueeze_copy.default,
        aten.view_copy.default,
    )
}
