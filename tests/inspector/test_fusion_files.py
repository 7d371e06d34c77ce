"""GE's own files about its passes, with all that is odd about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector import read_fusion_config, read_fusion_result
from npu_fused_graph.inspector.fusion_files import PassCount
from tests.inspector.samples import sample
from tests.processes import run_command


def entry(session: str, **counts: tuple[int, int]) -> str:
    passes = {name: {"match_times": str(m), "effect_times": str(e)} for name, (m, e) in counts.items()}
    return f'"session_and_graph_id_{session}": {json.dumps({"graph_fusion": passes, "ub_fusion": {}})}'


def read(folder: Path, text: str) -> Any:
    path = folder / "fusion_result.json"
    path.write_text(text)
    return read_fusion_result(path)


def test_keys_that_repeat(tmp_path: Path) -> None:
    """An ordinary reader of JSON loses the first of them."""
    counts, warnings = read(tmp_path, f"{{{entry('0_1', P=(4, 2))}, {entry('0_1', P=(1, 0), Q=(3, 3))}}}")
    assert counts == [
        PassCount("0_1", "graph", "P", 4, 2), PassCount("0_1", "graph", "P", 1, 0),
        PassCount("0_1", "graph", "Q", 3, 3),
    ]  # fmt: skip
    assert warnings == []


def test_the_older_form(tmp_path: Path) -> None:
    passes = {"P": {"match_times": "170", "effect_times": "0"}}
    counts, _ = read(tmp_path, json.dumps({"graph_fusion": {}, "session_and_graph_id": "0_0", "ub_fusion": passes}))
    assert counts == [PassCount("0_0", "ub", "P", 170, 0)]


def test_one_that_a_crash_left_open(tmp_path: Path) -> None:
    text = f"{{\n{entry('0_1', P=(4, 2))},\n{entry('0_2', P=(1, 1))}"
    counts, warnings = read(tmp_path, text)
    assert [c.session for c in counts] == ["0_1", "0_2"] and len(warnings) == 1
    counts, warnings = read(tmp_path, text[:-40])
    assert [c.session for c in counts] == ["0_1"]
    assert warnings == ["line 3: no JSON from here on; what follows was not read"]


def test_real_ones() -> None:
    text = sample("fusion_result_hhhh_function.json").read_text()
    counts, warnings = read_fusion_result(sample("fusion_result_hhhh_function.json"))
    assert warnings == [] and len(counts) == text.count('"match_times"')
    counts, _ = read_fusion_result(sample("fusion_result_ATC-CTPN_oldschema.json"))
    assert len(counts) == 20 and sum(c.effective == 0 for c in counts) == 12
    switches = read_fusion_config(sample("fusion_config_910b_stub.json"))
    assert switches["graph", "MatmulAllReduceAddRmsNormFusionPass"] is False


def test_what_is_none(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match=r"expected GE's fusion_result\.json, got a"):
        read(tmp_path, '{"a": 1}')
    with pytest.raises(DumpError, match="expected fusion switches"):
        read_fusion_config(tmp_path / "fusion_result.json")


def test_inspect_shows_them(tmp_path: Path) -> None:
    read(tmp_path, f"{{{entry('0_1', P=(4, 2))}}}")
    code, out, _ = run_command("inspect", str(tmp_path / "fusion_result.json"))
    assert (code, out.splitlines()[1].split()) == (0, ["2", "4", "0_1", "graph", "P"])
    path = tmp_path / "switch.cfg"
    path.write_text('{"Switch": {"GraphFusion": {"P": "off", "Q": "on"}, "UBFusion": {"R": "on"}}}')
    code, out, _ = run_command("inspect", str(path))
    assert (code, out.splitlines()[1:]) == (0, ["graph  P", "2 others are switched on"])
    found = json.loads(run_command("inspect", str(path), "--json")[1])["switches"]
    assert found[0] == {"kind": "graph", "pass": "P", "is_on": False}
