"""Samples for engine/kernels/rope.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.engine.cases.shape_cases import t
from tests.engine.op_case import OpCase

HALVES = ("float16", "bfloat16")


def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    for i in range(half):
        a, b = x[..., 2 * i], x[..., 2 * i + 1]
        out[..., i] = a * cos[..., i] - b * sin[..., i]
        out[..., half + i] = b * cos[..., half + i] + a * sin[..., half + i]
    return out


def rms(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * gamma


def quantised(x: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    value = x * scale.double() + (0 if offset is None else offset.double())
    assert ((value - value.floor() - 0.5).abs() > 3e-5).all(), "float32 may round this differently: take other data"
    return value.round().clamp(-128, 127)


def flat_places(cache: Tensor, is_nz: bool) -> Tensor:
    """Positions in the flat memory of ``cache``, [slots, elements of one row]."""
    blocks, block_size, heads, size = cache.shape
    if not is_nz:
        return torch.arange(cache.numel()).reshape(blocks * block_size, heads * size)
    width = 32 if cache.dtype is torch.int8 else 16
    memory = torch.arange(cache.numel()).reshape(blocks, heads * size // width, block_size, width)
    return torch.stack([memory[i // block_size, :, i % block_size].flatten() for i in range(blocks * block_size)])


def cached(cache: Tensor, index: Tensor, tokens: Tensor, mode: str) -> Tensor:
    """tokens [B, N, S, D] in a copy of ``cache``, one by one."""
    out = cache.clone()
    batches, _heads, length, _size = tokens.shape
    flat = out.view(-1)
    for batch in range(batches):
        for s in range(length):
            value = tokens[batch, :, s].to(cache.dtype)
            if mode == "Norm":
                if index[batch, s] >= 0:
                    out[batch, :, index[batch, s]] = value
                continue
            block_size = cache.shape[1]
            if "BLK" in mode:
                start = int(index[batch * -(-length // block_size) + s // block_size])
                slot = -1 if start < 0 else start // block_size * block_size + s % block_size
            else:
                slot = int(index[batch * length + s])
            if slot >= 0:
                flat[flat_places(cache, "NZ" in mode)[slot]] = value.flatten()
    return out


def kv_cache_case(
    mode: str, index: Tensor, *, shape: tuple[int, int, int] = (2, 1, 3), scales: str = "", outputs: bool = False,
    short: bool = False,
) -> OpCase:  # fmt: skip
    """scales: which of k and c are int8, and K or C with an offset. short: cos and sin have one place."""
    batches, heads, length = shape
    dk, dv = 64, 32
    blocks = (batches, heads, 5) if mode == "Norm" else (4, 32, heads)

    def inputs(m: Any) -> dict[str, Any]:
        made: dict[str, Any] = {"kv": m(*shape, dv + dk), "gamma": m(dv)}
        for name in ("cos", "sin"):
            made[name] = m(batches, 1, 1 if short else length, dk, low=-1, high=1)
        made["index"] = index
        for name, size, letter in (("k_cache", dk, "k"), ("ckv_cache", dv, "c")):
            is_int8 = letter in scales.lower()
            made[name] = m.ints(*blocks, size, low=-99, high=99, dtype=torch.int8) if is_int8 else m(*blocks, size)
        if scales:
            made["k_rope_scale"] = m(1, dk).float() * 20 if "k" in scales.lower() else None
            made["c_kv_scale"] = m(dv).float() * 20 if "c" in scales.lower() else None
            made["k_rope_offset"] = m(dk).float() * 9 if "K" in scales else None
            made["c_kv_offset"] = m(1).float() * 9 if "C" in scales else None
            made["v"] = None
        return made

    def expected(**given: Any) -> list[Tensor]:
        g = {k: v.double() if isinstance(v, Tensor) and v.dtype.is_floating_point else v for k, v in given.items()}
        k, c = interleaved(g["kv"][..., dv:], g["cos"], g["sin"]), rms(g["kv"][..., :dv], g["gamma"], 1e-2)
        results = []
        for name, value, prefix in (("k_cache", k, "k_rope"), ("ckv_cache", c, "c_kv")):
            if g.get(f"{prefix}_scale") is not None:
                value = quantised(value, g[f"{prefix}_scale"], g.get(f"{prefix}_offset"))
            results.append(cached(given[name], g["index"], value, mode))
        return [*results, *((k, c) if outputs else (torch.zeros_like(k), torch.zeros_like(c)))]

    return OpCase(
        "KvRmsNormRopeCache",
        inputs,
        expected,
        {"cache_mode": mode, "is_output_kv": outputs, "epsilon": 1e-2},
        outputs=("k_cache", "ckv_cache", "k_rope", "c_kv"),
        dtypes=HALVES,
        widen=False,
        name="-".join(filter(None, (mode, scales, "kv" * outputs, "short" * short, str(shape[1])))),
    )


def qkv_case(scales: str = "", outputs: bool = False) -> OpCase:
    """scales: which of k and v are int8, and K or V with an offset."""
    tokens, heads, size, block_size = 4, (3, 2, 2), 64, 32

    def inputs(m: Any) -> dict[str, Any]:
        made: dict[str, Any] = {"qkv": m(tokens, sum(heads) * size), "q_gamma": m(size), "k_gamma": m(size)}
        made |= {name: m(tokens, size, low=-1, high=1) for name in ("cos", "sin")}
        made |= {"index": t(33, -1, 0, 63), "q_out": m(tokens, heads[0] * size)}
        for name in ("k", "v"):
            is_int8 = name in scales.lower()
            width = 32 if is_int8 else 16
            shape = (2, heads[1] * size // width, block_size, width)
            made[f"{name}_cache"] = m.ints(*shape, low=-99, high=99, dtype=torch.int8) if is_int8 else m(*shape)
        for name in ("k", "v"):
            made[f"{name}_scale"] = m(heads[1], size, low=0.035, high=0.11).float() if name in scales.lower() else None
        for name in ("k", "v"):
            made[f"{name}_offset"] = m(heads[1], size).float() * 9 if name.upper() in scales else None
        return made

    def expected(**g: Any) -> list[Tensor]:
        parts = g["qkv"].view(tokens, -1, size).split(heads, 1)
        half = size // 2

        def turned(x: Tensor, gamma: Tensor) -> Tensor:
            y = rms(x, gamma, 1e-2)
            cos, sin = g["cos"][:, None], g["sin"][:, None]
            return y * cos + torch.cat((-y[..., half:], y[..., :half]), -1) * sin

        q, k, v = turned(parts[0], g["q_gamma"]), turned(parts[1], g["k_gamma"]), parts[2]
        caches = []
        for name, value in (("k", k), ("v", v)):
            cache = g[f"{name}_cache"].clone()
            if g[f"{name}_scale"] is not None:
                value = quantised(value, 1 / g[f"{name}_scale"], g[f"{name}_offset"])
            for token, slot in enumerate(g["index"].tolist()):
                if slot >= 0:
                    row = value[token].reshape(cache.shape[1], cache.shape[3])
                    cache[slot // block_size, :, slot % block_size] = row.to(cache.dtype)
            caches.append(cache)
        rest = [x.flatten(1) if outputs else torch.tensor(0.0) for x in (q, k, v)]
        return [q.flatten(1), *caches, *rest]

    return OpCase(
        "QkvRmsNormRopeCache",
        inputs,
        expected,
        {"qkv_size": [2, 2, sum(heads), size], "head_nums": list(heads), "epsilon": 1e-2, "is_output_qkv": outputs},
        outputs=("q_out", "k_cache", "v_cache", "q_out_before_quant", "k_out_before_quant", "v_out_before_quant"),
        dtypes=HALVES,
        name="-".join(filter(None, (scales, "qkv" * outputs))),
    )


CASES = [
    qkv_case(),
    qkv_case("k", outputs=True),
    qkv_case("Kv"),
    qkv_case("V", outputs=True),
    OpCase(
        "InterleaveRope",
        lambda m: {"x": m(2, 3, 4, 8), "cos": m(2, 1, 4, 8), "sin": m(2, 1, 4, 8)},
        interleaved,
        dtypes=HALVES,
    ),
    OpCase(
        "InterleaveRope",
        lambda m: {"x": m(2, 3, 4, 64), "cos": m(1, 1, 1, 64), "sin": m(1, 1, 1, 64)},
        interleaved,
        dtypes=HALVES,
        name="one_place",
    ),
    kv_cache_case("Norm", t([4, -1, 0], [0, 2, 1])),
    kv_cache_case("Norm", t([4, -1, 0], [0, 2, 1]), shape=(2, 2, 3), scales="kC", outputs=True, short=True),
    kv_cache_case("PA", t(0, 127, 33, -1, 31, 64)),
    kv_cache_case("PA_BNSD", t(0, 127, 33, 2, 31, 64), scales="Kc", outputs=True),
    kv_cache_case("PA_BNSD", t(0, 127, 33, 2, 31, 64), shape=(2, 2, 3), outputs=True),
    kv_cache_case("PA_NZ", t(0, 127, 33, 2, 31, 64), outputs=True),
    kv_cache_case("PA_NZ", t(0, 127, 33, -1, 31, 64), shape=(6, 2, 1), scales="c"),
    kv_cache_case("PA_BLK_BNSD", t(32, -1), scales="kc"),
    kv_cache_case("PA_BLK_BNSD", t(64, 96, 40, 0), shape=(2, 1, 40)),
    kv_cache_case("PA_BLK_NZ", t(64, 96, -1, 0), shape=(2, 1, 40), outputs=True),
    kv_cache_case("PA_BLK_NZ", t(64, 32), scales="k", short=True),
]
