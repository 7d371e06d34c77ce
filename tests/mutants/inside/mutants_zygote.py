"""Runs lists of tests, each in a process forked from this one, which has imported what they all need but nothing of
the checkout.

    python mutants_zygote.py REQUESTS REPLIES MODULE...

One line of JSON comes in per list, one goes out: REQUESTS and REPLIES are file descriptors. What a list started is
killed at its end, in whatever session it is: this process is where orphans go.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

IMPORTS = 120.0
"""Seconds the test files may take to be imported, and the session to end."""
_LIBC = ctypes.CDLL(None)
_SUBREAPER, _DEATH_SIGNAL = 36, 1  # of prctl
_OPTIONS = ("-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--capture=fd")


class Watch:
    """In the forked process: keeps and orders the tests, and tells what happens.

    If tests are missing because the fault changed their parameters, the function's other tests take their place.
    """

    def __init__(self, tests: list[str], pipe: int) -> None:
        self.places = {test: i for i, test in enumerate(tests)}
        self.pipe = pipe

    def tell(self, event: str, test: str, text: str = "") -> None:
        os.write(self.pipe, json.dumps([event, test, text[:500]]).encode() + b"\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        missing = self.places.keys() - {item.nodeid for item in items}
        changed = {test.partition("[")[0] for test in missing}
        kept = [i for i in items if i.nodeid in self.places or i.nodeid.partition("[")[0] in changed]
        kept.sort(key=lambda item: self.places.get(item.nodeid, len(self.places)))
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.tell("start", nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.tell("end", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tell("failed", report.nodeid, _reason(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tell("collection", report.nodeid, _reason(report))


def _reason(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = [line for line in str(crash.message if crash else report.longrepr).split("\n") if line.strip()]
    return lines[0 if crash else -1].removeprefix("E").strip() if lines else ""


def main() -> None:
    requests, replies = os.fdopen(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w", buffering=1)
    _LIBC.prctl(_SUBREAPER, 1, 0, 0, 0)
    _LIBC.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    modules = sys.argv[3:]
    del sys.path[0], sys.argv[1:]
    for name in modules:
        with suppress(ImportError):
            importlib.import_module(name)
    print(json.dumps("ready"), file=replies)
    for line in requests:
        print(json.dumps(run(**json.loads(line))), file=replies)


def run(root: str, tests: list[str], limits: list[float], budget: float, temp: str, memory: int) -> dict[str, Any]:
    """How a list of tests ends: passed, failed, collection, hung, crashed or budget; at which test, why, what ran."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _child(root, tests, theirs, temp, memory)
    os.close(theirs)
    try:
        result = _watch(child, ours, dict(zip(tests, limits, strict=True)), budget)
        if result["end"] == "crashed" and (log := Path(f"{temp}/log").read_text(errors="replace").split("\n")):
            result["why"] += f": {' '.join(line for line in log if line.strip())[-300:]}"
        return result
    finally:
        _kill_descendants()
        os.close(ours)


def _child(root: str, tests: list[str], pipe: int, temp: str, memory: int) -> None:
    code = 3
    try:
        os.setsid()
        _LIBC.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(f"{temp}/log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ["TMPDIR"] = tempfile.tempdir = temp
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        os.chdir(root)
        watch = Watch(tests, pipe)
        files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
        code = pytest.main([*_OPTIONS, f"--rootdir={root}", f"--basetemp={temp}/p", *files], plugins=[watch])
        watch.tell("code", "", str(int(code)))
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _watch(child: int, pipe: int, limits: dict[str, float], budget: float) -> dict[str, Any]:
    begin = time.monotonic()
    result: dict[str, Any] = {"end": "passed", "test": "", "why": "", "ran": []}
    handle = os.pidfd_open(child)
    rest, running, started, allowed, code = b"", "", begin, IMPORTS, ""
    try:
        while True:
            ready, _, _ = select.select([pipe, handle], [], [], max(0.0, started + allowed - time.monotonic()))
            data = os.read(pipe, 1 << 16) if pipe in ready else b""
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                event, test, text = json.loads(line)
                now = time.monotonic()
                if event == "start":
                    running, started, allowed = test, now, limits.get(test, max(limits.values()))
                elif event == "end":
                    result["ran"] += [[test, round(now - started, 3)]] if result["end"] == "passed" else []
                    running, started, allowed = "", now, IMPORTS
                elif event == "code":
                    code = text
                elif result["end"] == "passed":
                    result |= {"end": event, "test": test, "why": text}
            if result["end"] == "passed" and not running and time.monotonic() - begin > budget and result["ran"]:
                result["end"] = "budget"
            if result["end"] != "passed":
                break
            if not ready and time.monotonic() >= started + allowed:
                result |= {"end": "hung", "test": running, "why": f"longer than {allowed:.1f} s"}
                break
            if handle in ready and not data:
                if running or code not in ("0", "5"):
                    result |= {"end": "crashed", "test": running, "why": f"pytest ended with {code or 'a signal'}"}
                break
    finally:
        os.close(handle)
    return result | {"seconds": round(time.monotonic() - begin, 3)}


def _kill_descendants() -> None:
    """Until none is left: one that is killed may just have started another."""
    while True:
        for pid in _children(os.getpid()):
            for one in [pid, *_children(pid)]:
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found + [inner for one in found for inner in _children(one)]


if __name__ == "__main__":
    main()
