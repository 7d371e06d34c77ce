"""The matrix of versions: what is read of a run, what counts as explained, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from npu_fused_graph.codegen.versions_page import versions_page
from tests.compat import __main__ as compat
from tests.compat.causes import CAUSES, Cell, cause_of

REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="good"/>
<testcase classname="tests.a" name="bad"><failure message="x"/></testcase>
<testcase classname="tests.a" name="broken"><error message="x"/></testcase>
<testcase classname="tests.a" name="left out"><skipped/></testcase>
</testsuite></testsuites>"""


def cell(**changes: Any) -> dict[str, Any]:
    return {
        "python": "3.11.7", "torch": "2.10.0", "torch_npu": "2.10.0", "generation": "D", "demo": "8 of 8",
        "parts": {"run": {"passed": 5, "failed": 0}}, "explained": {}, "unexplained": [], "commit": "c", "date": "d",
        **changes,
    }  # fmt: skip


def test_reading_a_run(tmp_path: Path) -> None:
    (tmp_path / "part.xml").write_text(REPORT)
    assert compat._read(tmp_path / "part.xml") == (1, ["tests.a::bad", "tests.a::broken"])
    assert compat._read(tmp_path / "none.xml") == (0, ["none: pytest did not end"])


def test_a_cause_holds_where_it_is_said_to() -> None:
    old, new = Cell((2, 10), "D", (3, 11)), Cell((2, 13), "F", (3, 11))
    test = "tests.host.test_run::test_ctrl_c_ends_everything"
    assert cause_of(test, old) == CAUSES[0].text
    assert cause_of(test, new) is None
    assert cause_of("tests.a::b", old) is None


def test_a_new_run_takes_the_place_of_the_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compat, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(compat.subprocess, "run", lambda *args, **options: None)
    (tmp_path / "results.json").write_text('{"cells": []}')
    for one in (cell(), cell(torch_npu="2.10.0.post7"), cell(torch="2.9.1"), cell(demo="7 of 8")):
        compat.store(one)
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert [(c["torch"], c["torch_npu"], c["demo"]) for c in cells] == [
        ("2.9.1", "2.10.0", "8 of 8"), ("2.10.0", "2.10.0", "7 of 8"), ("2.10.0", "2.10.0.post7", "8 of 8"),
    ]  # fmt: skip


def test_the_page() -> None:
    explained = cell(torch="2.9.1", explained={"It is so.": ["a", "b"]}, parts={"run": {"passed": 3, "failed": 2}})
    page = versions_page([explained, cell(unexplained=["tests.a::b"])])
    assert "| 3.11.7 | 2.9.1 | 2.10.0 | D | 8 of 8 | 3 + 2 | 0 | c | d |" in page
    assert "| 3.11.7 | 2.10.0 | 2.10.0 | D | 8 of 8 | 5 | 1 | c | d |" in page
    assert "- It is so. Seen with torch 2.9.1 with D, Python 3.11.7 (2)." in page


def test_every_part_is_there() -> None:
    for files in compat.PARTS.values():
        assert all((compat.ROOT / name).is_file() for name in files if name.startswith("tests/"))
