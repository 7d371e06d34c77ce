"""explain() leaves nothing behind: no process group, no compiled code that counts against the model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.fx import GraphModule

from npu_fused_graph import explain
from npu_fused_graph.errors import InvalidArgumentError
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
        report = explain(model, *INPUTS)
        assert (len(report.fused), report.graphs) == (1, 1)
    graphs: list[GraphModule] = []

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(gm)
        return gm.forward

    with fake_group(2), torch.no_grad():
        torch.compile(model, backend=backend, dynamic=False)(*INPUTS)
    assert len(graphs) == 1


@pytest.mark.parametrize("world_size", [0, -1, "2"])
def test_bad_world_size(world_size: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="world_size: expected a number of ranks"):
        explain(Block(), *INPUTS, world_size=world_size)
    assert not dist.is_initialized()
