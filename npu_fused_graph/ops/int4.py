"""int4 weights: eight elements in an int32, lowest bits first, along the axis that is stored last."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.errors import argument_error


def packed_axis(x: Tensor, k: int) -> int:
    """The axis of a packed (k, n) matrix that holds eight elements per word: 1, or 0 for a transposed one.

    k: the number of rows, unpacked. Where an axis has one word the layout alone does not tell, k does.
    """
    is_contiguous, is_transposed = x.is_contiguous(), x.transpose(-1, -2).is_contiguous()
    if is_contiguous and is_transposed:
        return 0 if x.shape[0] * 8 == k else 1
    return 0 if is_transposed else 1


def unpacked_int4(x: Tensor, axis: int) -> Tensor:
    """The elements of ``x`` as int8, eight times as many along ``axis``."""
    if axis == 0:
        return unpacked_int4(x.t(), 1).t()
    pairs = x.contiguous().view(torch.int8)
    return torch.stack(((pairs << 4) >> 4, pairs >> 4), -1).flatten(-2)


def pack_int4(weight: Tensor) -> Tensor:
    """Pack a matrix of small integers into the int32 words that the operators here take as an int4 x2.

    weight: (k, n) of an integer type, values in [-8, 7], n a multiple of 8. Returns int32 (k, n / 8). For a weight
    stored as (n, k), as nn.Linear has it, pass ``pack_int4(weight).t()`` as x2. Raises InvalidArgumentError.
    """
    if not isinstance(weight, Tensor) or weight.is_floating_point() or weight.dim() != 2 or weight.shape[1] % 8:
        got = f"{weight.dtype}{list(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        cure = "Pad n with zeros."
        if not isinstance(weight, Tensor):
            cure = "Make it a tensor with torch.as_tensor."
        elif weight.is_floating_point():
            cure = "Quantise it to four bits."
        elif weight.dim() != 2:
            cure = "Pass one matrix."
        raise argument_error("int4", "weight", "integers (k, n) with n a multiple of 8", got, cure)
    if weight.numel() and not (weight.min() >= -8 and weight.max() <= 7):
        got = f"values from {weight.min()} to {weight.max()}"
        raise argument_error("int4", "weight", "values in [-8, 7]", got, "Quantise to four bits.")
    nibbles = (weight.to(torch.int32) & 15).unflatten(-1, (-1, 8))
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=weight.device)
    words: Tensor = (nibbles << shifts).sum(-1, dtype=torch.int32)
    return words
