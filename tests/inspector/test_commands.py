"""The commands: what they print, their exit codes, and that they are quick to start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from npu_fused_graph.ir.graph import Build
from tests.inspector import texts
from tests.inspector.build import ge_dump, node, torchair_dump
from tests.inspector.test_facts import CHAIN
from tests.inspector.test_ranks import TP, chain
from tests.processes import run_code, run_command


@pytest.fixture
def dump(tmp_path: Path) -> str:
    return str(torchair_dump(tmp_path, *CHAIN, rank=2))


def facts(*command: str, code: int = 0) -> Any:
    got, out, err = run_command(*command, "--json")
    assert got == code, err
    return json.loads(out)


def test_inspect(dump: str) -> None:
    code, out, err = run_command("inspect", dump)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].startswith("torchair txt | optimized | graph 1 | rank 2 | pid 102 | ")
    assert "graph g: 8 ops, 9 data edges, 1 control edges, 1 inputs from elsewhere" in lines
    assert "fused types: none" in lines and "group tp: 2 HcomAllReduce" in lines
    assert "2    HcomAllReduce" in lines
    assert all(len(line) <= 80 for line in lines)
    assert facts("inspect", dump)["types"]["HcomAllReduce"] == 2


def test_inspect_lists(dump: str) -> None:
    code, out, _ = run_command("inspect", dump, "--type", "Hcom*", "--limit", "2")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["type", "name", "outputs"], ["HcomAllReduce", "ar", "?[4,", "8]"], ["HcomAllGather", "ag", "?[4,", "8]"],
        ["3", "ops,", "the", "first", "2", "above", "(--limit)"],
    ]  # fmt: skip
    found = facts("inspect", dump, "--type", "Hcom*", "--group", "ep")
    assert found["count"] == 1 and found["ops"][0]["name"] == "ag"


def test_inspect_one_op(dump: str) -> None:
    code, out, _ = run_command("inspect", dump, "--node", "ar", "--hops", "1")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["ar", "HcomAllReduce"] and ["group", "=", "tp"] in lines
    assert lines[-3:] == [["-1", "MatMul", "mm"], ["+1", "HcomAllGather", "ag"], ["+1", "Add", "add"]]
    code, _, err = run_command("inspect", dump, "--node", "none")
    assert code == 3 and "expected an op named 'none'" in err


def test_fused(tmp_path: Path) -> None:
    path = tmp_path / "ge_proto_00000001_graph_1_Build.txt"
    path.write_text(texts.GE_PROTO)
    found = facts("fused", str(path))
    assert (found["count"], found["types"]) == (1, {"MatmulAllReduceAddRmsNorm": 1})
    code, out, _ = run_command("fused", str(path))
    assert code == 0 and "1    MatmulAllReduceAddRmsNorm  MatMul, HcomAllReduce, Add, RmsNorm" in out
    path.write_text('op {\n  name: "a"\n  type: "A"\n}\n')
    assert run_command("fused", str(path))[1] == "nothing is fused\n"


def test_memory(tmp_path: Path) -> None:
    path = ge_dump(tmp_path, node("a", "Relu", build=Build(1, 0, [], [512])), memory_size=1024)
    code, out, _ = run_command("memory", str(path))
    assert code == 0
    assert out.splitlines()[:2] == ["arena: 576 bytes", "GE's memory_size: 1,024 bytes, +448 from here"]
    assert facts("memory", str(path))["high_water"] == 576


def test_ranks(tmp_path: Path) -> None:
    for rank in range(2):
        torchair_dump(tmp_path, *chain([TP] * 3), rank=rank)
    code, out, _ = run_command("ranks", str(tmp_path))
    assert code == 0 and out.splitlines()[-1] == "all ranks issue the same collectives in the same order"
    torchair_dump(tmp_path, *chain([TP] * 2), rank=1)
    code, out, _ = run_command("ranks", str(tmp_path))
    assert code == 1 and "DIFFERS: group rank_list=0,1, collective 2: rank 0 has ar2" in out
    assert facts("ranks", str(tmp_path), code=1)["is_same"] is False


def test_check(dump: str) -> None:
    code, out, _ = run_command("check", dump, "--expect", "HcomAllReduce=2", "--expect", "Add>=2")
    assert code == 1
    assert [line.split() for line in out.splitlines()[1:]] == [["ok", "2", "HcomAllReduce=2"], ["FAILS", "1", "Add>=2"]]
    assert facts("check", dump, "--expect", "Add=1", "--memory-below", "100000")["ok"] is True
    code, _, err = run_command("check", dump)
    assert code == 2 and "[check] --expect: expected something to check, got nothing" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspect", "--fold", "--node", "x"), "[inspect] --fold: expected nothing beside it but --full"),
        (("inspect", "--fold", "--type", "x*"), "[inspect] --fold: expected nothing beside it but --full"),
        (("why", "--min-rows", "-3"), "[why] min_rows: expected a number of rows or None, got -3"),
        (("report", "--max-mb", "0"), "[report] --max-mb: expected more than 0"),
    ],
)
def test_wrong_usage_is_no_finding(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    command, *options = arguments
    code, _, err = run_command(command, str(ge_dump(tmp_path, node("x", "Data"))), *options)
    assert code == 2 and err.startswith(said)


def test_no_dump(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello")
    for command in ("inspect", "fused", "memory"):
        code, out, err = run_command(command, str(path))
        assert (code, out) == (3, "") and "expected a dump of a graph" in err


def test_what_was_damaged_is_told_by_whoever_reads_it(tmp_path: Path) -> None:
    path = ge_dump(tmp_path, *(node(f"n{i}", "Relu", group="tp") for i in range(4)))
    text = path.read_text()
    path.write_text(text.replace('    key: "group"', '    key: group"', 1).replace("      value {", "      value ", 1))
    for command in (["memory"], ["check", "--memory-below", "9999"], ["inspect", "--type", "*"]):
        _, _, err = run_command(command[0], str(path), *command[1:])
        assert "warning: line " in err, command


def test_names_cannot_do_anything(tmp_path: Path) -> None:
    """Names with escapes for the terminal, and with marks that turn text around."""
    name = "a\x1b[31mred\x07\u202eback"
    path = ge_dump(tmp_path, node(name, "Relu\x1b[2J", group="\x1b]0;title\x07"))
    for command in (["inspect"], ["inspect", "--type", "*"], ["inspect", "--node", name], ["fused"]):
        _, out, err = run_command(command[0], str(path), *command[1:])
        assert not set(out + err) & {"\x1b", "\x07", "\u202e"}, command


def test_no_command_imports_torch(dump: str) -> None:
    run_code(
        "import sys; from npu_fused_graph.commands.cli import main\n"
        f"assert main(['inspect', {dump!r}]) == 0\n"
        "assert 'torch' not in sys.modules and 'google.protobuf' not in sys.modules"
    )
