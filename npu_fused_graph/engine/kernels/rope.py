"""Rotary embedding of interleaved pairs, alone and fused with RmsNorm and the KV cache of latent attention."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.paged import CACHE_MODES, places, write
from npu_fused_graph.engine.registry import kernel, unsupported

HALVES = (torch.float16, torch.bfloat16)


def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """q * cos + (-second half of q, its first half) * sin in float32, where q has x's even elements before its odd."""
    even, odd = x[..., ::2].float(), x[..., 1::2].float()
    (cos_even, cos_odd), (sin_even, sin_odd) = cos.float().chunk(2, -1), sin.float().chunk(2, -1)
    return torch.cat((even * cos_even - odd * sin_even, odd * cos_odd + even * sin_odd), -1)


def normalised(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * gamma over the last axis, in float32."""
    x = x.float()
    return x / x.square().mean(-1, keepdim=True).add_(epsilon).sqrt_() * gamma.float()


def to_int8(x: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """round(x * scale + offset) in int8."""
    x = x * scale.float()
    if offset is not None:
        x = x + offset.float()
    return x.round().clamp(-128, 127).to(torch.int8)


@kernel("InterleaveRope", same_dtype=("x", "cos", "sin"))
def interleave_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, N, S, D]: cos and sin have one head, and the sequence of x or one place. Rounded once, as CANN's kernel."""
    return interleaved(x, cos, sin).to(x.dtype)


@kernel(
    "KvRmsNormRopeCache",
    mutates=("k_cache", "ckv_cache"),
    same_dtype=("kv", "gamma", "cos", "sin"),
    unfed=("v",),
    allowed={"cache_mode": CACHE_MODES},
)
def kv_rms_norm_rope_cache(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    k_rope_scale: Tensor | None = None,
    c_kv_scale: Tensor | None = None,
    k_rope_offset: Tensor | None = None,
    c_kv_offset: Tensor | None = None,
    v: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
    cache_mode: str = "Norm",
    is_output_kv: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(k_cache, ckv_cache, k_rope, c_kv): kv [B, N, S, Dv + Dk] is normalised up to Dv and rotated from there on.

    The caches take both, in int8 where they have a scale: from float32, as CANN's kernel on A2 and A3, not from the
    rounded results. Without is_output_kv these are zeros here and undefined on a device.
    """
    name = "KvRmsNormRopeCache"
    if kv.dtype not in HALVES:
        raise unsupported(name, "kv", "float16 or bfloat16", kv)
    batches, _heads, length, size = kv.shape
    split = gamma.shape[0]
    if split + cos.shape[-1] != size:
        raise unsupported(name, "kv", f"{split} + {cos.shape[-1]} elements, those of gamma and cos, last", kv)
    rotated = interleaved(kv[..., split:], cos, sin)
    norm = normalised(kv[..., :split], gamma, epsilon)
    is_paged = cache_mode != "Norm"
    where = places(cache_mode, index, batches, length, k_cache.shape[1])
    for parameter, cache, wide, scale, offset in (
        ("k_cache", k_cache, rotated, k_rope_scale, k_rope_offset),
        ("ckv_cache", ckv_cache, norm, c_kv_scale, c_kv_offset),
    ):
        if cache.dtype is not (kv.dtype if scale is None else torch.int8):
            raise unsupported(name, parameter, f"int8 with a scale, {kv.dtype} without", cache)
        values = wide.to(kv.dtype) if scale is None else to_int8(wide, scale, offset)
        tokens = values.transpose(1, 2).flatten(0, 1)
        write(name, parameter, cache if is_paged else cache.transpose(1, 2), cache_mode.endswith("NZ"), where, tokens)
    if not is_output_kv:
        return k_cache, ckv_cache, kv.new_zeros(rotated.shape), kv.new_zeros(norm.shape)
    return k_cache, ckv_cache, rotated.to(kv.dtype), norm.to(kv.dtype)
