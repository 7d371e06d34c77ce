"""``run --survey``: the script goes on where an operator is missing, and the report lists what was."""

from __future__ import annotations

import json

import pytest

from tests.processes import run_python
from tests.scripts import script

pytestmark = pytest.mark.slow
RUN = ("-m", "npu_fused_graph.commands.cli", "run", "--json")


def test_every_gap_of_a_script_in_one_run() -> None:
    found = run_python(*RUN, "--survey", "--strict", script("missing_operators.py"))
    assert found.returncode == 1, "a run with gaps is not clean"
    assert found.stdout.splitlines() == ["1.0 torch.int32 [8, 8] torch.bfloat16"] * 3
    report = json.loads(found.stderr.splitlines()[-1])
    assert report["exit_code"] == 0
    gaps = report["gaps"]
    texts = {text.partition(" (at ")[0]: (n, text.rpartition("/")[2]) for text, n in gaps.items()}
    assert texts == {
        "npu.npu_moe_token_permute: No AscendIR NpuMoeTokenPermute was found to be registered": (
            3,
            "missing_operators.py:10)",
        ),
        "npu.npu_fused_causal_conv1d: [engine] FusedCausalConv1d: expected a GE op type with a CPU kernel, got one "
        "without": (3, "missing_operators.py:11)"),
        "npu.npu_attn_softmax_: [run] npu_attn_softmax_: expected an operator that writes its arguments and has a "
        "functional form, got one without": (1, "missing_operators.py:21)"),
    }


def test_without_it_the_first_gap_ends_the_script() -> None:
    found = run_python(*RUN, script("missing_operators.py"))
    assert found.returncode == 1
    report = json.loads(found.stderr.splitlines()[-1])
    assert report["gaps"] == {}
    assert "NpuMoeTokenPermute" in report["failures"][0]["what"]
