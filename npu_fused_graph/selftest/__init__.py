"""``npu-fused-graph selftest``: every operator, converter and example against its reference, on this machine."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from npu_fused_graph.errors import UnsupportedDeviceError
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
    mode. Paths below the home folder are shortened, host names are not told.
    """
    if device == "npu" and facts["mode"] != "device":
        raise UnsupportedDeviceError(
            "[selftest] device: expected CANN and torch_npu for npu, got a machine without. Leave --device out."
        )
    begin = time.perf_counter()
    report = SelftestReport(device, {**facts, "machine": _machine(), "chip": _chip(device)})
    with tempfile.TemporaryDirectory(prefix="nfg-selftest-") as scratch:
        _run(parts, device, Path(scratch), log)
        for part in PARTS:
            if part in parts:
                report.checks += [_shortened(check) for check in _outcome(Path(scratch), part)]
    report.seconds = time.perf_counter() - begin
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "selftest.json").write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
        (output / "selftest.txt").write_text(f"{report}\n", encoding="utf-8")
    return report


def _run(parts: Sequence[str], device: str, scratch: Path, log: Callable[[str], None]) -> None:
    """Two lanes: times, which others would disturb, come last and alone."""
    waiting = sorted((part for part in parts if part != "times"), key=("converters", "examples").__contains__)
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2:
                part = waiting.pop()
                running[part] = (_start(part, device, scratch), time.monotonic() + LIMIT)
                log(f"{part} ...")
            part, (process, end) = next(iter(running.items()))
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
            if not waiting and not running and "times" in parts and not (scratch / "times.log").exists():
                waiting.append("times")
    finally:
        for process, _ in running.values():
            _kill(process)


def _start(part: str, device: str, scratch: Path) -> subprocess.Popen[bytes]:
    with (scratch / f"{part}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "npu_fused_graph.selftest", part, device, str(scratch)],
            stdout=log, stderr=log, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
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


def _shortened(check: Check) -> Check:
    home = str(Path.home())
    return Check(check.part, check.name, check.outcome, check.text.replace(home, "~"), check.seconds, check.ranks)


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _chip(device: str) -> str:
    if device == "cpu":
        return ""
    from npu_fused_graph.ops.ascend import soc_name

    return soc_name()
