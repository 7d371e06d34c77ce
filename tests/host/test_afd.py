"""The family by torch_npu's names, as scripts for devices call them, eagerly and through TorchAir's converters."""

from __future__ import annotations

import json

import pytest

from tests.processes import free_port, run_python
from tests.scripts import script


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_loop_of_torch_npus_operators(mode: str) -> None:
    command = ("-m", "npu_fused_graph.commands.cli", "run", "--json", script("afd_loop.py"), str(free_port()), mode)
    process = run_python(*command, env={"NFG_TIMEOUT": "30"})
    assert process.returncode == 0, process.stderr
    said = json.loads(process.stdout)
    sorted_by_expert = [[[0, 1], [1, 1], [2, 2]], [0, 1, 0, 1], [4]]
    assert [said[0][f"step {i}"] for i in range(2)] == [sorted_by_expert] * 2
    # doubled by the expert, half and a quarter of the routed one, and the shared one
    assert [said[1][f"step {i}"] for i in range(2)] == [[[3, 25], True, [5]], [[6, 27.5], True, [5]]]
    assert [said[rank]["info"][1].partition(":")[0] for rank in range(2)] == ["ffn info", "attention info"]
    facts = json.loads(process.stderr.splitlines()[-1])
    family = "attention_to_ffn attention_worker_combine ffn_to_attention ffn_worker_batching ffn_worker_scheduler"
    assert facts["fused"] == dict.fromkeys(family.split(), 2)
    if mode == "graph":
        assert facts["graphs"] == 2
