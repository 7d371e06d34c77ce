"""Every Hcom operator on real processes, against values worked out by hand from what each rank puts in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from npu_fused_graph import comm
from npu_fused_graph.comm.pinboard import Pinboard
from npu_fused_graph.engine import compile_graph
from npu_fused_graph.errors import CommunicationError, ExecutionError
from npu_fused_graph.ir.graph import DTypeValue
from tests.engine.graphs import graph_of, node
from tests.ranks import run_ranks, values

ANY = ("float32", "bfloat16", "int64")
ALL = (*ANY, "float16", "float64", "int32", "int16", "int8", "uint8")


@dataclass(frozen=True)
class Case:
    """One operator on len(inputs) ranks.

    inputs, expected: per rank; inputs by IR name (``xs0`` for a dynamic one), expected one nested list per output.
    ``*counts``, ``*count`` and ``*displacements`` are int64. shape: of empty x, which a nested list cannot tell.
    """

    name: str
    ge_type: str
    inputs: Sequence[dict[str, Any]]
    expected: Sequence[list[Any]]
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    dtypes: tuple[str, ...] = ANY
    shape: tuple[int, ...] | None = None


A = [[1, 2, 3], [4, 5, 6]]
B = [[10, 20, 30], [7, 0, 1]]
AB = ({"x": A}, {"x": B})
SUM, SIZED = {"reduction": "sum"}, {"rank_size": 2}
TALL = ([[1, 2], [3, 4], [5, 6], [7, 8]], [[10, 20], [30, 40], [50, 60], [70, 80]])
CASES = [
    Case("sum", "HcomAllReduce", AB, [[[[11, 22, 33], [11, 5, 7]]]] * 2, SUM, dtypes=ALL),
    Case("max", "HcomAllReduce", AB, [[[[10, 20, 30], [7, 5, 6]]]] * 2, {"reduction": "max"}, dtypes=ALL),
    Case("min", "HcomAllReduce", AB, [[[[1, 2, 3], [4, 0, 1]]]] * 2, {"reduction": "min"}, dtypes=ALL),
    Case("prod", "HcomAllReduce", AB, [[[[10, 40, 90], [28, 0, 6]]]] * 2, {"reduction": "prod"}, dtypes=ALL),
    Case("attributes", "HcomAllReduce", AB, [[[[11, 22, 33], [11, 5, 7]]]] * 2,
         {"reduction": "sum", "fusion": 0, "fusion_id": -1}),
    Case("scalar", "HcomAllReduce", [{"x": 3}, {"x": 4}], [[7]] * 2, SUM),
    Case("bool", "HcomAllReduce", [{"x": [True, False, True]}, {"x": [True, False, False]}],
         [[[True, False, True]]] * 2, SUM, dtypes=("bool",)),
    Case("empty", "HcomAllReduce", [{"x": []}] * 2, [[[]]] * 2, SUM, shape=(0, 3)),
    Case("rows", "HcomAllGather", AB, [[[*A, *B]]] * 2, SIZED, dtypes=(*ALL, "uint16")),
    Case("bool", "HcomAllGather", [{"x": [True, False]}, {"x": [False, False]}], [[[True, False, False, False]]] * 2,
         SIZED, dtypes=("bool",)),
    Case("empty", "HcomAllGather", [{"x": []}] * 2, [[[]]] * 2, SIZED, shape=(0, 3)),
    Case("sum", "HcomReduceScatter", [{"x": TALL[0]}, {"x": TALL[1]}], [[[[11, 22], [33, 44]]], [[[55, 66], [77, 88]]]],
         SUM | SIZED),
    Case("max", "HcomReduceScatter", [{"x": TALL[0]}, {"x": TALL[1]}], [[[[10, 20], [30, 40]]], [[[50, 60], [70, 80]]]],
         {"reduction": "max", "fusion": 0, **SIZED}),
    Case("two", "HcomBroadcast", [{"x0": A, "x1": [1]}, {"x0": B, "x1": [2]}], [[B, [2]]] * 2, {"root_rank": 1},
         ("y0", "y1"), (*ALL, "float8_e4m3fn")),
    Case("empty", "HcomBroadcast", [{"x0": []}] * 2, [[[]]] * 2, {"root_rank": 0}, ("y0",), shape=(2, 0)),
    Case("halves", "HcomAllToAll", [{"x": TALL[0]}, {"x": TALL[1]}],
         [[[[1, 2], [3, 4], [10, 20], [30, 40]]], [[[5, 6], [7, 8], [50, 60], [70, 80]]]]),
    # rank 0 keeps row 0 and sends rows 1, 2; rank 1 sends its one row to rank 0. Counts are elements, rows have 2.
    Case("elements", "HcomAllToAllV",
         [{"send_data": [[1, 2], [3, 4], [5, 6]], "send_counts": [2, 4], "send_displacements": [0, 2],
           "recv_counts": [2, 2], "recv_displacements": [0, 2]},
          {"send_data": [[7, 8]], "send_counts": [2, 0], "send_displacements": [0, 2],
           "recv_counts": [4, 0], "recv_displacements": [0, 4]}],
         [[[[1, 2], [7, 8]]], [[[3, 4], [5, 6]]]], outputs=("recv_data",)),
    # both take the parts in reverse order from one shared overlap, and rank 1 leaves a gap of one element
    Case("displacements", "HcomAllToAllV",
         [{"send_data": [1, 2, 3], "send_counts": [2, 2], "send_displacements": [1, 0],
           "recv_counts": [2, 1], "recv_displacements": [1, 0]},
          {"send_data": [4, 5, 6], "send_counts": [1, 1], "send_displacements": [2, 0],
           "recv_counts": [2, 1], "recv_displacements": [2, 0]}],
         [[[6, 2, 3]], [[4, 0, 1, 2]]], outputs=("recv_data",)),
    Case("nothing", "HcomAllToAllV",
         [{"send_data": [1, 2], "send_counts": [0, 2], "send_displacements": [], "recv_counts": [0, 0],
           "recv_displacements": []},
          {"send_data": [3, 4], "send_counts": [0, 0], "send_displacements": [], "recv_counts": [2, 0],
           "recv_displacements": []}],
         [[[]], [[1, 2]]], outputs=("recv_data",)),
    Case("rows", "HcomAllGatherV",
         [{"x": [[1, 2]], "send_count": 1, "recv_counts": [1, 2], "recv_displacements": []},
          {"x": [[3, 4], [5, 6]], "send_count": 2, "recv_counts": [1, 2]}], [[[[1, 2], [3, 4], [5, 6]]]] * 2),
    Case("displacements", "HcomAllGatherV",
         [{"x": [[1, 2]], "send_count": 1, "recv_counts": [1, 2], "recv_displacements": [2, 0]},
          {"x": [[3, 4], [5, 6]], "send_count": 2, "recv_counts": [1, 2], "recv_displacements": [2, 0]}],
         [[[[3, 4], [5, 6], [1, 2]]]] * 2),
    Case("rows", "HcomReduceScatterV",
         [{"x": TALL[0], "recv_count": 1, "send_counts": [1, 3], "send_displacements": []},
          {"x": TALL[1], "recv_count": 3, "send_counts": [1, 3]}],
         [[[[11, 22]]], [[[33, 44], [55, 66], [77, 88]]]], SUM),
    Case("displacements", "HcomReduceScatterV",
         [{"x": TALL[0], "recv_count": 1, "send_counts": [1, 2], "send_displacements": [3, 0]},
          {"x": TALL[1], "recv_count": 2, "send_counts": [1, 2], "send_displacements": [3, 0]}],
         [[[[77, 88]]], [[[11, 22], [33, 44]]]], SUM),
    Case("four", "HcomAllReduce", [{"x": [r, 10 * r]} for r in range(4)], [[[6, 60]]] * 4, SUM),
    Case("four", "HcomAllGather", [{"x": [r]} for r in range(4)], [[[0, 1, 2, 3]]] * 4, {"rank_size": 4}),
    Case("four", "HcomReduceScatter", [{"x": [r, r + 1, 2 * r, 5]} for r in range(4)], [[[6]], [[10]], [[12]], [[20]]],
         {"reduction": "sum", "rank_size": 4}),
    Case("four", "HcomBroadcast", [{"x0": [r]} for r in range(4)], [[[2]]] * 4, {"root_rank": 2}, ("y0",)),
    Case("four", "HcomAllToAll", [{"x": [10 * r, 10 * r + 1, 10 * r + 2, 10 * r + 3]} for r in range(4)],
         [[[r, 10 + r, 20 + r, 30 + r]] for r in range(4)]),
    # rank r sends r elements to everybody
    Case("four", "HcomAllToAllV",
         [{"send_data": [r] * (4 * r), "send_counts": [r] * 4, "send_displacements": [], "recv_counts": [0, 1, 2, 3],
           "recv_displacements": []} for r in range(4)],
         [[[1, 2, 2, 3, 3, 3]]] * 4, outputs=("recv_data",)),
]  # fmt: skip


def _tensor(name: str, value: Any, dtype: str, shape: tuple[int, ...] | None) -> Tensor:
    if name.endswith(("count", "counts", "displacements")):
        return torch.tensor(value, dtype=torch.int64)
    x = torch.tensor(value, dtype=torch.float64).to(getattr(torch, dtype))
    return x if shape is None else x.reshape(shape)


def _strided(x: Tensor) -> Tensor:
    """The same values, not contiguous."""
    return x if x.dtype is torch.int64 and x.dim() < 2 else torch.stack([x, x], -1).select(-1, 0)


def _plain(x: Tensor) -> tuple[str, list[int], Any]:
    return str(x.dtype).removeprefix("torch."), list(x.shape), x.to(torch.float64).tolist()


def _run_case(rank: int, case: Case, dtype: str) -> list[Any]:
    """Three runs: interpreted, compiled, compiled with strided inputs; all must be the same."""
    feeds = {name: _tensor(name, value, dtype, case.shape) for name, value in case.inputs[rank].items()}
    attrs = {"group": "hccl_world_group", **case.attrs}
    item = node("op", case.ge_type, {name: name for name in feeds}, case.outputs, **attrs)
    graph = graph_of(feeds, [item], [f"op:{i}" for i in range(len(case.outputs))])
    executable = compile_graph(graph)
    originals = [x.to(torch.float64) for x in feeds.values()]
    plain = [_plain(x) for x in executable.run(list(feeds.values()))]
    assert [_plain(x) for x in executable.run(list(feeds.values()))] == plain
    assert [_plain(x) for x in executable.run([_strided(x) for x in feeds.values()])] == plain
    assert all(torch.equal(x.to(torch.float64), o) for x, o in zip(feeds.values(), originals, strict=True))
    return plain


def _run_cases(rank: int, size: int) -> dict[tuple[int, str], list[Any]]:
    return {
        (i, dtype): _run_case(rank, case, dtype)
        for i, case in enumerate(CASES)
        if len(case.inputs) == size
        for dtype in case.dtypes
    }


@lru_cache
def _results(size: int) -> list[dict[tuple[int, str], list[Any]]]:
    return values(run_ranks(_run_cases, size, size, limit=120, timeout=60))


@pytest.mark.xdist_group("collectives")
@pytest.mark.parametrize(
    ("index", "dtype"),
    [
        pytest.param(i, dtype, id=f"{case.ge_type}-{case.name}-{dtype}")
        for i, case in enumerate(CASES)
        for dtype in case.dtypes
    ],
)
def test_values(index: int, dtype: str) -> None:
    case = CASES[index]
    for rank, results in enumerate(_results(len(case.inputs))):
        wanted = [torch.tensor(e, dtype=torch.float64) for e in case.expected[rank]]
        if case.shape is not None:
            rows = case.shape[0] * (len(case.inputs) if case.ge_type == "HcomAllGather" else 1)
            wanted = [w.reshape(rows, *case.shape[1:]) for w in wanted]
        assert results[index, dtype] == [(dtype, list(w.shape), w.tolist()) for w in wanted], f"rank {rank}"


# -- point to point, subgroups, group strings ------------------------------------------------------------------


def _send_and_receive(rank: int) -> Any:
    """Ranks 0 and 1 of four swap two tensors each under different tags; ranks 2 and 3 do not take part."""
    if rank > 1:
        return None
    other = 1 - rank
    feeds = {"a": torch.tensor([[1.0, 2.0]]) + 10 * rank, "b": torch.tensor([5, 6, 7]) + 10 * rank}
    nodes = [
        node("send_a", "HcomSend", {"x": "a"}, (), group="0", sr_tag=7, dest_rank=other),
        node("send_b", "HcomSend", {"x": "b"}, (), group="0", sr_tag=8, dest_rank=other),
        node(
            "get_a", "HcomReceive", {}, group="0", sr_tag=7, src_rank=other, shape=[1, 2], dtype=DTypeValue("float32")
        ),
        node("get_b", "HcomReceive", {}, group="0", sr_tag=8, src_rank=other, shape=[3], dtype=DTypeValue("int64")),
    ]
    order = [nodes[0], nodes[2], nodes[1], nodes[3]] if rank == 0 else [nodes[2], nodes[0], nodes[3], nodes[1]]
    executable = compile_graph(graph_of(feeds, order, ["get_a", "get_b"]))
    return [[_plain(x) for x in executable.run(list(feeds.values()))] for _ in range(3)]


def test_send_and_receive_between_two_of_four_ranks() -> None:
    results = values(run_ranks(_send_and_receive, 4))
    assert results[0] == [[("float32", [1, 2], [[11.0, 12.0]]), ("int64", [3], [15.0, 16.0, 17.0])]] * 3
    assert results[1] == [[("float32", [1, 2], [[1.0, 2.0]]), ("int64", [3], [5.0, 6.0, 7.0])]] * 3
    assert results[2:] == [None, None]


def _subgroup(rank: int) -> Any:
    """Ranks 1 and 3 of four form a group; root, destination and source are ranks of the group."""
    odd = dist.new_group([1, 3])
    even = dist.new_group([0, 2])
    group = (odd if rank % 2 else even).group_name
    x = torch.tensor([float(rank)])
    me, other = rank // 2, 1 - rank // 2
    send = node("send", "HcomSend", {"x": "x"}, (), group=group, sr_tag=0, dest_rank=other)
    receive = node(
        "receive", "HcomReceive", {}, group=group, sr_tag=0, src_rank=other, shape=[1], dtype=DTypeValue("float32")
    )
    nodes = [
        node("sum", "HcomAllReduce", {"x": "x"}, group=group, reduction="sum"),
        node("all", "HcomAllGather", {"x": "x"}, group="0", rank_size=4),
        node("root", "HcomBroadcast", {"x0": "x"}, ("y0",), group=group, root_rank=1),
        *([send, receive] if me == 0 else [receive, send]),
    ]
    results = ["sum", "all", "root", "receive"]
    executable = compile_graph(graph_of({"x": x}, nodes, results))
    return [[r.tolist() for r in executable.run([x])] for _ in range(2)]


def test_subgroups_use_ranks_of_the_group() -> None:
    results = values(run_ranks(_subgroup, 4))
    everybody = [0.0, 1.0, 2.0, 3.0]
    assert results[0] == [[[2.0], everybody, [2.0], [2.0]]] * 2
    assert results[1] == [[[4.0], everybody, [3.0], [3.0]]] * 2
    assert results[2] == [[[2.0], everybody, [2.0], [0.0]]] * 2
    assert results[3] == [[[4.0], everybody, [3.0], [1.0]]] * 2


def _all_reduce(group: str, x: Tensor) -> Tensor:
    item = node("reduce", "HcomAllReduce", {"x": "x"}, group=group, reduction="sum")
    return compile_graph(graph_of({"x": x}, [item], ["reduce"])).run([x])[0]


def _group_strings(rank: int) -> Any:
    twin = dist.new_group([0, 1])
    world_tag = dist.distributed_c10d._get_group_tag(dist.group.WORLD)
    twin_tag = dist.distributed_c10d._get_group_tag(twin)
    names = [
        "0",
        "hccl_world_group",
        f"tag={world_tag};rank_list=0,1",
        f"tag={twin_tag};rank_list=0,1",
        twin.group_name,
    ]
    found = [comm.resolve(name) for name in names]
    same = [group is (dist.group.WORLD if i < 3 else twin) for i, group in enumerate(found)]
    shared = comm.communicator(names[0]) is comm.communicator(names[2])
    sums = [_all_reduce(name, torch.tensor([float(rank + 1)])).item() for name in names]
    try:
        comm.resolve(f"tag={world_tag};rank_list=0,1,2")
    except CommunicationError as error:
        return same, shared, sums, str(error)
    return None


def test_group_strings() -> None:
    for rank, (same, shared, sums, error) in enumerate(values(run_ranks(_group_strings, 2))):
        assert all(same)
        assert shared
        assert sums == [3.0] * 5
        assert "rank_list=0,1,2" in error
        assert f"on rank {rank} of 2" in error


class _NamedBackend(dist.ProcessGroup):
    """As torch_npu's HCCL backend names its communicators."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)

    def get_hccl_comm_name(self, rank: int, init_comm: bool = True) -> str:
        assert not init_comm  # asking must not open HCCL connections
        return f"hccl_comm_of_{rank}"


