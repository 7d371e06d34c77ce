"""Records of fused calls: written by `run --record`, recomputed by a stranger, executed again by `replay`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from npu_fused_graph.host.record import RecordedCall, Recorder
from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm import SPEC
from npu_fused_graph.ops.observers import ObservedCall
from tests.processes import free_port, run_command, run_python
from tests.scripts import script

pytestmark = pytest.mark.xdist_group("record")

CLI = ("-m", "npu_fused_graph.commands.cli")
OP = "matmul_all_reduce_add_rms_norm"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of fused_ranks.py with seed 3."""
    return record(tmp_path_factory.mktemp("record") / "calls")


def record(folder: Path) -> Path:
    found = run_python(
        *CLI, "run", "--json", "--seed", "3", "--record", str(folder), script("fused_ranks.py"), str(free_port())
    )
    assert found.returncode == 0, found.stderr
    facts = json.loads(found.stderr.splitlines()[-1])
    assert facts["fused"] == {f"inplace_{OP}": 2, OP: 6, "trans_quant_param_v2": 2}
    assert facts["recorded"] == 10
    return folder


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "copy"))


def test_what_a_record_holds(recorded: Path) -> None:
    assert json.loads((recorded / "run.json").read_text())["seed"] == 3
    names = sorted(p.name for p in (recorded / "rank_1").iterdir())
    assert len(names) == 15, "five calls of three files"
    facts = json.loads((recorded / "rank_1" / f"00000_{OP}.json").read_text())
    assert (facts["op"], facts["ge_type"], facts["node"], facts["rank"]) == (OP, "MatmulAllReduceAddRmsNorm", "", 1)
    assert facts["group"] == {"name": "0", "ranks": [0, 1], "turn": 0}
    assert facts["attrs"]["hcom"] == "127.0.0.1%npu_0_60000_0"
    assert facts["attrs"]["epsilon"] == 1e-5
    assert facts["inputs"]["x2"] == {"dtype": "float16", "shape": [32, 16], "is_transposed": True}
    assert facts["inputs"]["dequant_scale"] is None
    inputs = load_file(recorded / "rank_1" / f"00000_{OP}.inputs.safetensors")
    assert set(inputs) == {"x1", "x2", "residual", "gamma", "bias"}
    assert inputs["x2"].shape == (16, 32), "as it is stored"
    assert set(load_file(recorded / "rank_1" / f"00000_{OP}.outputs.safetensors")) == {"y", "norm_out"}


def test_inputs_of_the_in_place_form_are_those_before_the_call(recorded: Path) -> None:
    place = recorded / "rank_0" / f"00004_inplace_{OP}"
    before = load_file(f"{place}.inputs.safetensors")["residual"]
    after = load_file(f"{place}.outputs.safetensors")
    first = load_file(recorded / "rank_0" / f"00000_{OP}.inputs.safetensors")["residual"]
    assert torch.equal(before, first)
    assert not torch.equal(before, next(iter(after.values())))


def test_a_program_without_our_code_agrees(recorded: Path) -> None:
    found = run_python(script("recompute_float64.py"), str(recorded))
    assert found.returncode == 0, found.stderr
    errors = json.loads(found.stdout)
    assert set(errors) == {"0 eager, 2 ranks", "1 node, 2 ranks"}
    assert all(error < 1 for error in errors.values()), errors


@pytest.mark.slow
def test_a_seed_makes_runs_equal(recorded: Path, tmp_path: Path) -> None:
    again = record(tmp_path / "again")
    for path in recorded.glob("*/*.safetensors"):
        assert path.read_bytes() == (again / path.relative_to(recorded)).read_bytes(), path.name


def test_replay_by_every_implementation(recorded: Path) -> None:
    found = run_python(*CLI, "replay", "--json", str(recorded))
    assert found.returncode == 0, found.stdout + found.stderr
    facts = json.loads(found.stdout)
    assert (facts["agree"], facts["count"]) == (6, 6), "the packing of scales is a call of each rank"
    methods = {(call["op"], call["node"]): [c["method"] for c in call["comparisons"]] for call in facts["calls"]}
    every = ["reference", "decompose", "float64", "engine"]
    assert methods == {
        (OP, ""): every,
        (OP, "MatmulAllReduceAddRmsNorm"): every,
        (f"inplace_{OP}", ""): every,
        ("trans_quant_param_v2", "TransQuantParamV2"): ["reference", "decompose", "engine"],
    }
    assert found.stderr.count("engine ...") == 6, "progress"


