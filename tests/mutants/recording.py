"""Which test executes which line, and how long each takes: one run of the suite under coverage, in a copy."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.mutants.checkout import INSIDE, Checkout, Copy
from tests.mutants.targets import MutantsError, python_of

NAME = "coverage.json.gz"
_CONFIG = """[run]
source =
    {source}
parallel = true
data_file = {folder}/data
patch =
    fork
    _exit
plugins = mutants_record
"""
_OPTIONS = ("-q", "-p", "mutants_record", "-p", "no:randomly", "-p", "no:cacheprovider")


@dataclass(frozen=True)
class Recording:
    """key: the files and tests it holds for. tests: seconds of setup and call, of each that passed in the copy.
    failed: why the others did not. contexts, lines: see inside/mutants_extract.py."""

    key: str
    tests: dict[str, tuple[float, float]]
    failed: dict[str, str]
    contexts: list[str]
    lines: dict[str, dict[str, str]]

    def tests_of(self, path: str, lines: Iterable[int]) -> set[str]:
        """The tests that execute one of these lines."""
        masks = self.lines.get(path, {})
        mask = 0
        for line in lines:
            mask |= int(masks.get(str(line), "0"), 16)
        names = {name for i, name in enumerate(self.contexts) if mask >> i & 1}
        return names & self.tests.keys()


def key_of(checkout: Checkout, tests: list[str]) -> str:
    return f"{checkout.digest()} {' '.join(tests)} {checkout.project.marks}"


def recorded(checkout: Checkout, output: Path, folder: Path, tests: list[str], jobs: int) -> Recording:
    """The recording in ``output`` if it holds for this checkout and these tests, else a new one."""
    path = output / NAME
    if path.is_file():
        found = Recording(**json.loads(gzip.decompress(path.read_bytes())))
        if found.key == key_of(checkout, tests):
            return found
    recording = _record(checkout, output, folder, tests, jobs)
    path.write_bytes(gzip.compress(json.dumps(asdict(recording)).encode(), 6))
    return recording


def _record(checkout: Checkout, output: Path, folder: Path, tests: list[str], jobs: int) -> Recording:
    python, project = python_of(checkout.origin), checkout.project
    check = subprocess.run([str(python), "-c", "import coverage, pytest"], capture_output=True, check=False)
    if check.returncode:
        raise MutantsError(f"{python}: expected coverage and pytest; pip install what is missing")
    copy = Copy.made(checkout, folder)
    data = folder / "coverage"
    data.mkdir()
    source = "\n    ".join(str(copy.root / name) for name in project.packages.values())
    (data / "config").write_text(_CONFIG.format(source=source, folder=data), encoding="utf-8")
    results = data / "results.json"
    environment = {"COVERAGE_PROCESS_START": str(data / "config"), "MUTANTS_RESULTS": str(results)}
    command = [str(copy.python), "-m", "pytest", *_OPTIONS, f"--rootdir={copy.root}", f"--basetemp={copy.temp}/p"]
    command += [*tests, *(["-m", project.marks] if project.marks else [])]
    # a module's tests stay in one process: what they share is executed once
    command += ["-n", str(jobs), "--dist", "loadfile"] if jobs > 1 else []
    log = output / "recording.log"
    print(f"recording which test executes what; {log}", file=sys.stderr, flush=True)
    code = _run(command, copy, environment, log)
    if code not in (0, 1) or not results.is_file():
        last = (log.read_text(encoding="utf-8", errors="replace").strip() or "no output").splitlines()[-1]
        raise MutantsError(f"pytest ended with {code}: {last}; see {log}")
    outcomes: dict[str, dict[str, Any]] = json.loads(results.read_text(encoding="utf-8"))
    extract = [str(copy.python), str(INSIDE / "mutants_extract.py"), str(data), str(copy.root)]
    done = subprocess.run(extract, capture_output=True, text=True, check=False, env=copy.environment())
    if done.returncode:
        raise MutantsError(f"coverage: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout)
    if not found["lines"]:
        raise MutantsError(f"coverage saw no line of {', '.join(project.packages)} executed; see {log}")
    return Recording(
        key=key_of(checkout, tests),
        tests={name: (found["setup"], found["call"]) for name, found in outcomes.items() if found["passed"]},
        failed={name: found["why"] for name, found in outcomes.items() if not found["passed"]},
        **found,
    )


def _run(command: list[str], copy: Copy, environment: dict[str, str], log: Path) -> int:
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=copy.root,
            env=copy.environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
