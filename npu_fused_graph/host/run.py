"""``npu-fused-graph run``: a script written for NPUs, unmodified, on a machine without one.

The script, or the program that starts it, runs in a child process. Python in it, and in all its children, finds the
stand-in packages first and tells the launcher what it does. The launcher waits, cleans up, and says what happened.
"""

from __future__ import annotations

import compileall
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from npu_fused_graph.errors import HostError, argument_error
from npu_fused_graph.host import descendants
from npu_fused_graph.host.paths import PACKAGES, imitated_version, wheel_file
from npu_fused_graph.host.run_report import Failure, RunReport, read_report
from npu_fused_graph.host.standin.causes import one_line
from npu_fused_graph.host.standin.state import LAUNCHER, RUN_VARIABLE, RunOptions
from npu_fused_graph.version import __version__

_ENTRY_POINTS = """[torch.backends]
torch_npu = torch_npu:_autoload

[torch_dynamo_backends]
npu = torch_npu.dynamo:_npu_backend_entrypoint
npugraph_ex = torch_npu.dynamo:_npugraph_ex_backend_entrypoint
npugraphs = torch_npu.dynamo:npugraphs
"""
"""As torch_npu declares them: what torch looks for when it is imported, and the names of its backends."""

_PATIENCE = 5.0
"""Seconds a process gets to end by itself, after the script has ended or a signal was passed on."""


def run_script(command: Sequence[str], *, is_module: bool = False, options: RunOptions | None = None) -> RunReport:
    """Run a command with the stand-ins and wait for it and all its children.

    command: a Python script, a shell script (``*.sh``) or a program of the PATH (python, torchrun, bash) and its
    arguments; with is_module a module's name and its arguments. Raises HostError without TorchAir,
    InvalidArgumentError for a script that is not there, options that make no sense, or a file to register that raises
    (the script has ended then, where it imports torch).
    """
    started = _started(list(command), is_module)
    options = _checked(options or RunOptions())
    # Says what is missing before anything starts; compiled here instead of in each process, which may not keep it.
    compileall.compile_file(wheel_file("_meta_registrations.py"), quiet=2)
    folder = Path(tempfile.mkdtemp(prefix="nfg-run-"))
    try:
        (folder / LAUNCHER).write_text(str(os.getpid()), encoding="utf-8")
        (folder / "options.json").write_text(json.dumps(asdict(options)), encoding="utf-8")
        if options.record is not None:
            _write_run_facts(Path(options.record), command, options.seed)
        exit_code, left, pid, is_stopped = _run(started, _environment(folder))
        report = read_report(folder, exit_code, left)
        if is_stopped:  # from outside: those it then ended did not fail
            report.failures = [failure for failure in report.failures if failure.kind != "killed"]
        if exit_code and not report.failures and (error := _syntax_error(started)) is not None:
            report.failures.append(Failure(pid, -1, one_line(error)))
        if options.record is not None:
            report.recorded = sum(1 for _ in Path(options.record).glob("*/*.json"))
        return report
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _started(command: list[str], is_module: bool) -> list[str]:
    """The program to start, and its arguments."""
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise argument_error("run", "script", "one", "none", "npu-fused-graph run script.py args...")
    if is_module:
        return [sys.executable, "-m", *command]
    name, *arguments = command
    if Path(name).is_file() or Path(name, "__main__.py").is_file():
        return [*_interpreter(Path(name)), *command]
    if name == "torchrun":  # torch may be elsewhere than its program
        return [sys.executable, "-m", "torch.distributed.run", *arguments]
    if name in ("python", "python3"):
        return [sys.executable, *arguments]
    if shutil.which(name) is None:
        raise argument_error("run", "script", "a file or a program", name, "Use -m for a module.")
    return command


def _interpreter(file: Path) -> list[str]:
    """What executes a file: bash, the file itself, or else Python."""
    if file.suffix == ".sh":
        return ["bash"]
    if file.is_dir() or file.suffix == ".py" or not os.access(file, os.X_OK):
        return [sys.executable]
    with file.open("rb") as opened:
        first = opened.readline(256)
    return [] if first.startswith((b"\x7fELF", b"#!")) and b"python" not in first else [sys.executable]


