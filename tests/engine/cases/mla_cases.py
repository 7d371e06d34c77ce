"""Samples for engine/kernels/mla.py: bfloat16 between products, so that what follows sees what a device's sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.engine.cases.rope_cases import cached, interleaved, quantised, rms
from tests.engine.cases.shape_cases import t
from tests.engine.op_case import OpCase

HIDDEN, COMPRESSED, HEADS, NOPE, LATENT, ROPE = 64, 48, 2, 16, 64, 32
RESULTS = ("query", "query_rope", "kv_cache", "kr_cache", "dequant_scale_q_nope", "query_norm", "dequant_scale_q_norm")
PARTIAL_SCALES = ("dequant_scale_w_uq_qr",)
FULL_SCALES = ("dequant_scale_x", "dequant_scale_w_dq", "dequant_scale_w_uq_qr", "dequant_scale_w_dkv_kr")


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).double()


def product(x: Tensor, weight: Tensor, x_scale: Tensor | None, scale: Tensor | None) -> Tensor:
    exact = x.double() @ weight.double()
    return rounded(exact) if scale is None or x_scale is None else exact * x_scale.reshape(-1, 1) * scale


def inputs(
    m: Any, ge_type: str, lead: tuple[int, ...], mode: int, kv_mode: int, cache: tuple[int, ...], index: Tensor | None
) -> dict[str, Any]:
    """By IR name; the first products are exact."""
    columns = HEADS * (NOPE + ROPE)
    tokens = torch.Size(lead).numel()

    def some(*shape: int, is_int8: bool, step: float = 0.125) -> Tensor:
        x = m.ints(*shape, low=-9, high=10)
        return x.to(torch.int8) if is_int8 else (x * step).to(torch.bfloat16)

    made: dict[str, Any] = {
        "token_x": some(*lead, HIDDEN, is_int8=mode == 2),
        "weight_dq": some(HIDDEN, COMPRESSED, is_int8=mode == 2),
        "weight_uq_qr": some(COMPRESSED, columns, is_int8=mode > 0),
        "weight_uk": m.ints(HEADS, NOPE, LATENT, low=-1, high=2).to(torch.bfloat16),
        "weight_dkv_kr": some(HIDDEN, LATENT + ROPE, is_int8=mode == 2),
        "rmsnorm_gamma_cq": m(COMPRESSED),
        "rmsnorm_gamma_ckv": m(LATENT),
        "rope_sin": m(*lead, ROPE, low=-1, high=1),
        "rope_cos": m(*lead, ROPE, low=-1, high=1),
    }
    for name, size, is_int8 in (("kv_cache", LATENT, kv_mode in (1, 2)), ("kr_cache", ROPE, kv_mode == 2)):
        made[name] = some(*cache, 1, size, is_int8=is_int8)
    if ge_type == "MlaPrologV3":
        made["cache_index"] = index
    else:
        caches = {name: made.pop(name) for name in ("kv_cache", "kr_cache")}
        made |= {"cache_index": index, **caches}
    scales = {
        "dequant_scale_x": (tokens, 1), "dequant_scale_w_dq": (1, COMPRESSED), "dequant_scale_w_uq_qr": (1, columns),
        "dequant_scale_w_dkv_kr": (1, LATENT + ROPE),
    }  # fmt: skip
    needed = ((), PARTIAL_SCALES, FULL_SCALES)[mode]
    for name, shape in scales.items():
        made[name] = m(*shape, low=0.01, high=0.02).float() if name in needed else None
    made["quant_scale_ckv"] = m(1, LATENT if kv_mode == 2 else 1, low=9, high=20).float() if kv_mode in (1, 2) else None
    made["quant_scale_ckr"] = m(1, ROPE, low=2, high=9).float() if kv_mode == 2 else None
    made["smooth_scales_cq"] = m(1, COMPRESSED, low=0.5, high=2).float() if mode and kv_mode else None
    return made


def expected_of(attrs: dict[str, Any], lengths: list[int] | None) -> Any:
    """lengths: of the sequences whose blocks cache_index lists."""
    mode = attrs.get("cache_mode", "PA_BSND")

    def expected(**g: Any) -> list[Tensor]:
        lead, x = g["token_x"].shape[:-1], g["token_x"].flatten(0, -2)
        cos, sin = g["rope_cos"].flatten(0, -2), g["rope_sin"].flatten(0, -2)
        x_scale = g["dequant_scale_x"]
        compressed = product(x, g["weight_dq"], x_scale, g["dequant_scale_w_dq"])
        norm = rms(compressed, g["rmsnorm_gamma_cq"], attrs["rmsnorm_epsilon_cq"]) * attrs.get("qc_qr_scale", 1)
        norm_scale = None
        if g["dequant_scale_w_uq_qr"] is None:
            norm = rounded(norm)
        else:
            norm = norm * (1 if g["smooth_scales_cq"] is None else g["smooth_scales_cq"])
            norm_scale = norm.abs().amax(-1, keepdim=True) / 127
            norm = quantised(norm, 1 / norm_scale, None)
        both = product(norm, g["weight_uq_qr"], norm_scale, g["dequant_scale_w_uq_qr"]).view(-1, HEADS, NOPE + ROPE)
        rope = rounded(interleaved(both[..., NOPE:], cos[:, None], sin[:, None]))
        nope = rounded(torch.einsum("tnd,ndk->tnk", rounded(both[..., :NOPE]), g["weight_uk"]))
        keys = product(x, g["weight_dkv_kr"], x_scale, g["dequant_scale_w_dkv_kr"])
        latent = rms(keys[:, :LATENT], g["rmsnorm_gamma_ckv"], attrs["rmsnorm_epsilon_ckv"]) * attrs.get("kc_scale", 1)
        turned = rounded(interleaved(keys[:, LATENT:], cos, sin))
        query_scale = torch.zeros(1 if attrs["version"] == 2 else 0)
        if g["quant_scale_ckv"] is not None:
            latent = quantised(latent, g["quant_scale_ckv"], None)
            if g["quant_scale_ckr"] is not None:
                turned = quantised(turned, g["quant_scale_ckr"], None)
            else:
                query_scale = nope.abs().amax(-1, keepdim=True) / 127
                half = (nope / query_scale).half().double()
                nope = half.sign() * (half.abs() + 0.5).floor()
                rope = rope * (g["quant_scale_ckv"].flatten() / query_scale)
        caches = [
            placed(g[n], g["cache_index"], v, mode, lengths) for n, v in (("kv_cache", latent), ("kr_cache", turned))
        ]
        results = [nope.unflatten(0, lead), rope.unflatten(0, lead), *caches]
        if attrs["version"] == 1:
            return results
        if attrs["version"] == 2:
            return [*results, query_scale]
        if not attrs.get("query_norm_flag"):
            return [*results, query_scale, torch.zeros(0), torch.zeros(0)]
        return [*results, query_scale, norm.unflatten(0, lead), torch.zeros(0) if norm_scale is None else norm_scale]

    return expected


def placed(cache: Tensor, index: Tensor | None, rows: Tensor, mode: str, lengths: list[int] | None) -> Tensor:
    if index is None:
        return rows.view(cache.shape)
    if lengths is not None:  # a block per entry of index: the slots of its tokens
        block_size, blocks = cache.shape[1], iter(index.flatten().tolist())
        slots: list[int] = []
        for length in lengths:
            for start in range(0, length, block_size):
                block = next(blocks)
                slots += [block * block_size + i for i in range(min(block_size, length - start))]
        index, mode = torch.tensor(slots), mode.replace("BLK_", "")
    return cached(cache, index.flatten(), rows[:, None, None], mode)


def mla_case(
    version: int, lead: tuple[int, ...], mode: int = 0, kv_mode: int = 0, *, cache: tuple[int, ...] = (3, 16),
    index: Tensor | None = None, lengths: list[int] | None = None, ends: Tensor | None = None, **attrs: Any,
) -> OpCase:  # fmt: skip
    ge_type = ("MlaProlog", "MlaPrologV2", "MlaPrologV3")[version - 1]
    attrs = {"rmsnorm_epsilon_cq": 1e-2, "rmsnorm_epsilon_ckv": 2e-2, **attrs}
    if version == 3:
        attrs |= {"weight_quant_mode": mode, "kv_cache_quant_mode": kv_mode, "query_quant_mode": int(kv_mode == 1)}
    expected = expected_of({**attrs, "version": version}, lengths)

    def made(m: Any) -> dict[str, Any]:
        given = inputs(m, ge_type, lead, mode, kv_mode, cache, index)
        if version == 3:
            given |= {"actual_seq_len": ends, "k_nope_clip_alpha": None}
        return given

    return OpCase(
        ge_type,
        made,
        lambda **g: expected(
            **{name: x for name, x in g.items() if name not in ("actual_seq_len", "k_nope_clip_alpha")}
        ),
        attrs,
        outputs=RESULTS[: (4, 5, 7)[version - 1]],
        dtypes=("bfloat16",),
        name="-".join(map(str, (len(lead), mode, kv_mode, attrs.get("cache_mode", "PA_BSND"), len(attrs)))),
    )


SLOTS = t(33, 0, 47, -1)
CASES = [
    mla_case(1, (4,), index=SLOTS),
    mla_case(1, (2, 2), 1, 2, index=SLOTS.view(2, 2), cache_mode="PA_NZ"),
    mla_case(1, (4,), 2, index=SLOTS, cache_mode="PA_NZ"),
    mla_case(2, (2, 2), index=SLOTS.view(2, 2)),
    mla_case(2, (4,), 1, index=SLOTS, cache_mode="PA_NZ"),
    mla_case(2, (4,), 2, 1, index=SLOTS, cache_mode="PA_NZ"),
    mla_case(3, (4,), index=SLOTS, cache_mode="PA_NZ", query_norm_flag=True, qc_qr_scale=1.5, kc_scale=0.5),
    mla_case(3, (2, 2), index=SLOTS.view(2, 2)),
    mla_case(3, (2, 2), cache=(2, 2), cache_mode="BSND", tile_size=64),
    mla_case(3, (4,), 1, cache=(4,), cache_mode="TND", query_norm_flag=True),
    mla_case(3, (2, 2), 1, 2, index=SLOTS.view(2, 2), query_norm_flag=True),
    mla_case(3, (4,), 2, index=SLOTS),
    mla_case(3, (2, 2), 2, 1, index=SLOTS.view(2, 2), cache_mode="PA_NZ", query_norm_flag=True, kc_scale=2.0),
    mla_case(3, (2, 17), index=t([4, 1], [0, 3]), lengths=[17, 17], cache=(5, 16), cache_mode="PA_BLK_BSND"),
    mla_case(
        3, (22,), index=t(4, 1, 2, 0), lengths=[17, 3, 2], ends=t(17, 20, 22, dtype=torch.int32), cache=(5, 16),
        cache_mode="PA_BLK_NZ",
    ),
]  # fmt: skip
