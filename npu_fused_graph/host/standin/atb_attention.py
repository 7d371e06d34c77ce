"""Attention over caches in pages, as ATB's operators compute it: in float32, with one rounding at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.errors import argument_error


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """softmax(q k^T * scale + bias) v and the log of the sum of exponentials, of (..., heads, rows, size)."""
    groups = q.shape[-3] // k.shape[-3]
    k, v = (x.float().repeat_interleave(groups, -3) if groups > 1 else x.float() for x in (k, v))
    scores = (q.float() @ k.transpose(-1, -2)) * scale
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(-1)
    return _relative(scores, lse.unsqueeze(-1)) @ v, lse


def _relative(x: Tensor, total: Tensor) -> Tensor:
    """exp(x - total), 0 where there is nothing to attend to."""
    return (x - total).exp().masked_fill(total == float("-inf"), 0)


def _bias(mask: Tensor) -> Tensor:
    """What is added to the scores: a float16 mask itself; in bfloat16, 1 or a large negative number hides."""
    if mask.dtype != torch.bfloat16:
        return mask.float()
    if not bool(((mask == 0) | (mask == 1) | (mask <= -10000)).all()):
        raise argument_error(
            "run", "mask", "0, 1 (hidden) or at most -10000 (hidden) in bfloat16", "other values", "Use float16."
        )
    return torch.zeros(mask.shape).masked_fill(mask != 0, float("-inf"))


def _causal(rows: int, columns: int) -> Tensor:
    """The last row sees every column."""
    return torch.full((rows, columns), float("-inf")).triu(columns - rows + 1)


def _heads_first(x: Tensor, heads: int) -> Tensor:
    return x.reshape(x.shape[0], heads, -1).transpose(0, 1)


def _decode(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, heads: int, scale: float, block_table: Tensor,
    lengths: Sequence[int],
) -> Tensor:  # fmt: skip
    """One token per sequence, over the first ``lengths`` tokens of its pages."""
    count, size = len(lengths), key_cache.shape[1]
    most = max(-(-max(lengths, default=0) // size), 1)
    pages = block_table[:count, :most].long().clamp(0, key_cache.shape[0] - 1)  # of what is not used anything may stand
    hidden = torch.arange(most * size) >= torch.tensor(lengths).unsqueeze(1)
    # what is behind the last token may be nan, which would spread
    k, v = (
        cache[pages].flatten(1, 2).masked_fill(hidden[:, :, None, None], 0).transpose(1, 2)
        for cache in (key_cache, value_cache)
    )
    bias = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))[:, None, None]
    out, _ = _attention(query[:count].reshape(count, heads, 1, -1), k, v, scale, bias)
    return out.flatten(1, 2)


def paged_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, num_kv_heads: int, num_heads: int, scale_value: float,
    block_table: Tensor, context_lens: Tensor, out: Tensor, *, workspace: Tensor | None = None,
) -> None:  # fmt: skip
    """Attention of one token per sequence to ``context_lens`` tokens in pages, into ``out``."""
    found = _decode(query, key_cache, value_cache, num_heads, scale_value, block_table, context_lens.tolist())
    out[: len(found)] = found.reshape(len(found), *out.shape[1:]).to(out.dtype)


def paged_attention_workspace(query: Tensor, *args: Any) -> Tensor:
    """No kernel here needs one."""
    return torch.empty(1, dtype=torch.uint8, device=query.device)


def paged_attention_mla(
    query: Tensor, key_cache: Tensor, num_kv_heads: int, num_heads: int, scale_value: float, block_table: Tensor,
    context_lens: Tensor, mla_vheadsize: int, out: Tensor,
) -> None:  # fmt: skip
    """The same where values are the first ``mla_vheadsize`` columns of the keys."""
    values = key_cache[..., :mla_vheadsize]
    paged_attention(query, key_cache, values, num_kv_heads, num_heads, scale_value, block_table, context_lens, out)


def _prefill(
    query: Tensor, keys: Callable[[int, int], tuple[Tensor, Tensor]], rows: Sequence[int], columns: Sequence[int],
    heads: int, scale: float, bias: Callable[[int, int, int], Tensor], out: Tensor,
) -> None:  # fmt: skip
    """Sequences one after the other in ``query``. keys: of a sequence, its first so many, (tokens, heads, size)."""
    first = 0
    for i, (count, length) in enumerate(zip(rows, columns, strict=True)):
        k, v = (x.transpose(0, 1) for x in keys(i, length))
        here = slice(first, first + count)
        found, _ = _attention(_heads_first(query[here], heads), k, v, scale, bias(i, count, length))
        out[here] = found.transpose(0, 1).reshape(count, *out.shape[1:]).to(out.dtype)
        first += count


def _paged(key_cache: Tensor, value_cache: Tensor, block_table: Tensor) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    def keys(i: int, length: int) -> tuple[Tensor, Tensor]:
        pages = block_table[i, : -(-length // key_cache.shape[1])].long()
        return key_cache[pages].flatten(0, 1)[:length], value_cache[pages].flatten(0, 1)[:length]

    return keys


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, seq_len: Tensor, scale_value: float, num_heads: int,
    num_kv_heads: int, out: Tensor,
) -> None:  # fmt: skip
    """Attention within every sequence, with the upper left corner of ``mask``, into ``out``."""
    if mask.dim() not in (2, 3):
        raise argument_error("run", "mask", "2 or 3 axes (an Atlas 300I's form is not covered)", mask.dim(), "Reshape.")
    added = _bias(mask if mask.dim() == 3 else mask.unsqueeze(0))
    _prefill(
        query, _packed(key, value, seq_len, num_kv_heads), seq_len.tolist(), seq_len.tolist(), num_heads, scale_value,
        lambda i, count, length: added[i if len(added) > 1 else 0, :count, :length], out,
    )  # fmt: skip


def flash_attention_unpad(
    query: Tensor, key: Tensor, value: Tensor, seq_len: Tensor, scale_value: float, num_heads: int, num_kv_heads: int,
    out: Tensor,
) -> None:  # fmt: skip
    """The same without a mask."""
    _prefill(
        query, _packed(key, value, seq_len, num_kv_heads), seq_len.tolist(), seq_len.tolist(), num_heads, scale_value,
        lambda i, count, length: torch.zeros(()), out,
    )  # fmt: skip


def _packed(key: Tensor, value: Tensor, seq_len: Tensor, heads: int) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    ends = seq_len.cumsum(0).tolist()
    k, v = (x.reshape(x.shape[0], heads, -1) for x in (key, value))
    return lambda i, length: (k[ends[i] - length : ends[i]], v[ends[i] - length : ends[i]])


def flash_attention_qlens(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, block_table: Tensor, mask: Tensor, seq_len: Tensor,
    context_lens: Tensor, num_kv_heads: int, num_heads: int, scale_value: float, out: Tensor,
) -> None:  # fmt: skip
    """The last ``seq_len`` tokens of each sequence attend to all before them. The mask is causal, whatever its size."""
    _prefill(
        query, _paged(key_cache, value_cache, block_table), seq_len.tolist(), context_lens.tolist(), num_heads,
        scale_value, lambda i, count, length: _causal(count, length), out,
    )  # fmt: skip


def paged_attention_splitfuse(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, block_table: Tensor, context_lens: Tensor, mask: Tensor,
    seq_len: Tensor, num_kv_heads: int, num_heads: int, scale_value: float, out: Tensor,
) -> None:  # fmt: skip
    """``seq_len`` tokens of each sequence attend to ``context_lens``; mask: a row for every token."""
    rows = seq_len.tolist()
    if mask.dim() != 2 or mask.shape[0] < sum(rows):
        raise argument_error("run", "mask", f"{sum(rows)} rows, one per token", list(mask.shape), "Give each its row.")
    added = _bias(mask)
    firsts = [sum(rows[:i]) for i in range(len(rows))]
    _prefill(
        query, _paged(key_cache, value_cache, block_table), rows, context_lens.tolist(), num_heads, scale_value,
        lambda i, count, length: added[firsts[i] : firsts[i] + count, :length], out,
    )  # fmt: skip


# -- multi-head latent attention ------------------------------------------------------------------------------


def multi_head_latent_attention(
    q_nope: Tensor, q_rope: Tensor, ctkv: Tensor, k_rope: Tensor, block_tables: Tensor, context_lens: Sequence[int],
    q_headnum: int, qk_scale: float, kv_headnum: int, *, mask: Tensor | None = None, qseqlen: Any = None,
    qk_descale: Tensor | None = None, pv_descale: Tensor | None = None, mask_type: str | None = None,
    calc_type: str | None = None, cache_mode: str | None = None,
) -> Tensor:  # fmt: skip
    """One token per sequence over a cache of latent vectors and rotated keys in pages."""
    _only("mask_type", mask_type, "undefined")
    _only("calc_type", calc_type, "calc_type_undefined")
    _only("cache_mode", cache_mode, "krope_ctkv")
    query, keys = torch.cat((q_nope, q_rope), -1), torch.cat((ctkv, k_rope), -1)
    found = _decode(query, keys, ctkv, q_headnum, qk_scale, block_tables, [int(n) for n in context_lens])
    return found.reshape(q_nope.shape).to(q_rope.dtype)


def multi_head_latent_attention_out(*args: Any, output: Tensor, **kwargs: Any) -> Tensor:
    return output.copy_(multi_head_latent_attention(*args, **kwargs))


def ring_mla(
    q_nope: Tensor, q_rope: Tensor, k_nope: Tensor, k_rope: Tensor, value: Tensor, mask: Tensor, seqlen: Tensor,
    head_num: int, kv_head_num: int, *, pre_out: Tensor | None = None, prev_lse: Tensor | None = None,
    qk_scale: float = 1, kernel_type: str | None = None, mask_type: str | None = None, input_layout: str | None = None,
    calc_type: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, lse) of one chunk of keys, merged with those of the chunks before unless it is the first.

    lse: log of the sum of exponentials, (heads, tokens). mask_type_triu is causal, whatever the mask.
    """
    _only("kernel_type", kernel_type, "kernel_type_high_precision", "kernel_type_default")
    _only("mask_type", mask_type, "no_mask", "mask_type_triu")
    _only("input_layout", input_layout, "type_bsnd")
    _only("calc_type", calc_type, "calc_type_first_ring", "calc_type_default")
    is_merged = calc_type == "calc_type_default"
    if is_merged and (pre_out is None or prev_lse is None):
        raise argument_error("run", "pre_out, prev_lse", "both with calc_type_default", "None", "Give the last ones.")
    rows, columns = seqlen.tolist() if seqlen.dim() == 2 else [seqlen.tolist()] * 2
    if mask_type == "mask_type_triu" and rows != columns:
        raise argument_error(
            "run", "seqlen", "as many keys as queries with mask_type_triu", f"{rows} and {columns}", "Use no_mask."
        )
    query, keys = torch.cat((q_nope, q_rope), -1), torch.cat((k_nope, k_rope), -1)
    outs, sums = [], []
    for q, k, v in zip(query.split(rows), keys.split(columns), value.split(columns), strict=True):
        bias = _causal(len(q), len(k)) if mask_type == "mask_type_triu" else None
        out, lse = _attention(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), qk_scale, bias)
        outs.append(out.transpose(0, 1))
        sums.append(lse)
    out, lse = torch.cat(outs), torch.cat(sums, -1)
    if is_merged:
        assert pre_out is not None and prev_lse is not None
        both = torch.logaddexp(prev_lse.float(), lse)
        before, now = (_relative(x, both).t().unsqueeze(-1) for x in (prev_lse.float(), lse))
        out, lse = pre_out.float() * before + out * now, both
    return out.to(q_nope.dtype), lse


def ring_mla_out(*args: Any, output: Tensor, softmax_lse: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    out, lse = ring_mla(*args, **kwargs)
    return output.copy_(out), softmax_lse.copy_(lse)


def _only(name: str, given: str | None, *known: str) -> None:
    if given is not None and given not in known:
        raise argument_error("run", name, " or ".join(map(repr, known)), repr(given), "Others have no CPU kernel.")