def test_hccl_communicator_name(monkeypatch: pytest.MonkeyPatch) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        world = dist.group.WORLD
        backend = _NamedBackend(1, 2)
        monkeypatch.setattr(type(world), "_get_backend", lambda self, device: backend)
        assert comm.resolve("hccl_comm_of_1") is world
        with pytest.raises(CommunicationError, match="hccl_comm_of_7"):
            comm.resolve("hccl_comm_of_7")
    finally:
        dist.destroy_process_group()


def test_fake_backend_talks_to_nobody() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    try:
        x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        nodes = [
            node("reduce", "HcomAllReduce", {"x": "x"}, group="0", reduction="sum"),
            node("gather", "HcomAllGather", {"x": "x"}, group="0", rank_size=4),
            node("scatter", "HcomReduceScatter", {"x": "x"}, group="0", rank_size=4, reduction="sum"),
            node("swap", "HcomAllToAll", {"x": "x"}, group="0"),
            node("send", "HcomSend", {"x": "x"}, (), group="0", sr_tag=0, dest_rank=2),
            node("get", "HcomReceive", {}, group="0", sr_tag=0, src_rank=0, shape=[3], dtype=DTypeValue("int64")),
            node("root", "HcomBroadcast", {"x0": "x"}, ("y0",), group="0", root_rank=3),
        ]
        results = ["reduce", "gather", "scatter", "swap", "get", "root"]
        executable = compile_graph(graph_of({"x": x}, nodes, results))
        for _ in range(2):
            shapes = [tuple(r.shape) for r in executable.run([x])]
            assert shapes == [(4, 1), (16, 1), (1, 1), (4, 1), (3,), (4, 1)]
    finally:
        dist.destroy_process_group()


