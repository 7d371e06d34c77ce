"""What is said about a dump: counts, fused ops, memory, neighbourhoods, expectations."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu_fused_graph.errors import DumpError, InvalidArgumentError
from npu_fused_graph.inspector import (
    Filter,
    assert_fused,
    check,
    fused,
    memory,
    neighbours,
    read_dump,
    select,
    summary,
)
from npu_fused_graph.inspector.selection import facts_of, place_of
from npu_fused_graph.ir.graph import Build, Node
from tests.inspector import texts
from tests.inspector.build import ge_dump, node, torchair_dump
from tests.inspector.samples import sample

CHAIN = [
    node("x", "Data"),
    node("w", "Const", shape=(8, 8)),
    node("mm", "MatMul", "x", "w"),
    node("ar", "HcomAllReduce", "mm", group="tp", reduction="sum"),
    node("ag", "HcomAllGather", "ar", group="ep"),
    node("other", "HcomAllReduce", "ag", group="tp", controls=["x"]),
    node("add", "Add", "ar", "outside:1"),
    node("out", "NetOutput", "add", "other", "", outputs=0),
]


def test_summary(tmp_path: Path) -> None:
    found = summary(read_dump(torchair_dump(tmp_path, *CHAIN, rank=3)))
    assert (found.format, found.ops, found.file["rank"], found.file["stage"]) == ("torchair txt", 8, 3, "optimized")
    (graph,) = found.graphs
    assert (graph.data_edges, graph.control_edges, graph.outside, graph.streams) == (9, 1, 1, None)
    assert found.types["HcomAllReduce"] == 2 and found.fused == {}
    assert found.groups == {"tp": {"HcomAllReduce": 2}, "ep": {"HcomAllGather": 1}}
    assert (found.outputs, found.shapes) == (7, {"stated": 7})
    assert found.dtypes == {"unknown": 7}, "TorchAir's dtypes without _meta are defaults"


def test_summary_of_a_built_graph(tmp_path: Path) -> None:
    nodes = [node(f"n{i}", "Relu", build=Build(i, i % 3)) for i in range(6)]
    found = summary(read_dump(ge_dump(tmp_path, *nodes, memory_size=4096, soc_version="Ascend910B3", private="no")))
    assert found.graphs[0].streams == {"0": 2, "1": 2, "2": 2}
    assert found.dtypes == {"float16": 6}
    assert found.attrs == {"memory_size": 4096, "soc_version": "Ascend910B3"}


def test_large_dumps_are_not_decoded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npu_fused_graph.inspector.counting.DECODED", 3)
    dump = read_dump(torchair_dump(tmp_path, *CHAIN))
    found = summary(dump)
    assert found.outputs is None and "--full counts them" in found.notes[0]
    assert summary(dump, is_full=True).outputs == 7


def test_select(tmp_path: Path) -> None:
    dump = read_dump(torchair_dump(tmp_path, *CHAIN))

    def names(**wanted: object) -> list[str]:
        return [graph.names[op] for graph, op in select(dump, Filter(**wanted))]  # type: ignore[arg-type]

    assert names(type="Hcom*") == ["ar", "ag", "other"]
    assert names(type="Hcom*", group="tp") == ["ar", "other"]
    assert names(name="o*") == ["other", "out"]
    assert names(dtype="float16") == ["x", "w", "mm", "ar", "ag", "other", "add"]
    assert names(dtype="int8") == [] and names(stream=0) == []


def test_select_by_stream(tmp_path: Path) -> None:
    dump = read_dump(ge_dump(tmp_path, *(node(f"n{i}", "Relu", build=Build(i, i % 2)) for i in range(5))))
    assert [graph.names[op] for graph, op in select(dump, Filter(stream=1))] == ["n1", "n3"]


def test_neighbours(tmp_path: Path) -> None:
    graph = read_dump(torchair_dump(tmp_path, *CHAIN)).root
    ar = graph.places["ar"]

    def near(hops: int) -> dict[str, int]:
        return {graph.names[op]: far for op, far in neighbours(graph, ar, hops).items()}

    assert near(1) == {"ar": 0, "mm": -1, "ag": 1, "add": 1}
    assert near(2) == near(1) | {"x": -2, "w": -2, "other": 2, "out": 2}
    x = graph.places["x"]
    assert graph.names[2] == "mm" and neighbours(graph, x, 1) == {x: 0, 2: 1, graph.places["other"]: 1}, "waits, too"


def test_one_op(tmp_path: Path) -> None:
    dump = read_dump(torchair_dump(tmp_path, *CHAIN))
    facts = facts_of(*place_of(dump, "add"))
    assert (facts["type"], facts["readers"]) == ("Add", ["out"])
    assert [item["from"] for item in facts["inputs"]] == ["ar:0", "outside:1"]
    assert facts["outputs"][0]["shape"] == [4, 8] and "id" not in facts
    with pytest.raises(DumpError, match=r"expected an op named 'othe', got none of that name\. Near: other"):
        place_of(dump, "othe")


def test_fused_by_type_and_by_ges_notes(tmp_path: Path) -> None:
    path = tmp_path / "ge_proto_00000001_graph_1_Build.txt"
    path.write_text(texts.GE_PROTO)
    (op,) = fused(read_dump(path))
    assert (op.type, op.groups, op.origins) == ("MatmulAllReduceAddRmsNorm", ("hccl_tp0",), ("mm", "ar"))
    assert op.passes == ("MatmulAllReduceAddRmsNormFusionPass",)
    assert op.stands_for == "MatMul, HcomAllReduce, Add, RmsNorm"
    notes = [
        node("a", "Conv2D", _datadump_original_op_names=["conv", "bn"], pass_name=["P"], pass_name_ub="U"),
        node("b", "TransData", _datadump_original_op_names=[]),
        node("c", "Relu", _datadump_original_op_names=["relu", "relu"]),
    ]
    (op,) = fused(read_dump(ge_dump(tmp_path, *notes)))
    assert (op.name, op.stands_for, op.origins, op.passes) == ("a", "", ("conv", "bn"), ("P", "U"))


def test_notes_on_every_format(tmp_path: Path) -> None:
    """The search through text, and asking each op, find the same."""
    dump = read_dump(sample("msit_analyze_test.om.json"))
    assert [op.type for op in fused(dump)].count("BNInferenceD") == 7
    dump = read_dump(sample("ge_proto_00015_OptimizeQuantGraph_FeGraphFusionAfter.txt"))
    name = "_datadump_original_op_names"
    assert dump.root.having(name) == [op for op, node in enumerate(dump.root.nodes()) if name in node.attrs] != []


def test_memory_of_a_real_model() -> None:
    found = memory(read_dump(sample("msit_analyze_test.om.json")))
    assert (found.high_water, found.declared, found.is_estimate) == (11_082_864, 11_083_264, False)


def test_memory_by_offsets(tmp_path: Path) -> None:
    def at(i: int, offset: int, *workspaces: tuple[int, int]) -> Build:
        return Build(i, 0, [], [offset], list(workspaces))

    nodes = [
        node("x", "Data", build=Build(0, 0)),
        node("a", "Relu", "x", shape=(512,), build=at(1, 0)),  # 1024 bytes
        node("b", "Relu", "a", shape=(256,), build=at(2, 1024, (4096, 100))),  # 512
        node("c", "Relu", "b", shape=(1024,), build=at(3, 2048)),  # 2048; a is dead
        node("d", "Relu", "c", shape=(1024,), build=at(4, 2048)),  # in place
    ]
    found = memory(read_dump(ge_dump(tmp_path, *nodes, memory_size=4608)), top=2)
    assert (found.is_estimate, found.high_water, found.declared) == (False, 4196, 4608)
    assert found.curve == [(1, 1024), (2, 1636), (3, 2560), (4, 2048), (5, 0)]
    assert (found.live_peak, found.peak_at) == (2560, "c")
    assert [t.name for t in found.top] == ["c:0", "b:0"]


def test_memory_by_an_estimate(tmp_path: Path) -> None:
    nodes = [
        node("x", "Data"), node("w", "Const", shape=(100,)), node("a", "Relu", "x", shape=(600,)),
        node("b", "Relu", "a", shape=(10,)), node("c", "Add", "a", "b", shape=(-1,)),
    ]  # fmt: skip
    found = memory(read_dump(torchair_dump(tmp_path, *nodes)))
    assert (found.is_estimate, found.high_water, found.unknown, found.weights) == (True, 1536 + 512, 1, 200)
    assert found.curve == [(2, 1536), (3, 2048), (5, 0)]


def test_check(tmp_path: Path) -> None:
    dump = read_dump(torchair_dump(tmp_path, *CHAIN))
    findings = check(dump, ["HcomAllReduce=2", "HcomAllReduce>=3", "Add<=1", "MatMul = 0", "Nothing==0"])
    assert [(f.got, f.is_fine) for f in findings] == [("2", True), ("2", False), ("1", True), ("1", False), ("0", True)]
    assert [f.is_fine for f in check(dump, memory_below=10_000)] == [True]
    assert [f.is_fine for f in check(dump, memory_below=10)] == [False]
    with pytest.raises(InvalidArgumentError, match=r"\[check\] --expect: expected TYPE=N, TYPE>=N or TYPE<=N, got 'x'"):
        check(dump, ["x"])


def test_assert_fused(tmp_path: Path) -> None:
    path = torchair_dump(tmp_path, *CHAIN)
    assert_fused(path, "HcomAllReduce", 2)
    with pytest.raises(AssertionError, match=r"expected 4 MatmulAllReduceAddRmsNorm, got 0\. It has 2 HcomAllReduce"):
        assert_fused(path, "MatmulAllReduceAddRmsNorm", 4)


def test_owners_of_one_place_count_once(tmp_path: Path) -> None:
    """An in-place op may own less than what it stands in, or more."""

    def at(name: str, source: str, elements: int, offset: int, number: int) -> Node:
        made = node(name, "Relu", source, shape=(elements,), build=Build(number))
        assert made.build is not None
        made.build.output_offsets = [offset]
        return made

    x = node("x", "Data", shape=(8,), build=Build(0))
    nodes = [x, at("a", "x", 256, 0, 1), at("b", "a", 1024, 0, 2), at("c", "b", 128, 4096, 3)]
    found = memory(read_dump(ge_dump(tmp_path, *nodes)))
    assert found.curve == [(1, 512), (2, 2048), (3, 2048 + 256), (4, 0)]
    assert (found.live_peak, found.peak_at) == (2304, "c")
