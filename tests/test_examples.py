"""Every example runs, is short, and shows what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from google.protobuf import text_format

from npu_fused_graph.commands.demo import format_facts
from npu_fused_graph.ir import schema
from npu_fused_graph.ir.graph import Graph
from npu_fused_graph.ir.modeldef import read_graph
from npu_fused_graph.ir.order import live_nodes
from npu_fused_graph.ir.text import to_text
from npu_fused_graph.testing import assert_same_graph
from tests.processes import free_port

ROOT = Path(__file__).parent.parent
CLI = ("-m", "npu_fused_graph.commands.cli")
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


def run(*command: str) -> str:
    result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout


def joined(out: str) -> str:
    """What ranks wrote to one pipe: an end of line may stand in the middle of another's."""
    return out.replace("\n", "")


def dumped_graph(folder: Path) -> Graph:
    """The optimized graph an example dumped in TorchAir's txt form."""
    (path,) = folder.glob("dynamo_optimized_*.txt")
    return read_graph(text_format.Parse(path.read_text(), schema.messages().GraphDef(), allow_unknown_field=True))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_is_short(path: Path) -> None:
    whole = {"07_attention_and_ffn": 130}  # a decoder, and a program for each of two roles
    assert len(path.read_text().splitlines()) < whole.get(path.stem, 60)


def test_01_eager() -> None:
    out = run("examples/01_eager.py")
    assert "y        (2, 8, 32) torch.bfloat16" in out
    assert "residual: expected shape (b, s, n), got shape [8, 32]" in out


def test_02_one_line_fuses_and_nothing_else_stops_working(tmp_path: Path) -> None:
    out = run("examples/02_existing_pipeline.py", str(tmp_path / "with"))
    assert "my pass saw" in out, "its own pass still acts"
    graph = dumped_graph(tmp_path / "with")  # its own config still dumps
    types = Counter(graph.nodes[name].type for name in live_nodes(graph))
    assert types["MatmulAllReduceAddRmsNorm"] == 1
    assert types["Swish"] == 1, "its own pattern and converter still act"
    assert types["HcomAllReduce"] == 0
    assert_same_graph(to_text(graph), ROOT / "tests" / "golden" / "example_02_with.txt")


def test_08_attention_of_the_requirement() -> None:
    out = run("examples/08_flash_attention.py")
    assert out.count("torch.float16 (1, 32, 2048, 128)") == 4
    assert out.count("relative errors against float64") == 2
    assert re.search(r"peak memory beyond the inputs: \d+ MB", out)


@pytest.mark.slow
def test_02_without_the_line_the_graph_is_untouched(tmp_path: Path) -> None:
    run("examples/02_existing_pipeline.py", str(tmp_path), "--without")
    text = to_text(dumped_graph(tmp_path))
    assert_same_graph(text, ROOT / "tests" / "golden" / "example_02_without.txt")
    assert "MatmulAllReduceAddRmsNorm" not in text


@pytest.mark.slow
def test_03_two_ranks() -> None:
    out = run("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-endpoint", "127.0.0.1:0",
              "--rdzv-backend", "c10d", "examples/03_two_ranks.py")  # fmt: skip
    # both ranks write to one pipe: their lines may run into each other
    for rank in (0, 1):
        for mode in ("max-autotune", "npugraph_ex"):
            verdict = "fused into matmul_all_reduce_add_rms_norm (same_rounding, modelled gain 1.00x): proj"
            assert f"rank {rank}: {mode}: {verdict}" in out


@pytest.mark.slow
def test_04_quantised() -> None:
    out = run("examples/04_quantised.py")
    for name in ("W8A8", "A16W8 per group"):
        (line,) = (line for line in out.splitlines() if line.startswith(f"{name}: "))
        assert line.endswith("compiled equal to eager: True")
        assert float(line.partition("error of y ")[2].partition(",")[0]) < 0.1, "int8 noise on values of about 1"
    assert "in place: y is the residual: True, equal: True" in out


