"""AttentionToFFN on real processes: all legal forms, eager and compiled, and what the survivors of a fault are told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed as dist

import npu_fused_graph as nfg
from npu_fused_graph import comm
from npu_fused_graph.errors import CommunicationError, InvalidArgumentError
from npu_fused_graph.host.native import graph_listeners
from npu_fused_graph.ir.graph import Graph
from npu_fused_graph.ops.window_tables import FfnTables
from tests.ops.dispatch_model import Plan, call_of, dispatch, fresh, plan_of
from tests.ops.test_attention_to_ffn import FORMS
from tests.ranks import run_ranks, values

SIZES = {"tokens": 4, "k": 2, "experts": 6, "shared": 1, "hidden": 1024, "start": 0, "micro_batches": 2}


def the_plan(seed: int, *, is_quantised: bool = False, **given: int) -> tuple[Plan, numpy.random.Generator]:
    """The same on every rank."""
    generator = numpy.random.default_rng(seed)
    return plan_of(generator, sessions=2, ffn=2, is_quantised=is_quantised, **(SIZES | given)), generator


def register(rank: int, plan: Plan, size: int = 1 << 18) -> comm.Windows:
    peers = plan.attention_ranks if rank in plan.ffn_ranks else plan.ffn_ranks
    return comm.communicator("0").register_windows(size, peers)


def _every_form(rank: int) -> list[str]:
    """The forms one after the other; what differs from the model."""
    windows, found = None, []
    for seed, (is_quantised, has_scales, is_async, is_masked) in enumerate(FORMS):
        plan, generator = the_plan(1, is_quantised=is_quantised, record=1300)
        generator = numpy.random.default_rng([2, seed])
        if seed == FORMS.index((True, False, False, False)):  # one mode for a registration
            comm.communicator("0").release_windows()
            windows = None
        windows = windows or register(rank, plan)
        calls = {
            r: call_of(
                plan, generator, s, dtype=torch.bfloat16, is_quantised=is_quantised, has_scales=has_scales,
                is_async=is_async, is_masked=is_masked,
            )
            for s, r in enumerate(plan.attention_ranks)
        }  # fmt: skip
        wanted = fresh(plan, generator, is_quantised=is_quantised)
        own = windows.memory(rank)[: len(wanted[rank])]
        own[:] = wanted[rank]
        dist.barrier()
        if rank in calls:
            nfg.npu_attention_to_ffn(**calls[rank], group="0")
        for r, call in calls.items():
            dispatch(wanted, plan, r, call)
        dist.barrier()
        if (own != wanted[rank]).any():
            found.append(f"{FORMS[seed]}: {numpy.flatnonzero(own != wanted[rank])[:8].tolist()}")
        dist.barrier()
    return found


def test_every_form_on_four_processes() -> None:
    assert len(FORMS) == 12
    assert values(run_ranks(_every_form, 4)) == [[]] * 4


def _compiled(rank: int) -> tuple[bool, int, int]:
    """Two calls in one graph. Whether the windows are as the model has them; nodes of the graph, and edges that keep
    them: from the first to the second, and from this to the graph's end.
    """
    plan, generator = the_plan(4)
    windows = register(rank, plan)
    wanted = fresh(plan, generator, is_quantised=False)
    own = windows.memory(rank)[: len(wanted[rank])]
    own[:] = wanted[rank]
    calls = {}
    for session, r in enumerate(plan.attention_ranks):
        calls[r] = call_of(
            plan, generator, session, dtype=torch.float16, is_quantised=False, has_scales=False, is_async=False,
            is_masked=False,
        ) | {"group": "0"}  # fmt: skip
        for micro_batch in range(2):
            dispatch(wanted, plan, r, calls[r] | {"micro_batch_id": torch.tensor([micro_batch])})
    dist.barrier()
    nodes, edges = 2, 2
    if rank in calls:
        graphs: list[Graph] = []
        inputs = {n: x for n, x in calls[rank].items() if isinstance(x, torch.Tensor)}
        rest = {n: x for n, x in calls[rank].items() if n not in inputs}

        def model(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            for micro_batch in range(2):
                at = torch.full((1,), micro_batch, dtype=torch.int32)
                nfg.npu_attention_to_ffn(**(inputs | {"micro_batch_id": at}), **rest)
            return inputs["x"] * 2

        with torch.no_grad():
            graph_listeners.append(lambda executable: graphs.append(executable.graph))
            compiled = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
            assert torch.equal(compiled(inputs), inputs["x"] * 2)
        (graph,) = graphs
        first, second = graph.of_type("AttentionToFFN")
        (end,) = graph.of_type("NetOutput")
        nodes, edges = (
            len(graph.of_type("AttentionToFFN")),
            (first.name in second.controls) + (second.name in end.controls),
        )
    dist.barrier()
    return bool((own == wanted[rank]).all()), nodes, edges


def test_compiled() -> None:
    assert values(run_ranks(_compiled, 4)) == [(True, 2, 2)] * 4


# -- faults ------------------------------------------------------------------------------------------------------------


def _error(run: Callable[[], Any]) -> str:
    try:
        run()
    except (CommunicationError, InvalidArgumentError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _call(plan: Plan, rank: int, **changed: Any) -> str:
    call = call_of(
        plan, numpy.random.default_rng(rank), plan.attention_ranks.index(rank), dtype=torch.float16,
        is_quantised=False, has_scales=False, is_async=False, is_masked=False,
    ) | {"micro_batch_id": torch.zeros(1, dtype=torch.int32)} | changed  # fmt: skip
    return _error(lambda: nfg.npu_attention_to_ffn(**call, group="0"))


def _unconsumed(rank: int) -> str:
    """The FFN ranks live, but take nothing."""
    plan, _ = the_plan(4)
    register(rank, plan)
    said = ""
    if rank in plan.attention_ranks:
        assert _call(plan, rank) == "no error"
        said = _call(plan, rank)
    dist.barrier()
    return said


def test_what_is_never_consumed() -> None:
    (*_, third, fourth) = values(run_ranks(_unconsumed, 4, timeout=0.5))
    for session, said in enumerate((third, fourth)):
        assert said == (
            f"CommunicationError: [attention_to_ffn] window on rank {session + 2} of 4: expected an empty table of "
            f"session {session}, micro batch 0 within 0.5 s, got none: rank 0 is running but does not come; rank 1 is "
            "running but does not come."
        )


def _ending(rank: int, how: str) -> list[str]:
    """Rank 0, an FFN rank, ends while the others live; then what an attention rank is told, twice."""
    plan, _ = the_plan(4)
    windows = register(rank, plan)
    if rank == 3:
        assert _call(plan, 3) == "no error"
    dist.barrier()
    if rank == 0:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "failed":
            os._exit(1)
        return []
    if rank == 1:
        return []
    while windows.state(0) == "running":
        time.sleep(0.01)
    assert windows.state(1) in ("running", "left")
    return [_call(plan, rank)]


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_an_ffn_rank_that_dies(how: str) -> None:
    outcomes = run_ranks(_ending, 4, how)
    for outcome in outcomes[2:]:
        (said,) = outcome.value
        assert said.startswith("CommunicationError: [attention_to_ffn] window on rank ")
        assert "rank 0 has ended (killed, or by an exception)." in said
        assert outcome.exit_code == 0


def test_windows_of_a_rank_that_left_stay_writable() -> None:
    """Rank 2 may write what rank 0 left in order; rank 3 waits for what rank 0 never took, and is told."""
    outcomes = run_ranks(_ending, 4, "left")
    assert outcomes[2].value == ["no error"]
    (said,) = outcomes[3].value
    assert "expected an empty table of session 1, micro batch 0, got none: rank 0 has left" in said


def _stopped(rank: int, folder: str) -> str:
    """Rank 1, an FFN rank, is stopped by a signal before it takes anything."""
    plan, _ = the_plan(4)
    windows = register(rank, plan)
    pid = Path(folder) / "pid"
    if rank == 1:
        pid.write_text(str(os.getpid()))
    said = ""
    dist.barrier()
    if rank == 2:
        os.kill(int(pid.read_text()), signal.SIGSTOP)
        while windows.state(1) != "stopped":
            time.sleep(0.01)
        assert _call(plan, rank) == "no error"
        said = _call(plan, rank)
        os.kill(int(pid.read_text()), signal.SIGCONT)
    dist.barrier()
    return said


def test_an_ffn_rank_that_is_stopped(tmp_path: Path) -> None:
    said = values(run_ranks(_stopped, 4, str(tmp_path), timeout=0.5))[2]
    assert "within 0.5 s, got none: rank 0" in said
    assert said.endswith("rank 1 is stopped by a signal.")


def _others(rank: int) -> list[str]:
    """Calls that one rank makes otherwise than the others, or than before."""
    plan, _ = the_plan(4)
    windows = register(rank, plan)
    found: list[str] = []
    if rank == 2:
        assert _call(plan, rank) == "no error"
        found.append(_call(plan, rank, moe_expert_num=5, **_shared(plan)))
    dist.barrier()
    if rank == 3:
        found.append(_call(plan, rank, world_size=5))
        found.append(_call(plan, rank, moe_expert_num=5, **_shared(plan)))
        found.append(_call(plan, rank, session_id=torch.zeros(1, dtype=torch.int32)))
        assert _call(plan, rank) == "no error"
        FfnTables(2, 2, 4, 3, plan.record, 2).info(windows.memory(0))[1, 0, 0] = 7
        found.append(_call(plan, rank, sync_flag=1, expert_rank_table=_only(plan, 0)))
    if rank == 0:
        found.append(_error(lambda: register(rank, plan)))
        found.append(_call(plan, 2))
    dist.barrier()
    return found


def _undersized(rank: int) -> str:
    plan, _ = the_plan(4)
    register(rank, plan, {1: 1 << 10, 3: 10}.get(rank, 1 << 18))
    only_first = {"sync_flag": 1, "expert_rank_table": _only(plan, 0)}
    said = _call(plan, rank, **({} if rank == 2 else only_first)) if rank > 1 else ""
    dist.barrier()
    return said


def _shared(plan: Plan) -> dict[str, Any]:
    """One routed expert less is one shared expert more."""
    info, data, own = (plan.shapes[n] for n in plan.shapes)
    return {
        "ffn_token_info_table_shape": [*info[:2], 2 + plan.tokens * 4], "ffn_token_data_shape": [*data[:3], 4, data[4]],
        "attn_token_info_table_shape": [*own[:2], 4],
        "expert_ids": torch.tensor([[[0, 1]] * plan.tokens], dtype=torch.int32),
    }  # fmt: skip


def _only(plan: Plan, rank: int) -> torch.Tensor:
    """A table that sends everything to one FFN rank."""
    table = plan.table()
    table[:, :, 0] = 1
    table[:, :, 1] = rank
    table[:, :, 2] = 0
    return table


def test_what_ranks_must_have_alike() -> None:
    (again, as_ffn), second, (later,), (world, experts, twice, flag) = values(run_ranks(_others, 4))
    assert second == []
    assert "world_size: expected 4, the number of ranks of group '0', got 5." in world
    for said in (later, experts):
        assert "moe_expert_num: expected 6, as rank 2 has it, got 5. It is the same on all ranks and in all" in said
    assert "session_id: expected another one than every other attention rank's, got 0, which is also rank 2's." in twice
    assert "expected 0 or 1 as the flag of session 1, micro batch 0 on rank 0, got 7." in flag
    assert "windows: expected one registration per group, got a second one of group '0'" in again
    assert "expected a call by an attention rank (FFN ranks are 0 to 1 of the group), got one by rank 0. " in as_ffn


def test_windows_that_are_too_small() -> None:
    """An FFN rank's, and the own one of an attention rank whose tokens all go elsewhere."""
    *_, third, fourth = values(run_ranks(_undersized, 4))
    needed = FfnTables(2, 2, 4, 3, the_plan(4)[0].record, 2).size
    assert third == (
        "InvalidArgumentError: [attention_to_ffn] ffn_token_data_shape: expected tables of at most 1024 bytes, the "
        f"window of rank 1, got {needed} bytes. Register a larger window there."
    )
    assert "attn_token_info_table_shape: expected tables of at most 10 bytes, the window of rank 3, got 96" in fourth
