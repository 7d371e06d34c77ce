"""What comes before multi-head latent attention (MLA) in one node: projections, norms, rotary embeddings, the cache.

With the roundings of CANN's kernel on A2 and A3: a product is rounded to bfloat16, or dequantised in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.matmul import bmm, mm
from npu_fused_graph.engine.kernels.paged import Where, filled_blocks, slots, write
from npu_fused_graph.engine.kernels.rope import interleaved, normalised, to_int8
from npu_fused_graph.engine.registry import kernel, unsupported

_BF16 = torch.bfloat16
_INT8 = torch.int8
_PAGED = ("PA_BSND", "PA_NZ")


class _Inputs(NamedTuple):
    """What every version takes, by IR name."""

    ge_type: str
    token_x: Tensor
    weight_dq: Tensor
    weight_uq_qr: Tensor
    weight_uk: Tensor
    weight_dkv_kr: Tensor
    rmsnorm_gamma_cq: Tensor
    rmsnorm_gamma_ckv: Tensor
    rope_sin: Tensor
    rope_cos: Tensor
    kv_cache: Tensor
    kr_cache: Tensor
    cache_index: Tensor | None
    dequant_scale_x: Tensor | None
    dequant_scale_w_dq: Tensor | None
    dequant_scale_w_uq_qr: Tensor | None
    dequant_scale_w_dkv_kr: Tensor | None
    quant_scale_ckv: Tensor | None
    quant_scale_ckr: Tensor | None
    smooth_scales_cq: Tensor | None
    rmsnorm_epsilon_cq: float
    rmsnorm_epsilon_ckv: float
    cache_mode: str
    qc_qr_scale: float = 1.0
    kc_scale: float = 1.0

    @property
    def weight_quant_mode(self) -> int:
        """0: bfloat16. 1: weight_uq_qr is int8. 2: token_x and all weights but weight_uk are."""
        return 2 if self.token_x.dtype is _INT8 else int(self.weight_uq_qr.dtype is _INT8)

    @property
    def kv_cache_quant_mode(self) -> int:
        """0: bfloat16. 1: one scale for kv_cache. 2: a scale per element of rows of both caches."""
        return 0 if self.quant_scale_ckv is None else 3 - self.weight_quant_mode


class _Query(NamedTuple):
    """nope [T, N, Hckv], rope [T, N, Dr]; norm [T, Hcq] and its scale [T, 1], or none."""

    nope: Tensor
    rope: Tensor
    norm: Tensor
    norm_scale: Tensor | None


def _check(given: _Inputs) -> None:
    mode = given.weight_quant_mode
    dtypes = {
        **dict.fromkeys(("token_x", "weight_dq", "weight_dkv_kr"), _INT8 if mode == 2 else _BF16),
        "weight_uq_qr": _INT8 if mode else _BF16,
        **dict.fromkeys(("weight_uk", "rope_sin", "rope_cos", "rmsnorm_gamma_cq", "rmsnorm_gamma_ckv"), _BF16),
    }
    for name, dtype in dtypes.items():
        x = getattr(given, name)
        if x.dtype is not dtype:
            raise unsupported(given.ge_type, name, f"{dtype} next to token_x in {given.token_x.dtype}", x)
    full = ("dequant_scale_x", "dequant_scale_w_dq", "dequant_scale_w_dkv_kr")
    for name, is_needed in {**dict.fromkeys(full, mode == 2), "dequant_scale_w_uq_qr": mode > 0}.items():
        if (getattr(given, name) is not None) is not is_needed:
            wanted = "a scale next to int8" if is_needed else "none next to bfloat16"
            raise unsupported(given.ge_type, name, wanted, getattr(given, name))
    for name in ("smooth_scales_cq", "quant_scale_ckv"):
        if mode == 0 and getattr(given, name) is not None:
            raise unsupported(given.ge_type, name, "none next to bfloat16", getattr(given, name))
    if (given.quant_scale_ckr is not None) is not (given.kv_cache_quant_mode == 2):
        wanted = "one next to quant_scale_ckv and token_x in bfloat16 only"
        raise unsupported(given.ge_type, "quant_scale_ckr", wanted, given.quant_scale_ckr)
    ckv = given.quant_scale_ckv
    if given.kv_cache_quant_mode == 1 and ckv is not None and ckv.numel() != 1:
        raise unsupported(given.ge_type, "quant_scale_ckv", "one element next to token_x in int8", ckv)


def _product(x: Tensor, weight: Tensor, x_scale: Tensor | None, weight_scale: Tensor | None) -> Tensor:
    """x @ weight in float32: rounded to bfloat16, or of int8 times the scales of rows and columns."""
    product = mm(x, weight).float()
    if x_scale is None or weight_scale is None:
        return product
    return product * x_scale.reshape(-1, 1) * weight_scale.reshape(1, -1)


def _per_row(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x with 127 for the largest magnitude of its row, that magnitude / 127), not yet rounded."""
    most = x.abs().amax(-1, keepdim=True)
    return x * (127 / most), most / 127


