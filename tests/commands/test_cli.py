"""The console script: what it prints, its exit codes, and that it ends without a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from npu_fused_graph import __version__
from npu_fused_graph.commands import doctor
from npu_fused_graph.commands.cli import main
from npu_fused_graph.errors import DumpError, NpuFusedGraphError
from npu_fused_graph.host.support import support
from tests.host.wheels import write_wheel

FUSED = "MatmulAllReduceAddRmsNorm"


def test_console_script_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="npu-fused-graph")
    assert script.load() is main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["doctor", "demo", "ops", "host", "compile a tensor-parallel decoder"]),
        (["doctor", "--help"], ["--json"]),
        (["run", "--help"], ["--seed", "--record", "--register", "--strict", "--stock", "--devices", "--soc", "-m"]),
        (["replay", "--help"], ["--method", "--json"]),
        (["host", "install", "--help"], ["--wheel", "--force", "--json"]),
        (["--version"], [__version__]),
    ],
)
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert [word for word in words if word not in out] == []


@pytest.mark.parametrize(
    "arguments", [[], ["hotel"], ["host"], ["host", "remove"], ["ops", "--colour"], ["demo", "--ranks", "3"]]
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: npu-fused-graph")


def test_ops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops"]) == 0
    text = capsys.readouterr().out
    assert f"{FUSED}\n  npu_mm_all_reduce_add_rms_norm(Tensor x1, Tensor x2, " in text
    assert main(["ops", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    (row,) = [row for row in rows if row["ge_type"] == FUSED]
    assert row["stem"] == "matmul_all_reduce_add_rms_norm"
    assert row["schema"] in text
    assert row["source"]


def test_ops_of_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--engine", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["count"] == len(facts["types"]) == len(set(facts["types"]))
    assert {"MatMul", "Add", "HcomAllReduce", FUSED} <= set(facts["types"])
    assert main(["ops", "--engine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [*facts["types"], f"{facts['count']} GE op types"]


def test_doctor_where_all_is_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is True
    assert facts["problems"] == []
    assert facts["npu_fused_graph"] == __version__
    assert facts["mode"] == "host"
    assert (Path(facts["torchair"]["folder"]) / "torchair" / "npu_fx_compiler.py").is_file()
    assert (facts["run"], facts["collectives"]) == ("ready", "gloo, also under the name hccl in `run`")
    assert facts["cann"] is None
    assert facts["versions"]["torch_npu"] == "2.13.0"
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("everything is in place\n")
    assert facts["torchair"]["folder"] in text


def test_doctor_without_torchair(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NFG_CACHE", str(tmp_path))
    monkeypatch.delenv("NFG_TORCHAIR", raising=False)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "cure:    npu-fused-graph host install" in lines
    assert lines[-1] == "something is missing"
    assert main(["doctor", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ok"], facts["torchair"]) == (False, None)
    assert [p["cure"] for p in facts["problems"]] == ["npu-fused-graph host install"]
    # CANN alone is not enough
    (tmp_path / "x86_64-linux").mkdir()
    (tmp_path / "x86_64-linux" / "ascend_toolkit_install.info").write_text("package_name=x\nversion=8.1.RC1\n")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    assert main(["doctor", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["cann"] == f"8.1.RC1 in {tmp_path}"
    assert facts["run"] == "not possible"
    assert (facts["mode"], facts["problems"][0]["cure"]) == ("host", "npu-fused-graph host install")
    # installing cannot cure a wrong NFG_TORCHAIR
    monkeypatch.setenv("NFG_TORCHAIR", str(tmp_path))
    assert main(["doctor", "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["problem"].startswith("[host] NFG_TORCHAIR: expected a folder that holds torchair/")
    assert problem["cure"] == "unset NFG_TORCHAIR, or point it at an unpacked torch_npu wheel"


def test_doctor_where_torch_npu_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CANN's environment and an installed torch_npu are not yet device mode."""
    info = tmp_path / "torch_npu-2.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    assert main(["doctor", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["mode"] == "host"
    assert "torch_npu does not import" in [p["problem"] for p in facts["problems"]][-1]


def test_doctor_where_nothing_loads(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise TypeError("Descriptors cannot be created directly\nmore")

    monkeypatch.setattr("npu_fused_graph.host.support.support", fail)
    assert main(["doctor", "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["problem"] == "torch does not load: TypeError: Descriptors cannot be created directly"


def test_host_install(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NFG_CACHE", str(tmp_path / "cache"))
    wheel = write_wheel(tmp_path / "x.whl")
    folder = str(tmp_path / "cache" / "torch_npu-2.13.0")
    assert main(["host", "install", "--wheel", str(wheel), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"folder": folder}
    assert "unpacking TorchAir" in captured.err
    assert main(["host", "install"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"


def test_our_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NFG_CACHE", str(tmp_path / "cache"))
    assert main(["host", "install", "--wheel", str(tmp_path / "none.whl")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"[host] wheel: expected a file, got {tmp_path / 'none.whl'}. Give the path of a torch_npu wheel."
    ]


@pytest.mark.parametrize("error", NpuFusedGraphError.__subclasses__())
def test_every_error_of_ours_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: type[NpuFusedGraphError]
) -> None:
    def fail() -> None:
        raise error("what, expected, got. cure")

    monkeypatch.setattr(doctor, "diagnose", fail)
    assert main(["doctor"]) == (3 if error is DumpError else 1)
    assert capsys.readouterr().err == "what, expected, got. cure\n"


def test_interrupt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "diagnose", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("arguments", [["doctor"], ["--help"]])
def test_reader_that_left(arguments: list[str]) -> None:
    # what `| head -1` does, without the race: nobody reads from the beginning
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "npu_fused_graph.commands.cli", *arguments]
        result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


def test_more_text_than_a_pipe_holds(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import npu_fused_graph.commands.cli as cli, npu_fused_graph.commands.doctor as doctor, sys\n"
        "doctor.format_diagnosis = lambda diagnosis: 'line\\n' * 1_000_000\n"
        "sys.exit(cli.main(['doctor']))"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stderr is not None
    with first, first.stdout, first.stderr:
        assert first.stdout.readline() == "line\n"
        first.stdout.close()
        assert first.stderr.read() == ""
    assert first.returncode == 0


def test_doctor_where_only_torchair_was_unpacked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, torchair_folder: Path
) -> None:
    """An NFG_TORCHAIR without the operators' schemas compiles models and cannot run scripts."""
    support()  # of the TorchAir the other tests of this process use
    (tmp_path / "torchair").symlink_to(torchair_folder)
    monkeypatch.setenv("NFG_TORCHAIR", str(tmp_path))
    assert main(["doctor", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["run"] == "not possible"
    (problem,) = facts["problems"]
    assert problem["cure"] == "npu-fused-graph host install --force"
