"""Graphs that were written, by protobuf, and read back: nothing is lost, in any format, by either way of reading."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu_fused_graph.inspector import read_dump
from npu_fused_graph.ir import schema
from npu_fused_graph.ir.graph import Graph
from npu_fused_graph.ir.write import to_air, to_ge_proto
from tests.inspector.random_graphs import random_graph
from tests.inspector.test_readers import container


def read(folder: Path, name: str, data: bytes | str) -> list[Graph]:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    dump = read_dump(path)
    assert not dump.warnings
    graphs = [graph.to_ir() for graph in dump.graphs]
    assert not dump.warnings
    return graphs


@pytest.mark.parametrize("seed", range(40))
def test_ge_proto_and_om(seed: int, tmp_path: Path) -> None:
    graphs = [random_graph(seed), random_graph(1000 + seed, 3)]
    assert read(tmp_path, "a.txt", to_ge_proto(graphs)) == graphs
    assert read(tmp_path, "a.om", container([(0, to_air(graphs))])) == graphs


@pytest.mark.parametrize("seed", range(40))
def test_air_and_torchairs_text(seed: int, tmp_path: Path) -> None:
    graph = random_graph(seed, is_built=False)
    assert read(tmp_path, "a.air", to_air([graph])) == [graph]
    lines = to_ge_proto([graph]).splitlines()
    assert (lines[0], lines[-1]) == ("graph {", "}")
    assert read(tmp_path, "a.txt", "\n".join(line[2:] for line in lines[1:-1]) + "\n") == [graph]


@pytest.mark.parametrize("seed", range(20))
def test_both_ways_of_reading(seed: int, tmp_path: Path) -> None:
    """The same text, laid out so that only the tolerant reader can."""
    graph = random_graph(seed)
    text = to_ge_proto([graph])
    path = tmp_path / "a.txt"
    path.write_text("\n".join(" " + line for line in text.splitlines()))
    dump = read_dump(path)
    assert len(dump.warnings) == 1 and "slower reader" in dump.warnings[0]
    assert dump.root.to_ir() == graph


def test_what_protobuf_reads(tmp_path: Path) -> None:
    """The writer, against the parser it does not use."""
    graph = random_graph(3, 30)
    model = schema.messages().ModelDef()
    model.ParseFromString(to_air([graph], {"memory_size": 7}))
    assert [op.name for op in model.graph[0].op] == list(graph.nodes)
    assert model.attr["memory_size"].i == 7
