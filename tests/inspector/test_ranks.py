"""Ranks that do not issue the same: each fault is named as what it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector import RankReport, compare_ranks, dumps_by_rank, read_dump
from npu_fused_graph.ir.graph import Build, Node
from tests.inspector.build import ge_dump, node, torchair_dump

TP = "tag=ptd:0;rank_list=0,1"


def chain(groups: Sequence[str], **changed: object) -> list[Node]:
    """One all-reduce after another."""
    nodes = [node("x", "Data")]
    for i, group in enumerate(groups):
        nodes.append(node(f"ar{i}", "HcomAllReduce", nodes[-1].name, group=group, reduction="sum"))
    for name, value in changed.items():
        nodes[int(name[2:])] = value  # type: ignore[call-overload]
    return nodes


def compare(folder: Path, *ranks: list[Node]) -> RankReport:
    paths = [torchair_dump(folder, *nodes, rank=rank) for rank, nodes in enumerate(ranks)]
    return compare_ranks({rank: read_dump(path) for rank, path in enumerate(paths)})


def test_the_same(tmp_path: Path) -> None:
    found = compare(tmp_path, chain([TP] * 3), chain([TP] * 3))
    assert found.is_same and found.alike == [[0, 1]] and found.missing == {}
    assert (found.groups, found.counts) == ({"rank_list=0,1": [0, 1]}, {"rank_list=0,1": 3})
    assert found.notes == [
        "before GE: the order of collectives that do not depend on each other is up to its scheduler"
    ]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (node("ar1", "HcomAllGather", "ar0", group=TP), ("type", "reduction")),
        (node("ar1", "HcomAllReduce", "ar0", group=TP, reduction="max"), ("reduction",)),
        (node("ar1", "HcomAllReduce", "ar0", group=TP, reduction="sum", shape=(4, 9)), ("shape",)),
    ],
)
def test_one_that_differs(other: Node, what: tuple[str, ...], tmp_path: Path) -> None:
    found = compare(tmp_path, chain([TP] * 3), chain([TP] * 3, at2=other))
    (parted,) = found.divergences
    assert (parted.index, parted.ranks, parted.group) == (1, (0, 1), "rank_list=0,1")
    assert set(parted.what) <= set(what) and parted.what[0] == what[0]
    assert not found.is_same and found.alike == [[0], [1]]
    assert len(parted.around[0]) == 3


def test_dtypes_of_a_built_graph(tmp_path: Path) -> None:
    paths = [
        ge_dump(tmp_path, node("a", "HcomAllReduce", group="tp", dtype=dtype, build=Build(1, 0)), name=f"{dtype}.txt")
        for dtype in ("float16", "bfloat16")
    ]
    found = compare_ranks({rank: read_dump(path) for rank, path in enumerate(paths)})
    assert found.divergences[0].what == ("dtype",) and found.notes == []
    assert "rank 0 has a (HcomAllReduce float16[4, 8]), rank 1 has a (HcomAllReduce bfloat16[4, 8])" in str(
        found.divergences[0]
    )


def test_one_too_few(tmp_path: Path) -> None:
    (parted,) = compare(tmp_path, chain([TP] * 3), chain([TP] * 2)).divergences
    assert (parted.what, parted.index, parted.ops[1]) == (("count",), 2, "nothing more")


def test_a_rank_of_the_group_without_any(tmp_path: Path) -> None:
    (parted,) = compare(tmp_path, chain([TP]), [node("x", "Data")]).divergences
    assert (parted.what, parted.ops[1]) == (("count",), "nothing more")


def test_other_orders_of_two_groups(tmp_path: Path) -> None:
    """Each group's own sequence is the same; together they wait for each other."""
    found = compare(tmp_path, chain(["a", "b"]), chain(["b", "a"]))
    assert found.divergences == [] and not found.is_same
    assert sorted(found.cycle) == [
        "rank 0 issues collective 0 of group a before collective 0 of group b",
        "rank 1 issues collective 0 of group b before collective 0 of group a",
    ]
    assert compare(tmp_path, chain(["a", "b", "a"]), chain(["a", "b", "a"])).cycle == []


def test_order_of_a_built_graph_is_ges(tmp_path: Path) -> None:
    """By id, wherever the lines stand."""

    def at(*ids: int) -> list[Node]:
        return [
            node(f"a{i}", "HcomAllReduce", group=group, build=Build(i, 1)) for i, group in zip(ids, "pq", strict=True)
        ]

    paths = [ge_dump(tmp_path, *nodes, name=f"{i}.txt") for i, nodes in enumerate((at(1, 2), at(1, 2)[::-1], at(2, 1)))]
    dumps = [read_dump(path) for path in paths]
    assert compare_ranks({0: dumps[0], 1: dumps[1]}).is_same
    assert compare_ranks({0: dumps[0], 1: dumps[2]}).cycle


def test_missing_ranks_and_groups_of_other_names(tmp_path: Path) -> None:
    four = "tag=ptd:1;rank_list=0,1,2,3"
    found = compare(tmp_path, chain([four]), chain([four]))
    assert found.is_same and found.missing == {"rank_list=0,1,2,3": [2, 3]}
    found = compare(tmp_path, chain(["hccl_1_a", "hccl_1_b"]), chain(["hccl_2_a", "hccl_2_b"]))
    assert found.is_same and found.groups == {"#1": [0, 1], "#2": [0, 1]}
    assert "matched by the order" in found.notes[0]


def test_files_of_ranks(tmp_path: Path) -> None:
    for rank in range(3):
        for stage in ("original", "optimized"):
            torchair_dump(tmp_path, *chain([TP]), rank=rank, stage=stage)
    found = dumps_by_rank([tmp_path])
    assert list(found) == [0, 1, 2] and all("optimized" in path.name for path in found.values())
    torchair_dump(tmp_path, *chain([TP]), rank=1, graph_id=2)
    with pytest.raises(DumpError, match=r"\[ranks\] rank 1: expected dumps of one graph, got those of graphs 1, 2"):
        dumps_by_rank([tmp_path])
    files = [ge_dump(tmp_path / "ge", *chain([TP]), name=f"{name}.txt") for name in "ab"]
    assert dumps_by_rank(files) == dict(enumerate(files))
    with pytest.raises(DumpError, match="expected dumps whose names or folders say rank_<r>, got none"):
        dumps_by_rank([tmp_path / "ge"])
    with pytest.raises(DumpError, match="expected those of two ranks at least, got 1"):
        compare_ranks({0: read_dump(files[0])})
