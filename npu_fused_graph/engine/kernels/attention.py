"""Attention of the inference operators, in the layouts BSH, BSND, BNSD and BNSD_BSND."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.registry import Ints, kernel, unsupported

LAYOUTS = ("BSH", "BSND", "BNSD", "BNSD_BSND")
SPARSE_MODES = (0, 1, 2, 3, 4)


def _heads_first(x: Tensor, layout: str, heads: int, ge_type: str, attribute: str) -> Tensor:
    """x as [B, N, S, D]. attribute: where ``heads`` comes from."""
    if layout == "BSH":
        if x.shape[2] % heads:
            raise unsupported(ge_type, attribute, f"a divisor of the hidden size {x.shape[2]}", heads)
        return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)
    x = x.transpose(1, 2) if layout == "BSND" else x
    if x.shape[1] != heads:
        raise unsupported(ge_type, attribute, f"{x.shape[1]}, the N axis in layout {layout}", heads)
    return x


def _as_laid_out(x: Tensor, layout: str) -> Tensor:
    """[B, N, S, D] back in the layout of the result."""
    if layout == "BSH":
        return x.transpose(1, 2).flatten(2)
    return x if layout == "BNSD" else x.transpose(1, 2)


def _lengths(lengths: list[int] | None, batch: int, full: int) -> Tensor | None:
    """Valid lengths as [B, 1, 1]; None when every sequence is full."""
    if lengths is None:
        return None
    values = list(lengths) * batch if len(lengths) == 1 else list(lengths)[:batch]
    return None if all(n == full for n in values) else torch.tensor(values).view(-1, 1, 1)


def _mask_4d(mask: Tensor, q_len: int, kv_len: int, ge_type: str) -> Tensor:
    """The mask as bool [B or 1, 1 or N, Sq or 1, Skv], True = hidden; a 2-D mask of one query is [B, Skv]."""
    if mask.dim() == 2:
        mask = mask[:, None, None] if q_len == 1 else mask[None, None]
    elif mask.dim() == 3:
        mask = mask[:, None]
    if mask.shape[-1] < kv_len or mask.shape[-2] < q_len:
        raise unsupported(ge_type, "atten_mask", f"at least {q_len} x {kv_len}", tuple(mask.shape))
    return mask[..., :q_len, :kv_len] != 0


def _visible(
    mask: Tensor | None,
    q_len: int,
    kv_len: int,
    q_lengths: Tensor | None,
    kv_lengths: Tensor | None,
    sparse_mode: int,
    pre_tokens: int,
    next_tokens: int,
    ge_type: str,
) -> Tensor | None:
    """Which keys each query sees, broadcastable to [B, N, Sq, Skv]; None = all.

    sparse_mode 0: mask and band from the top left corner (no mask: all); 1: mask; 2: causal from the top left;
    3: causal from the bottom right; 4: band from the bottom right. The mask of 2, 3 and 4 is a fixed triangle that
    says nothing new.
    """
    seen: Tensor | None = None
    if sparse_mode < 2:
        if mask is not None:
            seen = ~_mask_4d(mask, q_len, kv_len, ge_type)
    elif mask is None:
        raise unsupported(ge_type, "atten_mask", f"a mask with sparse_mode {sparse_mode}", None)
    if sparse_mode > 1 or (sparse_mode == 0 and mask is not None):
        # distance of key j behind query i, counted from the corner the mode is anchored to
        ahead: Tensor = torch.arange(kv_len) - torch.arange(q_len).unsqueeze(1)
        if sparse_mode > 2:
            rows = q_len if q_lengths is None else q_lengths
            columns = kv_len if kv_lengths is None else kv_lengths
            ahead = ahead - (columns - rows)
        if sparse_mode in (2, 3):
            pre_tokens, next_tokens = kv_len + q_len, 0
        if sparse_mode in (2, 3) or next_tokens < kv_len + q_len or pre_tokens < kv_len + q_len:
            band = (ahead <= next_tokens) & (ahead >= -pre_tokens)
            band = band.unsqueeze(-3) if band.dim() == 3 else band
            seen = band if seen is None else seen & band
    if kv_lengths is not None:
        valid = (torch.arange(kv_len) < kv_lengths).unsqueeze(1)
        seen = valid if seen is None else seen & valid
    return seen


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pse_shift: Tensor | None,
    mask: Tensor | None,
    q_lengths: list[int] | None,
    kv_lengths: list[int] | None,
    *,
    num_heads: int,
    num_key_value_heads: int,
    scale: float,
    layout: str,
    sparse_mode: int,
    pre_tokens: int,
    next_tokens: int,
    with_lse: bool,
    ge_type: str,
) -> tuple[Tensor, Tensor]:
    """(attention, log-sum-exp [B, N, Sq, 1]). A row without visible keys gives 0 and +inf."""
    layout, _, out_layout = layout.partition("_")
    kv_heads = num_key_value_heads or num_heads
    q = _heads_first(query, layout, num_heads, ge_type, "num_heads")
    k = _heads_first(key, layout, kv_heads, ge_type, "num_key_value_heads")
    v = _heads_first(value, layout, kv_heads, ge_type, "num_key_value_heads")
    batch, _, q_len, _ = q.shape
    kv_len = k.shape[2]
    q_valid = _lengths(q_lengths, batch, q_len)
    kv_valid = _lengths(kv_lengths, batch, kv_len)
    seen = _visible(mask, q_len, kv_len, q_valid, kv_valid, sparse_mode, pre_tokens, next_tokens, ge_type)
    if kv_valid is not None:
        # what lies behind the end of a sequence may be anything, NaN too, and a weight of 0 does not silence it
        behind = (torch.arange(kv_len) >= kv_valid.squeeze(-1)).view(-1, 1, kv_len, 1)
        k, v = k.masked_fill(behind, 0), v.masked_fill(behind, 0)
    bias = seen
    if pse_shift is not None:
        bias = pse_shift[..., :q_len, :kv_len]
        if seen is not None:
            bias = bias.masked_fill(~seen, float("-inf"))
    if with_lse:
        out, lse = _with_lse(q, k, v, bias, scale)
    else:
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, bias, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        lse = torch.empty(0)
    if q_valid is not None:
        padding = (torch.arange(q_len).unsqueeze(1) >= q_valid).unsqueeze(1)
        out = out.masked_fill(padding, 0)
        if with_lse:
            lse = lse.masked_fill(padding, float("inf"))
    return _as_laid_out(out, out_layout or layout), lse


def _with_lse(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention written out in float32, for the log-sum-exp that torch's own does not hand out."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.matmul(q.float(), k.float().mT).mul_(scale)
    if bias is not None:
        scores = scores.masked_fill(~bias, float("-inf")) if bias.dtype is torch.bool else scores + bias
    lse = torch.logsumexp(scores, -1, keepdim=True)
    lse = lse.masked_fill(lse == float("-inf"), float("inf"))
    return torch.matmul(torch.exp(scores - lse), v.float()).to(q.dtype), lse


@kernel(
    "FusedInferAttentionScore",
    ignored=(
        "inner_precise",
        # the attributes below qualify inputs that the kernel refuses
        "block_size",
        "antiquant_mode",
        "key_antiquant_mode",
        "value_antiquant_mode",
        "query_quant_mode",
    ),
    allowed={"input_layout": LAYOUTS, "sparse_mode": SPARSE_MODES, "pse_type": (0,), "out_dtype": (0,)},
    unfed=(
        "dequant_scale1",
        "quant_scale1",
        "dequant_scale2",
        "quant_scale2",
        "quant_offset2",
        "antiquant_scale",
        "antiquant_offset",
        "block_table",
        "query_padding_size",
        "kv_padding_size",
        "key_antiquant_scale",
        "key_antiquant_offset",
        "value_antiquant_scale",
        "value_antiquant_offset",
        "key_shared_prefix",
        "value_shared_prefix",
        "actual_shared_prefix_len",
        "query_rope",
        "key_rope",
        "key_rope_antiquant_scale",
        "dequant_scale_query",
        "learnable_sink",
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
    query_padding_size: Tensor | None = None,
    kv_padding_size: Tensor | None = None,
    key_antiquant_scale: Tensor | None = None,
    key_antiquant_offset: Tensor | None = None,
    value_antiquant_scale: Tensor | None = None,
    value_antiquant_offset: Tensor | None = None,
    key_shared_prefix: Tensor | None = None,
    value_shared_prefix: Tensor | None = None,
    actual_shared_prefix_len: Tensor | None = None,
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
    softmax_lse_flag: bool = False,
    pse_type: int = 0,
    out_dtype: int = 0,
) -> tuple[Tensor, Tensor]:
    """For a single query token sparse_mode and the band do not count, as documented."""
    if len(key) != 1 or len(value) != 1:
        raise unsupported("FusedInferAttentionScore", "key", "one tensor", len(key))
    if query.shape[2 if input_layout.startswith("BNSD") else 1] == 1:
        atten_mask = atten_mask if sparse_mode < 2 else None
        sparse_mode = 1
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
        with_lse=softmax_lse_flag,
        ge_type="FusedInferAttentionScore",
    )


@kernel(
    "PromptFlashAttention",
    ignored=("inner_precise",),
    allowed={"input_layout": LAYOUTS, "sparse_mode": SPARSE_MODES},
    unfed=("deq_scale1", "quant_scale1", "deq_scale2", "quant_scale2", "quant_offset2"),
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
        with_lse=False,
        ge_type="PromptFlashAttention",
    )[0]


@kernel(
    "IncreFlashAttention",
    ignored=("inner_precise", "block_size"),
    allowed={"input_layout": ("BSH", "BSND", "BNSD")},
    unfed=(
        "dequant_scale1",
        "quant_scale1",
        "dequant_scale2",
        "quant_scale2",
        "quant_offset2",
        "antiquant_scale",
        "antiquant_offset",
        "block_table",
        "kv_padding_size",
    ),
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
    kv_padding_size: Tensor | None = None,
    *,
    num_heads: int,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 1,
) -> Tensor:
    """One query token; actual_seq_lengths are those of key and value."""
    if len(key) != 1 or len(value) != 1:
        raise unsupported("IncreFlashAttention", "key", "one tensor", len(key))
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
        with_lse=False,
        ge_type="IncreFlashAttention",
    )[0]
