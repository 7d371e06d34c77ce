"""`npu-fused-graph run`: what the launcher starts, waits for, cleans up and says."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.host.wheels import put_broken_torch_npu
from tests.processes import TIMEOUT, free_port, run_python
from tests.scripts import script

RUN = ("-m", "npu_fused_graph.commands.cli", "run")


def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[subprocess.CompletedProcess[str], Any]:
    """What the launcher's process gave, and the facts it printed."""
    result = run_python(*RUN, "--json", *arguments, env=env)
    return result, json.loads(result.stderr.splitlines()[-1])


@pytest.mark.slow
def test_a_script_that_only_imports_torch_beside_an_installed_torch_npu(tmp_path: Path, torchair_folder: Path) -> None:
    """Arguments and exit code are the script's; ``.npu()`` and the backend named npu are there."""
    put_broken_torch_npu(tmp_path, torchair_folder)
    env = {"PYTHONPATH": str(tmp_path)}
    plain = run_python("-c", "import torch", env=env)
    assert "libhccl.so" in plain.stderr, "as on a machine without CANN where the wheel was installed"
    env["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    result, facts = run(script("only_torch.py"), "--flag", "7", env=env)
    assert result.stdout.splitlines() == ["['--flag', '7']", "graph equals eager: True"]
    assert (result.returncode, facts["exit_code"], facts["graphs"], facts["fallbacks"]) == (7, 7, 1, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchair_first.py", "torchair_in_torch_npu.py"])
def test_torchair_is_one_package_under_every_name(name: str) -> None:
    result, facts = run(script(name))
    assert (result.returncode, result.stdout) == (0, "one package\n"), result.stderr
    assert facts["graphs"] >= 1


@pytest.mark.slow
def test_fusion_beside_torchairs_own_passes() -> None:
    result, facts = run(script("npu_fx_pass.py"))
    lines = ["npu_fx_pass=False: fused 2 of 2", "npu_fx_pass=True: fused 2 of 2"]
    assert (result.returncode, result.stdout.splitlines()) == (0, lines), result.stderr
    assert facts["graphs"] == 2
    assert (facts["sites"]["legal"], facts["sites"]["fused"]) == (4, 4)


def test_forked_ranks_after_torch_work_and_a_crash_the_script_ignores() -> None:
    arguments = (script("fork_after_work.py"), str(free_port()))
    result, facts = run(*arguments)
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "run npu success."
    assert facts["ranks"] == 2
    (failure,) = facts["failures"]
    assert (failure["rank"], failure["what"]) == (1, "ValueError: rank 1 crashes")


def test_strict_does_not_ignore_it() -> None:
    """Also behind the word python."""
    result = run_python(*RUN, "--strict", "python", script("fork_after_work.py"), str(free_port()))
    assert result.returncode == 1
    assert "rank 1 (pid " in result.stderr
    assert ") failed: ValueError: rank 1 crashes" in result.stderr


@pytest.mark.slow
def test_the_rank_at_fault_is_told_before_those_that_lost_it() -> None:
    """Also by torchrun, which ends the other rank, and says nothing the rank has not said."""
    _, facts = run(script("lost_peer.py"), str(free_port()))
    assert [(failure["rank"], failure["kind"]) for failure in facts["failures"]] == [(1, "own"), (0, "peer")]
    assert facts["failures"][0]["what"] == "ValueError: rank 1 breaks"
    command = ("torchrun", "--nproc-per-node=2", f"--master-port={free_port()}", script("lost_peer.py"))
    result, facts = run(*command)
    first, second = facts["failures"]
    assert (first["rank"], first["kind"], first["what"]) == (1, "own", "ValueError: rank 1 breaks")
    assert second["rank"] == 0
    assert second["kind"] in ("peer", "killed")
    assert result.returncode == 1


@pytest.mark.slow
def test_an_eager_fallback_is_told(tmp_path: Path) -> None:
    """torch turns some failures of a backend into a graph break: the script goes on without a graph."""
    result, facts = run("--strict", "--record", str(tmp_path), script("fallback.py"))
    assert result.stdout.splitlines()[-1] == "finished tensor([2., 2.])"
    assert (result.returncode, facts["exit_code"], facts["graphs"]) == (1, 0, 0)
    (reason,) = facts["fallbacks"]
    assert reason.startswith("UnsupportedOperatorException: falling::back")
    assert facts["recorded"] == 0


@pytest.mark.slow
def test_what_training_scripts_and_data_loaders_do() -> None:
    """After ``--``, as some launchers write it."""
    result, facts = run("--", script("training.py"), str(free_port()))
    assert result.returncode == 0, result.stderr
    assert facts["failures"] == []
    assert json.loads(result.stdout) == {
        "data parallel": True,
        "no such device": [True] * 6,
        "pinned": [False, True, True, False],
        "recorded": None,
        "gloo beside hccl": [1.0, 1.0],
        "an offset that is no number": "expected numbers, got NaN",
    }


@pytest.mark.slow
def test_what_would_fuse_is_told() -> None:
    """Of TorchAir's own backend; nothing else changes. An eager operator is no site."""
    result, facts = run(script("unfused.py"))
    assert json.loads(result.stdout) == [True] * 3, result.stderr
    assert facts["sites"] == {
        "legal": 4, "fused": 0, "off": 2, "small_on": 0, "small_off": 2, "refused": {"numerics": 2}, "unexamined": {},
    }  # fmt: skip
    assert facts["fused"] == {}


def test_torchairs_defects_are_guarded_and_told() -> None:
    result, facts = run(script("stock_backend.py"))
    assert json.loads(result.stdout) == [True] * 5
    assert facts["guarded"] == {"T1": 1, "T9": 1, "T10": 1}
    assert facts["spoiled"] == {}


@pytest.mark.slow
def test_stock_torchair_is_left_alone_and_its_wrong_graphs_are_named() -> None:
    """But for attention, where the defect would only show in what a CPU has in a device's place."""
    result, facts = run("--stock", script("stock_backend.py"))
    assert json.loads(result.stdout) == [False, True, False, False, True]
    assert facts["guarded"] == {}
    named = {defect: [graph.partition(" of ")[0] for graph in graphs] for defect, graphs in facts["spoiled"].items()}
    assert named == {"T1": ["graph_1"], "T9": ["graph_3"], "T10": ["graph_4"]}
    assert result.returncode == 0


@pytest.mark.slow
def test_a_ge_type_of_the_scripts_own() -> None:
    """Each rank of an unmodified script gets its kernel from a file; without it each rank's own error is told."""
    result, facts = run("--register", script("register_scaled.py"), script("custom_type.py"), str(free_port()))
    assert result.stdout.splitlines() == ["[11.0, 11.0]"] * 2, result.stderr
    assert (facts["exit_code"], facts["ranks"], facts["graphs"]) == (0, 2, 2)
    result, facts = run(script("custom_type.py"), str(free_port()))
    assert result.returncode == 1
    failed = [(failure["rank"], failure["kind"]) for failure in facts["failures"]]
    assert failed == [(0, "own"), (1, "own")]
    for failure in facts["failures"]:
        assert failure["what"].startswith("RuntimeError: No AscendIR MyScaled was found to be registered.")


@pytest.mark.slow
def test_a_file_to_register_that_raises_ends_the_script(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("no_such_name\n")
    result = run_python(*RUN, "--register", str(file), script("custom_type.py"), str(free_port()))
    told = "got NameError: name 'no_such_name' is not defined in line 1"
    assert result.stderr == f"[run] register: expected a file that runs, {told}. Repair {file}.\n"
    assert (result.returncode, result.stdout) == (1, "")


@pytest.mark.slow
def test_torchrun_with_seeds() -> None:
    """Every rank draws its own numbers, the same in each run, unless the script seeds."""
    drawn = []
    for command in (("torchrun",), ("-m", "torch.distributed.run")):
        result, facts = run(
            "--seed", "5", *command, "--nproc-per-node=2", f"--master-port={free_port()}", script("torchrun_ranks.py")
        )
        assert result.returncode == 0, result.stderr
        assert facts["ranks"] == 2
        drawn.append(sorted(json.loads(line) for line in result.stdout.splitlines()))
    first, second = drawn
    assert first == second
    (_, device0, own0, seeded0), (_, device1, own1, seeded1) = first
    assert (device0, device1) == (0, 1)
    assert own0 != own1
    assert seeded0 == seeded1


@pytest.mark.slow
@pytest.mark.parametrize("command", [(), ("bash",)], ids=["file", "program"])
def test_ranks_of_a_shell_script(command: tuple[str, ...], tmp_path: Path) -> None:
    """Its python is the launcher's own, whatever the PATH has. It looks at no exit code: those of ranks are told."""
    for name in ("python", "python3"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 9\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]])}
    arguments = (script("torchrun_ranks.py"), str(free_port()), str(tmp_path))
    result, facts = run(*command, script("ranks.sh"), *arguments, env=env)
    assert (result.returncode, facts["ranks"], facts["failures"]) == (0, 2, [])
    first = json.loads(result.stdout)
    assert first == json.loads((tmp_path / "0.log").read_text())
    assert [first[0], json.loads((tmp_path / "1.log").read_text())[0]] == [0, 1]


