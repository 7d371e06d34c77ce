"""Training over two ranks: collectives in the forward graph and in the backward graph."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import _functional_collectives as collectives

import npu_fused_graph as nfg
from npu_fused_graph.engine import Executable
from npu_fused_graph.host import native
from tests.ranks import run_ranks, values

RANKS = 2
WIDTH = 8


class _IntoShards(torch.autograd.Function):
    """In front of weights split by columns: the gradients of all ranks are added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return collectives.all_reduce(grads[0].contiguous(), "sum", dist.group.WORLD)


class _OutOfShards(torch.autograd.Function):
    """Behind weights split by rows: the results of all ranks are added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return collectives.all_reduce(x, "sum", dist.group.WORLD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Block(nn.Module):
    """An MLP with a residual; of its two weights each rank has a part."""

    def __init__(self, up: Tensor, down: Tensor, *, is_split: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(up.clone()), nn.Parameter(down.clone())
        self.scale = nn.Parameter(torch.ones(WIDTH, dtype=up.dtype))
        self.is_split = is_split

    def forward(self, x: Tensor) -> Tensor:
        hidden = x * self.scale
        if not self.is_split:
            return ((x + torch.tanh(hidden @ self.up) @ self.down) ** 2).mean()
        hidden = torch.tanh(_IntoShards.apply(hidden) @ self.up)  # type: ignore[no-untyped-call]
        return ((x + _OutOfShards.apply(hidden @ self.down)) ** 2).mean()  # type: ignore[no-untyped-call]


def weights() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    up, down, x = (torch.randn(shape, generator=generator) for shape in ((WIDTH, 12), (12, WIDTH), (5, WIDTH)))
    return up, down, x


def _train(rank: int) -> tuple[float, dict[str, Any], list[set[str]]]:
    up, down, x = weights()
    model = Block(up.chunk(RANKS, 1)[rank], down.chunk(RANKS, 0)[rank], is_split=True)
    graphs: list[Executable] = []
    native.graph_listeners.append(graphs.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*expected a call without autograd")  # of sites, on purpose
        losses = _two_steps(model, x)
    grads = {name: p.grad.tolist() for name, p in model.named_parameters() if p.grad is not None}
    return losses[1], grads, [{node.type for node in graph.graph.nodes.values()} for graph in graphs]


def _two_steps(model: nn.Module, x: Tensor) -> list[float]:
    losses = []
    run = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
    for _ in range(2):
        model.zero_grad()
        loss = run(x)
        loss.backward()
        losses.append(float(loss.detach()))
    return losses


def test_a_split_block_has_the_gradients_of_the_whole() -> None:
    up, down, x = (part.double() for part in weights())
    whole = Block(up, down, is_split=False)
    loss = whole(x)
    loss.backward()
    expected = float(loss.detach())
    assert whole.up.grad is not None
    assert whole.down.grad is not None
    for rank, (found, grads, types) in enumerate(values(run_ranks(_train, RANKS))):
        assert len(types) == 2
        assert all("HcomAllReduce" in one for one in types), "one collective in each graph"
        assert abs(found - expected) < 1e-6 * expected
        for name, wanted in (
            ("up", whole.up.grad.chunk(RANKS, 1)[rank]),
            ("down", whole.down.grad.chunk(RANKS, 0)[rank]),
            ("scale", whole.scale.grad),
        ):
            assert wanted is not None
            torch.testing.assert_close(torch.tensor(grads[name]), wanted.float(), rtol=1e-5, atol=1e-6)
