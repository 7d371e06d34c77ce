"""``kernel trace``: the picture and the trace of a launch say what the launch did."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from npu_fused_graph.commands.cli import main
from npu_fused_graph.commands.kernel import launch_dispatch
from npu_fused_graph.sim.chips import CHIPS
from npu_fused_graph.sim.launch import Figures
from npu_fused_graph.sim.picture import LEFT, WIDTH, chrome_trace, lanes_of, page

SMALL = {"tokens": 3, "hidden": 1024, "top_k": 2, "experts": 4, "shared": 1, "ffn_ranks": 2}


@pytest.fixture(scope="module")
def figures() -> Figures:
    return launch_dispatch(**SMALL, is_quantised=True, chip="Ascend910_9391")


def test_pipes_do_one_thing_at_a_time(figures: Figures) -> None:
    lanes = lanes_of(figures)
    assert {pipe for _, _, pipe in lanes} == {"V", "MTE2", "MTE3"}
    for spans in lanes.values():
        ends = [end for _, end, _, _ in spans]
        assert all(begin >= before for (begin, *_), before in zip(spans[1:], ends, strict=False))
        assert all(end > begin for begin, end, _, _ in spans)
        assert max(ends) <= figures.simulated_cycles


def test_spans_add_up_to_the_figures(figures: Figures) -> None:
    """Bytes of all copies, and the cycles of the busiest core of each pipe."""
    lanes = lanes_of(figures)
    moved = sum(size for spans in lanes.values() for *_, size in spans)
    assert moved == figures.bytes_in + figures.bytes_out + figures.bytes_far
    for pipe in ("V", "MTE2", "MTE3"):
        busy = max(sum(end - begin for begin, end, _, _ in s) for lane, s in lanes.items() if lane[2] == pipe)
        assert busy == pytest.approx(figures.busiest[pipe], rel=0.02)  # the trace has whole cycles


def test_the_page(figures: Figures) -> None:
    text = page(figures, "a < launch", 1850)
    assert "<title>a &lt; launch</title>" in text and "Simulated, not measured" in text
    assert f"{figures.simulated_cycles / 1850:,.1f} us at 1850 MHz" in text
    assert not re.search(r"https?://|<script|<link|<img", text)
    lefts = [float(x) for x in re.findall(r'<rect x="([\d.]+)"', text)]
    widths = [float(x) for x in re.findall(r'<rect [^>]*width="([\d.]+)"', text)]
    assert lefts and min(lefts) >= LEFT
    assert all(left + width <= WIDTH + 1 for left, width in zip(lefts, widths, strict=True))
    assert text.count("rank 2 core 0 MTE3") == 1


def test_the_trace_for_perfetto(figures: Figures) -> None:
    made = json.loads(json.dumps(chrome_trace(figures, 1850)))
    spans = [event for event in made["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == len(figures.trace)
    assert {event["pid"] for event in spans} == {2}
    names = {event["args"]["name"] for event in made["traceEvents"] if event["name"] == "thread_name"}
    assert "core 0 MTE3" in names
    assert max(event["ts"] + event["dur"] for event in spans) <= figures.simulated_cycles / 1850


@pytest.mark.parametrize("name", ["picture.html", "picture.json"])
def test_the_command(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / name
    sizes = [word for key, value in SMALL.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    assert main(["kernel", "trace", *sizes, "-o", str(output), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["written"] == str(output) and facts["cores"] == 48 and "28.6 us" in facts["note"]
    assert facts["simulated_us"] == pytest.approx(facts["simulated_cycles"] / CHIPS["Ascend910_9391"])
    assert output.stat().st_size > 1000
    assert main(["kernel", "trace", *sizes, "-o", str(output)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("AttentionToFFN, 3 tokens of 1024, 2 of 4 experts + 1, Ascend910_9391\nsimulated: ")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--chip", "Ascend910B1"], "[kernel] --chip: expected one of Ascend910_9391, "),
        (["--hidden", "800"], "[attention_to_ffn] x: expected 1024 to 8192 elements a token, got 800"),
        (["--top-k", "9"], "expected 1 to 1024 experts, 1 to 16 of them a token, got 4 and 9"),
    ],
)
def test_what_the_command_refuses(
    wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [word for key, value in SMALL.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    assert main(["kernel", "trace", *sizes, *wrong, "-o", str(tmp_path / "x.html")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