def test_a_rank_keeps_no_more_than_its_part_of_what_was_reduced() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    try:
        part = comm.communicator("0").reduce_scatter(torch.ones(8, 3))
        assert part.shape == (2, 3)
        assert part.untyped_storage().nbytes() == 2 * 3 * 4
    finally:
        dist.destroy_process_group()


def _again(rank: int, size: int) -> Any:
    """Three process groups of one name in a row."""
    sums = [_all_reduce("0", torch.tensor([float(rank)])).item()]
    old = comm.communicator("0")
    server = dist.TCPStore("127.0.0.1", 0, is_master=True) if rank == 0 else None
    port = [server.port if server else 0]
    dist.broadcast_object_list(port, src=0)
    store = server or dist.TCPStore("127.0.0.1", port[0], is_master=False)
    for life in (1, 2):
        dist.barrier()
        dist.destroy_process_group()
        place = dist.PrefixStore(f"life {life}", store)  # c10d's own connections cannot be made twice in one place
        dist.init_process_group("gloo", store=place, rank=rank, world_size=size)
        sums.append(_all_reduce("0", torch.tensor([float(rank + life)])).item())
        assert comm.communicator("0") is not old
        old = comm.communicator("0")
    dist.barrier()
    return sums


def test_new_process_group_gets_new_connections() -> None:
    assert values(run_ranks(_again, 2, 2)) == [[1.0, 3.0, 5.0]] * 2