@pytest.mark.slow
def test_05_npu_script(tmp_path: Path) -> None:
    out = run(*CLI, "run", "--record", str(tmp_path / "calls"), "examples/05_npu_script.py")
    assert sorted(joined(out).split("rank ")) == ["", *(f"{r} on npu:{r}: graph equals eager: True" for r in (0, 1))]
    replayed = run(*CLI, "replay", str(tmp_path / "calls"))
    assert replayed.splitlines()[-1] == "2 of 2 calls agree"


@pytest.mark.slow
def test_07_attention_and_ffn() -> None:
    out = run("examples/07_attention_and_ffn.py", str(free_port()))
    said = sorted(re.findall(r"rank \d, \d micro batch\(es\): equal to one process: True", joined(out)))
    assert said == [f"rank {r}, {m} micro batch(es): equal to one process: True" for r in (2, 3) for m in (1, 2)]
    assert "bytes per token and layer: {'to FFN': 6156, 'to attention': 6156}" in out


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    facts = json.loads(run(*CLI, "demo", "--json", "--output", str(tmp_path)))
    assert (facts["fused"], facts["legal"], facts["ranks"]) == (8, 8, 2)
    assert Path(facts["dump"]).is_file()
    refused = [site for site in facts["sites"] if not site["fused"]]
    assert [site["reason"] for site in refused] == ["scaled_before_add"]
    assert refused[0]["cure"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = [line for line in format_facts(facts).splitlines() if line.startswith(("pool", "  cure"))]
    assert len(said) == 3 and all(f"{line}\n" in readme for line in said)
    fused = [site for site in facts["sites"] if site["fused"]]
    assert len({site["ge_node"] for site in fused}) == 8
    assert all(site["layer"] and ":" in site["source"] and site["numerics"] == "same_rounding" for site in fused)
    before, after = facts["ge_nodes"]["before"], facts["ge_nodes"]["after"]
    assert after["MatmulAllReduceAddRmsNorm"] == 8
    assert before["HcomAllReduce"] - after["HcomAllReduce"] == 8
    assert facts["error"]["fused_vs_float64"] < 3e-2  # float16, four layers, values up to 4
    assert facts["error"]["fused_vs_eager"] < 3e-2


def test_demo_model_is_plain_torch() -> None:
    source = (ROOT / "npu_fused_graph" / "commands" / "demo_model.py").read_text()
    assert len(source.splitlines()) < 80
    imports = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert all("npu_fused_graph" not in line and "torch" in line for line in imports)


@pytest.mark.slow
def test_06_says_what_would_be_grouped_and_groups_it() -> None:
    off, on = run("examples/06_grouped_experts.py").splitlines()
    count = "4 matmuls and 4 collectives -> 1 node"
    assert off.startswith(f"grouped=False: not fused into grouped_mat_mul_all_reduce (legal, {count}): ")
    assert off.endswith("[deprecated] Pass grouped=True.")
    assert on.startswith(f"grouped=True: fused into grouped_mat_mul_all_reduce (same_rounding, {count}): ")
    assert "06_grouped_experts.py:26" in on, "the line of the all-reduce"


@pytest.mark.slow
def test_09_a_node_runs_the_kernel_on_the_simulator() -> None:
    said = joined(run("examples/09_kernel_on_the_simulator.py", str(free_port())))
    assert "12 rows arrived from the simulated kernel, equal to what was sent: True" in said
    assert "answer: (4, 1024) torch.bfloat16" in said


@pytest.mark.slow
def test_10_one_line_fuses_and_patterns_of_the_pipeline_stay() -> None:
    fused, swish = "npu_fused_graph.npu_mm_all_reduce_add_rms_norm.transposed_x2", "mylib.swish.default"
    for arguments, found in (((), [fused, swish]), (("--without",), [swish])):
        out = run("examples/10_captured_pipeline.py", *arguments)
        assert "my pre pass: []" in out, "it runs before ours"
        assert f"my post pass: {found}" in out
        assert out.count("largest difference to eager: ") == 3
        assert all(float(x) < 1e-2 for x in re.findall(r"eager: (\S+)", out))
