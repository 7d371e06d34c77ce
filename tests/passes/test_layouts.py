"""Operands that come out of a transpose: torch copies them into order, and so must the engine before it fuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.passes import FusionOptions, fuse_all
from tests.passes.blocks import Block, all_reduce_in_place, llama_norm
from tests.passes.capture import capture

N, K = 32, 16
BLOCK = Block("linear", k=K, seed=1)


def step(x: Tensor, r: Tensor) -> Any:
    total = r + all_reduce_in_place(BLOCK.product(x))
    return llama_norm(total, BLOCK.gamma, 1e-6), total


MODELS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "x1": lambda x, r: step(x.transpose(0, 1).contiguous(), r.clone().view(3, 2, N)),
    "residual": lambda x, r: step(x.view(3, 2, K), r.transpose(0, 1).contiguous()),
    "both": lambda x, r: step(x.transpose(0, 1).contiguous(), r.transpose(0, 1).contiguous()),
    "a copy of the transposed": lambda x, r: step(
        x.view(3, 2, K), r.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    ),
    "computed": lambda x, r: step((x.transpose(0, 1) + 1).contiguous(), (r.transpose(0, 1) * 2).contiguous()),
}


@pytest.fixture(autouse=True)
def _one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("in_place", [False, True], ids=["plain", "in place"])
@pytest.mark.parametrize("name", MODELS)
def test_a_transpose_made_contiguous(name: str, in_place: bool) -> None:
    """[s, b, h] as Megatron has it, from [b, s, h]. Sums are exact, so that results are equal bit by bit."""
    generator = torch.Generator().manual_seed(0)
    x, r = (torch.randint(-4, 5, (2, 3, n), generator=generator).half() for n in (K, N))
    torch._dynamo.reset()
    sites: list[nfg.FusionSite] = []
    backend = nfg.get_npu_backend(min_rows=0, in_place=in_place, on_sites=sites.extend)
    with torch.no_grad():
        compiled = torch.compile(MODELS[name], backend=backend, dynamic=False, fullgraph=True)
        for _ in range(3):
            results = compiled(x.clone(), r.clone())
            for got, wanted in zip(results, MODELS[name](x, r), strict=True):
                assert torch.equal(got, wanted)
    assert [site.is_fused for site in sites] == [True]


def test_an_activation_of_more_than_three_dims_becomes_rows() -> None:
    """The op takes x1 of two or three dims (A3)."""
    x, r = torch.ones(2, 2, 3, K).half(), torch.ones(2, 2, 3, N).half()

    def model(x: Tensor, r: Tensor) -> Any:
        return step(x, r)

    for lead, wanted in (((2, 2, 3), (12, K)), ((4, 3), (4, 3, K)), ((12,), (12, K))):
        gm = capture(model, x.view(*lead, K), r.view(*lead, N))
        assert [site.is_fused for site in fuse_all(gm, FusionOptions(min_rows=0))] == [True]
        (fused,) = (node for node in gm.graph.nodes if "npu_mm_all_reduce_add_rms_norm" in str(node.target))
        assert tuple(fused.args[0].meta["val"].shape) == wanted
        if len(lead) < 3:
            assert "view" not in str(fused.args[0].target), "it is as it came"
