"""Generated files are up to date, parse back to the SPEC, and the command says so."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from npu_fused_graph.codegen import generated_files
from npu_fused_graph.codegen.__main__ import FUSIONS, LEAST, facts, main
from npu_fused_graph.ops import specs
from npu_fused_graph.passes import CATALOGUE

ROOT = Path(__file__).parents[2]


def test_committed_files_are_up_to_date() -> None:
    assert main(["--check", "--root", str(ROOT)]) == 0


def test_check_notices_a_stale_file_and_writing_cures_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ge_op_protos").mkdir()
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert "is not up to date" in capsys.readouterr().err
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
    for path in generated_files(specs(), FUSIONS, CATALOGUE.values(), LEAST, {}, [], facts(tmp_path)):
        (tmp_path / path).write_text("edited")
    assert main(["--check", "--root", str(tmp_path)]) == 1


def test_every_fusion_is_on_the_page() -> None:
    assert set(FUSIONS) == {path.parent.name for path in (ROOT / "npu_fused_graph" / "passes").glob("*/fusion.py")}


def test_every_rule_says_what_must_hold() -> None:
    for rules in FUSIONS.values():
        for rule in rules:
            assert rule.statement.endswith((".", ")")) and rule.number[0] in "LB", rule
    page = (ROOT / "docs" / "fusion_rules.md").read_text(encoding="utf-8")
    assert "| L13 | No other collective runs between the all-reduce and the add: " in page


def test_rules_as_data() -> None:
    """What a reader without torch is told, beside what the documents say."""
    data = json.loads((files("npu_fused_graph") / "rules.json").read_text(encoding="utf-8"))
    norm, grouped = "matmul_all_reduce_add_rms_norm", "grouped_mat_mul_all_reduce"
    assert [r["reasons"] for r in data["fusions"][norm] if r["id"] == "L13"] == [["collective_in_between"]]
    assert data["operators"][norm]["group_sizes"] == [1, 2, 4, 8]
    assert data["operators"][grouped]["group_sizes"] == [2, 4, 8]
    assert data["operators"][grouped]["chips"] == ["Ascend910B"]
    assert {"scenario": "bfloat16", "x": "bfloat16", "weight": "bfloat16", "bias": "float32", "group_list": "int64",
            "y": "bfloat16"} in data["operators"][grouped]["dtype_rows"]  # fmt: skip
    assert data["reasons"]["min_rows"]["is_legal"]
    assert not data["reasons"]["reduce_op"]["is_legal"]
    used = {reason for rules in data["fusions"].values() for rule in rules for reason in rule["reasons"]}
    assert used < set(data["reasons"]) == set(CATALOGUE), "some reasons are found while a site is looked for"
    for operator in data["operators"].values():
        assert all(c["statement"].endswith(".") and c["id"] for c in operator["constraints"])


def test_wrong_root() -> None:
    assert main(["--check", "--root", str(ROOT / "tests")]) == 2
