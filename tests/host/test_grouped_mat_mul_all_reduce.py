"""The scripts of requirements 001 and 000, and the older name, as on NPUs; their records recomputed, replayed."""

from __future__ import annotations

import json
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.processes import free_port, run_command, run_python
from tests.scripts import script

# both documents bind port 5001 of 127.0.0.1
pytestmark = pytest.mark.xdist_group("requirement_port")

CLI = ("-m", "npu_fused_graph.commands.cli")
OP = "grouped_mat_mul_all_reduce"
GE_TYPE = "GroupedMatMulAllReduce"
EVERY_METHOD = ["reference", "decompose", "float64", "engine"]
DEPRECATED = f"[{OP}] ascend_{OP}: expected its newer name, got AscendSpeed's. Call mindspeed.ops.npu_{OP} instead."


@dataclass
class Run:
    """A script that ran in ``folder``; its record is in ``folder / "record"``."""

    folder: Path
    process: subprocess.CompletedProcess[str]

    @property
    def facts(self) -> Any:
        return json.loads(self.process.stderr.splitlines()[-1])

    @property
    def record(self) -> Path:
        return self.folder / "record"

    def recomputed(self) -> dict[str, float]:
        """By a program that has none of our code."""
        found = run_python(script("recompute_grouped_float64.py"), str(self.record), str(self.folder))
        assert found.returncode == 0, found.stderr
        errors: dict[str, float] = json.loads(found.stdout)
        return errors

    def replayed(self) -> Any:
        code, out, err = run_command("replay", "--json", str(self.record))
        assert code == 0, out + err
        return json.loads(out)


def run(folder: Path, path: str, *arguments: str) -> Run:
    """In ``folder``, because the documents' scripts write where they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command = (*CLI, "run", "--json", "--seed", "1", "--record", str(folder / "record"), path, *arguments)
        process = run_python(*command)
    assert process.returncode == 0, process.stdout + process.stderr
    return Run(folder, process)


def requirement(number: str) -> str:
    """The block of Python of a document, as it stands there."""
    documents = Path(__file__).parents[2].parent / "shared" / "requirements"
    document = next(documents.glob(f"{number}_*"), None)
    if document is None:
        pytest.skip("the requirement documents are not beside this checkout")
    *_, code = document.read_text(encoding="utf-8").split("```python\n")
    return code.partition("```")[0]


def newer() -> str:
    return requirement("001")


def older() -> str:
    """Requirement 000's block is indented as a whole, but one of its lines by a tab: Python refuses that."""
    code = requirement("000")
    line = "\tfrom ascendspeed.ops.grouped_mat_mul_all_reduce import ascend_grouped_mat_mul_all_reduce\n"
    assert code.count("\t") == 1
    assert line in code
    return textwrap.dedent(code.replace(line, "    " + line.lstrip("\t")))


SCRIPTS = {"001": newer, "000": older}


