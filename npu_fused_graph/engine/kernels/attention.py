"""Attention of the inference operators: dense, packed and paged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from npu_fused_graph.engine.dtypes import MASKS
from npu_fused_graph.engine.kernels.attention_batches import attend
from npu_fused_graph.engine.kernels.attention_quant import CACHE_MODES, Scales
from npu_fused_graph.engine.kernels.attention_scores import SPARSE_MODES
from npu_fused_graph.engine.registry import Ints, kernel, unsupported

LAYOUTS = ("BSH", "BSND", "BNSD", "BNSD_BSND", "TND")
FUSED_LAYOUTS = (
    *LAYOUTS, "NTD", "NSD", "TND_NTD", "NTD_TND", "BSH_BNSD", "BSND_BNSD", "BSH_NBSD", "BSND_NBSD", "BNSD_NBSD"
)  # fmt: skip
"""The layout of query, key and value, then that of the result where it is another one."""
_NUMBERS = {torch.int8: 1, torch.float16: 5, torch.bfloat16: 15}
"""torch's numbers of dtypes, in which TorchAir hands over out_dtype; it says something of quantised calls only."""


def _shared_scales(scale: Tensor, offset: Tensor | None, mode: int) -> tuple[Scales, Scales]:
    """Those of key and value, from one tensor for both."""
    key, value = (
        Scales(scale[i : i + 1], None if offset is None else offset[i : i + 1], mode, "antiquant_scale") for i in (0, 1)
    )
    return key, value


def _check_dtypes(
    ge_type: str,
    query: Tensor,
    caches: tuple[Tensor, ...],
    scales: tuple[Scales, Scales] | None,
    rope: Tensor | None = None,
    query_scale: Tensor | None = None,
    query_mode: int = 0,
) -> None:
    """One floating dtype; with scales int8 caches; int8 throughout only with rope and one scale per cache."""
    if query.dtype is torch.int8:
        single = scales is not None and all(x.scale.numel() == 1 and x.offset is None for x in scales)
        if rope is None or query_scale is None or query_mode != 3 or not single:
            raise unsupported(
                ge_type, "query",
                "int8 only with rope, query_quant_mode 3, dequant_scale_query and a scale of key and of value", query,
            )  # fmt: skip
    elif query_scale is not None:
        raise unsupported(ge_type, "dequant_scale_query", "an int8 query with it", query)
    elif scales is not None and rope is not None:
        raise unsupported(ge_type, "query", "int8 where rope and scales of key and value are given", query)
    wanted = query.dtype if scales is None else torch.int8
    for cache in caches:
        if cache.dtype is not wanted:
            raise unsupported(ge_type, "key", f"{wanted} for this query and these scales", cache)


def _check_unfed(ge_type: str, inputs: Mapping[str, object], why: str) -> None:
    for name, value in inputs.items():
        if value is not None:
            raise unsupported(ge_type, name, f"none with {why}", value)


