"""Random numbers of host graphs follow torch's generator, and building a graph leaves it alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import npu_fused_graph as nfg


def compiled(function: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)


def test_manual_seed_repeats_and_runs_differ() -> None:
    draw = compiled(lambda x: torch.rand(x.shape) + 0 * x)
    x = torch.zeros(64)
    torch.manual_seed(7)
    first, second = draw(x), draw(x)
    torch.manual_seed(7)
    assert torch.equal(draw(x), first)
    assert not torch.equal(first, second)
    assert 0 <= float(first.min()) < float(first.max()) < 1


def test_building_a_graph_does_not_reseed_the_global_generator() -> None:
    """TorchAir itself calls torch.manual_seed(10) when a graph without an NPU draws numbers."""

    def function(x: Tensor) -> Tensor:
        return torch.rand(x.shape) + x

    draw = compiled(function)
    torch.manual_seed(123)
    expected = torch.initial_seed()
    draw(torch.zeros(3))
    assert torch.initial_seed() == expected


def test_dropout_scales_and_drops() -> None:
    drop = compiled(lambda x: torch.nn.functional.dropout(x, 0.25, training=True))
    torch.manual_seed(0)
    with torch.no_grad():
        y = drop(torch.ones(4000))
    assert set(y.unique().tolist()) <= {0.0, float(torch.tensor(1 / 0.75))}
    assert 0.7 < float((y != 0).float().mean()) < 0.8
