"""What a script sees of the NPU that is not there: tests/host/scripts say it, run in processes of their own."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.host.stand_ins import PYTHONPATH
from tests.processes import free_port, run_python
from tests.scripts import script


def said_by(name: str, *arguments: str) -> Any:
    """The JSON object the script prints last."""
    result = run_python(script(name), *arguments, env={"PYTHONPATH": PYTHONPATH})
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def false_ones(facts: dict[str, Any]) -> list[str]:
    return [name for name, value in facts.items() if value is not True]


@pytest.fixture(scope="module")
def device() -> Any:
    return said_by("device_names.py")


@pytest.fixture(scope="module")
def groups() -> Any:
    return said_by("groups.py", str(free_port()), str(free_port()))


@pytest.mark.xdist_group("device_names")
class TestDevice:
    def test_factories_make_cpu_tensors_of_the_right_shape(self, device: Any) -> None:
        shapes = device["shapes"]
        assert len(shapes) == 26
        assert {name for name, shape in shapes.items() if shape != [2, 3]} == set()
        assert device["devices"] == ["cpu"]

    def test_what_a_factory_made_counts_as_on_the_device(self, device: Any) -> None:
        assert device["marked"] == [], "these do not"

    def test_factories_make_the_right_values(self, device: Any) -> None:
        assert device["values"] == {
            "ones": [[1, 1, 1]] * 2,
            "full": [[2, 2, 2]] * 2,
            "arange": [[0, 1, 2], [3, 4, 5]],
            "to with dtype": "torch.float16",
            "type": "torch.int32",
            "strides": [1, 2],
            "tril": [[0, 1, 1], [0, 0, 1]],
        }

    def test_copies_and_identities(self, device: Any) -> None:
        assert len(device["copies"]) == 16
        assert false_ones(device["copies"]) == []

    def test_the_current_device(self, device: Any) -> None:
        assert device["current"] == [2, 2, 5, 2, 3]

    def test_torch_npu_and_torch_accelerator(self, device: Any) -> None:
        assert len(device["is"]) == 25
        assert false_ones(device["is"]) == []

    def test_kernels_a_script_registers_for_the_device_are_called(self, device: Any) -> None:
        assert device["own kernels"] == [2, 3, 4]

    def test_limits_of_cores_are_remembered(self, device: Any) -> None:
        cores = {"cube_core_num": 12, "vector_core_num": 48}
        assert device["limits"] == [cores, cores | {"vector_core_num": 20}, cores]

    def test_wrong_arguments(self, device: Any) -> None:
        cure = "Claim more with npu-fused-graph run --devices N."
        index = f"InvalidArgumentError: [run] device: expected an index below 16, got 99. {cure}"
        assert device["wrong"] == {
            "index": index,
            "npu(99)": index,
            "kind": "InvalidArgumentError: [run] device: expected npu or an index, got 'cuda:0'. Write npu:0.",
            "event": "RuntimeError: [run] event: expected two recorded events, got one that was not. "
            "Call record() first.",
        }

    def test_what_cannot_be_emulated_is_refused_by_name_when_it_is_used(self, device: Any) -> None:
        refused = device["refused"]
        text = refused["make_graphed_callables"]
        assert text.startswith("UnsupportedModeError: [run] torch.npu.make_graphed_callables: expected an NPU, got")
        assert text.endswith("Use torch.npu.graph for the forward.")
        assert refused["unknown"].startswith("AttributeError: [run] torch.npu.no_such_thing: expected a name")
        assert refused["unknown operator"].startswith("AttributeError: [run] torch_npu.npu_no_such_thing: expected")
        assert refused["is no attribute"] == "False"
        assert refused["operator"].startswith("UnsupportedOpError: [run] npu_silu_backward: expected a call TorchAir")
        assert "\n" not in refused["operator"]


@pytest.mark.slow
@pytest.mark.xdist_group("groups")
class TestGroups:
    def test_backend(self, groups: Any) -> None:
        assert groups["backend"] == ["hccl", "hccl", True]
        assert groups["one object"]
        share = max(1, (os.cpu_count() or 1) // 2)
        assert groups["threads"] == int(os.environ.get("OMP_NUM_THREADS", share)), "of the cores, unless it is set"

    def test_every_collective_gives_the_right_numbers(self, groups: Any) -> None:
        assert len(groups["collectives"]) == 13
        assert false_ones(groups["collectives"]) == []

    def test_communicator_names(self, groups: Any) -> None:
        assert groups["unnamed"] == ""
        assert groups["names"] == ["127.0.0.1%npu_0_60000_0", "127.0.0.1%npu_1_60000_0"]
        assert groups["same names"]
        assert groups["resolved"] == [True, True], "operators find the groups by these names"

    def test_windows(self, groups: Any) -> None:
        windows = groups["windows"]
        second = windows.pop("second")
        assert len(windows) == 3
        assert false_ones(windows) == []
        assert "CommunicationError: [comm] windows: expected one registration per group, got a second one" in second

    def test_a_group_keeps_its_timeout(self, groups: Any) -> None:
        assert "Timed out waiting 2000ms" in groups["timeout"]

    def test_a_group_can_be_destroyed_and_made_again(self, groups: Any) -> None:
        assert groups["after a restart"] == [2.0, False]
        assert groups["restarted name"] == "127.0.0.1%npu_0_60000_0"