def _rope(given: _Inputs) -> tuple[Tensor, Tensor]:
    """cos, sin [T, Dr]."""
    size = given.rope_sin.shape[-1]
    return given.rope_cos.reshape(-1, size), given.rope_sin.reshape(-1, size)


def _query(given: _Inputs) -> _Query:
    x = given.token_x.flatten(0, -2)
    compressed = _product(x, given.weight_dq, given.dequant_scale_x, given.dequant_scale_w_dq)
    wide = normalised(compressed, given.rmsnorm_gamma_cq, given.rmsnorm_epsilon_cq) * given.qc_qr_scale
    scale = None
    if given.weight_quant_mode:
        if given.smooth_scales_cq is not None:
            wide = wide * given.smooth_scales_cq.reshape(1, -1)
        wide, scale = _per_row(wide)
        norm = wide.round_().to(_INT8)
    else:
        norm = wide.to(_BF16)
    heads, size, _ = given.weight_uk.shape
    both = _product(norm, given.weight_uq_qr, scale, given.dequant_scale_w_uq_qr).view(norm.shape[0], heads, -1)
    cos, sin = (t.unsqueeze(1) for t in _rope(given))
    rope = interleaved(both[..., size:], cos, sin).to(_BF16)
    nope = bmm(both[..., :size].to(_BF16).transpose(0, 1), given.weight_uk)
    return _Query(nope.transpose(0, 1), rope, norm, scale)


def _int8_query(query: _Query, ckv_scale: Tensor) -> tuple[_Query, Tensor]:
    """(query in int8, scale [T, N, 1]) per token and head; the rope part is brought to the scale of int8 scores.

    CANN's kernel rounds to int8 by way of float16, ties away from zero.
    """
    wide, scale = _per_row(query.nope.float())
    wide = wide.half().float()
    nope = torch.copysign(wide.abs().add_(0.5).floor_(), wide).to(_INT8)
    rope = (query.rope.float() * (ckv_scale.float() / scale)).to(_BF16)
    return query._replace(nope=nope, rope=rope), scale


def _key(given: _Inputs) -> tuple[Tensor, Tensor]:
    """(latent [T, Hckv] in float32, rope part [T, Dr] in bfloat16)."""
    x, split = given.token_x.flatten(0, -2), given.rmsnorm_gamma_ckv.shape[0]
    both = _product(x, given.weight_dkv_kr, given.dequant_scale_x, given.dequant_scale_w_dkv_kr)
    latent = normalised(both[:, :split], given.rmsnorm_gamma_ckv, given.rmsnorm_epsilon_ckv) * given.kc_scale
    return latent, interleaved(both[:, split:], *_rope(given)).to(_BF16)


def _tiles(latent: Tensor, rope: Tensor, tile_size: int, clip_alpha: Tensor | None) -> Tensor:
    """[T, Hckv + 2 Dr + 4 tiles] bytes: int8 elements, the rope part, a float32 scale per tile.

    A tile's magnitudes are clipped to ``clip_alpha`` of the largest, which becomes 127.
    """
    tiles = latent.unflatten(-1, (-1, tile_size))
    most = tiles.abs().amax(-1, keepdim=True)
    if clip_alpha is not None:
        most = most * clip_alpha
    scale = most * (1 / 127)
    values = (tiles.clamp(-most, most) * (1 / scale)).round_().to(_INT8)
    return torch.cat((values.flatten(1), rope.contiguous().view(_INT8), scale.flatten(1).view(_INT8)), -1)