def test_new_process_group_does_not_read_what_an_old_one_left() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        old = Pinboard(dist.group.WORLD)
        old.leave("the disk is on fire")
        assert old.store.check(["end/0"])
        assert not Pinboard(dist.group.WORLD).store.check(["end/0"])
    finally:
        dist.destroy_process_group()


def test_a_rank_that_fails_while_others_give_up_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever timed out looks for the last words of the others a little longer than once."""
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=2)
    try:
        board = Pinboard(dist.group.WORLD)
        ask, looks = board._ask, []

        def late(method: str, *args: Any) -> Any:
            if method == "check" and args == (["end/1"],):
                looks.append(method)
                if len(looks) == 1:
                    board.store.set("end/1", "failed the disk is on fire")
                    return False
            return ask(method, *args)

        monkeypatch.setattr(board, "_ask", late)
        assert board.causes("reduce", [0, 1], timed_out=True) == ["rank 1 failed: the disk is on fire"]
        assert board.causes("reduce", [0, 1], timed_out=False) == ["rank 1 failed: the disk is on fire"]
    finally:
        dist.destroy_process_group()


def _in_a_file(rank: int, size: int, path: str) -> float:
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=size)
    total = _all_reduce("0", torch.tensor([float(rank + 1)])).item()
    dist.barrier()
    return total


def test_store_in_a_file(tmp_path: Path) -> None:
    assert values(run_ranks(_in_a_file, 2, 2, str(tmp_path / "store"))) == [3.0, 3.0]


# -- graphs of several collectives -----------------------------------------------------------------------------


def _changing(rank: int) -> Any:
    """A dynamic graph whose shapes change together on all ranks, then come back; and counts that change as data."""
    nodes = [
        node("sum", "HcomAllReduce", {"x": "x"}, group="0", reduction="sum"),
        node("all", "HcomAllGather", {"x": "sum"}, group="0", rank_size=2),
    ]
    executable = compile_graph(graph_of({"x": torch.zeros(1)}, nodes, ["sum", "all"], dynamic=True))
    shapes = [[tuple(r.shape) for r in executable.run([torch.ones(n)])] for n in (3, 3, 5, 5, 3, 1)]
    counts = {"c": torch.zeros(2, dtype=torch.int64)}
    names = ("send_counts", "send_displacements", "recv_counts", "recv_displacements")
    inputs = {"send_data": "x", **{n: "c" if "counts" in n else "none" for n in names}}
    item = node("swap", "HcomAllToAllV", inputs, ("recv_data",), group="0")
    data = {"x": torch.zeros(8), **counts}
    swap = compile_graph(graph_of(data, [item], ["swap"], const={"none": torch.zeros(0, dtype=torch.int64)}))
    x = torch.arange(8.0) + 10 * rank
    swapped = [swap.run([x, torch.tensor([n, n])])[0].tolist() for n in (1, 1, 4, 2)]
    return shapes, swapped


def test_shapes_and_counts_may_change_together() -> None:
    results = values(run_ranks(_changing, 2))
    for rank, (shapes, swapped) in enumerate(results):
        assert shapes == [[(n,), (2 * n,)] for n in (3, 3, 5, 5, 3, 1)]
        for n, got in zip((1, 1, 4, 2), swapped, strict=True):
            mine = range(rank * n, rank * n + n)
            assert got == [*(float(i) for i in mine), *(10.0 + i for i in mine)]


# -- refused nodes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ge_type", "feeds", "attrs", "text"),
    [
        ("HcomAllReduce", {"x": torch.ones(2)}, {"reduction": "avg"}, "reduction: expected one of"),
        ("HcomAllReduce", {"x": torch.ones(2, dtype=torch.complex64)}, SUM, "a real number type"),
        ("HcomAllGather", {"x": torch.ones(2)}, {"rank_size": 2}, "rank_size: expected the size of group"),
        ("HcomAllGather", {"x": torch.ones(())}, {"rank_size": 4}, "x: expected at least one dim"),
        ("HcomReduceScatter", {"x": torch.ones(3)}, {"rank_size": 4, "reduction": "sum"}, "divisible by 4 ranks"),
        ("HcomAllToAll", {"x": torch.ones(3)}, {}, "divisible by 4 ranks"),
        ("HcomBroadcast", {"x0": torch.ones(3)}, {"root_rank": 4}, "root: expected a rank of group"),
        ("HcomSend", {"x": torch.ones(3)}, {"dest_rank": 1, "sr_tag": 0}, "expected another rank"),
        (
            "HcomAllGatherV",
            {"x": torch.ones(3), "send_count": torch.tensor(2), "recv_counts": torch.tensor([1, 1, 1, 1])},
            {},
            "send_count: expected the 1 rows",
        ),
        (
            "HcomReduceScatterV",
            {"x": torch.ones(3), "recv_count": torch.tensor(1), "send_counts": torch.tensor([1, 1, 1, 1])},
            SUM,
            "send_counts: expected parts inside 3 rows",
        ),
    ],
)
def test_refused(ge_type: str, feeds: dict[str, Tensor], attrs: dict[str, Any], text: str) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    try:
        outputs = () if ge_type == "HcomSend" else ("y0",) if ge_type == "HcomBroadcast" else ("y",)
        item = node("op", ge_type, {name: name for name in feeds}, outputs, group="0", **attrs)
        executable = compile_graph(graph_of(feeds, [item], ["op"] if outputs else []))
        with pytest.raises((ExecutionError, CommunicationError), match=text) as caught:
            executable.run(list(feeds.values()))
        assert f"op ({ge_type}" in str(caught.value)
        assert "rank 1 of 4" in str(caught.value)
    finally:
        dist.destroy_process_group()


def test_no_process_group() -> None:
    with pytest.raises(CommunicationError, match="init_process_group"):
        _all_reduce("0", torch.ones(1))


def _barrier(rank: int) -> tuple[bool, str]:
    x = torch.tensor([rank, 7])
    item = node("barrier", "DistributeBarrier", {"x_ref": "x"}, ("x_ref",), group="0", world_size=2)
    (result,) = compile_graph(graph_of({"x": x}, [item], ["barrier"])).run([x])
    wrong = node("barrier", "DistributeBarrier", {"x_ref": "x"}, ("x_ref",), group="0", world_size=3)
    try:
        compile_graph(graph_of({"x": x}, [wrong], ["barrier"])).run([x])
    except RuntimeError as error:
        return result.tolist() == [rank, 7], str(error)
    return False, ""


def test_distribute_barrier() -> None:
    for same, text in values(run_ranks(_barrier, 2)):
        assert same
        assert "rank_size: expected the size of" in text
