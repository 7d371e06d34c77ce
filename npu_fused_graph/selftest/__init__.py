"""``npu-fused-graph selftest``: every operator, converter and example against its reference, on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from npu_fused_graph.errors import UnsupportedDeviceError, argument_error
from npu_fused_graph.host.paths import CANN_VARIABLES
from npu_fused_graph.selftest.parts import PARTS, read
from npu_fused_graph.selftest.report import Check, SelftestReport

__all__ = ["PARTS", "Check", "SelftestReport", "selftest"]

LIMIT = 900.0
"""Seconds a part may take."""


def selftest(
    facts: Mapping[str, Any],
    *,
    device: Literal["cpu", "npu"] = "cpu",
    parts: Sequence[str] = PARTS,
    output: Path | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> SelftestReport:
    """Run the parts, two at a time, and write selftest.json and selftest.txt.

    facts: what ``doctor`` found. device: "npu" on a machine with CANN. output: folder of the two files, made if it is
    not there; None writes none. log: told which part begins and ends. Raises UnsupportedDeviceError for "npu" in host
    mode, InvalidArgumentError for an output that is no folder. The report has ~ for the home folder, and no host names.
    """
    if device == "npu" and facts["mode"] != "device":
        raise UnsupportedDeviceError(
            "[selftest] device: expected CANN and torch_npu for npu, got a machine without. Leave --device out."
        )
    begin, parts = time.perf_counter(), tuple(dict.fromkeys(parts))
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise argument_error(
                "selftest", "output", "a folder, or the name of a new one", error, "Name another."
            ) from None
    report = SelftestReport(device, _without_home({**facts, "machine": _machine(), "chip": _chip(device)}))
    with tempfile.TemporaryDirectory(prefix="nfg-selftest-") as scratch:
        _run(parts, device, Path(scratch), log)
        for part in PARTS:
            if part in parts:
                checks = _outcome(Path(scratch), part) or [
                    Check(part, "the whole part", "FAILED", "it checked nothing")
                ]
                report.checks += [replace(check, text=_without_home(check.text)) for check in checks]
    report.seconds = time.perf_counter() - begin
    if output is not None:
        (output / "selftest.json").write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
        (output / "selftest.txt").write_text(f"{report}\n", encoding="utf-8")
    return report


def _run(parts: Sequence[str], device: str, scratch: Path, log: Callable[[str], None]) -> None:
    """Two lanes, the long parts first; times, which others would disturb, come last and alone."""
    others = [part for part in parts if part != "times"]
    _run_lanes(sorted(others, key=("converters", "examples").__contains__), device, scratch, log)
    _run_lanes([part for part in parts if part == "times"], device, scratch, log)


def _run_lanes(waiting: list[str], device: str, scratch: Path, log: Callable[[str], None]) -> None:
    """All of ``waiting``, from its end, two at a time."""
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2:
                part = waiting.pop()
                running[part] = (_start(part, device, scratch), time.monotonic() + LIMIT)
                log(f"{part} ...")
            for part, (process, end) in list(running.items()):
                try:
                    process.wait(0.2)
                except subprocess.TimeoutExpired:
                    if time.monotonic() < end:
                        continue
                    _kill(process)
                    (scratch / f"{part}.error").write_text(f"it had not ended after {LIMIT:.0f} s", encoding="utf-8")
                del running[part]
                _note(part, process, scratch)
                log(f"{part}: {len(read(scratch, part))} checks")
    finally:
        for process, _ in running.values():
            _kill(process)


def _start(part: str, device: str, scratch: Path) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    if device == "cpu":  # host mode, also on a machine that has CANN
        for name in CANN_VARIABLES:
            environ.pop(name, None)
        environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    with (scratch / f"{part}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "npu_fused_graph.selftest", part, device, str(scratch)],
            stdout=log, stderr=log, start_new_session=True, env=environ, cwd=scratch,
        )  # fmt: skip


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _note(part: str, process: subprocess.Popen[bytes], scratch: Path) -> None:
    path = scratch / f"{part}.error"
    if process.returncode and not path.exists():
        lines = (scratch / f"{part}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        path.write_text(f"exit code {process.returncode}: {lines[-1] if lines else 'no message'}", encoding="utf-8")


def _outcome(scratch: Path, part: str) -> list[Check]:
    """The checks of a part, and one more where it did not end well: what ran last is told."""
    checks, error = read(scratch, part), scratch / f"{part}.error"
    if error.exists():
        last = f", the last check was {checks[-1].name}" if checks else ""
        checks.append(Check(part, "the whole part", "FAILED", error.read_text(encoding="utf-8") + last))
    return checks


def _without_home(value: Any) -> Any:
    """The same texts, with ~ for the home folder."""
    home = str(Path.home())
    if isinstance(value, Mapping):
        return {name: _without_home(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_home(x) for x in value]
    return value.replace(home, "~") if isinstance(value, str) and len(home) > 1 else value


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _chip(device: str) -> str:
    if device == "cpu":
        return ""
    from npu_fused_graph.ops.ascend import soc_name

    return soc_name()