@kernel(
    "FusedInferAttentionScore",
    ignored=("inner_precise",),
    dtypes={"atten_mask": MASKS},
    allowed={
        "input_layout": FUSED_LAYOUTS,
        "sparse_mode": SPARSE_MODES,
        "antiquant_mode": (0, 1),
        "key_antiquant_mode": CACHE_MODES,
        "value_antiquant_mode": CACHE_MODES,
        "query_quant_mode": (0, 3),
        "pse_type": (0,),
    },
    unfed=(
        "dequant_scale1",
        "quant_scale1",
        "dequant_scale2",
        "key_rope_antiquant_scale",
        "q_start_idx",
        "kv_start_idx",
    ),
)
def fused_infer_attention_score(
    query: Tensor,
    key: list[Tensor],
    value: list[Tensor],
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Ints | None = None,
    actual_seq_lengths_kv: Ints | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    query_padding_size: Ints | None = None,
    kv_padding_size: Ints | None = None,
    key_antiquant_scale: Tensor | None = None,
    key_antiquant_offset: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    value_antiquant_offset: Tensor | None = None,
    key_shared_prefix: Tensor | None = None,
    value_shared_prefix: Tensor | None = None,
    actual_shared_prefix_len: Ints | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    key_rope_antiquant_scale: Tensor | None = None,
    dequant_scale_query: Tensor | None = None,
    learnable_sink: Tensor | None = None,
    q_start_idx: Tensor | None = None,
    kv_start_idx: Tensor | None = None,
    *,
    num_heads: int,
    scale: float = 1.0,
    pre_tokens: int = 2147483647,
    next_tokens: int = 2147483647,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    block_size: int = 0,
    antiquant_mode: int = 0,
    softmax_lse_flag: bool = False,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
    query_quant_mode: int = 0,
    pse_type: int = 0,
    out_dtype: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention of prefill and decoding, over dense, packed or paged keys and values."""
    ge_type = "FusedInferAttentionScore"
    if len(key) != 1 or len(value) != 1:
        raise unsupported(ge_type, "key", "one tensor", len(key))
    for name, one, name_of_other, other in (
        ("query_rope", query_rope, "key_rope", key_rope),
        ("key_shared_prefix", key_shared_prefix, "value_shared_prefix", value_shared_prefix),
        ("key_antiquant_scale", key_antiquant_scale, "value_antiquant_scale", value_antiquant_scale),
    ):
        if (one is None) != (other is None):
            raise unsupported(ge_type, name, f"it and {name_of_other}, or neither", one)
    if learnable_sink is not None and softmax_lse_flag:
        raise unsupported(ge_type, "softmax_lse_flag", "False with learnable_sink", True)
    scales = None
    if key_antiquant_scale is not None and value_antiquant_scale is not None:
        scales = (
            Scales(key_antiquant_scale, key_antiquant_offset, key_antiquant_mode, "key_antiquant_scale"),
            Scales(value_antiquant_scale, value_antiquant_offset, value_antiquant_mode, "value_antiquant_scale"),
        )
    elif antiquant_scale is not None:
        scales = _shared_scales(antiquant_scale, antiquant_offset, antiquant_mode)
    if quant_scale2 is not None or query.dtype is torch.int8:
        result = torch.int8 if quant_scale2 is not None or query_rope is None else query_rope.dtype
        if out_dtype not in (0, _NUMBERS.get(result)):
            raise unsupported(ge_type, "out_dtype", f"that of {result}", out_dtype)
    _check_dtypes(ge_type, query, (*key, *value), scales, query_rope, dequant_scale_query, query_quant_mode)
    if dequant_scale_query is not None:
        others = {"pse_shift": pse_shift, "learnable_sink": learnable_sink, "quant_scale2": quant_scale2}
        _check_unfed(ge_type, others | {"softmax_lse_flag": softmax_lse_flag or None}, "an int8 query")
    prefix = None
    if key_shared_prefix is not None and value_shared_prefix is not None:
        others = {
            "block_table": block_table,
            "query_rope": query_rope,
            "key_antiquant_scale": scales and scales[0].scale,
        }
        _check_unfed(ge_type, others, "a shared prefix")
        prefix = key_shared_prefix, value_shared_prefix
        if actual_shared_prefix_len is not None:
            axis = 2 if input_layout.startswith("BNSD") else 1
            prefix = tuple(x.narrow(axis, 0, actual_shared_prefix_len[0]) for x in prefix)  # type: ignore[assignment]
    return attend(
        query,
        key[0],
        value[0],
        pse_shift,
        atten_mask,
        actual_seq_lengths,
        actual_seq_lengths_kv,
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        scale=scale,
        layout=input_layout,
        sparse_mode=sparse_mode,
        pre_tokens=pre_tokens,
        next_tokens=next_tokens,
        ge_type=ge_type,
        with_lse=softmax_lse_flag,
        block_table=block_table,
        block_size=block_size,
        rope=None if query_rope is None or key_rope is None else (query_rope, key_rope),
        sink=learnable_sink,
        q_padding=query_padding_size,
        kv_padding=kv_padding_size,
        prefix=prefix,
        cache_scales=scales,
        query_scale=dequant_scale_query,
        result_scale=None if quant_scale2 is None else (quant_scale2, quant_offset2),
    )


@kernel(
    "PromptFlashAttention",
    ignored=("inner_precise",),
    dtypes={"atten_mask": MASKS},
    allowed={"input_layout": LAYOUTS, "sparse_mode": SPARSE_MODES},
    unfed=("deq_scale1", "quant_scale1", "deq_scale2"),
)
def prompt_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Ints | None = None,
    actual_seq_lengths_kv: Ints | None = None,
    deq_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    deq_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    *,
    num_heads: int,
    scale_value: float = 1.0,
    pre_tokens: int = 214748647,
    next_tokens: int = 0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 1,
    sparse_mode: int = 0,
) -> Tensor:
    _check_dtypes("PromptFlashAttention", query, (key, value), None)
    return attend(
        query,
        key,
        value,
        pse_shift,
        atten_mask,
        actual_seq_lengths,
        actual_seq_lengths_kv,
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        scale=scale_value,
        layout=input_layout,
        sparse_mode=sparse_mode,
        pre_tokens=pre_tokens,
        next_tokens=next_tokens,
        ge_type="PromptFlashAttention",
        result_scale=None if quant_scale2 is None else (quant_scale2, quant_offset2),
    )[0]


@kernel(
    "IncreFlashAttention",
    ignored=("inner_precise",),
    dtypes={"atten_mask": MASKS},
    allowed={"input_layout": ("BSH", "BSND", "BNSD")},
    unfed=("dequant_scale1", "quant_scale1", "dequant_scale2"),
)
def incre_flash_attention(
    query: Tensor,
    key: list[Tensor],
    value: list[Tensor],
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Ints | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    kv_padding_size: Ints | None = None,
    *,
    num_heads: int,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 1,
    block_size: int = 0,
) -> Tensor:
    """One query token; actual_seq_lengths are those of key and value."""
    if len(key) != 1 or len(value) != 1:
        raise unsupported("IncreFlashAttention", "key", "one tensor", len(key))
    scales = None if antiquant_scale is None else _shared_scales(antiquant_scale, antiquant_offset, 0)
    _check_dtypes("IncreFlashAttention", query, (*key, *value), scales)
    return attend(
        query,
        key[0],
        value[0],
        pse_shift,
        atten_mask,
        None,
        actual_seq_lengths,
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        scale=scale_value,
        layout=input_layout,
        sparse_mode=1,
        pre_tokens=0,
        next_tokens=0,
        ge_type="IncreFlashAttention",
        block_table=block_table,
        block_size=block_size,
        kv_padding=kv_padding_size,
        cache_scales=scales,
        result_scale=None if quant_scale2 is None else (quant_scale2, quant_offset2),
    )[0]
