"""AttentionToFFN nodes of compiled graphs on the simulator: real processes, their windows, every byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import npu_fused_graph as nfg
from npu_fused_graph.engine.kernels import simulated
from npu_fused_graph.errors import ExecutionError, InvalidArgumentError, KernelError, UnsupportedModeError
from npu_fused_graph.host import simulated as public
from tests.kernels.dispatch_case import kernel
from tests.ops.dispatch_model import call_of, dispatch, fresh
from tests.ops.test_ranks_attention_to_ffn import register, the_plan
from tests.ranks import run_ranks, values

FORMS = [(False, False, False, False), (True, True, True, True), (True, False, False, True)]


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    """Before the ranks are forked, so that they need not build it."""
    kernel(torch.float16)


def _count_launches(chips: list[Any]) -> None:
    real = simulated.launch_one_sided

    def counted(*arguments: Any) -> None:
        chips.append(arguments[1])
        real(*arguments)

    from npu_fused_graph.engine.kernels import fused

    fused.launch_one_sided = counted


def _compiled(rank: int, form: int) -> tuple[bool, list[str]]:
    """Whether all windows are as the model has them after two calls; the chips of the launches on this rank."""
    is_quantised, has_scales, is_async, is_masked = FORMS[form]
    chips: list[str] = []
    _count_launches(chips)
    plan, generator = the_plan(form, is_quantised=is_quantised, record=1300, micro_batches=2)
    windows = register(rank, plan)
    wanted = fresh(plan, generator, is_quantised=is_quantised)
    own = windows.memory(rank)[: len(wanted[rank])]
    own[:] = wanted[rank]
    calls = {}
    for session, r in enumerate(plan.attention_ranks):
        calls[r] = call_of(
            plan, generator, session, dtype=torch.float16, is_quantised=is_quantised, has_scales=has_scales,
            is_async=is_async, is_masked=is_masked,
        ) | {"group": "0"}  # fmt: skip
        for micro_batch in range(2):
            dispatch(wanted, plan, r, calls[r] | {"micro_batch_id": torch.tensor([micro_batch])})
    dist.barrier()
    if rank in calls:
        inputs = {n: x for n, x in calls[rank].items() if isinstance(x, torch.Tensor)}
        rest = {n: x for n, x in calls[rank].items() if n not in inputs}

        def model(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            nfg.npu_attention_to_ffn(**inputs, **rest)
            return inputs["x"] * 2

        compiled = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
        with torch.no_grad(), nfg.simulated_kernels(chip="Ascend910_9372"):
            for micro_batch in range(2):
                at = torch.full((1,), micro_batch, dtype=torch.int32)
                assert torch.equal(compiled(inputs | {"micro_batch_id": at}), inputs["x"] * 2)
    dist.barrier()
    return bool((own == wanted[rank]).all()), chips


@pytest.mark.parametrize("form", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_nodes_run_the_kernel(form: int) -> None:
    results = values(run_ranks(_compiled, 4, form))
    assert [is_same for is_same, _ in results] == [True] * 4
    assert sorted(len(chips) for _, chips in results) == [0, 0, 2, 2]
    assert {chip for _, chips in results for chip in chips} == {"Ascend910_9372"}


def _wrong(rank: int) -> str:
    """What a graph says whose kernel breaks a rule."""
    plan, generator = the_plan(0)
    windows = register(rank, plan)
    windows.memory(rank)[:] = 0
    dist.barrier()
    said = ""
    if rank == plan.attention_ranks[0]:

        def refuse(*arguments: Any, **how: Any) -> None:
            raise KernelError("[attention_to_ffn] rank 2, core 7, attention_to_ffn.h:1: Add: broken [Sync1]")

        simulated.OperatorKernel.launch = refuse  # type: ignore[method-assign]
        call = call_of(
            plan, generator, 0, dtype=torch.float16, is_quantised=False, has_scales=False, is_async=False,
            is_masked=False,
        ) | {"group": "0"}  # fmt: skip
        inputs = {n: x for n, x in call.items() if isinstance(x, torch.Tensor)}
        rest = {n: x for n, x in call.items() if n not in inputs}

        def model(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            nfg.npu_attention_to_ffn(**inputs, **rest)
            return inputs["x"] * 2

        compiled = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
        with torch.no_grad(), nfg.simulated_kernels(), pytest.raises(ExecutionError) as caught:
            compiled(inputs)
        said = str(caught.value)
    dist.barrier()
    return said


def test_a_broken_rule_names_node_and_line() -> None:
    said = "".join(values(run_ranks(_wrong, 4)))
    assert "AttentionToFFN" in said and "attention_to_ffn.h:1: Add: broken [Sync1]" in said


def test_a_chip_that_is_not_known() -> None:
    wrong = nfg.simulated_kernels(chip="Ascend310")
    with pytest.raises(InvalidArgumentError, match=r"\[simulated_kernels\] chip: expected one of Ascend910B1, "):
        wrong.__enter__()


def test_on_a_device_graphs_run_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public, "mode", lambda: "device")
    with pytest.raises(UnsupportedModeError, match=r"\[simulated_kernels\] mode: expected host mode, got device mode"):
        nfg.simulated_kernels().__enter__()


def test_it_ends_with_its_block() -> None:
    spec = kernel(torch.float16).spec
    with nfg.simulated_kernels(), nfg.simulated_kernels("Ascend910_9362"):
        assert simulated.chip_of(spec) == "Ascend910_9362"
    assert simulated.chip_of(spec) == ""


def _failing() -> None:
    with nfg.simulated_kernels():
        raise ZeroDivisionError


def test_it_ends_with_an_exception() -> None:
    with pytest.raises(ZeroDivisionError):
        _failing()
    assert simulated.chip_of(kernel(torch.float16).spec) == ""