def _syntax_error(started: list[str]) -> SyntaxError | None:
    """Why Python did not even begin with a script: then no process could tell it."""
    script = started[1] if started[0] == sys.executable and len(started) > 1 else ""
    if not Path(script).is_file():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python has said them
            compile(Path(script).read_bytes(), Path(script).name, "exec", dont_inherit=True)
    except SyntaxError as error:
        return error
    except ValueError:  # no text at all
        return None
    return None


def _checked(options: RunOptions) -> RunOptions:
    if options.devices < 1:
        raise argument_error("run", "devices", "at least 1", options.devices, "Leave it out for 16.")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise argument_error("run", "seed", "0 to 2**63 - 1", options.seed, "Pass a small number.")
    for file in options.register:
        if not Path(file).is_file():
            raise argument_error("run", "register", "a Python file", file, "Name one that calls register_kernel.")
    options = replace(options, register=tuple(str(Path(file).absolute()) for file in options.register))
    if options.record is None:
        return options
    folder = Path(options.record).absolute()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise argument_error("run", "record", "a new or empty folder", folder, "Remove it, or name another.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"[run] record: expected to make the folder {folder}, got: {error}. Name another.") from None
    return replace(options, record=str(folder))


def _environment(folder: Path) -> dict[str, str]:
    environment = dict(os.environ)
    paths = [*stand_ins(folder), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if (own := str(Path(sys.executable).parent)) != str(Path(shutil.which("python3") or "").parent):
        # what a script calls python is this one, which has torch and this package
        environment["PATH"] = os.pathsep.join([own, *filter(None, [environment.get("PATH")])])
    environment[RUN_VARIABLE] = str(folder)
    if environment.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        del environment["TORCH_DEVICE_BACKEND_AUTOLOAD"]  # torch would not look for the stand-in
    return environment


def stand_ins(folder: Path) -> list[str]:
    """What belongs on PYTHONPATH: the packages, and metadata, which is written into ``folder``.

    It says that torch_npu is installed, in the version whose TorchAir, schemas and Meta functions are used.
    """
    version = imitated_version()
    info = folder / "metadata" / f"torch_npu-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\n"
        "Summary: Stand-in of npu_fused_graph for processes started by `npu-fused-graph run`\n",
        encoding="utf-8",
    )
    (info / "INSTALLER").write_text("npu_fused_graph\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS, encoding="utf-8")
    return [str(PACKAGES), str(info.parent)]


def _write_run_facts(folder: Path, command: Sequence[str], seed: int | None) -> None:
    """``run.json`` of a record."""
    versions = {"npu_fused_graph": __version__, "torch": importlib.metadata.version("torch")}
    facts = {"command": list(command), "seed": seed, **versions}
    (folder / "run.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


# -- the processes -------------------------------------------------------------------------------------------


def _run(arguments: list[str], environment: dict[str, str]) -> tuple[int, int, int, bool]:
    """(exit code, number of processes that had to be ended, pid of the first, whether a signal told it to stop)."""
    descendants.adopt_orphans()
    stopped: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        stopped.append(number)
        if child is not None and not (number == signal.SIGINT and _terminal_sends_it()):
            child.send_signal(number)

    child: subprocess.Popen[bytes] | None = None
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        child = subprocess.Popen(arguments, env=environment, preexec_fn=descendants.end_with_parent)
        code = _wait(child, stopped)
        left = descendants.end_all(_PATIENCE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        return 128 + stopped[0], left, child.pid, True
    return (128 - code if code < 0 else code), left, child.pid, False


def _terminal_sends_it() -> bool:
    """Whether Ctrl-C reached the script, too: the terminal signals its whole foreground group."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _wait(child: subprocess.Popen[bytes], stopped: list[int]) -> int:
    """The child's code. Once it was told to stop it gets some time, then is told more and more firmly."""
    firmness = iter((signal.SIGTERM, signal.SIGKILL))
    while True:
        try:
            return child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            if stopped:
                child.send_signal(next(firmness, signal.SIGKILL))
