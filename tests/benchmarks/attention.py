"""ascend_flash_attention against torch's own attention, forward and backward, (1, 8, S, 128)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from npu_fused_graph import ascend_flash_attention

HEADS, DEPTH = 8, 128
SCALE = DEPTH**-0.5


class Pair(NamedTuple):
    """Two ways to one result. measure: name of the goal. rounds: how often each is called."""

    name: str
    measure: str
    ours: Callable[[], Any]
    baseline: Callable[[], Any]
    what: str
    rounds: int


def inputs(length: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, HEADS, length, DEPTH, generator=generator).to(dtype) for _ in range(4)]


def causal_mask(length: int) -> Tensor:
    """Its rows are keys."""
    return torch.ones(length, length, dtype=torch.bool).tril(-1)


def forward(length: int) -> Iterator[Pair]:
    """Of float16, the same arguments, and a causal mask that torch is handed as what is added."""
    q, k, v, _ = inputs(length, torch.float16)
    rounds = max(3, 20 * 2048 // length // (length // 512))
    mask = causal_mask(length)
    generator = torch.Generator().manual_seed(1)
    scattered = (torch.rand(length, length, generator=generator) < 0.3) & ~torch.eye(length, dtype=torch.bool)
    added = torch.zeros(length, length).masked_fill(mask.t(), -torch.inf)
    added_scattered = torch.zeros(length, length).masked_fill(scattered.t(), -torch.inf)

    def ours(atten_mask: Tensor | None, next_tokens: int = 1) -> Callable[[], Tensor]:
        given = {} if atten_mask is None else {"next_tokens": next_tokens}
        return lambda: ascend_flash_attention(q, k, v, atten_mask, scale_value=SCALE, head_num=HEADS, **given)

    def torchs(attn_mask: Tensor | None) -> Callable[[], Tensor]:
        return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask, scale=SCALE)

    name = f"attention forward S={length} float16"
    yield Pair(name, "attention", ours(None), torchs(None), "scaled_dot_product_attention", rounds)
    yield Pair(
        f"{name}, a third masked", "attention", ours(scattered, length), torchs(added_scattered),
        "scaled_dot_product_attention with the mask added", rounds,
    )  # fmt: skip
    goal = "attention_causal" if length >= 2048 else "attention"
    yield Pair(
        f"{name}, causal mask", goal, ours(mask), torchs(added), "scaled_dot_product_attention with the mask added",
        rounds,
    )  # fmt: skip
    if length <= 2048:

        def naive() -> Tensor:
            x = torch.matmul(q.float(), k.float().mT) * SCALE
            return torch.matmul(torch.softmax(x, -1), v.float()).half()

        yield Pair(name, "attention_naive", ours(None), naive, "every score written out in float32", rounds)


def backward(length: int, dtype: torch.dtype, measure: str, rounds: int) -> Pair:
    """From a result that is kept."""
    q, k, v, dy = inputs(length, dtype)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    own = ascend_flash_attention(*leaves, causal_mask(length), scale_value=SCALE, head_num=HEADS)
    theirs = F.scaled_dot_product_attention(*leaves, is_causal=True, scale=SCALE)

    def run(result: Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(result, leaves, dy, retain_graph=True)

    name = f"attention backward S={length} {str(dtype).removeprefix('torch.')}, causal"
    return Pair(name, measure, run(own), run(theirs), "torch's own gradient in that dtype", rounds)


def pairs() -> Iterator[Pair]:
    for length in (512, 2048, 8192):
        yield from forward(length)
    for length, rounds in ((512, 5), (2048, 3)):
        yield backward(length, torch.float16, "attention_backward_float16", rounds)
    # a CPU that multiplies bfloat16 itself is faster in it, and rounds more than our limit: printed, no goal
    is_native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    for length, goal, rounds in ((512, "_short", 9), (2048, "", 5)):
        measure = f"attention_backward_bfloat16{'_native' if is_native else goal}"
        yield backward(length, torch.bfloat16, measure, rounds)
