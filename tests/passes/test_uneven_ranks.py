"""Ranks that differ in what ranks may differ in: their part of k, down to none, and the vectors they add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor
from torch.fx import Graph

import npu_fused_graph as nfg
from npu_fused_graph.passes import FusionOptions, fuse_all
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.empty_shard import zero_columns
from npu_fused_graph.passes.spellings.products import Product
from tests.passes import lockstep
from tests.passes.capture import capture_with_arguments, fake_group
from tests.passes.foreign_ops import foreign_ops
from tests.ranks import run_ranks, values

M, N = 6, 16


def _reduced(x: Tensor) -> Tensor:
    return funcol.all_reduce(x, "sum", dist.group.WORLD)


def _norm(y: Tensor, gamma: Tensor) -> Tensor:
    wide = y.float()
    return gamma * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(y.dtype)


def _whole(ranks: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x (m, k), weight (k, n), residual (m, n), gamma (n), a vector of each rank (ranks, n). x @ weight is exact."""
    generator = torch.Generator().manual_seed(3)

    def steps(*shape: int) -> Tensor:
        return (torch.randint(-8, 9, shape, generator=generator) / 8).half()

    return steps(M, k), steps(k, N), steps(M, N), 1 + steps(N) / 16, steps(ranks, N)


def _compiled(model: Callable[..., Any], *inputs: Tensor, **options: Any) -> tuple[list[Any], list[str]]:
    sites: list[nfg.FusionSite] = []
    backend = nfg.get_npu_backend(min_rows=0, numerics="any", on_sites=sites.extend, **options)
    torch._dynamo.reset()
    with torch.no_grad():
        results = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(*inputs)
    return [x.numpy() for x in results], [site.reason or site.op for site in sites]


def _uneven(rank: int, sizes: list[int]) -> dict[str, Any]:
    x, w, r, g, _ = _whole(len(sizes), sum(sizes))
    start = sum(sizes[:rank])
    part, rows = x[:, start : start + sizes[rank]].contiguous(), w[start : start + sizes[rank]]
    flat = (part, rows, r, g)

    def mm(x: Tensor, w: Tensor, r: Tensor, g: Tensor) -> Any:
        total = r + _reduced(x @ w)
        return total, _norm(total, g)

    def linear(x: Tensor, w: Tensor, r: Tensor, g: Tensor) -> Any:
        total = r + _reduced(torch.nn.functional.linear(x, w))
        return total, _norm(total, g)

    def grouped(x: Tensor, w: Tensor, r: Tensor, g: Tensor) -> Any:
        return _reduced(x @ w), _reduced(x[:4] @ w)

    return {
        "mm": _compiled(mm, *flat),
        "linear": _compiled(linear, part.view(1, M, -1) if sizes[rank] else part.view(1, M, 0), rows.t().contiguous(),
                            r.view(1, M, N), g),
        "grouped": _compiled(grouped, *flat, grouped=True),
    }  # fmt: skip


def test_a_rank_without_k_takes_part() -> None:
    sizes = [0, 8]
    x, w, r, g, _ = _whole(2, 8)
    product = (x.double() @ w.double()).half()
    total = product + r
    for found in values(run_ranks(_uneven, 2, sizes)):
        for name in ("mm", "linear"):
            (got, norm), verdicts = map(torch.from_numpy, found[name][0]), found[name][1]
            assert verdicts == ["matmul_all_reduce_add_rms_norm"]
            assert torch.equal(got.view(M, N), total)
            assert torch.equal(norm.view(M, N), _norm(total, g))
        results, verdicts = list(map(torch.from_numpy, found["grouped"][0])), found["grouped"][1]
        assert verdicts.count("grouped_mat_mul_all_reduce") == 1
        assert torch.equal(results[0], product) and torch.equal(results[1], product[:4])


@pytest.mark.parametrize("with_offset", [False, True])
def test_a_rank_without_k_has_the_zeros_of_whole_groups(with_offset: bool) -> None:
    """Weight-only, a scale for every 32 rows of k: the op takes no group size that covers k at once."""
    residual, gamma = torch.full((M, N), 0.5).half(), torch.ones(N).half()
    scale = torch.ones(0, N).half()

    def model(x: Tensor, w: Tensor) -> Any:
        op = torch.ops.npu.npu_weight_quant_batchmatmul
        offset = scale if with_offset else None
        total = residual + _reduced(op(x, w, scale, offset, None, None, None, 32))
        return total, _norm(total, gamma)

    inputs = torch.zeros(M, 0).half(), torch.zeros(0, N, dtype=torch.int8)
    with foreign_ops(), fake_group(2):
        gm, arguments = capture_with_arguments(model, *inputs)
        (site,) = fuse_all(gm, FusionOptions(min_rows=0))
        assert site.is_fused, site
        (node,) = (n for n in gm.graph.nodes if n.name == site.node)
        x1, x2, scales = (x.meta["val"].shape for x in (*node.args[:2], node.kwargs["antiquant_scale"]))
        assert (x1[-1], tuple(x2), tuple(scales)) == (64, (64, N), (2, N))
        assert (node.kwargs.get("antiquant_offset") is not None) == with_offset
        for total, norm in lockstep.run(gm, [arguments] * 2):
            assert torch.equal(total, residual)
            assert torch.equal(norm, _norm(residual, gamma))


def _own_vector(rank: int) -> Any:
    x, w, r, g, vectors = _whole(2, 8)

    def model(x: Tensor, w: Tensor, r: Tensor, g: Tensor, vector: Tensor) -> Any:
        total = r + (_reduced(x @ w) + vector)
        return total, _norm(total, g)

    k = slice(4 * rank, 4 * rank + 4)
    return _compiled(model, x[:, k].contiguous(), w[k], r, g, vectors[rank])


def test_a_vector_after_the_reduce_stays_the_ranks_own() -> None:
    x, w, r, g, vectors = _whole(2, 8)
    for rank, (results, verdicts) in enumerate(values(run_ranks(_own_vector, 2))):
        total, norm = map(torch.from_numpy, results)
        assert verdicts == ["matmul_all_reduce_add_rms_norm"]
        wanted = x.double() @ w.double() + vectors[rank].double() + r.double()
        assert torch.equal(total, wanted.half()), "eighths: every sum is exact"
        assert torch.equal(norm, _norm(total, g))


@pytest.mark.parametrize("axis", [0, 1], ids=["packed along k", "packed along n"])
@pytest.mark.parametrize("is_stored_transposed", [False, True])
@pytest.mark.parametrize("group", [0, 32])
def test_zeros_in_front_of_a_packed_weight_are_whole_words(axis: int, is_stored_transposed: bool, group: int) -> None:
    """int4 as int32, eight to a word along the axis stored last: what is added must be whole words of the axis."""
    shape = (0, N) if axis == 0 else (0, N // 8)
    weight = torch.empty_strided(shape, (1, 8) if axis == 0 else (N // 8, 1), dtype=torch.int32)
    graph = Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    x.meta["val"], w.meta["val"] = torch.empty(M, 0), weight.t() if is_stored_transposed else weight
    scales = {"antiquant_scale": x, "antiquant_group_size": group}
    pads = zero_columns(Product(graph.call_function(torch.mm, (x, w)), x, w, is_stored_transposed, None, scales))
    columns = 64 if group else 8 if axis == 0 else 1
    rows = columns // 8 if axis == 0 else columns
    wanted = {"x": [0, columns], "weight": [0, rows] if is_stored_transposed else [0, 0, 0, rows]}
    assert pads == (wanted | {"antiquant_scale": [0, 0, 0, 2]} if group else wanted)
