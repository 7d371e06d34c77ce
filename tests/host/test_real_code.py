"""Names that inference code calls besides models and operators: tests/host/scripts/real_code_names.py says them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.host.test_standin import false_ones, said_by
from tests.processes import free_port, run_python
from tests.scripts import script


@pytest.fixture(scope="module")
def names() -> Any:
    return said_by("real_code_names.py")


@pytest.mark.slow
@pytest.mark.xdist_group("real_code_names")
class TestNames:
    def test_pinned_memory_is_ordinary_memory_that_is_remembered(self, names: Any) -> None:
        assert false_ones(names["pinned"]) == []

    def test_formats_are_remembered_and_change_nothing(self, names: Any) -> None:
        assert len(names["formats"]) == 10
        assert false_ones(names["formats"]) == []

    def test_a_prefetch_of_nothing_is_refused(self, names: Any) -> None:
        assert "The max_size should be greater than zero, but got 0." in names["prefetch of nothing"]

    def test_settings_and_numbers_of_a_device(self, names: Any) -> None:
        assert false_ones(names["device"]) == []

    def test_what_has_no_effect_says_so_once(self, names: Any) -> None:
        assert [text.partition(":")[0] for text in names["once"]] == [
            "[run] torch.npu.set_aoe",
            "[run] dynamic_profile",
            "[run] profiler.analyse",
        ]

    def test_tensors_are_saved_and_printed(self, names: Any) -> None:
        assert names["saved"] == ["both_device_0.pt", "x_device_0_0.pt", "x_device_0_1.pt"]
        assert names["saved right"] is names["saved by a replay"] is True
        assert names["dumped"] == ["add_device_0_0.pt", "arg0_1_device_0_0.pt", "relu_device_0_0.pt"]
        assert names["printed"] == "ones=tensor([1., 1.]), shape=(2,), dtype=torch.float32\n"

    def test_profiling_is_that_of_torch(self, names: Any) -> None:
        assert false_ones(names["trace"]) == []
        assert names["no such option"].endswith("got an unexpected keyword argument 'no_such_option'")

    def test_tests_of_operators(self, names: Any) -> None:
        assert names["tests"] == {
            "failures": ["test_nan", "test_unequal"],
            "skipped": ["Only run on ['Ascend910A'], current device is Ascend910B."],
        }


@pytest.mark.slow
def test_a_script_of_a_gpu_runs_with_one_import_more() -> None:
    said = said_by("transfer_to_npu.py", str(free_port()))
    assert false_ones(said.pop("made")) == []
    assert said == {
        "autocast": "torch.bfloat16",
        "loaded": True,
        "device": [True, 16, 3, "Ascend910B3", True, True],
        "compiled": True,
        "group": ["hccl", True, "cpu:gloo,npu:hccl"],
        "mesh": "npu",
        "script": True,
        "warned": ["[run] torch.jit.script"],
    }


@pytest.mark.slow
def test_uneven_collectives_and_those_of_patch_for_hcom(tmp_path: Path) -> None:
    ranks = ("torchrun", "--nproc-per-node=2", f"--master-port={free_port()}")
    command = ("run", *ranks, script("patched_collectives.py"), str(tmp_path))
    result = run_python("-m", "npu_fused_graph.commands.cli", *command)
    assert result.returncode == 0, result.stderr
    lines = Path(script("patched_collectives.py")).read_text(encoding="utf-8").splitlines()
    called = next(i for i, line in enumerate(lines, 1) if "dist.all_reduce(y)" in line)
    for rank in range(2):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert said.pop("sizes").startswith("InvalidArgumentError: [run] input_split_sizes: expected 2 sizes that add")
        assert said.pop("mean").startswith("InvalidArgumentError: [run] op: expected SUM, MAX, MIN or PRODUCT, got")
        assert said == {
            "gather": [True, True],
            "scatter": [True, True],
            "asynchronous": True,
            "patched": [True, True],
            "line": f"patched_collectives.py:{called}",
        }
    assert "_get_pg_default_device" not in result.stderr, "it is TorchAir's, which the script cannot change"
