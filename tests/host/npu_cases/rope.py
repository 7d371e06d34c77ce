"""Rotary embeddings, alone and with KV caches: float64 oracles after the formulas of torch_npu's documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.host.npu_cases.base import (
    HALVES,
    RANDOM,
    Case,
    Cases,
    int8,
    normal,
    positive,
    rounded_clear_of_ties,
    short,
    wide,
)


def interleaved(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Pairs of neighbours turned; the first elements of all pairs before the second ones."""
    half = x.shape[-1] // 2
    q = x.reshape(*x.shape[:-1], half, 2).swapaxes(-1, -2).reshape(x.shape)
    return q * cos + np.concatenate((-q[..., half:], q[..., :half]), -1) * sin


def rms_norm(x: np.ndarray, gamma: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gamma


def clear_scales(x: np.ndarray, around: float) -> Tensor:
    """A scale per column, [1, columns], with which no element of ``x`` comes near a tie."""
    scale = positive(1, x.shape[-1], around=around)
    while True:
        value = (x * wide(scale)).reshape(-1, x.shape[-1])
        near = torch.from_numpy((np.abs(value - np.floor(value) - 0.5) < 2e-4).any(0))
        if not near.any():
            return scale
        scale[0, near] = positive(int(near.sum()), around=around)


def slots(count: int, most: int) -> Tensor:
    return torch.from_numpy(RANDOM.permutation(most)[:count])


def in_blocks(cache: Tensor, index: Tensor, rows: np.ndarray, is_nz: bool) -> np.ndarray:
    """``cache`` [blocks, block_size, 1, size] with rows[i] at index[i], unless that is negative."""
    blocks, block_size, _, size = cache.shape
    width = 32 // cache.element_size() if is_nz else size
    memory = wide(cache).reshape(blocks, size // width, block_size, width)
    for slot, row in zip(index.flatten().tolist(), rows.reshape(-1, size), strict=True):
        if slot >= 0:
            memory[slot // block_size, :, slot % block_size] = row.reshape(-1, width)
    return memory.reshape(cache.shape)


def interleave_rope_cases() -> Cases:
    for dtype in HALVES:
        for length in (3, 1):
            x, cos, sin = (normal(*shape, 64, dtype=dtype) for shape in ((2, 4, 3), (2, 1, length), (2, 1, length)))
            expected = ((interleaved(wide(x), wide(cos), wide(sin)), dtype),)
            yield f"{length} {short(dtype)}", Case("npu_interleave_rope", (x, cos, sin), expected)


def kv_rmsnorm_rope_cache_cases(is_functional: bool) -> Cases:
    name = "npu_kv_rmsnorm_rope_cache" + "_v2_functional" * is_functional
    forms: list[tuple[str, bool, str]]
    forms = [("Norm", False, ""), ("PA", True, ""), ("PA_BNSD", True, "kc"), ("PA_NZ", True, "c"), ("PA_NZ", False, "")]
    forms += [("PA_BLK_BNSD", True, ""), ("PA_BLK_NZ", True, "kc")]
    for place, (mode, has_outputs, scales) in enumerate(forms):
        dtype = HALVES[place % 2]
        kv, gamma = normal(2, 1, 3, 576, dtype=dtype), normal(512, dtype=dtype)
        cos, sin = (normal(2, 1, 3, 64, dtype=dtype) for _ in range(2))
        shape = (2, 1, 7) if mode == "Norm" else (4, 32, 1)
        index, flat = slots(6, 128), None
        if mode == "Norm":
            index = torch.tensor([[6, -1, 0], [3, 2, 4]])
        elif "BLK" in mode:
            index = torch.tensor([96, 0])
            flat = torch.tensor([96, 97, 98, 0, 1, 2])
        elif place % 2:
            index[2] = -1
        kwargs: dict[str, Any] = {"cache_mode": mode, "is_output_kv": has_outputs}
        x = wide(kv)
        k, c = interleaved(x[..., 512:], wide(cos), wide(sin)), rms_norm(x[..., :512], wide(gamma), 1e-5)
        caches, expected = [], []
        for size, value, letter, key in ((64, k, "k", "k_rope_scale"), (512, c, "c", "c_kv_scale")):
            cache = int8(*shape, size) if letter in scales else normal(*shape, size, dtype=dtype)
            if letter in scales:
                kwargs[key] = clear_scales(value, around=20.0)
                value = rounded_clear_of_ties(value * wide(kwargs[key]))
            caches.append(cache)
            if mode == "Norm":
                filled = wide(cache)
                for batch in range(2):
                    for s in range(3):
                        if index[batch, s] >= 0:
                            filled[batch, 0, index[batch, s]] = value[batch, 0, s]
            else:
                filled = in_blocks(cache, index if flat is None else flat, value, mode.endswith("NZ"))
            expected.append((filled, cache.dtype))
        outputs = [(value if has_outputs else np.full(value.shape, np.nan), dtype) for value in (k, c)]
        results = (*outputs, *expected) if is_functional else (*expected, *outputs)
        yield f"{mode} {scales} {has_outputs}", Case(name, (kv, gamma, cos, sin, index, *caches), results, kwargs)


def cases() -> Cases:
    yield from interleave_rope_cases()
    for is_functional in (False, True):
        yield from kv_rmsnorm_rope_cache_cases(is_functional)