@pytest.fixture(scope="module", params=["001", pytest.param("000", marks=pytest.mark.slow)])
def document(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of a requirement's script."""
    folder = tmp_path_factory.mktemp(f"requirement_{request.param}")
    path = folder / f"requirement_{request.param}.py"
    path.write_text(SCRIPTS[request.param](), encoding="utf-8")
    return run(folder, str(path))


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of grouped_bfloat16_bias.py, which compares as it goes."""
    return run(tmp_path_factory.mktemp("forms"), script("grouped_bfloat16_bias.py"), str(free_port()))


def test_documents_run_on_two_ranks(document: Run) -> None:
    facts = document.facts
    assert (facts["ranks"], facts["fused"], facts["failures"], facts["left"]) == (2, {OP: 2}, [], 0)
    assert [f"device_{rank} get_hccl_comm_name success." in document.process.stdout for rank in (0, 1)] == [True, True]


def test_documents_write_their_results(document: Run) -> None:
    files = sorted(path.name for path in document.folder.glob("*.bin"))
    assert files == ["y_0.bin", "y_1.bin"]
    recorded = load_file(document.record / "rank_0" / f"00000_{OP}.outputs.safetensors")
    assert {name: (tuple(y.shape), str(y.dtype)) for name, y in recorded.items()} == {
        "y.0": ((32, 32), "torch.float16"),
        "y.1": ((64, 64), "torch.float16"),
    }
    for i, file in enumerate(files):
        assert (document.folder / file).read_bytes() == recorded[f"y.{i}"].numpy().tobytes()
        assert recorded[f"y.{i}"].count_nonzero()


def test_a_program_without_our_code_agrees(document: Run) -> None:
    errors = document.recomputed()
    assert set(errors) == {"y_0.bin", "y_1.bin", "0 eager, 2 ranks"}
    assert all(error < 1 for error in errors.values()), errors


def test_a_program_without_our_code_sees_a_wrong_file(document: Run, tmp_path: Path) -> None:
    data = bytearray((document.folder / "y_1.bin").read_bytes())
    data[1] ^= 0x80  # the sign of the first number
    (tmp_path / "y_1.bin").write_bytes(data)
    found = run_python(script("recompute_grouped_float64.py"), str(document.record), str(tmp_path))
    assert json.loads(found.stdout)["y_1.bin"] > 1


def test_documents_are_replayed(document: Run) -> None:
    facts = document.replayed()
    assert (facts["agree"], facts["count"]) == (1, 1)
    (call,) = facts["calls"]
    assert (call["op"], call["node"], call["ranks"]) == (OP, "", [0, 1])
    assert [c["method"] for c in call["comparisons"]] == EVERY_METHOD
    assert all(c["is_close"] for c in call["comparisons"])


def test_what_a_record_of_lists_holds(document: Run) -> None:
    for rank in (0, 1):
        facts = json.loads((document.record / f"rank_{rank}" / f"00000_{OP}.json").read_text())
        assert (facts["op"], facts["ge_type"], facts["rank"]) == (OP, GE_TYPE, rank)
        assert facts["group"] == {"name": "0", "ranks": [0, 1], "turn": 0}
        attrs = {name: value for name, value in facts["attrs"].items() if name != "hcomm"}
        assert attrs == {"group_list": None, "split_item": 0, "reduce_op": "sum", "comm_turn": 0}
        assert facts["inputs"]["x"] == [
            {"dtype": "float16", "shape": shape, "is_transposed": False} for shape in ([32, 256], [64, 128])
        ]
        assert facts["inputs"]["bias"] in (None, [])
        assert facts["outputs"] == ["y.0", "y.1"]
        inputs = load_file(document.record / f"rank_{rank}" / f"00000_{OP}.inputs.safetensors")
        assert set(inputs) == {"x.0", "x.1", "weight.0", "weight.1"}


def test_only_the_older_name_is_deprecated(document: Run) -> None:
    """Said once by each of two ranks."""
    is_older = document.folder.name.startswith("requirement_000")
    assert document.process.stderr.count(DEPRECATED) == (2 if is_older else 0)


# -- our own script -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_older_name_widens_a_bfloat16_bias(forms: Run) -> None:
    """The script compares the results; the record has what the operator was given."""
    inputs = [load_file(forms.record / "rank_1" / f"0000{i}_{OP}.inputs.safetensors") for i in range(5)]
    for i, call in enumerate(inputs):
        if i == 2:
            assert "bias.0" not in call
            continue
        for name in ("bias.0", "bias.1"):
            assert str(call[name].dtype) == "torch.float32"
            assert (call[name] == call[name].bfloat16().float()).all()
            assert (call[name] == inputs[0][name]).all()
    assert forms.process.stderr.count(DEPRECATED) == 2


@pytest.mark.slow
def test_results_are_on_the_device(forms: Run) -> None:
    """Eager ones and those of a graph: what comes back in a list, too."""
    assert forms.process.stdout.splitlines() == ["on the device: [True, True, True, True] [True, True]"]


@pytest.mark.slow
def test_compiled_calls_are_recorded_by_node(forms: Run) -> None:
    facts = [
        [json.loads(path.read_text()) for path in sorted((forms.record / f"rank_{rank}").glob("*.json"))]
        for rank in (0, 1)
    ]
    for calls in facts:
        assert [call["node"] for call in calls] == ["", "", "", GE_TYPE, GE_TYPE]
        assert calls[4]["attrs"]["group_list"] == [3, 8]
        assert calls[4]["attrs"]["split_item"] == 3
        assert calls[4]["outputs"] == ["y.0"]
        assert [x["shape"] for x in calls[4]["inputs"]["weight"]] == [[16, 6], [16, 6]]
    assert forms.facts["fused"] == {OP: 10}
    assert forms.facts["graphs"] == 4
    assert forms.facts["fallbacks"] == {}


@pytest.mark.slow
def test_calls_of_every_kind_are_recomputed_and_replayed(forms: Run) -> None:
    errors = forms.recomputed()
    assert list(errors) == [f"{i} {'node' if i > 2 else 'eager'}, 2 ranks" for i in range(5)]
    assert all(error < 1 for error in errors.values()), errors
    facts = forms.replayed()
    assert (facts["agree"], facts["count"]) == (5, 5)
    assert sorted(call["node"] for call in facts["calls"]) == ["", "", "", GE_TYPE, GE_TYPE]
    assert all([c["method"] for c in call["comparisons"]] == EVERY_METHOD for call in facts["calls"])