def _where(given: _Inputs, actual_seq_len: Tensor | None) -> Where | None:
    """None: the caches are the tokens' own."""
    mode, index, lead = given.cache_mode, given.cache_index, given.token_x.shape[:-1]
    if mode in ("BSND", "TND"):
        if given.kv_cache.shape[:-2] != lead or len(lead) != len(mode) - 2:
            raise unsupported(given.ge_type, "kv_cache", f"{mode} like token_x {list(lead)}", given.kv_cache)
        return None
    if index is None:
        raise unsupported(given.ge_type, "cache_index", f"one with cache_mode {mode}", None)
    block_size = given.kv_cache.shape[1]
    if mode in _PAGED:
        return slots(index, block_size)
    if len(lead) == 2:
        lengths = torch.full((lead[0],), lead[1])
    elif actual_seq_len is None:
        raise unsupported(given.ge_type, "actual_seq_len", f"one with cache_mode {mode} and token_x [T, He]", None)
    else:
        ends = actual_seq_len.long()
        lengths = torch.diff(ends, prepend=ends.new_zeros(1))
    return filled_blocks(index, lengths, block_size)


def _put(given: _Inputs, name: str, where: Where | None, values: Tensor) -> None:
    cache = getattr(given, name)
    if cache.dtype is not values.dtype:
        raise unsupported(given.ge_type, name, f"{values.dtype} with these scales and modes", cache)
    if where is None:
        cache.copy_(values.view(cache.shape))
    elif cache.numel():
        write(given.ge_type, name, cache, given.cache_mode.endswith("NZ"), where, values)


def _put_key(given: _Inputs, where: Where | None) -> None:
    """In int8 where the caches have scales."""
    latent, rope = _key(given)
    ckv, ckr = given.quant_scale_ckv, given.quant_scale_ckr
    _put(given, "kv_cache", where, latent.to(_BF16) if ckv is None else to_int8(latent, ckv))
    _put(given, "kr_cache", where, rope if ckr is None else to_int8(rope.float(), ckr))


def _shaped(given: _Inputs, x: Tensor) -> Tensor:
    """[T, ...] as [B, S, ...] where token_x is."""
    return x.unflatten(0, given.token_x.shape[:-1]) if given.token_x.dim() == 3 else x


def _refuse_other_modes(given: _Inputs, modes: dict[str, tuple[int, int]]) -> None:
    """modes: per attribute its value and what dtypes and scales say it must be."""
    for name, (got, wanted) in modes.items():
        if got != wanted:
            raise unsupported(given.ge_type, name, f"{wanted} with these dtypes and scales", got)


