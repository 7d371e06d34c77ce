"""What a graph takes as its inputs, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from npu_fused_graph.engine import compile_graph
from npu_fused_graph.engine.executor import Executable
from npu_fused_graph.errors import ExecutionError
from tests.engine.graphs import graph_of, node


def sum_of(x: Tensor, y: Tensor) -> Executable:
    """x + y, of the dtypes and shapes of these."""
    return compile_graph(graph_of({"x": x, "y": y}, [node("sum", "Add", {"x1": "x", "x2": "y"})], ["sum"]))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_a_scalar_may_come_as_a_tensor_of_one_element(shape: tuple[int, ...]) -> None:
    executable = sum_of(torch.ones(3), torch.tensor(0.0))
    for number in (2.0, 5.0, 7.0):
        (result,) = executable.run([torch.ones(3), torch.full(shape, number)])
        assert result.tolist() == [1 + number] * 3


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        pytest.param([torch.ones(3)], "case: expected 2 inputs (x, y), got 1", id="count"),
        pytest.param(
            [torch.ones(3, dtype=torch.float64), torch.tensor(1.0)],
            "case input x: expected torch.float32, got torch.float64",
            id="dtype",
        ),
        pytest.param([torch.ones(4), torch.tensor(1.0)], "case input x: expected shape [3], got [4]", id="shape"),
        pytest.param([torch.ones(3), torch.ones(2)], "case input y: expected shape [], got [2]", id="no scalar"),
    ],
)
def test_other_inputs_are_refused_by_name(inputs: list[Tensor], text: str) -> None:
    executable = sum_of(torch.ones(3), torch.tensor(0.0))
    for _ in range(2):
        with pytest.raises(ExecutionError) as caught:
            executable.run(inputs)
        assert text in str(caught.value)
        assert executable.run([torch.ones(3), torch.tensor(1.0)])[0].tolist() == [2.0] * 3


def test_an_input_may_be_a_variable() -> None:
    """RefData, GE's input that a graph may write: a Data for us."""
    graph = graph_of({"x": torch.ones(3), "y": torch.ones(3)}, [node("sum", "Add", {"x1": "x", "x2": "y"})], ["sum"])
    graph.nodes["y"].type = "RefData"
    executable = compile_graph(graph)
    for number in (2.0, 5.0):
        (result,) = executable.run([torch.ones(3), torch.full((3,), number)])
        assert result.tolist() == [1 + number] * 3


def test_an_error_shows_each_operand_as_it_is() -> None:
    x, y = torch.ones(2, 3), torch.ones(5, dtype=torch.int32)
    reshape = node("r", "Reshape", {"x": "x", "shape": "shape"})
    graph = graph_of({"x": x}, [reshape], ["r"], const={"shape": torch.tensor([4])})
    with pytest.raises(ExecutionError, match=r"Inputs: x=float32\[2, 3\], shape=constant \[4\]\."):
        compile_graph(graph).run([x])
    concat = node("c", "ConcatD", {"x0": "x", "x1": "y"}, concat_dim=0, N=2)
    with pytest.raises(ExecutionError, match=r"Inputs: x0=float32\[2, 3\], x1=int32\[5\]\."):
        compile_graph(graph_of({"x": x, "y": y}, [concat], ["c"])).run([x, y])
