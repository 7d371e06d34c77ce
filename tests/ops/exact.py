"""The requirement's formulas in float64, with numpy: the oracle of MatmulAllReduceAddRmsNorm in every scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


def exact(
    shards: Sequence[Mapping[str, Any]], residual: Tensor, gamma: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """(y, norm_out). shards: per rank the arguments x1, x2 and what belongs to them; others are ignored."""
    total = wide(residual)
    for shard in shards:
        total = total + partial(shard).reshape(total.shape)
    rms = np.sqrt(np.square(total).sum(-1, keepdims=True) / max(total.shape[-1], 1) + epsilon)
    return torch.from_numpy(total), torch.from_numpy(total / rms * wide(gamma))


def partial(shard: Mapping[str, Any]) -> Array:
    """One rank's product, (rows, n)."""
    x1, x2 = wide(shard["x1"]), weight(shard)
    product = x1.reshape(-1, x1.shape[-1]) @ x2
    if shard.get("bias") is not None:
        product = product + wide(shard["bias"])
    scale = shard.get("dequant_scale")
    if scale is not None:
        product = product * (wide(scale) if scale.dtype is torch.bfloat16 else scale_of_words(scale))
    return product


def weight(shard: Mapping[str, Any]) -> Array:
    """The weight as real numbers: (x2 + offset) * scale where it is quantised alone."""
    x2 = shard["x2"]
    if x2.dtype is torch.int32:
        values = nibbles(x2.numpy()) if x2.is_contiguous() else nibbles(x2.t().numpy()).T
    else:
        values = wide(x2)
    scale, size = shard.get("antiquant_scale"), shard.get("antiquant_group_size", 0)
    if scale is None:
        return values

    def per_row(parameter: Tensor) -> Array:
        return np.repeat(wide(parameter), size, 0)[: values.shape[0]] if size else wide(parameter)

    offset = shard.get("antiquant_offset")
    return (values + (0 if offset is None else per_row(offset))) * per_row(scale)


def nibbles(packed: Array) -> Array:
    """int4 elements of int32 words, lowest bits first, along the last axis."""
    out = np.empty((*packed.shape, 8))
    for i in range(8):
        field = (packed.astype(np.int64) & 0xFFFFFFFF) // 16**i % 16
        out[..., i] = np.where(field < 8, field, field - 16)
    return out.reshape(*packed.shape[:-1], -1)


def scale_of_words(words: Tensor) -> Array:
    """The float32 in bits 13 to 31, read with struct's eyes: numpy's view of little-endian bytes."""
    low = words.contiguous().view(torch.int64).numpy().view("<u4")[..., ::2]
    return (low & np.uint32(0xFFFFE000)).view("<f4").astype(np.float64)


def wide(x: Tensor) -> Array:
    return x.to(torch.float64).numpy()
