"""Inference attention over packed sequences and paged caches: float64 oracles after torch_npu's documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.host.npu_cases.attention import TRIANGLE
from tests.host.npu_cases.base import HALVES, RANDOM, Case, Cases, normal, wide

BLOCK = 16


def one_sequence(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, hidden: np.ndarray, scale: float, sink: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Attention [N, S, Dv] and log-sum-exp [N, S] of q [N, S, D], k [KV heads, L, D], v; hidden [S, L]."""
    share = q.shape[0] // k.shape[0]
    scores = scale * q @ np.repeat(k, share, 0).swapaxes(1, 2)
    weights = np.where(hidden, 0.0, np.exp(scores))
    total = weights.sum(-1, keepdims=True)
    below = total if sink is None else total + np.exp(sink)[:, None, None]
    return weights @ np.repeat(v, share, 0) / below, np.log(total[..., 0])


def window(rows: int, columns: int, before: int | None) -> np.ndarray:
    """True = hidden: what is ahead of the diagonal from the bottom right, or more than ``before`` behind it."""
    ahead = np.arange(columns) - np.arange(rows)[:, None] - (columns - rows)
    return (ahead > 0) | (ahead < -(before if before is not None else columns + rows))


def pages_of(parts: Sequence[Tensor], form: str, table: Tensor) -> Tensor:
    """[L, KV heads, D] of each sequence in a cache that is NaN (or 99) elsewhere."""
    _, heads, width = parts[0].shape
    nothing = torch.nan if parts[0].is_floating_point() else 99
    cache = torch.full((int(table.max()) + 1, BLOCK, heads, width), nothing).to(parts[0].dtype)
    for part, numbers in zip(parts, table.tolist(), strict=True):
        for start, number in zip(range(0, len(part), BLOCK), numbers, strict=False):
            rows = part[start : start + BLOCK]
            cache[number, : len(rows)] = rows
    if form == "3-D":
        return cache.flatten(2)
    cache = cache.transpose(1, 2).contiguous()
    return cache if form == "4-D" else cache.unflatten(3, (-1, 16)).transpose(2, 3).contiguous()


