"""Real ranks: K is sharded, biases add up, and the result is that of the whole problem in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.testing import assert_close
from tests.ops.exact import exact
from tests.ranks import run_ranks, values

K, N, ROWS = 256, 24, 6
"""K: of the whole problem; 8 ranks have 32 each."""
FORMS = ("float16", "bfloat16", "full float16", "full bfloat16", "weight-only float16", "per group bfloat16")
BIASES = ("every rank", "rank 0", "none")


def whole(form: str) -> dict[str, Any]:
    """The unsharded problem, without bias; the same on every rank."""
    generator = torch.Generator().manual_seed(FORMS.index(form))
    dtype = torch.bfloat16 if "bfloat16" in form else torch.float16

    def ints(*shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, generator=generator).to(torch.int8)

    def floats(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    problem: dict[str, Any] = {"residual": floats(2, 3, N), "gamma": floats(N), "epsilon": 1e-5}
    if form.startswith("full"):
        scale = torch.rand(N, generator=generator) * 1e-4 + 1e-5
        packed = nfg.npu_trans_quant_param(scale) if dtype is torch.float16 else scale.bfloat16()
        return problem | {"x1": ints(ROWS, K), "x2": ints(K, N), "dequant_scale": packed}
    if form.startswith("per group"):
        scales = floats(K // 32 * 2, N, scale=0.01)
        return problem | {
            "x1": floats(ROWS, K * 2), "x2": ints(K * 2, N), "antiquant_scale": scales,
            "antiquant_offset": ints(*scales.shape).to(dtype), "antiquant_group_size": 32,
        }  # fmt: skip
    if form.startswith("weight-only"):
        return problem | {"x1": floats(ROWS, K), "x2": ints(K, N), "antiquant_scale": floats(N, scale=0.01)}
    return problem | {"x1": floats(ROWS, K), "x2": floats(K, N, scale=K**-0.5)}


def bias_of(form: str, biases: str, rank: int) -> Tensor | None:
    if biases == "none" or (biases == "rank 0" and rank):
        return None
    generator = torch.Generator().manual_seed(1000 + rank)
    if form.startswith("full"):
        return torch.randint(-20000, 20000, (N,), generator=generator).to(torch.int32)
    return torch.randn(N, generator=generator).to(torch.bfloat16 if "bfloat16" in form else torch.float16)


def shard(problem: dict[str, Any], rank: int, ranks: int) -> dict[str, Any]:
    part = problem | {
        "x1": problem["x1"].chunk(ranks, 1)[rank].contiguous(), "x2": problem["x2"].chunk(ranks, 0)[rank]
    }  # fmt: skip
    for name in ("antiquant_scale", "antiquant_offset"):
        if problem.get("antiquant_group_size"):
            part[name] = problem[name].chunk(ranks, 0)[rank]
    return part


def _rank(rank: int, ranks: int, is_compiled: bool) -> list[Any]:
    run: Callable[..., Any] = nfg.npu_mm_all_reduce_add_rms_norm
    if is_compiled:
        run = torch.compile(run, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
    results = []
    with torch.no_grad():
        for form in FORMS:
            for biases in BIASES:
                torch._dynamo.reset()
                part = shard(whole(form), rank, ranks) | {"bias": bias_of(form, biases, rank)}
                y, norm_out = run(**part, hcom="0")
                in_place = part | {"residual": part["residual"].clone()}
                same = nfg.npu_mm_all_reduce_add_rms_norm_(**in_place, hcom="0")
                assert torch.equal(same[0], y)
                assert torch.equal(same[1], norm_out)
                results.append((y.float().numpy(), norm_out.float().numpy(), y.dtype))
    return results


@pytest.mark.parametrize(
    ("ranks", "is_compiled"), [(2, True), *(pytest.param(n, False, marks=pytest.mark.slow) for n in (4, 8))]
)
def test_shards_and_biases_add_up_to_the_whole_problem(ranks: int, is_compiled: bool) -> None:
    outcomes = values(run_ranks(_rank, ranks, ranks, is_compiled, limit=120, timeout=30))
    for i, (form, biases) in enumerate((f, b) for f in FORMS for b in BIASES):
        problem = whole(form)
        added = [b for b in (bias_of(form, biases, r) for r in range(ranks)) if b is not None]
        total = torch.stack([b.double() for b in added]).sum(0) if added else None
        wanted = exact([problem | {"bias": total}], problem["residual"], problem["gamma"], problem["epsilon"])
        for outcome in outcomes:
            for got, first, want in zip(outcome[i][:2], outcomes[0][i][:2], wanted, strict=True):
                assert (got == first).all(), "every rank has the same"
                # each rank rounds its partial sum, which is as large as the whole
                assert_close(
                    torch.from_numpy(got).to(outcome[i][2]), want, scale=ranks + 4, message=f"{form}, {biases}"
                )
