"""source_line names the user's line, whoever called torch for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node

from npu_fused_graph import explain
from npu_fused_graph.host import load_torchair
from npu_fused_graph.passes.location import source_line
from tests.passes.blocks import llama_norm

PATCHED = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "all_to_all_single", "all_to_all",
)  # fmt: skip


@pytest.fixture
def _patched() -> Iterator[None]:
    """TorchAir's own all_reduce in torch.distributed, as scripts of older versions still ask for."""
    before = {name: getattr(dist, name) for name in PATCHED}
    load_torchair().patch_for_hcom()
    yield
    for name, function in before.items():
        setattr(dist, name, function)


@pytest.mark.usefixtures("_patched")
def test_a_collective_that_torchair_calls_for_the_user() -> None:
    weight, gamma = torch.zeros(32, 16).half(), torch.ones(32).half()

    def block(x: Tensor, residual: Tensor) -> Any:
        y = F.linear(x, weight)
        dist.all_reduce(y)
        return llama_norm(residual + y, gamma, 1e-6)

    (site,) = explain(block, torch.zeros(3, 16).half(), torch.zeros(3, 32).half(), min_rows=0).sites
    assert site.source == f"{__file__}:{line_of(block, 'dist.all_reduce')}"


def line_of(function: Callable[..., Any], text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def node_with(*files: str) -> Node:
    node = Graph().placeholder("x")
    node.meta["stack_trace"] = "\n".join(f'  File "{file}", line {i}, in f' for i, file in enumerate(files, 1))
    return node


def test_frames_of_libraries_are_skipped_and_no_others() -> None:
    libraries = [torch.__file__, load_torchair().__file__, inspect.getfile(explain), inspect.getfile(load_torchair)]
    assert source_line(node_with("/user/model.py", *libraries)) == "/user/model.py:1"
    beside = torch.__file__.replace("/torch/", "/torch_models/")
    assert source_line(node_with("/user/model.py", beside, *libraries)) == f"{beside}:2", "its name only starts alike"
    assert source_line(node_with(libraries[0])) == f"{libraries[0]}:1", "nothing better is known"
    assert source_line(Graph().placeholder("x")) == ""
