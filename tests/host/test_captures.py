"""Captured graphs: npugraph_ex, TorchAir's capturing modes and torch.npu.graph, recorded and replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from npu_fused_graph.host.paths import has_npugraph_ex
from tests.host.stand_ins import PYTHONPATH
from tests.processes import free_port, run_python
from tests.scripts import script

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("captures"),
    pytest.mark.skipif(not has_npugraph_ex(), reason="this TorchAir comes without npugraph_ex"),
]


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    # npu_fused_infer_attention_score.out gives back what it writes, which torch takes for an error where CI is set
    env = {"PYTHONPATH": PYTHONPATH, "TORCHINDUCTOR_ERROR_ON_CUSTOM_OP_ALIASING": "0"}
    found = run_python(script("captures.py"), env=env)
    assert found.returncode == 0, found.stderr
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def said(seen: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = seen["said"]
    return found


@pytest.mark.parametrize("options", ["{}", "{'clone_input': False}"])
def test_a_decode_loop_replays_100_steps_in_the_same_memory(said: dict[str, Any], options: str) -> None:
    assert said[f"decode {options}"] == [100, 1, True], "equal steps, addresses of the results, equal caches"


@pytest.mark.parametrize("options", ["{'force_eager': True}", "{'capture_limit': 1, 'force_recapture': True}"])
def test_without_a_graph_the_numbers_are_the_same(said: dict[str, Any], options: str) -> None:
    equal, _, state = said[f"decode {options}"]
    assert (equal, state) == (100, True)


def test_its_own_patterns_have_operators_to_turn_into(said: dict[str, Any]) -> None:
    assert said["pattern cast"] == [[True] * 3, ["npu.npu_add_rms_norm_cast.default"]]
    assert said["pattern quantised"] == [[True] * 3, ["npu.npu_add_rms_norm_dynamic_quant.default"]]


def test_what_a_graph_writes_is_written_by_each_replay(said: dict[str, Any]) -> None:
    assert said["in place"] == [True, True, True]
    assert said["constants"]
    assert said["executed by replays only"] == [0.0, 2.0]


def test_results_lie_where_they_lay(said: dict[str, Any]) -> None:
    assert said["outputs {}"] == [False, True], "the second call has overwritten the first result"
    assert said["outputs {'clone_output': True}"] == [True, False]


def test_strict_overwrites_what_a_device_may(said: dict[str, Any]) -> None:
    assert said["stale results False"] == [False, [2.0] * 6]
    assert said["stale results True"] == [True, [2.0] * 6]


def test_shapes_change_while_capturing(said: dict[str, Any]) -> None:
    assert said["reshaped"] == [[1, 3, 3], True]


def test_state_that_moves_is_captured_again(said: dict[str, Any]) -> None:
    assert said["moved state"] == [[3.0, 3.0], [1.0, 1.0]]


def test_streams_and_updates(said: dict[str, Any]) -> None:
    assert said["streams in a model"] == [True, True]
    assert said["streams made inside"] == [True, 2], "calls are captured on both streams"
    assert said["streams"]
    assert said["updates"] == [[5.0] * 3, [15.0] * 3]
    assert said["attention lengths"] == [True, True, True]
    assert said["paged attention lengths"] == [True, True, True]
    assert said["a capture works after all of that"]
    assert said["in a model"], "generated code knows the user's line"


HOST = "got a value the host reads"
WAITS = "got a call that waits for the device"
REFUSED = {
    "item": (HOST, "Keep the value in a tensor"),
    "bool": (HOST, "Keep the value in a tensor"),
    "tolist": ("Tensor.tolist at", "Read the tensor after the replay"),
    "numpy": ("Tensor.numpy at", "Read the tensor after the replay"),
    "cpu": ("Tensor.cpu at", "Read the tensor after the replay"),
    "npu": ("Tensor.npu at", "Copy before the capture"),
    "print": (WAITS, "Read the tensor after the replay"),
    "synchronize": ("torch.npu.synchronize at", "Wait outside the capture"),
    "stream synchronize": ("Stream.synchronize at", "Wait outside the capture"),
    "event query": ("Event.query at", "Ask outside the capture"),
    "random": ("got a random operator", "Draw them outside the capture"),
    "dropout": ("got a random operator", "Draw them outside the capture"),
    "nonzero": ("got a result whose shape or value depends on values", "Use a form with a fixed shape"),
    "mask": ("got a result whose shape or value depends on values", "Use a form with a fixed shape"),
    "no fake": ("got one without: nfg_test.without_fake", "Register one with torch.library.register_fake"),
    "not joined": ("got work nobody waits for", "let the captured stream wait for it"),
    "not forked": ("got one that has not waited for it", "let this one wait for it first"),
    "race": ("got no wait between them", "let this stream wait for it"),
    "moved input": ("got a tensor that is gone or moved", "copy new values into it (x.copy_(new))"),
    "frozen and moved": ("got a tensor that is gone or moved", "or capture again"),
    "in a model": ("got a random operator", "Draw them outside the capture"),
}
WITHOUT_A_LINE = {
    "capture inside": ("got one", "End it first"),
    "not captured": ("got none", "Capture it first"),
    "default stream": ("got the default one", "Use torch.npu.graph"),
    "no capture": ("got none", "Begin one first"),
    "waits for ever": ("got one that waits for an event nobody recorded", "Record the event"),
    "another call": ("got aten.add.Tensor", "Update with the calls that were captured"),
}


def test_what_a_device_cannot_capture_is_refused_with_its_line_and_a_cure(seen: dict[str, Any]) -> None:
    texts = dict(seen["refused"])
    assert texts.pop("cpu relaxed") == ["nothing", False], "which is what the mode is for"
    assert texts.keys() == REFUSED.keys() | WITHOUT_A_LINE.keys()
    for name, (text, has_line) in texts.items():
        what, cure = {**REFUSED, **WITHOUT_A_LINE}[name]
        assert text.startswith("CaptureError: [capture] ") and what in text and cure in text, (name, text)
        assert has_line == (name in REFUSED), (name, text)


# -- programs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs() -> dict[str, Any]:
    found = run_python(script("capture_programs.py"), env={"PYTHONPATH": PYTHONPATH})
    assert found.returncode == 0, found.stderr
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


def test_programs_are_replayed_as_they_are_called(programs: dict[str, Any], subtests: pytest.Subtests) -> None:
    """Operators that may copy, that change shapes in place, that write elsewhere: in both modes without gradients."""
    found = {name: equal for name, equal in programs["said"].items() if name.endswith(("no_grad", "inference_mode"))}
    assert len(found) == 30
    for name, equal in found.items():
        with subtests.test(name):
            assert equal == [True, True, True]


def test_nothing_is_left_behind(programs: dict[str, Any]) -> None:
    said = programs["said"]
    assert said["a result that is turned afterwards"], "a graph's memory keeps its shape"
    assert said["another thread"] == []
    assert said["a graph that is dropped"] == [False, [2.0, 2.0]]
    assert said["a graph that waits is reset"]
    assert said["an event recorded by another graph"] == [False, True]
    assert said["a capture works after all of that"]


def test_more_that_is_refused(programs: dict[str, Any]) -> None:
    wanted = {
        "cond": "got control flow",
        "a constant on the device": "the host waits for the copy",
        "elements": "Stack or clone the tensors instead",
        "to cpu": "Tensor.to at",
        "dlpack": "Tensor.__dlpack__ at",
        "pickle": "Tensor.__reduce_ex__ at",
        "elapsed time": "Event.elapsed_time at",
        "event from outside": "got one recorded outside",
        "open task group": "expected no open task group",
        "input that grew": "gone or moved",
        "input without memory": "gone or moved",
    }
    assert programs["refused"].keys() == wanted.keys()
    for name, text in wanted.items():
        assert programs["refused"][name].startswith("CaptureError: [capture] "), name
        assert text in programs["refused"][name], (name, programs["refused"][name])


def test_collectives_are_captured(tmp_path: Path) -> None:
    command = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}")
    path = script("captured_collectives.py")
    found = run_python(*command, path, str(tmp_path), env={"PYTHONPATH": PYTHONPATH}, timeout=200)
    assert found.returncode == 0, found.stderr
    for rank in (0, 1):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(said) == 10
        assert {name for name, equal in said.items() if not all(equal)} == set(), rank
