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


_BITS = torch.arange(8, dtype=torch.uint8)


_DRAWN = 1 << 20
"""Numbers drawn at a time; the masks of attention are large."""


def _mask_bytes(count: int) -> int:
    """A mask of ``count`` bits has 128 or a multiple, as TorchAir declares it."""
    return -(-count // 128) * 16


@kernel("StatelessDropOutGenMask", pure=False)
def stateless_drop_out_gen_mask(shape: Ints, prob: Tensor, seed: Int, seed1: Int, offset: Ints | None = None) -> Tensor:
    """One bit per element, 1 with probability ``prob``, eight to a byte and the lowest first; zeros up to the end."""
    count = math.prod(shape)
    packed = torch.zeros(_mask_bytes(count), dtype=torch.uint8)
    generator = generator_of(seed, seed1, *(offset or ()))
    for part in packed.split(_DRAWN // 8):
        keep = torch.zeros(len(part) * 8, dtype=torch.uint8)
        some = keep[: min(count, len(keep))]
        some.copy_(torch.rand(len(some), generator=generator) < prob.float())
        part.copy_((keep.view(-1, 8) << _BITS).sum(1, dtype=torch.uint8))
        count -= len(some)
    return packed


@kernel("DropOutDoMask", "DropOutDoMaskV3")
def drop_out_do_mask(x: Tensor, mask: Tensor, keep_prob: Tensor) -> Tensor:
    """x / keep_prob where the bit of the mask is set, else 0."""
    count = x.numel()
    if mask.dtype is not torch.uint8 or mask.numel() != _mask_bytes(count):
        raise UnsupportedOpError(
            f"[engine] DropOutDoMask: expected input mask with {_mask_bytes(count)} bytes of bits for {count} "
            f"elements, got {mask.numel()} of {mask.dtype}. Make it with StatelessDropOutGenMask."
        )
    is_kept = ((mask.flatten()[:, None] >> _BITS) & 1).flatten()[:count].bool().reshape(x.shape)
    keep = float(keep_prob)
    scale = 1.0 / keep if keep else 0.0
    return torch.mul(torch.mul(x, is_kept), scale)


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


@kernel("Cmo", pure=False, ignored=("max_size", "type", "offset"))
def cmo(src: Tensor) -> None:
    """Loads a device's cache with src: nothing to do."""


@kernel("PrintV2", pure=False, specialise=_printer)
def print_v2(x: Tensor, *, output_stream: str = "stderr") -> None:
    """Prints the bytes of x as a line. TorchAir on Ascend uses stderr as well."""
    print(bytes(x.tolist()).decode(), file=getattr(sys, output_stream), flush=True)
