"""How scores come about, and how a head's block of them is computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from npu_fused_graph.flash.dropout import Keep
from npu_fused_graph.flash.hidden import Hidden, Tile


class Scores(NamedTuple):
    """bias: (B or 1, N or 1, Sq or 1, Skv), added after scaling, times bias_scale."""

    scale: float = 1.0
    hidden: Hidden = Hidden()
    bias: Tensor | None = None
    bias_scale: float = 1.0
    keep: Keep | None = None

    @property
    def is_plain(self) -> bool:
        """Whether torch's own kernels do as well as code written out."""
        return self.bias is None and self.keep is None

    def block(self, query: Tensor, key: Tensor, tile: Tile, batch: int, head: int) -> Tensor:
        """Scores of one head's tile, -inf where hidden. query: (rows, D), key: (keys, D), of the result's dtype."""
        x = torch.matmul(query, key.t()).mul_(self.scale)
        if self.bias is not None:
            batches, heads, rows, _ = self.bias.shape
            bias = self.bias[batch if batches > 1 else 0, head if heads > 1 else 0, :, tile.keys]
            x.add_((bias[tile.rows] if rows > 1 else bias).to(x.dtype), alpha=self.bias_scale)
        hidden = tile.hidden_at(batch, head)
        return x if hidden is None else x.masked_fill_(hidden, float("-inf"))


def dense_along_head(x: Tensor) -> Tensor:
    """torch's kernels take any strides but of the last axis: they read the numbers that follow, without a word."""
    return x if x.stride(-1) == 1 else x.contiguous()


def work_dtype(x: Tensor) -> torch.dtype:
    """In which scores and sums are held."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32
