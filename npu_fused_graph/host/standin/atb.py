"""torch.ops.atb: the operators of ATB, as eager calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.errors import InvalidArgumentError, UnsupportedOpError, argument_error
from npu_fused_graph.host.standin.atb_attention import (
    flash_attention,
    flash_attention_qlens,
    flash_attention_unpad,
    multi_head_latent_attention,
    multi_head_latent_attention_out,
    paged_attention,
    paged_attention_mla,
    paged_attention_splitfuse,
    paged_attention_workspace,
    ring_mla,
    ring_mla_out,
)
from npu_fused_graph.host.standin.formats import FRACTAL_NZ, get_npu_format

_keep: list[Any] = []

OF_TORCH_NPU = (
    "_npu_flash_attention", "_npu_flash_attention_qlens", "_npu_flash_attention_unpad", "_npu_flash_attention_unpad_v2",
    "_npu_flash_attention_v3", "_npu_group_topk", "_npu_matmul_add_fp32", "_npu_paged_attention",
    "_npu_paged_attention_get_workspace", "_npu_paged_attention_mla", "_npu_paged_attention_quant",
    "_npu_paged_attention_splitfuse", "_npu_paged_attention_splitfuse_v2", "_npu_quant_rms_norm",
    "_npu_quantize_per_tensor", "_npu_reshape_and_cache", "_npu_reshape_and_cache_siso", "_npu_rotary_embedding",
)  # fmt: skip
"""Names torch_npu has itself; the others are in torch_npu.atb."""
OF_ATB = (
    "_npu_flash_attention_prefix_v2", "_npu_flash_attention_v2", "_npu_multi_head_latent_attention_get_workspace",
    "_npu_paged_attention_v2", "_npu_paged_attention_v2_get_workspace", "npu_fused_add_topk_div", "npu_mla_preprocess",
    "npu_multi_head_latent_attention", "npu_paged_cache_load", "npu_ring_mla", "npu_self_attention_prefix_encoder",
)  # fmt: skip


def install() -> None:
    library = torch.library.Library("atb", "FRAGMENT")
    _keep.append(library)
    for schema, function, meta in _OPERATORS:
        library.define(schema)
        name = schema.partition("(")[0]
        library.impl(name, function, "CPU")
        if meta is not None:
            library.impl(name, meta, "Meta")


def implemented() -> set[str]:
    """Names of the operators that run."""
    return {schema.partition("(")[0].partition(".")[0] for schema, _, _ in _OPERATORS}


def python_function(name: str) -> Any:
    """Operator ``name``, or a function that raises where there is no CPU implementation."""
    if hasattr(torch.ops.atb, name):
        return getattr(torch.ops.atb, name)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise UnsupportedOpError(
            f"[run] {name}: expected an operator of ATB with a CPU implementation, got one without. "
            "See docs/run_on_a_laptop.md for those that have one."
        )

    refuse.__name__ = name
    return refuse


# -- caches ---------------------------------------------------------------------------------------------------


def reshape_and_cache(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_indices: Tensor) -> None:
    """cache[slot // block_size, slot % block_size] = key or value of each token; a negative slot is left out."""
    is_nz = get_npu_format(key_cache) == get_npu_format(value_cache) == FRACTAL_NZ
    _store(key, key_cache, slot_indices, is_nz)
    _store(value, value_cache, slot_indices, is_nz)


def reshape_and_cache_siso(key: Tensor, key_cache: Tensor, slot_indices: Tensor) -> None:
    """The same for one cache."""
    _store(key, key_cache, slot_indices, False)


def _store(x: Tensor, cache: Tensor, slots: Tensor, is_nz: bool) -> None:
    """is_nz: the cache is (blocks, heads * size / 16, block size, 16), 32 for int8."""
    slots = slots.flatten().long()
    if is_nz:
        cache = cache.transpose(1, 2)
    blocks, size = cache.shape[:2]
    if slots.numel() and int(slots.max()) >= blocks * size:
        raise InvalidArgumentError(
            f"[run] slot_indices: expected slots below {blocks * size} ({blocks} blocks of {size}), got "
            f"{int(slots.max())}. Make the cache larger, or correct the slots."
        )
    used = slots >= 0
    slots = slots[used]
    cache[slots // size, slots % size] = x[used].reshape(len(slots), *cache.shape[2:])


def paged_cache_load(
    key_cache: Tensor, value_cache: Tensor, block_table: Tensor, context_lens: Tensor, *,
    seq_starts: Tensor | None = None, cumsum: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The tokens of all sequences, one after the other, from the block that holds ``seq_starts`` of each on."""
    if get_npu_format(key_cache) == FRACTAL_NZ:
        raise argument_error("run", "key_cache", "the format ND", "FRACTAL_NZ", "Cast it to ND.")
    lengths = context_lens.diff() if cumsum else context_lens
    size = key_cache.shape[1]
    sequences = torch.repeat_interleave(torch.arange(len(lengths)), lengths.long())
    firsts = lengths.long().cumsum(0) - lengths
    places = torch.arange(len(sequences)) - firsts[sequences]
    if seq_starts is not None:
        places = places + (seq_starts.long() // size * size)[sequences]
    blocks = block_table[sequences, places // size].long()
    return key_cache[blocks, places % size], value_cache[blocks, places % size]


def paged_cache_load_out(
    *caches: Any, seq_starts: Tensor | None = None, cumsum: bool = False, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    found = paged_cache_load(*caches, seq_starts=seq_starts, cumsum=cumsum)
    for out, x in zip((key, value), found, strict=True):
        out[: len(x)] = x  # rows behind the last token stay as they are
    return key, value


# -- rotary embedding -----------------------------------------------------------------------------------------


def rotary_embedding(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox_style: bool
) -> None:
    """Rotates query and key in place, by halves (neox) or by neighbours. cos_sin_cache: rows of cosines, then sines."""
    width = cos_sin_cache.shape[-1]
    if not is_neox_style and head_size != width:
        raise argument_error(
            "run", "head_size", f"{width}, the width of cos_sin_cache", head_size, "Rotate whole heads, or use neox."
        )
    rows = cos_sin_cache[positions.flatten()].float()
    cos, sin = (x.unsqueeze(1) for x in rows.chunk(2, -1))
    for x in (query, key):
        heads = x.reshape(len(rows), -1, width).float()
        if is_neox_style:
            a, b = heads.chunk(2, -1)
            rotated = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        else:
            a, b = heads[..., ::2], heads[..., 1::2]
            rotated = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        x.copy_(rotated.reshape(x.shape))


# -- schemas --------------------------------------------------------------------------------------------------


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _latent_meta(q_nope: Tensor, q_rope: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.empty_like(q_nope, dtype=q_rope.dtype)


def _ring_meta(q_nope: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = q_nope.shape
    return torch.empty_like(q_nope), q_nope.new_empty((heads, tokens), dtype=torch.float32)


_PAGED = (
    "Tensor query, Tensor key_cache, Tensor value_cache, int num_kv_heads, int num_heads, float scale_value, "
    "Tensor block_table, Tensor context_lens, Tensor(a!) out"
)
_LATENT = (
    "Tensor q_nope, Tensor q_rope, Tensor ctkv, Tensor k_rope, Tensor block_tables, SymInt[] context_lens, "
    "int q_headnum, float qk_scale, int kv_headnum, *, Tensor? mask=None, SymInt[]? qseqlen=None, "
    "Tensor? qk_descale=None, Tensor? pv_descale=None, str? mask_type=None, str? calc_type=None, str? cache_mode=None"
)
_RING = (
    "Tensor q_nope, Tensor q_rope, Tensor k_nope, Tensor k_rope, Tensor value, Tensor mask, Tensor seqlen, "
    "int head_num, int kv_head_num, *, Tensor? pre_out=None, Tensor? prev_lse=None, float qk_scale=1, "
    "str? kernel_type=None, str? mask_type=None, str? input_layout=None, str? calc_type=None"
)
_LOAD = (
    "Tensor key_cache, Tensor value_cache, Tensor block_table, Tensor context_lens, *, Tensor? seq_starts=None, "
    "bool cumsum=False"
)
_PACKED = "Tensor query, Tensor key, Tensor value"
_SIZES = "float scale_value, int num_heads, int num_kv_heads, Tensor(a!) out"
_CACHED = "Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table"
_LAST = "int num_kv_heads, int num_heads, float scale_value, Tensor(a!) out"
_OPERATORS: tuple[tuple[str, Callable[..., Any], Callable[..., Any] | None], ...] = (
    (
        "_npu_reshape_and_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
        "Tensor slot_indices) -> ()",
        reshape_and_cache,
        _nothing,
    ),
    (
        "_npu_reshape_and_cache_siso(Tensor key, Tensor(a!) key_cache, Tensor slot_indices) -> ()",
        reshape_and_cache_siso,
        _nothing,
    ),
    (
        "_npu_rotary_embedding(Tensor positions, Tensor(a!) query, Tensor(b!) key, int head_size, "
        "Tensor cos_sin_cache, bool is_neox_style) -> ()",
        rotary_embedding,
        _nothing,
    ),
    (f"_npu_paged_attention({_PAGED}, *, Tensor? workspace=None) -> ()", paged_attention, _nothing),
    (
        f"_npu_paged_attention_get_workspace({_PAGED}) -> Tensor",
        paged_attention_workspace,
        paged_attention_workspace,
    ),
    (
        "_npu_paged_attention_mla(Tensor query, Tensor key_cache, int num_kv_heads, int num_heads, float scale_value, "
        "Tensor block_table, Tensor context_lens, int mla_vheadsize, Tensor(a!) out) -> ()",
        paged_attention_mla,
        _nothing,
    ),
    (
        f"_npu_paged_attention_splitfuse({_CACHED}, Tensor context_lens, Tensor mask, Tensor seq_len, {_LAST}) -> ()",
        paged_attention_splitfuse,
        _nothing,
    ),
    (f"_npu_flash_attention({_PACKED}, Tensor mask, Tensor seq_len, {_SIZES}) -> ()", flash_attention, _nothing),
    (f"_npu_flash_attention_unpad({_PACKED}, Tensor seq_len, {_SIZES}) -> ()", flash_attention_unpad, _nothing),
    (
        f"_npu_flash_attention_qlens({_CACHED}, Tensor mask, Tensor seq_len, Tensor context_lens, {_LAST}) -> ()",
        flash_attention_qlens,
        _nothing,
    ),
    (f"npu_paged_cache_load({_LOAD}) -> (Tensor, Tensor)", paged_cache_load, None),
    (
        f"npu_paged_cache_load.out({_LOAD}, Tensor(a!) key, Tensor(b!) value) -> (Tensor(a!), Tensor(b!))",
        paged_cache_load_out,
        lambda *args, key, value, **kwargs: (key, value),
    ),
    (f"npu_multi_head_latent_attention({_LATENT}) -> Tensor", multi_head_latent_attention, _latent_meta),
    (
        f"npu_multi_head_latent_attention.out({_LATENT}, Tensor(a!) output) -> Tensor(a!)",
        multi_head_latent_attention_out,
        lambda *args, output, **kwargs: output,
    ),
    (f"npu_ring_mla({_RING}) -> (Tensor, Tensor)", ring_mla, _ring_meta),
    (
        f"npu_ring_mla.out({_RING}, Tensor(a!) output, Tensor(b!) softmax_lse) -> (Tensor(a!), Tensor(b!))",
        ring_mla_out,
        lambda *args, output, softmax_lse, **kwargs: (output, softmax_lse),
    ),
)
"""Schema, implementation, and what it does to shapes: None where that depends on values."""
