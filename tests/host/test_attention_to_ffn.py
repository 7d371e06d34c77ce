"""The scripts of requirement 004 on 16 processes, with its misplaced parenthesis closed, and as they stand there."""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.processes import run_python
from tests.scripts import script

# both scripts bind port 50001 of 127.0.0.1, as requirement 002's does
pytestmark = pytest.mark.xdist_group("record")

WRONG = "_get_backend(torch.device('npu')._window_register_and_exchange(window_size, target_ranks))"
RIGHT = "_get_backend(torch.device('npu'))._window_register_and_exchange(window_size, target_ranks)"
CURE = "Close the parenthesis earlier: group._get_backend(torch.device('npu'))._window_register_and_exchange(...)"


def block(index: int) -> str:
    """A block of Python of the document, as it stands there: 0 eager, 1 graph."""
    documents = Path(__file__).parents[2].parent / "shared" / "requirements"
    document = next(documents.glob("004_*"), None)
    if document is None:
        pytest.skip("the requirement documents are not beside this checkout")
    _, *codes = document.read_text(encoding="utf-8").split("```python\n")
    return textwrap.dedent(codes[index].partition("```")[0])


def corrected(index: int) -> str:
    code = block(index)
    assert code.count(WRONG) == 1
    return code.replace(WRONG, RIGHT)


def run(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    path = folder / "requirement_004.py"
    path.write_text(code, encoding="utf-8")
    command = ("-m", "npu_fused_graph.commands.cli", "run", "--json", *options, str(path))
    return run_python(*command, env={"NODES_FOLDER": str(folder)}, timeout=300)


def check(process: subprocess.CompletedProcess[str], ranks: int, attention: int) -> None:
    assert process.returncode == 0, process.stdout + process.stderr
    lines = process.stdout.splitlines()
    assert lines[-1] == "run npu success."
    assert sum("npu finished!" in line for line in lines) == attention
    facts = json.loads(process.stderr.splitlines()[-1])
    assert (facts["ranks"], facts["failures"], facts["left"]) == (ranks, [], 0)
    assert facts["fused"] == {"attention_to_ffn": attention}


@pytest.mark.slow
def test_the_eager_block_runs_on_16_ranks(tmp_path: Path) -> None:
    check(run(tmp_path, corrected(0)), 16, 11)


def check_graphs(folder: Path, attention: int) -> None:
    """One graph with one dispatch on each attention rank."""
    graphs = [path.read_text().splitlines() for path in folder.glob("*.jsonl")]
    assert [len(lines) for lines in graphs] == [1] * attention
    assert [json.loads(line)["AttentionToFFN"] for (line,) in graphs] == [1] * attention


@pytest.mark.slow
def test_the_graph_block_runs_on_16_ranks(tmp_path: Path) -> None:
    check(run(tmp_path, corrected(1), "--register", script("count_nodes.py")), 16, 11)
    check_graphs(tmp_path, 11)


@pytest.mark.slow
def test_the_graph_block_on_7_ranks(tmp_path: Path) -> None:
    """Fewer attention ranks, and FFN ranks that wait for these instead of 10 seconds."""
    code = corrected(1).replace("dev_num = 16", "dev_num = 7")
    waits = "    if rank < ffn_worker_num:\n        time.sleep(10)\n"
    assert waits in code
    code = code.replace(waits, "    dist.barrier()\n")
    check(run(tmp_path, code, "--register", script("count_nodes.py")), 7, 2)
    check_graphs(tmp_path, 2)


def test_the_block_as_it_stands_names_the_parenthesis(tmp_path: Path) -> None:
    """Of the others, some may only see that a rank is gone."""
    process = run(tmp_path, block(0).replace("dev_num = 16", "dev_num = 7"))
    failures = json.loads(process.stderr.splitlines()[-1])["failures"]
    told = [failure["what"] for failure in failures if "_window_register" in failure["what"]]
    assert told
    for text in told:
        assert text.startswith("AttributeError: 'torch.device' object has no attribute '_window_register_and_exchange'")
        assert text.endswith(CURE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "flags 1 1"),
        (("--soc", "Ascend910_9382"), "flags 1 1"),
        (("--soc", "Ascend910B3"), "[attention_to_ffn] device: expected Ascend910_93x (Atlas A3), got 'Ascend910B3'."),
    ],
)
def test_a_chip_that_is_named_has_it_or_not(options: tuple[str, ...], said: str) -> None:
    """torch_npu's own operator, which TorchAir's own converter lowers."""
    command = ("-m", "npu_fused_graph.commands.cli", "run", *options, script("dispatch_on_a_chip.py"))
    process = run_python(*command)
    assert process.returncode == 0, process.stderr
    assert said in process.stdout