@pytest.mark.slow
def test_a_failed_rank_of_a_shell_script(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text("import torch.distributed as dist\ndist.init_process_group('hccl')\nno_name\n")
    result, facts = run(script("ranks.sh"), str(tmp_path / "rank.py"), str(free_port()), str(tmp_path))
    assert result.returncode == 0
    assert sorted((f["rank"], f["what"]) for f in facts["failures"]) == [
        (rank, "NameError: name 'no_name' is not defined") for rank in (0, 1)
    ]


def test_files_that_are_no_python(tmp_path: Path) -> None:
    """A program or a script of another interpreter runs by itself; one of Python in this one, whatever it names."""
    (tmp_path / "other").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "tool").write_text("#!/usr/bin/env python2\nraise SystemExit(8)\n")
    for name in ("other", "tool"):
        (tmp_path / name).chmod(0o755)
    assert [run(str(tmp_path / name))[0].returncode for name in ("other", "tool")] == [7, 8]
    assert run(shutil.which("sh") or "", "-c", "exit 9")[0].returncode == 9
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text("raise SystemExit(6)\n")
    assert run(str(tmp_path / "package"))[0].returncode == 6


WRONG = {
    "no such file": (
        ["no_such.py"],
        "[run] script: expected a file or a program, got no_such.py. Use -m for a module.",
    ),
    "a folder": (["full"], "[run] script: expected a file or a program, got full. Use -m for a module."),
    "nothing": ([], "[run] script: expected one, got none. npu-fused-graph run script.py args..."),
    "seed": (["--seed", "-1", "x.py"], "[run] seed: expected 0 to 2**63 - 1, got -1. Pass a small number."),
    "record": (["--record", "full", "x.py"], "[run] record: expected a new or empty folder, got "),
    "record in a file": (["--record", "x.py", "x.py"], "[run] record: expected a new or empty folder, got "),
    "register": (
        ["--register", "no.py", "x.py"],
        "[run] register: expected a Python file, got no.py. Name one that calls register_kernel.",
    ),
    "no TorchAir": (["x.py"], "[host] TorchAir: expected it in the cache ("),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_use_is_one_line_with_a_cure(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.py").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    arguments, text = WRONG[name]
    monkeypatch.chdir(tmp_path)
    env = {"NFG_CACHE": str(tmp_path / "empty")} if name == "no TorchAir" else None
    result = run_python(*RUN, *arguments, env=env)
    assert result.returncode == 1
    assert result.stderr.startswith(text)
    assert len(result.stderr.splitlines()) == 1


# -- ends ----------------------------------------------------------------------------------------------------


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The launcher with both pipes, running; it is ended if the test did not."""
    process = subprocess.Popen(
        [sys.executable, *RUN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(TIMEOUT)


def pids_of_ranks(process: subprocess.Popen[str]) -> dict[int, int]:
    """Two ranks print ``rank <r> <pid>`` once they have joined."""
    assert process.stdout is not None
    found = {}
    while len(found) < 2:
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        _, rank, pid = line.split()
        found[int(rank)] = int(pid)
    return found


def left_of(pids: dict[int, int]) -> list[int]:
    return [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]


def test_ctrl_c_ends_everything() -> None:
    with started(script("waiting_ranks.py"), str(free_port())) as process:
        pids = pids_of_ranks(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert left_of(pids) == []
    assert "npu-fused-graph run: on the CPU, exit code 130, 2 ranks" in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ranks_in_the_background_of_a_shell_end_with_it(number: int) -> None:
    """The shell has them ignore SIGINT."""
    command = f"python3 {script('waiting_ranks.py')} {free_port()} & wait"
    with started("bash", "-c", command) as process:
        pids = pids_of_ranks(process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + number
    assert "failed" not in errors
    assert left_of(pids) == []


@pytest.mark.slow
def test_a_lost_terminal_ends_everything() -> None:
    with started(script("waiting_ranks.py"), str(free_port())) as process:
        pids = pids_of_ranks(process)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGHUP
    assert left_of(pids) == []


@pytest.mark.slow
def test_a_killed_launcher_leaves_no_rank() -> None:
    with started(script("waiting_ranks.py"), str(free_port())) as process:
        handles = [os.pidfd_open(pid) for pid in pids_of_ranks(process).values()]
        process.kill()
        process.communicate(timeout=TIMEOUT)  # until every process that could write has ended
        ended = [select.select([handle], [], [], TIMEOUT)[0] for handle in handles]
    for handle in handles:
        os.close(handle)
    assert all(ended)


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_is_told() -> None:
    shared = set(os.listdir("/dev/shm"))
    with started(script("waiting_ranks.py"), str(free_port())) as process:
        pids = pids_of_ranks(process)
        os.kill(pids[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert left_of(pids) == []
    assert f"rank 1 (pid {pids[1]}) failed: killed, or ended without Python's knowledge" in errors
    assert {name for name in set(os.listdir("/dev/shm")) - shared if "npu" in name or "psm_" in name} == set()


@pytest.mark.slow
def test_what_the_script_leaves_running_is_ended_and_told() -> None:
    result, facts = run(script("leaves_a_process.py"))
    assert result.returncode == 0
    assert facts["left"] == 1
    assert not Path(f"/proc/{int(result.stdout)}").exists()
