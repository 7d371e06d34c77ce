"""Runs units in processes of their own: one that dies or hangs costs its case, not the run."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from tests.opinfo.cases import Verdict, run_case
from tests.opinfo.samples import SAMPLES, Unit, operators, samples

LIMIT = 60.0
"""Seconds a sample may take."""


class Case(NamedTuple):
    """A sample of a unit, by its place."""

    unit: Unit
    place: int
    verdict: Verdict


Progress = Callable[[list[Case]], None]


def run_units(wanted: Sequence[Unit], jobs: int, progress: Progress | None = None, limit: float = LIMIT) -> list[Case]:
    """The verdict of every sample of the units, in ``jobs`` processes, in the order of the units."""
    waiting: SimpleQueue[Unit] = SimpleQueue()
    for unit in wanted:
        waiting.put(unit)
    found: list[Case] = []
    failures: list[BaseException] = []

    def work() -> None:
        worker = _Worker(limit)
        try:
            while not failures:
                cases = worker.run(waiting.get_nowait())
                found.extend(cases)
                if progress is not None:
                    progress(cases)
        except Empty:
            return
        except BaseException as error:
            failures.append(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sorted(found)


class _Worker:
    """A process that runs one unit after the other; a new one follows where it died or was killed."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Any = None

    def run(self, unit: Unit) -> list[Case]:
        cases: list[Case] = []
        while len(cases) < SAMPLES and (case := self._next(unit, len(cases))) is not None:
            cases.append(case)
        return [case for case in cases if case.verdict.result]

    def _next(self, unit: Unit, place: int) -> Case | None:
        if self._process is None:
            self._start()
        self._pipe.send((unit, place))
        try:
            if self._pipe.poll(self._limit):
                verdict = self._pipe.recv()
                return None if verdict is None else Case(unit, place, verdict)
            self._process.kill()
            self._process.join()
            cause = f"no answer within {self._limit:g} s"
        except (EOFError, ConnectionError):
            self._process.join()
            cause = f"the process ended with {self._process.exitcode}"
        self._process = None
        return Case(unit, place, Verdict("crash", cause))

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # imported and ready: the limit is for a sample alone

    def close(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.join()


def _serve(pipe: Any) -> None:
    """Answers (unit, place) with the sample's verdict, an empty one where eager refuses it, None past the last."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    current, rest, reached = None, None, 0
    operators()
    pipe.send("ready")
    while True:
        try:
            unit, place = pipe.recv()
        except EOFError:
            return
        if unit != current or rest is None:
            current, rest, reached = unit, samples(unit), 0
        sample = None
        while reached <= place:
            sample = next(rest, None)
            reached += 1
        pipe.send(None if sample is None else run_case(unit.op, operators()[unit.op].op, sample) or Verdict(""))
