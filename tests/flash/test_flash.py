"""Attention by blocks against every score written out: any mask, band, bias, dropout, shared heads and strides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npu_fused_graph import flash
from npu_fused_graph.flash.backward import Gradients

B, N = 2, 4


def scattered(q_len: int, kv_len: int, *, batches: int = 1, heads: int = 1) -> Tensor:
    """A third hidden; queries 7 and 1030 to 1039 see nothing."""
    generator = torch.Generator().manual_seed(9)
    mask = torch.rand(batches, heads, q_len, kv_len, generator=generator) < 0.3
    mask[..., 7, :] = True
    mask[..., 1030:1040, :] = True
    return mask


def above(q_len: int, kv_len: int) -> Tensor:
    return (torch.arange(kv_len) > torch.arange(q_len)[:, None])[None, None]


def left_half(q_len: int, kv_len: int) -> Tensor:
    return (torch.arange(kv_len) < kv_len // 2).expand(1, 1, q_len, kv_len)


FAR = 10**9
HIDDEN: dict[str, Callable[[int, int], flash.Hidden]] = {
    "nothing": lambda q, k: flash.Hidden(),
    "mask": lambda q, k: flash.Hidden(scattered(q, k).half()),
    "mask of batches and heads": lambda q, k: flash.Hidden(scattered(q, k, batches=B, heads=N)),
    "transposed mask": lambda q, k: flash.Hidden(scattered(q, k).mT.contiguous().mT.to(torch.uint8) * 255),
    "triangle": lambda q, k: flash.Hidden(above(q, k)),
    "stored transposed": lambda q, k: flash.Hidden(above(q, k).mT.contiguous().mT),
    "triangle and band": lambda q, k: flash.Hidden(above(q, k), flash.Band(FAR, 0)),
    "nothing and causal band": lambda q, k: flash.Hidden(torch.zeros(1, 1, q, k), flash.Band(FAR, 0)),
    "causal band": lambda q, k: flash.Hidden(None, flash.Band(FAR, 0)),
    "causal band from the end": lambda q, k: flash.Hidden(None, flash.Band(FAR, 0, k - q)),
    "window": lambda q, k: flash.Hidden(None, flash.Band(20, 3)),
    "triangle and window": lambda q, k: flash.Hidden(above(q, k), flash.Band(20, 3)),
    "keys that nobody sees": lambda q, k: flash.Hidden(left_half(q, k)),
    "window beyond the keys": lambda q, k: flash.Hidden(None, flash.Band(-k, 2 * k)),
}


def hidden_pairs(hidden: flash.Hidden, q_len: int, kv_len: int) -> Tensor:
    pairs = torch.zeros(1, 1, q_len, kv_len, dtype=torch.bool)
    if hidden.mask is not None:
        pairs = hidden.mask != 0
    if hidden.band is not None:
        before, ahead, shift = hidden.band
        distance = torch.arange(kv_len) - torch.arange(q_len)[:, None] - shift
        pairs = pairs | (distance > ahead) | (distance < -before)
    return pairs


def bits_of(keep: flash.Keep, q_len: int, kv_len: int) -> Tensor:
    """(B, N, Sq, Skv)."""
    heads = [
        torch.cat([keep.rows(h, slice(i, min(i + 256, q_len)), kv_len) for i in range(0, q_len, 256)])
        for h in range(B * N)
    ]
    return torch.stack(heads).view(B, N, q_len, kv_len).double()


def written_out(q: Tensor, k: Tensor, v: Tensor, scores: flash.Scores) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(attention, log-sum-exp, maxima, sums) in float64."""
    q_len, kv_len, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    x = q @ k.mT * scores.scale
    if scores.bias is not None:
        x = x + scores.bias.double() * scores.bias_scale
    x = x.masked_fill(hidden_pairs(scores.hidden, q_len, kv_len), -math.inf)
    top = x.amax(-1)
    e = torch.exp(x - top.masked_fill(top == -math.inf, 0.0)[..., None])
    total = e.sum(-1)
    p = e / total.masked_fill(total == 0, 1.0)[..., None]
    if scores.keep is not None:
        p = p * bits_of(scores.keep, q_len, kv_len) / scores.keep.probability
    return p @ v, torch.logsumexp(x, -1), top, total


def keeps(kind: str, q_len: int, kv_len: int) -> flash.Keep | None:
    if kind == "seeded":
        return flash.SeededKeep(0.7, 3, 4)
    if kind == "packed":
        count = (B * N * q_len * kv_len + 7) // 8 + 5
        return flash.PackedKeep(0.5, torch.randint(0, 256, (count,), dtype=torch.uint8), q_len)
    return None


def biases(kind: str, q_len: int, kv_len: int) -> dict[str, Any]:
    if kind == "row":
        return {"bias": torch.randn(1, N, 1, kv_len)}
    return {"bias": torch.randn(B, 1, q_len, kv_len), "bias_scale": 0.3} if kind == "full" else {}


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-12))


SHAPES = ((300, 700, 2, 48), (1500, 1100, 1, 16), (512, 512, 4, 64))
FORMS = list(itertools.product(HIDDEN, ("", "row", "full"), ("", "seeded", "packed")))


