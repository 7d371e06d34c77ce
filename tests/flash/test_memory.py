"""Peak memory of attention, by torch's record of every allocation: no matrix of all scores, in either direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from npu_fused_graph import ascend_flash_attention


class Use(NamedTuple):
    """In bytes: the most that was held at once, and the largest tensor."""

    peak: int
    largest: int


def used(run: Callable[[], Any]) -> Use:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    changes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return Use(peak, max(changes))


def forms(heads: int, length: int) -> dict[str, tuple[dict[str, Any], bool]]:
    """By name: arguments, and whether the user passes an (S, S) mask that is not looked at by tiles alone."""
    causal = torch.ones(length, length, dtype=torch.bool).tril(-1)
    generator = torch.Generator().manual_seed(0)
    alibi = torch.randn(1, heads, 1, length, generator=generator).half()
    return {
        "plain": {},
        "causal": {"atten_mask": causal},
        "scattered": {"atten_mask": torch.rand(length, length, generator=generator) < 0.3, "next_tokens": length},
        "band": {"atten_mask": torch.zeros_like(causal), "pre_tokens": 300, "next_tokens": 200},
        "alibi": {"alibi_mask": alibi},
        "alibi causal": {"alibi_mask": alibi, "atten_mask": causal},
        "dropout": {"atten_mask": causal, "keep_prob": 0.9},
    }


def forward_and_backward(heads: int, length: int, form: str) -> tuple[Use, Use]:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, heads, length, 64, generator=generator).half().requires_grad_() for _ in range(3))
    dy, keywords, out = torch.ones(1, heads, length, 64).half(), forms(heads, length)[form], []

    def forward() -> None:
        out.append(ascend_flash_attention(q, k, v, head_num=heads, scale_value=0.125, **keywords))

    return used(forward), used(lambda: out[0].backward(dy))


@pytest.mark.parametrize("form", list(forms(1, 256)))
def test_no_matrix_of_all_scores(form: str) -> None:
    """The largest tensor is a half of one head's scores, in float16, or an operand in float32."""
    heads, length = 2, 2048
    for use in forward_and_backward(heads, length, form):
        assert use.largest <= max(length * length * 3, heads * length * 64 * 4)


@pytest.mark.slow
def test_peaks_are_near_the_plain_ones_and_linear() -> None:
    heads = 8
    plain = {length: forward_and_backward(heads, length, "plain")[1].peak for length in (2048, 4096)}
    assert plain[4096] < 2.1 * plain[2048]
    for form in forms(1, 256):
        long, short = (forward_and_backward(heads, length, form)[1].peak for length in (4096, 2048))
        assert long < 3 * plain[4096], form
        assert long < 2.6 * short, form


def test_the_count_counts() -> None:
    def hold() -> Tensor:
        big = torch.empty(1000, 1000)
        return big.sum() + torch.empty(500, 1000).sum()

    use = used(hold)
    assert use.largest == 4_000_000
    assert 6_000_000 <= use.peak < 6_100_000