def test_replay_sees_a_wrong_result(copy: Path) -> None:
    path = copy / "rank_1" / f"00001_{OP}.outputs.safetensors"
    outputs = load_file(path)
    outputs["y"][0, 0, 0] += 1
    save_file(outputs, path)
    code, out, _ = run_command("replay", "--method", "reference", "--method", "float64", str(copy))
    assert code == 1
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if "(node MatmulAllReduceAddRmsNorm)" in line)
    assert [line.split()[0] for line in lines[at + 1 : at + 3]] == ["reference", "float64"]
    assert all(line.endswith("DIFFERS") for line in lines[at + 1 : at + 3])
    assert lines[-1] == "5 of 6 calls agree"


def test_replay_without_a_rank(copy: Path) -> None:
    shutil.rmtree(copy / "rank_1")
    code, out, _ = run_command("replay", "--method", "reference", str(copy))
    assert code == 1
    assert f"{OP} (eager) on ranks 0, 1: not executed, no record of rank 1" in out


def test_one_tensor_as_two_arguments(tmp_path: Path) -> None:
    x = torch.arange(16.0).reshape(4, 4)
    call = ObservedCall(SPEC, {"x1": x, "residual": x, "gamma": x[1], "bias": None}, {"epsilon": 1e-6}, None)
    Recorder(tmp_path)(call)((x, x))
    (path,) = tmp_path.glob("process_*/*.json")
    again = RecordedCall(path)
    arguments = again.arguments()
    assert torch.equal(arguments["x1"], x) and torch.equal(arguments["residual"], x)
    assert torch.equal(arguments["gamma"], x[1])
    assert arguments["bias"] is None and arguments["epsilon"] == 1e-6
    assert all(torch.equal(y, x) for y in again.outputs())


def _damage(folder: Path, kind: str) -> None:
    place = folder / "rank_0" / f"00000_{OP}"
    if kind == "cut":
        path = Path(f"{place}.inputs.safetensors")
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "no JSON":
        place.with_suffix(".json").write_text("{")
    elif kind == "another format":
        place.with_suffix(".json").write_text('{"format": 99}')
    elif kind == "another operator":
        text = place.with_suffix(".json").read_text()
        place.with_suffix(".json").write_text(text.replace(f'"op": "{OP}"', '"op": "os"'))
    elif kind == "no key":
        place.with_suffix(".json").write_text('{"format": 1}')
    elif kind == "no result":
        save_file({"y": torch.ones(1)}, Path(f"{place}.outputs.safetensors"))
    elif kind == "no tensor":
        path = Path(f"{place}.inputs.safetensors")
        save_file({"x1": torch.ones(1)}, path)
    else:
        shutil.rmtree(folder)
        folder.mkdir()


DAMAGED = {
    "cut": "expected the tensors of a record, got: ",
    "no JSON": "expected a record of a call, got: ",
    "another format": "expected a record of format 1, got another.",
    "another operator": "expected one of matmul_all_reduce_add_rms_norm, ",
    "no tensor": "expected x2, residual, gamma, bias in the record, got none.",
    "no key": "expected 'op' in the record, got none.",
    "no result": "expected norm_out in the record, got none.",
    "nothing": "expected a folder written by `npu-fused-graph run --record`, got one without calls.",
}


@pytest.mark.parametrize("kind", list(DAMAGED))
def test_a_damaged_record_is_one_line(kind: str, copy: Path) -> None:
    _damage(copy, kind)
    code, _, err = run_command("replay", "--method", "reference", str(copy))
    assert code == 1
    line = err.splitlines()[-1]
    assert line.startswith("[replay] "), err
    assert DAMAGED[kind] in line


def _requirement(number: str) -> Any:
    documents = Path(__file__).parents[2].parent / "shared" / "requirements"
    return next(documents.glob(f"{number}_*"), None)


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_the_script_of_requirement_002(tmp_path: Path) -> None:
    """Unchanged: 8 ranks, recorded, recomputed by a program that has none of our code."""
    document = _requirement("002")
    if document is None:
        pytest.skip("the requirement documents are not beside this checkout")
    *_, code = document.read_text(encoding="utf-8").split("```python\n")
    path = tmp_path / "requirement_002.py"
    path.write_text(code.partition("```")[0])
    command = (*CLI, "run", "--json", "--seed", "1", "--record", str(tmp_path / "record"), str(path))
    found = run_python(*command, timeout=400)
    assert found.returncode == 0, found.stderr
    facts = json.loads(found.stderr.splitlines()[-1])
    assert (facts["ranks"], facts["fused"], facts["failures"], facts["left"]) == (8, {OP: 8}, [], 0)
    recomputed = run_python(script("recompute_float64.py"), str(tmp_path / "record"))
    assert recomputed.returncode == 0, recomputed.stderr
    errors = json.loads(recomputed.stdout)
    assert list(errors) == ["0 eager, 8 ranks"]
    assert errors["0 eager, 8 ranks"] < 1
