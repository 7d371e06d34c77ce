"""Valid calls of GroupedMatMulAllReduce, one rank's shard each: every split_item, dtype and form of weight and bias."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_BIAS_DTYPES = {torch.float16: torch.float16, torch.bfloat16: torch.float32}


def samples() -> Iterator[dict[str, Any]]:
    """Keyword arguments without ``hcomm``. Values are seeded."""
    generator = torch.Generator().manual_seed(0)

    def floats(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def sample(
        split_item: int,
        rows: Sequence[tuple[int, ...]],
        ks: Sequence[int],
        ns: Sequence[int],
        *,
        bias: bool | None = False,
        is_stacked: bool = False,
        dtype: torch.dtype,
    ) -> dict[str, Any]:
        """rows: leading sizes of each group's x. bias: None and False are its two spellings of none."""
        x = [floats(*lead, k, dtype=dtype) for lead, k in zip(rows, ks, strict=True)]
        weight = [floats(k, n, dtype=dtype) for k, n in zip(ks, ns, strict=True)]
        ends = torch.tensor([lead[0] for lead in rows]).cumsum(0).tolist()
        is_split = split_item in (1, 3)
        biases = [floats(n, dtype=_BIAS_DTYPES[dtype]) for n in ns]
        return {
            "x": [torch.cat(x)] if is_split else x,
            "weight": [torch.stack(weight)] if is_stacked else weight,
            "bias": None if bias is None else biases if bias else [],
            "group_list": ends if is_split else None,
            "split_item": split_item,
        }

    for dtype in _BIAS_DTYPES:
        yield sample(0, [(8,), (16,)], [32, 24], [16, 8], bias=None, dtype=dtype)
        yield sample(0, [(2, 3), (1, 2, 1, 2, 3), (5,)], [8, 16, 7], [4, 12, 9], bias=True, dtype=dtype)
        yield sample(1, [(3,), (0,), (7,)], [8] * 3, [4, 5, 6], dtype=dtype)
        yield sample(1, [(4,), (4,)], [33] * 2, [17, 1], bias=True, dtype=dtype)
        yield sample(2, [(4,), (1,), (3,)], [16, 8, 24], [10] * 3, dtype=dtype)
        yield sample(2, [(2,), (0,)], [16, 8], [6] * 2, bias=True, dtype=dtype)
        yield sample(3, [(0,), (6,), (4,)], [16] * 3, [12] * 3, bias=None, dtype=dtype)
        yield sample(3, [(2,), (6,), (4,)], [16] * 3, [12] * 3, bias=True, is_stacked=True, dtype=dtype)
        yield sample(3, [(1,)] * 64, [8] * 64, [4] * 64, bias=True, dtype=dtype)
        yield sample(0, [(5,)], [8], [4], dtype=dtype)
        yield sample(0, [(0,), (3,)], [8, 8], [4, 0], bias=True, dtype=dtype)
        yield sample(3, [(0,), (0,)], [8, 8], [4, 4], dtype=dtype)
