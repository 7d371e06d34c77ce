"""A step of decoding: one query per sequence, over pages of rows.

Every layer of every step calls it with little to compute; the bookkeeping of the general case would take longer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.attention_scores import attention
from npu_fused_graph.engine.kernels.attention_tokens import picked

WASTE = 2
"""Sequences of different lengths are padded to one batch unless that multiplies the work by more."""
ROOM = 2**20
"""Elements of keys and values of such a batch, at most: it stays in the processor's caches."""


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    table: Tensor,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
) -> Tensor | None:
    """Attention in the shape of ``query`` [B, ..], one query each that sees all ``lengths[i]`` tokens of sequence i.

    key, value: pages [blocks, block_size, KV heads * D]. None where the call is another one, wrong, or too large for
    one batch: the general case computes it, or says what is wrong.
    """
    if not lengths:
        return None
    batch, (_, size, columns) = query.shape[0], key.shape
    longest, shortest, width = max(lengths), min(lengths), columns // kv_heads
    pages = -(-longest // size)
    if (
        query.numel() != batch * heads * width
        or columns % kv_heads
        or key.shape != value.shape
        or not len(lengths) == batch == table.shape[0]
        or shortest <= 0
        or pages > table.shape[1]
        or batch * longest > min(WASTE * sum(lengths), ROOM // (2 * columns))
    ):
        return None
    if (shortest - 1) // size == pages - 1:
        numbers = table.narrow(1, 0, pages)
    else:  # entries of the table behind the end of a sequence may be anything
        last = torch.tensor([[(n - 1) // size] for n in lengths])
        numbers = table.gather(1, torch.minimum(torch.arange(pages), last))
    numbers = numbers.flatten()
    k, v = (picked(x, numbers).view(batch, pages * size, kv_heads, width).narrow(1, 0, longest) for x in (key, value))
    seen: Tensor | None = None
    if shortest < longest:
        seen = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
        for x in (k, v):  # what lies behind the end may be anything, NaN too
            x.masked_fill_(~seen[:, :, None, None], 0)
        seen = seen[:, None, None]
    q = query.reshape(batch, 1, heads, width)
    out, _ = attention(
        q, k, v, seen, None, None, scale=scale, width=width, causal=False, with_lse=False, exact=False
    )  # fmt: skip
    return out.reshape(query.shape)