def packed_case(
    layout: str,
    dtype: torch.dtype,
    queries: Sequence[int],
    keys: Sequence[int],
    *,
    version: int = 2,
    operator: str = "",
    mode: int = 3,
    before: int | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 16,
    v_width: int | None = None,
    rope: int = 0,
    pages: str = "",
    latent: bool = False,
    with_sink: bool = False,
    with_lse: bool = False,
) -> Case:
    """version: of npu_fused_infer_attention_score, 0 is npu_prompt_flash_attention. mode 4: a window of ``before``.
    pages: the cache's form. latent: one cache is key and value.
    """
    qs, ks, vs, q_ropes, k_ropes = (
        [normal(n, count, size, dtype=dtype) for n in lengths]
        for lengths, count, size in (
            (queries, heads, width), (keys, kv_heads, width), (keys, kv_heads, v_width or width),
            (queries, heads, rope), (keys, kv_heads, rope),
        )
    )  # fmt: skip
    vs = ks if latent else vs
    sink = normal(heads, dtype=torch.bfloat16) if with_sink else None
    outs, sums = [], []
    for q, k, v, q_rope, k_rope in zip(qs, ks, vs, q_ropes, k_ropes, strict=True):
        q64, k64 = (wide(torch.cat(pair, -1)).swapaxes(0, 1) for pair in ((q, q_rope), (k, k_rope)))
        hidden = window(len(q), len(k), before) if mode > 2 else np.zeros((len(q), len(k)), dtype=bool)
        out, lse = one_sequence(q64, k64, wide(v).swapaxes(0, 1), hidden, 0.25, None if sink is None else wide(sink))
        outs.append(out)
        sums.append(lse)
    source, _, target = layout.partition("_")

    def laid_out(parts: Sequence[Tensor], layout: str) -> Any:
        """[S, N, D] of each sequence."""
        joined = torch.cat(list(parts)) if layout in ("TND", "NTD") else torch.stack(list(parts))
        return {
            "TND": lambda: joined, "NTD": lambda: joined.transpose(0, 1), "BSND": lambda: joined,
            "BNSD": lambda: joined.transpose(1, 2), "BSH": lambda: joined.flatten(2),
            "NBSD": lambda: joined.permute(2, 0, 1, 3),
        }[layout]().contiguous()  # fmt: skip

    packed = source in ("TND", "NTD")
    q_lengths, kv_lengths = list(queries), list(keys)
    if packed:
        q_lengths = np.cumsum(q_lengths).tolist()
        kv_lengths = kv_lengths if pages else np.cumsum(kv_lengths).tolist()
    v1 = version < 2
    kwargs: dict[str, Any] = {
        "num_heads" if v1 else "num_query_heads": heads,
        "num_key_value_heads": kv_heads,
        ("scale_value", "scale", "softmax_scale")[version]: 0.25,
        "input_layout": layout,
        "sparse_mode": mode,
        "actual_seq_lengths" if v1 else "actual_seq_qlen": q_lengths,
        "actual_seq_lengths_kv" if v1 else "actual_seq_kvlen": kv_lengths,
    }
    if mode > 2:
        kwargs["atten_mask"] = TRIANGLE
    if mode == 4:
        kwargs |= {"pre_tokens": before, "next_tokens": 0}
    if with_lse:
        kwargs["softmax_lse_flag" if v1 else "return_softmax_lse"] = True
    if sink is not None:
        kwargs["learnable_sink"] = sink
    parts: dict[str, Sequence[Tensor]] = {"key": ks, "value": vs} | ({"key_rope": k_ropes} if rope else {})
    if pages:
        needed = [-(-n // BLOCK) for n in keys]
        numbers = iter(RANDOM.permutation(sum(needed) + 1).tolist())
        rows = [[next(numbers) for _ in range(n)] for n in needed]
        table = torch.tensor([row + [0] * (max(needed) - len(row)) for row in rows], dtype=torch.int32)
        caches = {name: pages_of(part, pages, table) for name, part in parts.items()}
        kwargs |= {"block_table": table, "block_size": BLOCK}
    else:
        caches = {name: laid_out(part, source) for name, part in parts.items()}
    if rope:
        kwargs |= {"query_rope": laid_out(q_ropes, source), "key_rope": caches["key_rope"]}
    out = laid_out([torch.from_numpy(x.swapaxes(0, 1).copy()) for x in outs], target or source).numpy()
    lse = laid_out([torch.from_numpy(x.swapaxes(0, 1)[..., None].copy()) for x in sums], "TND" if packed else "BNSD")
    args = [laid_out(qs, source), caches["key"]] + ([] if latent else [caches["value"]])
    if version == 0:
        return Case("npu_prompt_flash_attention", args, ((out, dtype),), kwargs)
    name = "npu_fused_infer_attention_score" if v1 else "npu_fused_infer_attention_score_v2"
    return Case(operator or name, args, ((out, dtype), (lse.numpy(), torch.float32) if with_lse else None), kwargs)


def cases() -> Cases:
    fp16, bf16 = HALVES
    ragged, longer = (3, 1, 5), (4, 7, 5)
    yield "TND", packed_case("TND", bf16, ragged, ragged)
    yield "TND, v1, lse", packed_case("TND", fp16, ragged, longer, version=1, with_lse=True)
    yield "TND", packed_case("TND", bf16, ragged, longer, version=0)
    yield "TND, mode 0", packed_case("TND", bf16, ragged, longer, mode=0)
    yield "TND, window, sink", packed_case("TND", bf16, ragged, longer, mode=4, before=2, with_sink=True)
    yield "NTD_TND, rope", packed_case("NTD_TND", bf16, (4, 6), (4, 6), version=1, kv_heads=4, rope=8)
    yield "TND, 192 and 128", packed_case("TND", bf16, (4, 6), (4, 6), width=192, v_width=128)
    yield "NTD", packed_case("NTD", bf16, (2, 3), (4, 3), with_lse=True)
    long = (20, 37, 5)
    yield "decode", packed_case("TND", bf16, (1, 1, 1), long, pages="3-D")
    yield "decode, 4-D, v1", packed_case("TND", fp16, (1, 1, 1), long, pages="4-D", version=1, with_lse=True)
    yield (
        "decode, window, sink",
        packed_case("TND", bf16, (1, 1, 1), long, mode=4, before=6, pages="3-D", with_sink=True),
    )
    yield "decode, BSH", packed_case("BSH", bf16, (1, 1, 1), long, mode=0, pages="3-D")
    yield "speculative, BSND", packed_case("BSND", bf16, (2, 2, 2), long, pages="3-D", version=1, with_lse=True)
    latent: dict[str, Any] = {"kv_heads": 1, "width": 64, "rope": 16, "pages": "NZ", "latent": True}
    own = "attention_over_latent"
    yield "decode", packed_case("TND_NTD", bf16, (1, 1, 1), long, mode=0, operator=own, **latent)
    yield "speculative", packed_case("TND_NTD", fp16, (2, 2, 2), long, operator=own, **latent)
    yield "heads first", packed_case("BSND_NBSD", bf16, (2, 2, 2), long, operator=own, **latent)
