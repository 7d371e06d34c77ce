"""explain() leaves nothing behind: no process group, no compiled code that counts against the model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

import npu_fused_graph as nfg
from npu_fused_graph import explain
from npu_fused_graph.errors import InvalidArgumentError
from npu_fused_graph.passes import fuse_all
from tests.passes.blocks import Block
from tests.passes.capture import fake_group


class Broken(nn.Module):
    """A graph break in front of the block, so that Dynamo compiles the block's own functions."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor, residual: Tensor) -> Any:
        torch._dynamo.graph_break()
        return self.block(x, residual)


INPUTS = torch.zeros(2, 3, 16).half(), torch.zeros(2, 3, 32).half()


def test_any_number_of_times_and_the_model_still_compiles() -> None:
    model = Broken()
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        report = explain(model, *INPUTS, min_rows=0)
        assert (len(report.fused), report.graphs) == (1, 1)
    graphs: list[GraphModule] = []

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(gm)
        return gm.forward

    with fake_group(2), torch.no_grad():
        torch.compile(model, backend=backend, dynamic=False)(*INPUTS)
    assert len(graphs) == 1


def test_sites_are_told_in_the_order_of_the_model() -> None:
    first, second = Block(returns_sum=True), Block(returns_sum=True)

    def model(x: Tensor, residual: Tensor) -> Any:
        dist.all_reduce(x)  # no matmul
        norm, total = first(x, residual)
        dist.all_reduce(norm)
        return second(x, total), norm

    report = explain(model, *INPUTS, min_rows=0)
    assert [site.reason for site in report.sites] == ["no_matmul", "", "no_matmul", ""]
    assert report.sites[1::2] == report.fused and report.sites[::2] == report.refused


def test_groups_stand_where_their_first_collective_was() -> None:
    block = Block()

    def model(x: Tensor, residual: Tensor, weight: Tensor) -> Any:
        flat = x.view(-1, 16)
        parts = [funcol.all_reduce(flat @ w, "sum", dist.group.WORLD) + 1 for w in (weight, weight * 2)]
        return block(x, residual), parts

    sites = explain(model, *INPUTS, torch.ones(16, 32).half(), min_rows=0, grouped=True).sites
    places = [site.op for site in sites if site.is_fused]
    assert places == ["grouped_mat_mul_all_reduce", "matmul_all_reduce_add_rms_norm"]


def test_what_is_moved_in_front_of_a_site_does_not_move_its_place() -> None:
    block = Block()

    def model(x: Tensor, residual: Tensor, gamma: Tensor) -> Any:
        reduced = block.reduce(block.product(x))
        dist.all_reduce(other := x * 2)
        return block.norm(residual + reduced, gamma + 1, block.eps), other

    first, second = explain(model, *INPUTS, torch.ones(32).half(), min_rows=0).sites
    assert first.collective < second.collective and second.reason == "no_matmul"


@pytest.mark.parametrize("world_size", [0, -1, "2"])
def test_bad_world_size(world_size: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="world_size: expected a number of ranks"):
        explain(Block(), *INPUTS, world_size=world_size)
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"numerics": "exact"}, "numerics: expected one of"),
        ({"min_rows": "3"}, "min_rows: expected a number of rows or None, got '3'"),
        ({"min_rows": -1}, "min_rows: expected a number of rows or None, got -1"),
        ({"min_rows": True}, "min_rows: expected a number of rows or None, got True"),
    ],
)
def test_bad_options_are_refused_at_once(option: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        nfg.explain(lambda x: x, torch.ones(1), **option)
    with pytest.raises(InvalidArgumentError, match=text):
        nfg.get_npu_backend(**option)


def test_what_is_no_model_or_config_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="model: expected a module or function, got None"):
        nfg.explain(None)  # type: ignore[arg-type]
    for function in (nfg.enable_fusion, lambda config: nfg.get_npu_backend(compiler_config=config)):
        with pytest.raises(InvalidArgumentError, match=r"expected a torchair\.CompilerConfig, got int"):
            function(3)


def test_bad_passes_and_listener_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="passes: expected a sequence of passes"):
        nfg.get_npu_backend(passes=None)  # type: ignore[arg-type]
    for passes in (3, (3,)):
        with pytest.raises(InvalidArgumentError, match="passes: expected a sequence of passes"):
            fuse_all(symbolic_trace(torch.nn.Identity()), passes=passes)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="on_sites: expected a function"):
        nfg.get_npu_backend(on_sites=3)  # type: ignore[arg-type]