@kernel("MlaProlog", mutates=("kv_cache", "kr_cache"), allowed={"cache_mode": _PAGED})
def mla_prolog(
    token_x: Tensor,
    weight_dq: Tensor,
    weight_uq_qr: Tensor,
    weight_uk: Tensor,
    weight_dkv_kr: Tensor,
    rmsnorm_gamma_cq: Tensor,
    rmsnorm_gamma_ckv: Tensor,
    rope_sin: Tensor,
    rope_cos: Tensor,
    cache_index: Tensor,
    kv_cache: Tensor,
    kr_cache: Tensor,
    dequant_scale_x: Tensor | None = None,
    dequant_scale_w_dq: Tensor | None = None,
    dequant_scale_w_uq_qr: Tensor | None = None,
    dequant_scale_w_dkv_kr: Tensor | None = None,
    quant_scale_ckv: Tensor | None = None,
    quant_scale_ckr: Tensor | None = None,
    smooth_scales_cq: Tensor | None = None,
    *,
    rmsnorm_epsilon_cq: float = 1e-05,
    rmsnorm_epsilon_ckv: float = 1e-05,
    cache_mode: str = "PA_BSND",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(query, query_rope, kv_cache, kr_cache); see :func:`mla_prolog_v3`."""
    given = _Inputs(
        "MlaProlog", token_x, weight_dq, weight_uq_qr, weight_uk, weight_dkv_kr, rmsnorm_gamma_cq, rmsnorm_gamma_ckv,
        rope_sin, rope_cos, kv_cache, kr_cache, cache_index, dequant_scale_x, dequant_scale_w_dq,
        dequant_scale_w_uq_qr, dequant_scale_w_dkv_kr, quant_scale_ckv, quant_scale_ckr, smooth_scales_cq,
        rmsnorm_epsilon_cq, rmsnorm_epsilon_ckv, cache_mode,
    )  # fmt: skip
    _check(given)
    if given.kv_cache_quant_mode == 1:
        raise unsupported("MlaProlog", "quant_scale_ckv", "none next to token_x in int8", quant_scale_ckv)
    query = _query(given)
    _put_key(given, _where(given, None))
    return _shaped(given, query.nope), _shaped(given, query.rope), kv_cache, kr_cache


@kernel("MlaPrologV2", mutates=("kv_cache", "kr_cache"), allowed={"cache_mode": _PAGED})
def mla_prolog_v2(
    token_x: Tensor,
    weight_dq: Tensor,
    weight_uq_qr: Tensor,
    weight_uk: Tensor,
    weight_dkv_kr: Tensor,
    rmsnorm_gamma_cq: Tensor,
    rmsnorm_gamma_ckv: Tensor,
    rope_sin: Tensor,
    rope_cos: Tensor,
    cache_index: Tensor,
    kv_cache: Tensor,
    kr_cache: Tensor,
    dequant_scale_x: Tensor | None = None,
    dequant_scale_w_dq: Tensor | None = None,
    dequant_scale_w_uq_qr: Tensor | None = None,
    dequant_scale_w_dkv_kr: Tensor | None = None,
    quant_scale_ckv: Tensor | None = None,
    quant_scale_ckr: Tensor | None = None,
    smooth_scales_cq: Tensor | None = None,
    *,
    rmsnorm_epsilon_cq: float = 1e-05,
    rmsnorm_epsilon_ckv: float = 1e-05,
    cache_mode: str = "PA_BSND",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(query, query_rope, kv_cache, kr_cache, dequant_scale_q_nope: [1] where it is not asked for)."""
    given = _Inputs(
        "MlaPrologV2", token_x, weight_dq, weight_uq_qr, weight_uk, weight_dkv_kr, rmsnorm_gamma_cq, rmsnorm_gamma_ckv,
        rope_sin, rope_cos, kv_cache, kr_cache, cache_index, dequant_scale_x, dequant_scale_w_dq,
        dequant_scale_w_uq_qr, dequant_scale_w_dkv_kr, quant_scale_ckv, quant_scale_ckr, smooth_scales_cq,
        rmsnorm_epsilon_cq, rmsnorm_epsilon_ckv, cache_mode,
    )  # fmt: skip
    _check(given)
    query, scale = _query(given), torch.zeros(1)
    if given.kv_cache_quant_mode == 1 and quant_scale_ckv is not None:
        query, scale = _int8_query(query, quant_scale_ckv)
    _put_key(given, _where(given, None))
    return _shaped(given, query.nope), _shaped(given, query.rope), kv_cache, kr_cache, scale


@kernel(
    "MlaPrologV3",
    mutates=("kv_cache", "kr_cache"),
    allowed={
        "cache_mode": (*_PAGED, "PA_BLK_BSND", "PA_BLK_NZ", "BSND", "TND"),
        "weight_quant_mode": (0, 1, 2),
        "kv_cache_quant_mode": (0, 1, 2, 3),
        "query_quant_mode": (0, 1),
        "ckvkr_repo_mode": (0, 1),
        "quant_scale_repo_mode": (0, 1),
    },
)
def mla_prolog_v3(
    token_x: Tensor,
    weight_dq: Tensor,
    weight_uq_qr: Tensor,
    weight_uk: Tensor,
    weight_dkv_kr: Tensor,
    rmsnorm_gamma_cq: Tensor,
    rmsnorm_gamma_ckv: Tensor,
    rope_sin: Tensor,
    rope_cos: Tensor,
    kv_cache: Tensor,
    kr_cache: Tensor,
    cache_index: Tensor | None = None,
    dequant_scale_x: Tensor | None = None,
    dequant_scale_w_dq: Tensor | None = None,
    dequant_scale_w_uq_qr: Tensor | None = None,
    dequant_scale_w_dkv_kr: Tensor | None = None,
    quant_scale_ckv: Tensor | None = None,
    quant_scale_ckr: Tensor | None = None,
    smooth_scales_cq: Tensor | None = None,
    actual_seq_len: Tensor | None = None,
    k_nope_clip_alpha: Tensor | None = None,
    *,
    rmsnorm_epsilon_cq: float = 1e-05,
    rmsnorm_epsilon_ckv: float = 1e-05,
    cache_mode: str = "PA_BSND",
    query_norm_flag: bool = False,
    weight_quant_mode: int = 0,
    kv_cache_quant_mode: int = 0,
    query_quant_mode: int = 0,
    ckvkr_repo_mode: int = 0,
    quant_scale_repo_mode: int = 0,
    tile_size: int = 128,
    qc_qr_scale: float = 1.0,
    kc_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """c = norm(x @ weight_dq), q = c @ weight_uq_qr: (query = first part of q @ weight_uk, query_rope = rest rotated,
    the caches with norm and rotation of x @ weight_dkv_kr, scale of an int8 query, c and its scale). What is not asked
    for has no elements. Weights are plain matrices, whatever format a device keeps them in.
    """
    given = _Inputs(
        "MlaPrologV3", token_x, weight_dq, weight_uq_qr, weight_uk, weight_dkv_kr, rmsnorm_gamma_cq, rmsnorm_gamma_ckv,
        rope_sin, rope_cos, kv_cache, kr_cache, cache_index, dequant_scale_x, dequant_scale_w_dq,
        dequant_scale_w_uq_qr, dequant_scale_w_dkv_kr, quant_scale_ckv, quant_scale_ckr, smooth_scales_cq,
        rmsnorm_epsilon_cq, rmsnorm_epsilon_ckv, cache_mode, qc_qr_scale, kc_scale,
    )  # fmt: skip
    _check(given)
    in_tiles = kv_cache_quant_mode == 3 and given.weight_quant_mode > 0 and quant_scale_ckv is None
    if in_tiles and cache_mode not in ("PA_BSND", "BSND", "TND"):
        raise unsupported("MlaPrologV3", "cache_mode", "PA_BSND, BSND or TND with kv_cache_quant_mode 3", cache_mode)
    wanted = 3 if in_tiles else given.kv_cache_quant_mode
    _refuse_other_modes(
        given,
        {
            "weight_quant_mode": (weight_quant_mode, given.weight_quant_mode),
            "kv_cache_quant_mode": (kv_cache_quant_mode, wanted),
            "query_quant_mode": (query_quant_mode, int(wanted == 1)),
            "ckvkr_repo_mode": (ckvkr_repo_mode, int(in_tiles)),
            "quant_scale_repo_mode": (quant_scale_repo_mode, int(in_tiles)),
        },
    )
    query, scale = _query(given), torch.zeros(0)
    if wanted == 1 and quant_scale_ckv is not None:
        query, scale = _int8_query(query, quant_scale_ckv)
    where = _where(given, actual_seq_len)
    if in_tiles:
        _put(given, "kv_cache", where, _tiles(*_key(given), tile_size, k_nope_clip_alpha))
    else:
        _put_key(given, where)
    results = _shaped(given, query.nope), _shaped(given, query.rope), kv_cache, kr_cache, scale
    if not query_norm_flag:
        return *results, torch.zeros(0, dtype=weight_uq_qr.dtype), torch.zeros(0)
    return *results, _shaped(given, query.norm), torch.zeros(0) if query.norm_scale is None else query.norm_scale
