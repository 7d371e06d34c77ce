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


def rotary_mul_by_matrix_cases() -> Cases:
    """half: element i turns with i + D / 2. interleave: element 2 i turns with 2 i + 1."""
    dtype = torch.bfloat16
    for mode, shift in (("half", 8), ("interleave", 1)):
        x, cos, sin = (normal(*shape, 16, dtype=dtype) for shape in ((2, 5, 3), (1, 5, 1), (1, 5, 1)))
        matrix, turned = torch.zeros(16, 16, dtype=dtype), np.empty(x.shape)
        for i in range(16):
            is_first = i // shift % 2 == 0
            partner, sign = (i + shift, -1) if is_first else (i - shift, 1)
            matrix[partner, i] = sign
            turned[..., i] = sign * wide(x)[..., partner]
        expected = ((wide(x) * wide(cos) + turned * wide(sin), dtype),)
        yield f"by matrix, {mode}", Case("npu_rotary_mul", (x, cos, sin, mode), expected, {"rotate": matrix})


def kv_rmsnorm_rope_cache_cases(is_functional: bool) -> Cases:
    name = "npu_kv_rmsnorm_rope_cache_v2_functional" if is_functional else "npu_kv_rmsnorm_rope_cache"
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


def pa_kv_cache_cases() -> Cases:
    for mode, dtype in (("Norm", torch.float16), ("PA_NZ", torch.bfloat16), ("PA_NZ", torch.int8)):
        key, value = (int8(3, 2, size) if dtype is torch.int8 else normal(3, 2, size, dtype=dtype) for size in (32, 64))
        width = 32 if dtype is torch.int8 else 16
        index = torch.tensor([17, -1, 3], dtype=torch.int32)
        caches, expected = [], []
        for x in (key, value):
            size = x.shape[-1]
            shape = (2, 16, 2, size) if mode == "Norm" else (2, 2 * size // width, 16, width)
            cache = int8(*shape) if dtype is torch.int8 else normal(*shape, dtype=dtype)
            filled = wide(cache)
            for token, slot in ((0, 17), (2, 3)):
                if mode == "Norm":
                    filled[slot // 16, slot % 16] = wide(x[token])
                else:
                    filled[slot // 16, :, slot % 16] = wide(x[token]).reshape(-1, width)
            caches.append(cache)
            expected.append((filled, dtype))
        kwargs = {} if mode == "PA_NZ" else {"cache_mode": mode}
        yield (
            mode + short(dtype),
            Case("npu_scatter_pa_kv_cache_functional", (key, value, *caches, index), expected, kwargs),
        )
    for is_ends in (False, True):
        caches = [normal(4, 16, 2, size, dtype=torch.float16) for size in (24, 8)]
        outs = [normal(40, 2, size, dtype=torch.float16) for size in (24, 8)]
        tables = torch.tensor([[3, 1, 0], [2, 0, 0]], dtype=torch.int32)
        lengths = torch.tensor([0, 20, 33] if is_ends else [20, 13], dtype=torch.int32)
        offset = torch.tensor([16, 0], dtype=torch.int32) if is_ends else None
        blocks = [[1, 0], [2]] if is_ends else [[3, 1], [2]]
        expected = []
        for cache, out in zip(caches, outs, strict=True):
            rows = [wide(cache)[ids].reshape(-1, *out.shape[1:])[:n] for ids, n in zip(blocks, (20, 13), strict=True)]
            expected.append((np.concatenate((*rows, wide(out)[33:])), torch.float16))
        kwargs = {"seq_offset": offset, "is_seq_lens_cumsum": is_ends}
        call = Case("npu_gather_pa_kv_cache_functional", (*caches, tables, lengths, *outs), expected, kwargs)
        yield f"{is_ends}", call


def qkv_cases() -> Cases:
    heads, size = [3, 1, 1], 128
    for place, (scales, is_output) in enumerate((("", False), ("kv", True), ("V", False))):
        dtype = HALVES[place % 2]
        qkv, cos, sin = normal(4, 5 * size, dtype=dtype), normal(4, size, dtype=dtype), normal(4, size, dtype=dtype)
        gammas, index = [normal(size, dtype=dtype) for _ in range(2)], torch.tensor([33, -1, 0, 63])
        kwargs: dict[str, Any] = {"is_output_qkv": is_output}
        parts = np.split(wide(qkv).reshape(4, 5, size), np.cumsum(heads)[:2], axis=1)
        turned = []
        for x, gamma in zip(parts, gammas, strict=False):
            y = rms_norm(x, wide(gamma), 1e-6)
            half = np.concatenate((-y[..., size // 2 :], y[..., : size // 2]), -1)
            turned.append((y * wide(cos)[:, None] + half * wide(sin)[:, None]).reshape(4, -1))
        q, k, v = *turned, parts[2].reshape(4, -1)
        q_out, caches, expected = normal(*q.shape, dtype=dtype), [], []
        for value, letter in ((k, "k"), (v, "v")):
            is_int8 = letter in scales.lower()
            width = 32 if is_int8 else 16
            shape = (2, size // width, 32, width)
            cache = int8(*shape) if is_int8 else normal(*shape, dtype=dtype)
            if is_int8:
                kwargs[f"{letter}_scale"] = 1 / clear_scales(value, around=20.0)
                value = value / wide(kwargs[f"{letter}_scale"])
                if letter.upper() in scales:
                    kwargs[f"{letter}_offset"] = torch.full((1, size), 3.0)
                    value = value + 3
                value = rounded_clear_of_ties(value)
            filled = wide(cache)
            for token, slot in ((0, 33), (2, 0), (3, 63)):
                filled[slot // 32, :, slot % 32] = value[token].reshape(-1, width)
            caches.append(cache)
            expected.append((filled, cache.dtype))
        rest = [(x if is_output else np.zeros(()), dtype) for x in (q, k, v)]
        args = (qkv, *gammas, cos, sin, index, q_out, *caches, [2, 2, 5, size], heads)
        results = (*rest, (q, dtype), *expected)
        yield f"{scales} {is_output}", Case("npu_qkv_rms_norm_rope_cache_functional", args, results, kwargs)


def cases() -> Cases:
    yield from pa_kv_cache_cases()
    yield from qkv_cases()
    yield from interleave_rope_cases()
    yield from rotary_mul_by_matrix_cases()
    for is_functional in (False, True):
        yield from kv_rmsnorm_rope_cache_cases(is_functional)