@pytest.mark.parametrize(
    ("shape", "form", "dtype"),
    [
        pytest.param(
            shape, form, dtype, id=f"{shape[0]}x{shape[1]}-{'-'.join(filter(None, form))}-{dtype}",
            marks=() if i == 0 and j % 6 == 0 and dtype is torch.float32 else pytest.mark.slow,
        )
        for i, shape in enumerate(SHAPES)
        for j, form in enumerate(FORMS)
        if (i + j) % 3 == 0
        for dtype in (torch.float32, torch.float16)
    ],
)  # fmt: skip
def test_every_form(shape: tuple[int, int, int, int], form: tuple[str, str, str], dtype: torch.dtype) -> None:
    q_len, kv_len, kv_heads, depth = shape
    hidden, bias, keep = form
    torch.manual_seed(0)
    q = torch.randn(B, N, q_len, depth).to(dtype).mT.contiguous().mT
    k = torch.randn(B, kv_len, kv_heads, depth).to(dtype).transpose(1, 2)
    v, dy = torch.randn(B, kv_heads, kv_len, depth).to(dtype), torch.randn(B, N, q_len, depth).to(dtype)
    scores = flash.Scores(
        0.2, HIDDEN[hidden](q_len, kv_len), keep=keeps(keep, q_len, kv_len), **biases(bias, q_len, kv_len)
    )
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    wanted, lse, top, total = written_out(*wide, scores)
    out = torch.full((B, q_len, N, depth), 9.0, dtype=dtype).transpose(1, 2)
    found = flash.forward(q, k, v, scores, out)
    gradients = flash.backward(dy, q, k, v, out, found, scores)
    limit = 2e-5 if dtype is torch.float32 else 4e-3
    assert error(out, wanted.detach()) < limit
    for got, want in zip(gradients, torch.autograd.grad(wanted, wide, dy.double()), strict=True):
        assert error(got, want) < limit
    assert torch.equal(found == -math.inf, lse == -math.inf)
    seen = lse.detach() != -math.inf
    assert ((found.double() - lse.detach())[seen].abs() < 2e-4).all()
    statistics = flash.row_statistics(q, k, scores)
    for got, want in zip(statistics, (top.detach(), total.detach()), strict=True):
        assert torch.allclose(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("hidden", "form"),
    [
        pytest.param(
            hidden, form, marks=() if (hidden, form) in (("triangle", "bias"), ("mask", "")) else pytest.mark.slow
        )
        for hidden in ("nothing", "triangle", "mask", "window")
        for form in ("", "bias", "dropout")
    ],
)
def test_gradcheck(hidden: str, form: str) -> None:
    """In float64 numbers of the difference quotient say whether the formula is the derivative of the other."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 20, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    scores = flash.Scores(
        0.5, HIDDEN[hidden](20, 20), bias=torch.randn(1, 2, 1, 20, dtype=torch.float64) if form == "bias" else None,
        keep=flash.SeededKeep(0.8, 1, 2) if form == "dropout" else None,
    )  # fmt: skip

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            out = torch.empty_like(inputs[0])
            ctx.save_for_backward(*inputs, out, flash.forward(*inputs, scores, out))
            return out

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Gradients:
            return flash.backward(dy, *ctx.saved_tensors, scores)

    assert torch.autograd.gradcheck(Attention.apply, (q, k, v))


CAUSAL = {"triangle", "stored transposed", "triangle and band", "nothing and causal band", "causal band"}


@pytest.mark.parametrize("name", list(HIDDEN))
def test_what_is_exactly_causal(name: str) -> None:
    for length in (256, 300):
        assert HIDDEN[name](length, length).is_causal(length, length) == (name in CAUSAL | {"causal band from the end"})
    assert not HIDDEN[name](300, 400).is_causal(300, 400)


@pytest.mark.parametrize("at", [(0, 0), (1, 0), (299, 298), (0, 299), (298, 299), (257, 255), (255, 257)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_one_pair_that_is_not_causal(at: tuple[int, int], is_transposed: bool) -> None:
    mask = above(300, 300)
    mask = mask.mT.contiguous().mT if is_transposed else mask
    mask[0, 0, at[0], at[1]] ^= True
    for hidden in (flash.Hidden(mask), flash.Hidden(mask, flash.Band(FAR, 299))):
        assert not hidden.is_causal(300, 300)
    is_beyond = at[1] > at[0]
    assert flash.Hidden(mask, flash.Band(FAR, 0)).is_causal(300, 300) == is_beyond, "the band hides it anyway"


def test_packed_bits_are_read_the_lowest_first() -> None:
    shape = (2, 3, 5, 7)
    flat = np.random.default_rng(0).integers(0, 2, math.prod(shape)).astype(np.uint8)
    keep = flash.PackedKeep(0.5, torch.from_numpy(np.packbits(flat, bitorder="little")), 5)
    wanted = torch.from_numpy(flat).view(6, 5, 7).bool()
    for head in range(6):
        assert torch.equal(keep.rows(head, slice(0, 5), 7), wanted[head])
        assert torch.equal(keep.rows(head, slice(2, 4), 7), wanted[head, 2:4])
