"""Rotary embedding of interleaved pairs, alone and fused with RmsNorm and the KV cache of latent attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npu_fused_graph.engine.dtypes import HALVES, INDICES
from npu_fused_graph.engine.kernels.paged import CACHE_MODES, places, slots, write
from npu_fused_graph.engine.registry import kernel, unsupported


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
    dtypes={"index": INDICES},
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


def _halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + (-second half of x, its first half) * sin."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


@kernel(
    "QkvRmsNormRopeCache",
    mutates=("q_out", "k_cache", "v_cache"),
    same_dtype=("qkv", "q_gamma", "k_gamma", "cos", "sin", "q_out"),
    allowed={"cache_mode": ("PA_NZ",)},
)
def qkv_rms_norm_rope_cache(
    qkv: Tensor,
    q_gamma: Tensor,
    k_gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    q_out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_offset: Tensor | None = None,
    v_offset: Tensor | None = None,
    *,
    qkv_size: Sequence[int],
    head_nums: Sequence[int],
    epsilon: float = 1e-6,
    cache_mode: str = "PA_NZ",
    is_output_qkv: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(q_out, k_cache, v_cache, q, k, v): q and k [T, heads * D] are normalised per head and rotated by halves.

    The caches [blocks, heads * D / width, block_size, width] take k and v, in int8 (x / scale + offset) where they have
    a scale. Without is_output_qkv the last three are numbers.
    """
    name = "QkvRmsNormRopeCache"
    if qkv.dtype not in HALVES:
        raise unsupported(name, "qkv", "float16 or bfloat16", qkv)
    tokens, size = qkv.shape[0], qkv_size[3]
    if qkv.shape[1] != sum(head_nums) * size:
        raise unsupported(name, "head_nums", f"{qkv.shape[1]} / {size} heads in all", list(head_nums))
    q, k, v = qkv.view(tokens, -1, size).split(list(head_nums), 1)
    angles = cos.float().unsqueeze(1), sin.float().unsqueeze(1)
    q = _halves(normalised(q, q_gamma, epsilon), *angles)
    k = _halves(normalised(k, k_gamma, epsilon), *angles)
    q_out.copy_(q.view(q_out.shape))
    where = slots(index, k_cache.shape[2])
    for parameter, cache, wide, scale, offset in (
        ("k_cache", k_cache, k, k_scale, k_offset), ("v_cache", v_cache, v.float(), v_scale, v_offset)
    ):  # fmt: skip
        if cache.dtype is not (qkv.dtype if scale is None else torch.int8):
            raise unsupported(name, parameter, f"int8 with a scale, {qkv.dtype} without", cache)
        values = wide.to(qkv.dtype) if scale is None else _divided(wide, scale, offset)
        write(name, parameter, cache.transpose(1, 2), False, where, values.flatten(1))
    if not is_output_qkv:
        nothing = qkv.new_zeros(())
        return q_out, k_cache, v_cache, nothing, nothing.clone(), nothing.clone()
    q, k, v = (x.to(qkv.dtype).reshape(tokens, -1) for x in (q, k, v))
    return q_out, k_cache, v_cache, q, k, v


def _divided(x: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """round(x / scale + offset) in int8."""
    x = x / scale
    return (x if offset is None else x + offset).round_().clamp_(-128, 127).to(torch.int8)
