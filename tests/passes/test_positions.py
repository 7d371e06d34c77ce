"""What counts as a collective, and where it is, while a graph is rewritten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.fx import Graph, Node

from npu_fused_graph.passes.positions import Positions, is_collective

aten = torch.ops.aten


@contextmanager
def operator(schema: str) -> Iterator[Any]:
    """An operator of another package."""
    library = torch.library.Library("of_another_package", "DEF")
    library.define(schema)
    try:
        yield getattr(torch.ops.of_another_package, schema.partition("(")[0]).default
    finally:
        library._destroy()


def calls(*targets: Any) -> tuple[Graph, list[Node]]:
    """A graph that calls one after the other."""
    graph = Graph()
    x = graph.placeholder("x")
    nodes = []
    for target in targets:
        nodes.append(x := graph.call_function(target, (x,)))
    graph.output(x)
    return graph, nodes


# npu_mm_all_reduce_base and MindSpeed's operators; npu_grouped_mat_mul_all_reduce; npu_moe_distribute_dispatch and
# _combine; npu_allto_allv_gmm and vllm::all_reduce
@pytest.mark.parametrize("name", ["hcom", "hcomm", "group_ep", "group_tp", "group", "group_name"])
def test_an_operator_that_is_given_a_communicator_is_a_collective(name: str) -> None:
    with operator(f"send(Tensor x, str {name}='0') -> Tensor") as send:
        graph, (_, node, _) = calls(torch.ops.aten.relu.default, send, torch.ops.aten.neg.default)
        positions = Positions(graph)
        assert positions.is_collective(node)
        assert positions.collectives_between(0, 4) == [node]
        assert positions.collectives_between(2, 4) == positions.collectives_between(0, 2) == []
        assert not positions.is_free(node)


@pytest.mark.parametrize("name", ["c10d.broadcast_", "c10d.barrier", "c10d_functional.all_reduce"])
def test_a_collective_that_takes_a_process_group_or_ranks(name: str) -> None:
    namespace, _, operation = name.partition(".")
    assert is_collective(getattr(getattr(torch.ops, namespace), operation).default)


def test_others_are_none() -> None:
    with operator("send(Tensor x, str groups='0') -> Tensor") as send:
        graph, nodes = calls(torch.ops.aten.relu.default, send)
        positions = Positions(graph)
        assert not any(map(positions.is_collective, nodes))
        assert positions.collectives_between(-1, 4) == []
        assert all(map(positions.is_free, nodes))


def test_what_a_node_needs_is_behind_the_other_one() -> None:
    aten = torch.ops.aten
    graph, (first, before, between, last) = calls(*[aten.relu.default, aten.neg.default] * 2)
    positions = Positions(graph)
    assert positions.needed(last, before) == [between, last]
    assert positions.needed(before, last) == [before]
    assert positions.needed(last, first) == [before, between, last]


def test_a_fused_collective_takes_the_place_of_the_old_one() -> None:
    with operator("send(Tensor x, str group='0') -> Tensor") as send:
        graph, (_, first, place, second) = calls(torch.ops.aten.relu.default, send, torch.ops.aten.neg.default, send)
        positions = Positions(graph)
        with graph.inserting_after(place):
            fused = graph.call_function(send, (place,))
        positions.replace(fused, place)
        positions.move_collective([first], fused)
        assert positions.collectives_between(0, 5) == [fused, second]
        assert positions.collectives_between(2, 4) == [fused]


@pytest.mark.parametrize(
    ("op", "is_heavy"),
    [
        *((op, True) for op in (aten.mm, aten.addmm, aten.bmm, aten.linear, aten.matmul, aten.convolution)),
        *((op, False) for op in (aten.relu, aten.mul, aten.softmax)),
    ],
)
def test_what_overlaps_a_collective(op: Any, is_heavy: bool) -> None:
    graph = Graph()
    first = graph.placeholder("x")
    between = graph.call_function(getattr(op, "Tensor" if op is aten.mul else op.overloads()[0]), (first, first))
    last = graph.call_function(aten.relu.default, (between,))
    positions = Positions(graph)
    assert positions.heavy_between(positions.of(first), positions.of(last)) == is_heavy
    assert not positions.heavy_between(positions.of(between), positions.of(last)), "neither of the ends counts"
