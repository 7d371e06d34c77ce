"""Random numbers made from a key and a counter, dropout, and printing: what is not a function of tensors alone.

The numbers cannot be those of the Ascend generator. They are the same for the same key and counter on every host.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.registry import Int, Ints, KernelFn, kernel, unsupported
from npu_fused_graph.errors import UnsupportedOpError
from npu_fused_graph.flash import generator_of

# -- distributions ---------------------------------------------------------------------------------------


@kernel("StatelessRandomUniformV2", pure=False)
def stateless_random_uniform_v2(
    shape: Ints, key: Ints, counter: Ints, alg: Int, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform in [0, 1). ``alg`` names the Ascend algorithm and makes no difference."""
    return torch.rand(shape, generator=generator_of(*key, *counter), dtype=dtype)


@kernel("StatelessRandomNormalV2", pure=False)
def stateless_random_normal_v2(
    shape: Ints, key: Ints, counter: Ints, alg: Int, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal; ``alg`` as above."""
    return torch.randn(shape, generator=generator_of(*key, *counter), dtype=dtype)


@kernel("StatelessBernoulli", pure=False)
def stateless_bernoulli(
    shape: Ints, prob: Tensor, seed: Int, offset: Int, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """1 with probability ``prob`` (one number or one per element), else 0."""
    return torch.lt(torch.rand(shape, generator=generator_of(seed, offset)), prob.float()).to(dtype)


@kernel("StatelessRandperm", ignored=("layout",), pure=False)
def stateless_randperm(n: Int, seed: Int, offset: Int, *, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randperm(n, generator=generator_of(seed, offset)).to(dtype)


@kernel("MultinomialWithReplacement", pure=False)
def multinomial_with_replacement(
    x: Tensor, seed: Int, offset: Int, *, numsamples: int, replacement: bool = False
) -> Tensor:
    """Indices drawn by the weights in the last dim of x."""
    return torch.multinomial(x, numsamples, replacement, generator=generator_of(seed, offset))


# -- dropout ---------------------------------------------------------------------------------------------


@kernel("StatelessDropOutGenMask", pure=False)
def stateless_drop_out_gen_mask(shape: Ints, prob: Tensor, seed: Int, seed1: Int, offset: Ints | None = None) -> Tensor:
    """One bit for each element of ``shape``, 1 with probability ``prob``, the lowest first; whole groups of 128."""
    count = math.prod(shape)
    bits = torch.zeros((count + _GROUP - 1) // _GROUP * _GROUP // 8, dtype=torch.uint8)
    generator = generator_of(seed, seed1, *(offset or ()))
    for start in range(0, count, _DRAWN):
        drawn = torch.zeros(min(_DRAWN, len(bits) * 8 - start), dtype=torch.uint8)
        some = drawn[: count - start]
        some.copy_(torch.rand(len(some), generator=generator) < prob.float())
        packed = (drawn.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
        bits[start // 8 : start // 8 + len(packed)] = packed
    return bits


_GROUP = 128
"""Bits that Ascend's masks are made of whole groups of."""
_DRAWN = 1 << 20
"""Numbers drawn at a time."""


@kernel("DropOutDoMask")
def drop_out_do_mask(x: Tensor, mask: Tensor, keep_prob: Tensor) -> Tensor:
    """x / keep_prob where the mask has a bit for it that is set, else 0."""
    count = x.numel()
    if mask.dim() != 1 or mask.dtype is not torch.uint8 or mask.numel() * 8 < count:
        raise UnsupportedOpError(
            f"[engine] DropOutDoMask: expected input mask with a bit for each element of x ({count}), as "
            f"StatelessDropOutGenMask makes it, got {mask.dtype} of shape {list(mask.shape)}."
        )
    bits = (mask.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return _kept(x, bits.flatten()[:count].view(x.shape), keep_prob)


@kernel("DropOutDoMaskV3")
def drop_out_do_mask_v3(x: Tensor, mask: Tensor, keep_prob: Tensor) -> Tensor:
    """x / keep_prob where the mask, of x's shape, is set, else 0."""
    if mask.numel() != x.numel():
        raise UnsupportedOpError(
            f"[engine] DropOutDoMaskV3: expected input mask with one element per element of x ({x.numel()}), "
            f"got {mask.numel()}. Masks of one bit per element are not read."
        )
    return _kept(x, mask.reshape(x.shape), keep_prob)


def _kept(x: Tensor, mask: Tensor, keep_prob: Tensor) -> Tensor:
    keep = float(keep_prob)
    return torch.mul(torch.mul(x, mask.bool()), 1.0 / keep if keep else 0.0)


# -- printing --------------------------------------------------------------------------------------------


def _text_of_number(value: Any) -> str:
    number = float(value)
    return f"{number:.0f}" if number.is_integer() else f"{number:.9g}"


def _text(values: Any, edge: int) -> str:
    """Nested lists in brackets; of a dim longer than 2 * edge only the first and last ``edge`` items (-1 = all)."""
    if not isinstance(values, list):
        return _text_of_number(values)
    gap = 0 <= 2 * edge < len(values)
    shown = [*values[:edge], *values[len(values) - edge :]] if gap else values
    parts = [_text(item, edge) for item in shown]
    if gap:
        parts.insert(edge, "...")
    rows = bool(values) and isinstance(values[0], list)
    return "[" + ("\n " if rows else " ").join(parts) + "]"


@kernel("StringFormat")
def string_format(x: list[Tensor], *, template: str = "%s", placeholder: str = "%s", summarize: int = 3) -> Tensor:
    """The template with the tensors in place of the placeholders, as UTF-8 bytes (torch has no strings)."""
    pieces = template.split(placeholder)
    if len(pieces) != len(x) + 1:
        raise unsupported("StringFormat", "template", f"a text with {len(x)} times {placeholder!r}", template)
    text = pieces[0] + "".join(_text(t.tolist(), summarize) + rest for t, rest in zip(x, pieces[1:], strict=True))
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _printer(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    if attrs["output_stream"] not in ("stderr", "stdout"):
        raise unsupported("PrintV2", "output_stream", "'stderr' or 'stdout'", attrs["output_stream"])
    return None


@kernel("PrintV2", pure=False, specialise=_printer)
def print_v2(x: Tensor, *, output_stream: str = "stderr") -> None:
    """Prints the bytes of x as a line. TorchAir on Ascend uses stderr as well."""
    print(bytes(x.tolist()).decode(), file=getattr(sys, output_stream), flush=True)
