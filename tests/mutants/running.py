"""Tries faults: each is put into a copy, its tests run until one notices, and the copy is made what it was."""

from __future__ import annotations

import ast
import json
import math
import os
import subprocess
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from tests.mutants.checkout import INSIDE, Checkout, Copy
from tests.mutants.selection import Selection
from tests.mutants.sites import Site
from tests.mutants.targets import MutantsError

MEMORY = 16 << 30
"""Bytes of address space of each process: a fault must not take the machine's."""
CAUGHT, SURVIVED, BUDGET, UNCOVERED = "caught", "survived", "survived within the budget", "not covered"


@dataclass(frozen=True)
class Verdict:
    """key: of the site. test: the first that failed. why: what it said. ran: how many passed. seconds: all in all."""

    key: str
    verdict: str
    test: str = ""
    why: str = ""
    ran: int = 0
    seconds: float = 0.0


class Zygote:
    """The process of a copy that forks one for each list of tests (see inside/mutants_zygote.py)."""

    def __init__(self, copy: Copy) -> None:
        self.copy = copy
        request, requests = os.pipe()
        replies, reply = os.pipe()
        self.requests, self.replies = os.fdopen(requests, "wb"), os.fdopen(replies, "rb")
        modules = copy.checkout.project.preload
        self.process = subprocess.Popen(
            [str(copy.python), str(INSIDE / "mutants_zygote.py"), str(request), str(reply), *modules],
            cwd=copy.temp.parent,
            env=copy.environment({"PYTHONDONTWRITEBYTECODE": "1"}),
            stdin=subprocess.DEVNULL,
            pass_fds=(request, reply),
            start_new_session=True,
        )
        os.close(request)
        os.close(reply)
        self._reply()

    def run(self, tests: list[str], limits: list[float], budget: float) -> dict[str, Any]:
        request = {"root": str(self.copy.root), "tests": tests, "limits": limits, "budget": budget}
        request |= {"temp": str(self.copy.temp), "memory": MEMORY}
        self.requests.write(json.dumps(request).encode() + b"\n")
        self.requests.flush()
        found: dict[str, Any] = self._reply()
        return found

    def _reply(self) -> Any:
        line = self.replies.readline()
        if not line:
            raise MutantsError(f"the process that runs tests ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.requests.close()
        self.replies.close()


@dataclass
class Trust:
    """Tests that passed when run like this, with or without a fault, and those that failed without one."""

    passed: set[str] = field(default_factory=set)
    excluded: dict[str, str] = field(default_factory=dict)

    def holds(self, place: str) -> bool:
        """place: a test, a file whose import failed, or "" for pytest itself."""
        return place in self.passed or ("::" not in place and any(test.startswith(place) for test in self.passed))


class Worker:
    """Judges faults one after the other, in a copy of its own."""

    def __init__(self, checkout: Checkout, folder: Path, selection: Selection, budget: float, trust: Trust) -> None:
        self.copy = Copy.made(checkout, folder)
        self.zygote = Zygote(self.copy)
        self.selection = selection
        self.budget = budget
        self.trust = trust

    def judge(self, site: Site) -> Verdict:
        stages = self.selection.stages(site)
        if not stages:
            return Verdict(site.key, UNCOVERED)
        seconds, ran = 0.0, 0
        for stage in stages:
            if seconds >= self.budget:
                return Verdict(site.key, BUDGET, ran=ran, seconds=seconds)
            result = self._checked(stage, self.budget - seconds, site)
            seconds, ran = round(seconds + result["seconds"], 1), ran + len(result["ran"])
            if result["end"] == "budget":
                return Verdict(site.key, BUDGET, ran=ran, seconds=seconds)
            if result["end"] != "passed":
                why = result["why"] if result["end"] == "failed" else f"{result['end']}: {result['why']}"
                return Verdict(site.key, CAUGHT, result["test"] or "import", why, ran, seconds)
        return Verdict(site.key, SURVIVED, ran=ran, seconds=seconds)

    def _checked(self, stage: list[str], budget: float, site: Site) -> dict[str, Any]:
        """What becomes of a stage with the fault. A failure counts if it comes again, and not without the fault."""
        unsure: set[str] = set()
        while True:
            tests = [test for test in stage if test not in self.trust.excluded and test not in unsure]
            result = self._run(tests, budget, site)
            place = result["test"]
            if result["end"] in ("passed", "budget"):
                return result
            run = tests[: tests.index(place) + 1] if place in tests else tests
            if not self.trust.holds(place) and not self._passes_without(run):
                continue
            if (
                self._run(run[-1:], math.inf, site)["end"] != "passed"
                or self._run(run, math.inf, site)["end"] != "passed"
            ):
                return result
            unsure |= {place} if place in tests else set(tests)

    def _passes_without(self, tests: list[str]) -> bool:
        """Whether these tests pass without a fault; what fails is excluded for good."""
        control = self._run(tests, math.inf)
        if control["end"] == "passed":
            return True
        failed = [test for test in tests if test.startswith(control["test"])]
        if not control["test"] or not failed:
            raise MutantsError(f"{control['test'] or tests[0]} fails without a fault: {control['why']}")
        self.trust.excluded |= dict.fromkeys(failed, f"{control['end']}: {control['why']}")
        return False

    def _run(self, tests: list[str], budget: float, site: Site | None = None) -> dict[str, Any]:
        if not tests:
            return {"end": "passed", "test": "", "why": "", "ran": [], "seconds": 0.0}
        try:
            if site is not None:
                path = self.copy.root / site.path
                faulty = site.apply(path.read_bytes())
                ast.parse(faulty)
                path.write_bytes(faulty)
            result = self.zygote.run(tests, [self.selection.limit(test) for test in tests], budget)
        finally:
            self.copy.restore()
        self.trust.passed |= {test for test, _ in result["ran"]}
        return result

    def close(self) -> None:
        self.zygote.close()


def judge_all(
    sites: Iterable[Site], make_worker: Callable[[int], Worker], jobs: int, report: Callable[[Site, Verdict], None]
) -> None:
    """Judge sites on ``jobs`` workers at the same time; ``report`` is called in this thread. Ends them all."""
    waiting: SimpleQueue[Site] = SimpleQueue()
    for site in sites:
        waiting.put(site)
    found: SimpleQueue[tuple[Site, Verdict] | BaseException | None] = SimpleQueue()
    workers: list[Worker] = []
    is_over = threading.Event()

    def work(number: int) -> None:
        try:
            worker = make_worker(number)
            workers.append(worker)
            with suppress(Empty):
                while not is_over.is_set():
                    site = waiting.get_nowait()
                    found.put((site, worker.judge(site)))
            found.put(None)
        except BaseException as error:
            found.put(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(jobs)]
    for thread in threads:
        thread.start()
    try:
        running = jobs
        while running:
            item = found.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                report(*item)
    finally:
        is_over.set()
        for worker in workers:
            worker.zygote.process.terminate()  # what it runs ends with it
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.close()
