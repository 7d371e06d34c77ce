"""What a rank's fault does to the others: every survivor ends in time, with an error that names rank, node and group.

Real processes. ``PROMPT`` cases must not even need the time-out: the peers are told or see the connection break.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from npu_fused_graph import comm
from npu_fused_graph.engine import compile_graph, register_kernel
from npu_fused_graph.engine.executor import Executable
from npu_fused_graph.errors import CommunicationError
from npu_fused_graph.ir.graph import DTypeValue
from tests.engine.graphs import graph_of, node
from tests.ranks import Outcome, run_ranks, values

PROMPT: dict[str, Any] = {"timeout": 60, "limit": 20}
"""Whoever waited for the time-out would still run at the limit, and be killed instead of ending."""
LATE: dict[str, Any] = {"timeout": 2, "limit": 20}


def _assert_failed(outcome: Outcome, *texts: str) -> None:
    """The rank ended by itself, with an error that has all ``texts``."""
    assert outcome.exit_code == 1, (outcome.exit_code, outcome.error)
    for text in texts:
        assert text in outcome.error, outcome.error


def _reduce_graph(x: Tensor, group: str = "0", *, dynamic: bool = False) -> Executable:
    item = node("reduce", "HcomAllReduce", {"x": "x"}, group=group, reduction="sum")
    return compile_graph(graph_of({"x": x}, [item], ["reduce"], dynamic=dynamic))


def _faulty_graph(x: Tensor) -> Executable:
    """all-reduce, a kernel of our own, all-reduce."""
    nodes = [
        node("first", "HcomAllReduce", {"x": "x"}, group="0", reduction="sum"),
        node("fault", "Fault", {"x": "first"}),
        node("second", "HcomAllReduce", {"x": "fault"}, group="0", reduction="sum"),
    ]
    return compile_graph(graph_of({"x": x}, nodes, ["second"]))


# -- a rank dies ------------------------------------------------------------------------------------------------


def _killed(rank: int, victim: int, healthy_runs: int) -> None:
    runs = 0

    def fault(x: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        if rank == victim and runs > healthy_runs:
            os.kill(os.getpid(), signal.SIGKILL)
        return x.clone()

    register_kernel("Fault", fault)
    x = torch.ones(4)
    executable = _faulty_graph(x)
    for _ in range(healthy_runs + 1):
        executable.run([x])


@pytest.mark.parametrize(
    ("size", "victim", "healthy_runs"),
    [
        pytest.param(2, 1, 0, id="rank 1, interpreted"),
        pytest.param(2, 1, 2, id="rank 1, compiled"),
        pytest.param(2, 0, 1, id="rank 0 with the store"),
        pytest.param(3, 1, 0, id="one of three"),
    ],
)
def test_killed_inside_a_graph(size: int, victim: int, healthy_runs: int) -> None:
    outcomes = run_ranks(_killed, size, victim, healthy_runs, **PROMPT)
    assert outcomes[victim].exit_code == -signal.SIGKILL
    for rank, outcome in enumerate(outcomes):
        if rank != victim:
            told = f"rank {victim} has ended"
            where = f"second (HcomAllReduce on group '0') on rank {rank} of {size}"
            _assert_failed(outcome, "CommunicationError", told, where, "group '0' (ranks [0, 1")


def _killed_before(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    _reduce_graph(torch.ones(4)).run([torch.ones(4)])


@pytest.mark.slow
def test_killed_before_the_first_run() -> None:
    outcomes = run_ranks(_killed_before, 2, **LATE)
    assert outcomes[1].exit_code == -signal.SIGKILL
    _assert_failed(outcomes[0], "rank 1 never used this group", "reduce (HcomAllReduce on group '0') on rank 0 of 2")


# -- a rank raises ----------------------------------------------------------------------------------------------


def _raises(rank: int, culprit: int, healthy_runs: int) -> None:
    runs = 0

    def fault(x: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        if rank == culprit and runs > healthy_runs:
            raise ValueError("the disk is on fire")
        return x.clone()

    register_kernel("Fault", fault)
    x = torch.ones(4)
    executable = _faulty_graph(x)
    for _ in range(healthy_runs + 1):
        executable.run([x])


def _all_raise(rank: int) -> list[Any]:
    """The graph fails on both ranks, interpreted and compiled; then it runs, and another one."""
    runs = 0

    def fault(x: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        if runs in (1, 3):
            raise ValueError(f"rank {rank} cannot")
        return x.clone()

    register_kernel("Fault", fault)
    x = torch.ones(4)
    executable, found = _faulty_graph(x), []
    for _ in range(4):
        try:
            found.append(executable.run([x])[0].tolist())
        except RuntimeError as error:
            found.append(str(error))
    found.append(comm.communicator("0").all_reduce(torch.full((1,), rank + 1.0)).tolist())
    return found


def test_a_graph_that_fails_alike_on_all_ranks_leaves_the_group_usable() -> None:
    for rank, found in enumerate(values(run_ranks(_all_raise, 2, **PROMPT))):
        where = f"fault (Fault) on rank {rank} of 2: rank {rank} cannot"
        assert where in found[0] and where in found[2], found
        assert found[1] == found[3] == [4.0] * 4
        assert found[4] == [3.0]


def _different_behind_the_failure(rank: int) -> list[str]:
    """The first run fails alike before the second collective, which in the next one has other sizes on each rank."""
    runs = 0

    def fault(x: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ValueError("not yet")
        return x[: 2 + rank].clone()

    register_kernel("Fault", fault)
    x = torch.ones(4)
    executable, found = _faulty_graph(x), []
    for _ in range(2):
        try:
            found.append(str(executable.run([x])[0].tolist()))
        except RuntimeError as error:
            found.append(str(error))
    return found


def test_what_lies_behind_a_failure_is_compared_in_the_next_run() -> None:
    for first, second in values(run_ranks(_different_behind_the_failure, 2, **PROMPT)):
        assert "not yet" in first
        assert "second (HcomAllReduce on group '0')" in second
        assert "[2]" in second and "[3]" in second, second


def _two_reasons(rank: int) -> list[str]:
    """Rank 0 fails in the graph, rank 1 at its inputs."""
    register_kernel("Fault", lambda x: 1 / 0)
    x = torch.ones(4)
    executable, found = _faulty_graph(x), []
    for given in (x if rank == 0 else torch.ones(5), x):
        try:
            executable.run([given])
        except RuntimeError as error:
            found.append(str(error))
    return found


def test_ranks_that_fail_for_different_reasons_end_the_group() -> None:
    for first, second in values(run_ranks(_two_reasons, 2, **PROMPT)):
        assert "rank 1 failed: [engine] case input x: expected shape [4], got [5]" in first or "got [5]" in first
        assert "expected a working group, got one that failed" in second


@pytest.mark.parametrize(
    ("size", "culprit", "healthy_runs"),
    [
        pytest.param(2, 1, 0, id="rank 1, interpreted"),
        pytest.param(2, 0, 2, id="rank 0 with the store, compiled"),
        pytest.param(4, 2, 1, id="one of four"),
    ],
)
def test_raised_in_a_kernel(size: int, culprit: int, healthy_runs: int) -> None:
    outcomes = run_ranks(_raises, size, culprit, healthy_runs, **PROMPT)
    for rank, outcome in enumerate(outcomes):
        if rank == culprit:
            where = f"fault (Fault) on rank {rank} of {size}"
            _assert_failed(outcome, "ExecutionError", where, "the disk is on fire")
        else:
            told = f"rank {culprit} failed: [engine] fault (Fault) on rank {culprit} of {size}: the disk is on fire"
            where = f"second (HcomAllReduce on group '0') on rank {rank} of {size}"
            _assert_failed(outcome, "CommunicationError", told, where)
            assert outcome.error.count("the disk is on fire") == 1


def _interrupted(rank: int) -> str:
    """Rank 0 is interrupted where it waits for rank 1, and keeps the traceback, as at a prompt."""
    store = dist.distributed_c10d._get_default_store()
    runs = 0

    def fault(x: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        if runs == 3 and rank == 0:
            store.set("rank 0", str(os.getpid()))
        elif runs == 3:
            os.kill(int(store.get("rank 0")), signal.SIGINT)
        return x.clone()

    register_kernel("Fault", fault)
    x = torch.ones(2)
    nodes = [
        node("fault", "Fault", {"x": "x"}),
        node("rows", "HcomAllGather", {"x": "fault"}, group="0", rank_size=2),
        node("reduce", "HcomAllReduce", {"x": "rows"}, group="0", reduction="sum"),
    ]
    executable = compile_graph(graph_of({"x": x}, nodes, ["reduce"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(3):
            executable.run([x])
    except (KeyboardInterrupt, CommunicationError) as error:
        if rank == 0:
            store.wait(["rank 1 is done"])
        else:
            store.set("rank 1 is done", "")
        return str(error) or type(error).__name__
    return "no error"


def test_who_waits_for_an_interrupted_rank_is_told_at_once() -> None:
    interrupted, told = values(run_ranks(_interrupted, 2, **PROMPT))
    assert interrupted == "KeyboardInterrupt"
    assert "rank 0 failed: KeyboardInterrupt" in told


def _wrong_input(rank: int) -> None:
    x = torch.ones(4)
    _reduce_graph(x).run([torch.ones(4 + rank)])


def test_input_refused_on_one_rank() -> None:
    outcomes = run_ranks(_wrong_input, 2, **PROMPT)
    _assert_failed(outcomes[1], "ExecutionError", "input x: expected shape [4], got [5]")
    _assert_failed(
        outcomes[0],
        "rank 1 failed: [engine] case input x: expected shape [4], got [5]",
        "reduce (HcomAllReduce on group '0') on rank 0 of 2",
    )


def _other_group(rank: int) -> None:
    """Rank 1 fails in a group with rank 0; rank 2 shares only another group with rank 1."""
    left, right = dist.new_group([0, 1]), dist.new_group([1, 2])
    x = torch.ones(2)
    nodes = []
    if rank < 2:
        nodes.append(node("left", "HcomAllReduce", {"x": "x"}, group=left.group_name, reduction="sum"))
    if rank > 0:
        nodes.append(node("fault", "Fault", {"x": nodes[-1].name if nodes else "x"}))
        nodes.append(node("right", "HcomAllReduce", {"x": "fault"}, group=right.group_name, reduction="sum"))

    def fault(x: Tensor) -> Tensor:
        if rank == 1:
            raise ValueError("the disk is on fire")
        return x.clone()

    register_kernel("Fault", fault)
    result = compile_graph(graph_of({"x": x}, nodes, [nodes[-1].name])).run([x])
    assert result[0].tolist() == [2.0, 2.0]


def test_other_groups_of_a_failing_rank_are_told() -> None:
    outcomes = run_ranks(_other_group, 3, **PROMPT)
    assert outcomes[0].exit_code == 0, outcomes[0].error  # its only collective was over before
    _assert_failed(outcomes[1], "fault (Fault) on rank 1 of 3", "the disk is on fire")
    _assert_failed(outcomes[2], "rank 1 failed: ", "right (HcomAllReduce", "(ranks [1, 2]) on rank 2 of 3")


def test_broken_group_refuses_further_use() -> None:
    for errors in values(run_ranks(_use_after_failure, 2, **PROMPT)):
        assert len(errors) == 2
        assert "expected a working group, got one that failed" in errors[1]
        assert "destroy_process_group" in errors[1]


def _use_after_failure(rank: int) -> list[str]:
    errors = []
    for shape in (3 + rank, 3):
        x = torch.ones(shape)
        try:
            _reduce_graph(x).run([x])
        except CommunicationError as error:
            errors.append(str(error))
    return errors


# -- ranks that disagree ----------------------------------------------------------------------------------------


def _shapes(rank: int) -> None:
    x = torch.ones(2, 3 + rank)
    _reduce_graph(x).run([x])


def test_different_shapes() -> None:
    told = "rank 0: all_reduce sum float32[2, 3] | rank 1: all_reduce sum float32[2, 4]"
    for rank, outcome in enumerate(run_ranks(_shapes, 2, **PROMPT)):
        where = f"reduce (HcomAllReduce on group '0') on rank {rank} of 2"
        _assert_failed(outcome, "CommunicationError", told, where, "group '0' (ranks [0, 1])")


def _dtypes(rank: int) -> None:
    x = torch.ones(2, dtype=torch.float32 if rank else torch.int32)
    _reduce_graph(x).run([x])


def test_different_dtypes() -> None:
    told = "rank 0: all_reduce sum int32[2] | rank 1: all_reduce sum float32[2]"
    for rank, outcome in enumerate(run_ranks(_dtypes, 2, **PROMPT)):
        _assert_failed(outcome, told, f"reduce (HcomAllReduce on group '0') on rank {rank} of 2")


def _later_shapes(rank: int) -> list[list[float]]:
    executable = _reduce_graph(torch.ones(1), dynamic=True)
    done = [executable.run([torch.ones(n)])[0].tolist() for n in (2, 3, 2, 2)]
    assert done == [[2.0] * n for n in (2, 3, 2, 2)]
    executable.run([torch.ones(3 if rank else 2)])  # each rank has run its shape before, but not with the other
    return done


def _new_later_shapes(rank: int) -> None:
    executable = _reduce_graph(torch.ones(1), dynamic=True)
    for n in (2, 2):
        executable.run([torch.ones(n)])
    executable.run([torch.ones(5 if rank else 2)])  # new to rank 1 only


@pytest.mark.parametrize(("function", "theirs"), [(_later_shapes, 3), (_new_later_shapes, 5)])
def test_shapes_that_differ_later(function: Any, theirs: int) -> None:
    told = f"rank 0: all_reduce sum float32[2] | rank 1: all_reduce sum float32[{theirs}]"
    for rank, outcome in enumerate(run_ranks(function, 2, **PROMPT)):
        where = f"reduce (HcomAllReduce on group '0') on rank {rank} of 2"
        _assert_failed(outcome, "CommunicationError", told, where)


def _sizes_that_are_data(rank: int) -> list[list[float]]:
    """TorchAir feeds a graph with symbolic sizes the sizes, too."""
    nodes = [
        node("rows", "BroadcastTo", {"x": "x", "shape": "n"}),
        node("reduce", "HcomAllReduce", {"x": "rows"}, group="0", reduction="sum"),
    ]
    data = {"x": torch.ones(1), "n": torch.tensor([1])}
    executable = compile_graph(graph_of(data, nodes, ["reduce"], dynamic=True))
    done = [executable.run([torch.ones(1), torch.tensor([n])])[0].tolist() for n in (2, 3, 2, 3)]
    executable.run(
        [torch.ones(1), torch.tensor([3 if rank else 2])]
    )  # each rank knows its size, but not with the other
    return done


def test_sizes_that_differ_later() -> None:
    told = "rank 0: all_reduce sum float32[2] | rank 1: all_reduce sum float32[3]"
    for rank, outcome in enumerate(run_ranks(_sizes_that_are_data, 2, **PROMPT)):
        where = f"reduce (HcomAllReduce on group '0') on rank {rank} of 2"
        _assert_failed(outcome, "CommunicationError", told, where)


def _outside_a_graph(rank: int) -> None:
    comm.communicator("0").all_reduce(torch.ones(2 + rank))


def test_the_first_collective_without_a_graph_is_compared() -> None:
    told = "rank 0: all_reduce sum float32[2] | rank 1: all_reduce sum float32[3]"
    for outcome in run_ranks(_outside_a_graph, 2, **PROMPT):
        _assert_failed(outcome, "CommunicationError", told)


def _after_a_graph(rank: int) -> None:
    x = torch.ones(2)
    item = node("a", "HcomAllReduce", {"x": "x"}, group="0", reduction="sum")
    graph = compile_graph(graph_of({"x": x}, [item], ["a"]))
    for _ in range(3):  # the ranks have seen these shapes together: the run's own collective is not compared again
        graph.run([x])
    comm.communicator("0").all_reduce(torch.ones(2 + rank))


def test_the_first_collective_after_a_graph_is_compared() -> None:
    told = "rank 0: all_reduce sum float32[2] | rank 1: all_reduce sum float32[3]"
    for outcome in run_ranks(_after_a_graph, 2, **PROMPT):
        _assert_failed(outcome, "CommunicationError", told)


def _order(rank: int) -> None:
    x = torch.ones(2)
    nodes = [
        node("same", "HcomAllReduce", {"x": "x"}, group="0", reduction="sum"),
        node("sum", "HcomAllReduce", {"x": "x"}, group="0", reduction="sum"),
        node("all", "HcomAllGather", {"x": "x"}, group="0", rank_size=2),
    ]
    order = nodes if rank == 0 else [nodes[0], nodes[2], nodes[1]]
    compile_graph(graph_of({"x": x}, order, ["same", "sum", "all"])).run([x])


def test_different_order() -> None:
    rows = ["sum = HcomAllReduce {reduction='sum'}", "all = HcomAllGather {rank_size=2}"]
    told = f"at collective 2 of 3: rank 0: {rows[0]} | rank 1: {rows[1]}"
    for rank, outcome in enumerate(run_ranks(_order, 2, **PROMPT)):
        _assert_failed(outcome, told, f"same (HcomAllReduce on group '0') on rank {rank} of 2")


def _more(rank: int) -> None:
    x = torch.ones(2)
    names = ["a", "b"] if rank else ["a"]
    nodes = [node(name, "HcomAllReduce", {"x": "x"}, group="0", reduction="sum") for name in names]
    compile_graph(graph_of({"x": x}, nodes, names)).run([x])


def test_one_rank_runs_more() -> None:
    for rank, outcome in enumerate(run_ranks(_more, 2, **PROMPT)):
        told = "at collective 2 of 2: rank 0: nothing more | rank 1: b = HcomAllReduce {reduction='sum'}"
        _assert_failed(outcome, told, f"a (HcomAllReduce on group '0') on rank {rank} of 2")


def _roots(rank: int) -> None:
    x = torch.ones(2)
    item = node("root", "HcomBroadcast", {"x0": "x"}, ("y0",), group="0", root_rank=rank)
    compile_graph(graph_of({"x": x}, [item], ["root"])).run([x])


def test_different_attributes() -> None:
    told = "rank 0: root = HcomBroadcast {root_rank=0} | rank 1: root = HcomBroadcast {root_rank=1}"
    for rank, outcome in enumerate(run_ranks(_roots, 2, **PROMPT)):
        _assert_failed(outcome, told, f"root (HcomBroadcast on group '0') on rank {rank} of 2")


def _counts(rank: int, changed_run: int) -> None:
    inputs = {"send_data": "x", "send_counts": "s", "recv_counts": "r", "send_displacements": "none"}
    item = node("swap", "HcomAllToAllV", {**inputs, "recv_displacements": "none"}, ("recv_data",), group="0")
    data = {"x": torch.ones(8), "s": torch.tensor([2, 2]), "r": torch.tensor([2, 2])}
    graph = graph_of(data, [item], ["swap"], const={"none": torch.zeros(0, dtype=torch.int64)})
    executable = compile_graph(graph)
    for run in range(changed_run + 1):
        if run == changed_run and rank == 1:
            data["s"] = torch.tensor([3, 2])
        executable.run(list(data.values()))


@pytest.mark.parametrize("changed_run", [0, 2])
def test_counts_that_do_not_match(changed_run: int) -> None:
    for rank, outcome in enumerate(run_ranks(_counts, 2, changed_run, **PROMPT)):
        told = "rank 1 sends 3 elements to rank 0, which expects 2"
        _assert_failed(outcome, told, f"swap (HcomAllToAllV on group '0') on rank {rank} of 2")


def _point_to_point(rank: int) -> None:
    x = torch.ones(3)
    if rank == 0:
        item = node("send", "HcomSend", {"x": "x"}, (), group="0", sr_tag=4, dest_rank=1)
        compile_graph(graph_of({"x": x}, [item], [])).run([x])
    else:
        attrs = {"shape": [2], "dtype": DTypeValue("float32")}
        item = node("get", "HcomReceive", {}, group="0", sr_tag=4, src_rank=0, **attrs)
        compile_graph(graph_of({}, [item], ["get"])).run([])


def test_sender_and_receiver_disagree() -> None:
    told = [f"rank {r}: rank 0 sends to rank 1, tag 4: float32[{n}]" for r, n in ((0, 3), (1, 2))]
    names = ["send (HcomSend", "get (HcomReceive"]
    for rank, outcome in enumerate(run_ranks(_point_to_point, 2, **PROMPT)):
        where = f"{names[rank]} on group '0') on rank {rank} of 2"
        _assert_failed(outcome, *told, where)


# -- ranks that never meet --------------------------------------------------------------------------------------


def _names(rank: int) -> None:
    groups = [dist.new_group([0, 1]), dist.new_group([0, 1])]
    x = torch.ones(2)
    _reduce_graph(x, groups[rank].group_name).run([x])


@pytest.mark.slow
def test_different_group_names() -> None:
    outcomes = run_ranks(_names, 2, **LATE)
    for rank, outcome in enumerate(outcomes):
        group = f"group '{1 + rank}'"
        where = f"reduce (HcomAllReduce on {group}) on rank {rank} of 2"
        told = f"{group} (ranks [0, 1]) on rank {rank} of 2: not all ranks arrived within 2 s; "
        _assert_failed(outcome, where, told + f"rank {1 - rank} never used this group")


def _sizes(rank: int) -> None:
    small = dist.new_group([0, 1])
    x = torch.ones(2)
    _reduce_graph(x, small.group_name if rank == 1 else "0").run([x])


@pytest.mark.slow
def test_different_group_sizes() -> None:
    outcomes = run_ranks(_sizes, 3, **LATE)
    for rank in (0, 2):
        where = f"reduce (HcomAllReduce on group '0') on rank {rank} of 3"
        _assert_failed(outcomes[rank], where, "rank 1 never used this group", "(ranks [0, 1, 2])")
    where = "reduce (HcomAllReduce on group '1') on rank 1 of 3"
    _assert_failed(outcomes[1], where, "rank 0 never used this group", "(ranks [0, 1])")


def _idle(rank: int, runs: int) -> None:
    """Rank 1 runs the graph ``runs`` times, then waits for rank 0 to have seen its time-out."""
    store = dist.distributed_c10d._get_default_store()
    x = torch.ones(2)
    executable = _reduce_graph(x)
    for _ in range(runs):
        executable.run([x])
    if rank == 1:
        store.wait(["rank 0 is done"])
        return
    try:
        executable.run([x])
    finally:
        store.set("rank 0 is done", "")


@pytest.mark.parametrize(
    ("runs", "told"), [(0, "rank 1 never used this group"), (1, "rank 1 is running but did not arrive")]
)
def test_one_rank_does_not_run_the_graph(runs: int, told: str) -> None:
    outcomes = run_ranks(_idle, 2, runs, **LATE)
    where = "reduce (HcomAllReduce on group '0') on rank 0 of 2"
    _assert_failed(outcomes[0], where, "not all ranks arrived within 2 s", told)
    assert outcomes[1].exit_code == 0


def _gives_up(rank: int) -> list[str]:
    """Rank 0 gives up early and keeps the error, with all that its traceback holds; then rank 1 comes."""
    store = dist.distributed_c10d._get_default_store()
    errors: list[CommunicationError] = []
    if rank == 0:
        os.environ["NFG_TIMEOUT"] = "2"
    executable = _reduce_graph(torch.ones(2))
    executable.run([torch.ones(2)])
    if rank == 1:
        store.wait(["rank 0 gave up"])
    try:
        executable.run([torch.ones(2)])
    except CommunicationError as error:
        errors.append(error)
    if rank == 0:
        store.set("rank 0 gave up", "")
        store.wait(["rank 1 is done"])
    else:
        store.set("rank 1 is done", "")
    return [str(error) for error in errors]


@pytest.mark.slow
def test_who_comes_after_a_rank_gave_up_is_told_at_once() -> None:
    (early,), (late,) = values(run_ranks(_gives_up, 2, **PROMPT))
    assert "not all ranks arrived within 2 s; rank 1 is running but did not arrive" in early
    assert "reduce (HcomAllReduce on group '0') on rank 1 of 2" in late
    assert "rank 0 gave up: agreement, not all ranks arrived within 2 s" in late


def _early_exit(rank: int) -> None:
    """Rank 0, which hosts the store, has nothing more to do and leaves."""
    x = torch.ones(2)
    executable = _reduce_graph(x)
    for _ in range(1 + rank):
        executable.run([x])


def test_one_rank_leaves_early() -> None:
    outcomes = run_ranks(_early_exit, 2, **PROMPT)
    assert outcomes[0].exit_code == 0
    where = "reduce (HcomAllReduce on group '0') on rank 1 of 2"
    _assert_failed(outcomes[1], where, "rank 0 has ended (killed, or finished early)")


def _no_receiver(rank: int) -> None:
    store = dist.distributed_c10d._get_default_store()
    x = torch.ones(3)
    if rank == 1:
        store.wait(["rank 0 is done"])
        return
    item = node("send", "HcomSend", {"x": "x"}, (), group="0", sr_tag=4, dest_rank=1)
    try:
        compile_graph(graph_of({"x": x}, [item], [])).run([x])
    finally:
        store.set("rank 0 is done", "")


@pytest.mark.slow
def test_send_without_receiver() -> None:
    outcomes = run_ranks(_no_receiver, 2, **LATE)
    where = "send (HcomSend on group '0') on rank 0 of 2"
    _assert_failed(outcomes[0], where, "rank 1 never used this group")
    assert outcomes[1].exit_code == 0


def test_bad_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFG_TIMEOUT", "soon")
    with pytest.raises(ValueError, match=r"NFG_TIMEOUT: expected a positive number of seconds, got 'soon'"):
        comm.timeout()
