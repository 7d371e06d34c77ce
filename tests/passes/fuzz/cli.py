"""Command line: ``python -m tests.passes.fuzz --graphs 5000 --seed 0 --jobs 2``."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import queue
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.passes.fuzz.fuzzing import Found, Tally, check_plan, check_seeds
from tests.passes.fuzz.graphs import environment
from tests.passes.fuzz.plan import draw
from tests.passes.fuzz.program import write
from tests.passes.fuzz.shrink import shrunk, signature

LEGAL_SHARE = 0.4
"""At least this share of the graphs must hold a site that is legal by construction."""


@dataclass(frozen=True)
class Message:
    """From a worker: what it counted so far, and a failure of a new kind, or the signature of one of a known kind."""

    worker: int
    tally: Tally
    signature: str = ""
    report: str = ""
    is_last: bool = False


def report_of(found: Found, smaller: Found | None = None) -> str:
    shown = smaller or found
    where = f", variant {shown.variant!r}" if shown.variant else ""
    lines = [
        f"{'=' * 100}",
        f"seed {found.seed}{where}: {shown.failure}",
        f"reproduce: python -m tests.passes.fuzz --only {found.seed}",
        f"plan: {shown.plan}",
        write(shown.plan).source,
        "\n".join(f"# {e.label}: {sorted(e.reasons) or e.numerics}" for e in write(shown.plan).expected),
        f"graph:\n{shown.failure.graph}" if shown.failure.graph else "",
    ]
    return "\n".join(lines)


def _work(worker: int, first: int, step: int, graphs: int, shrink: bool, messages: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    seen: set[str] = set()
    tally = Tally()
    with environment() as groups:

        def report(found: Found) -> None:
            key = signature(found)
            text = ""
            if key not in seen:
                seen.add(key)
                text = report_of(found, shrunk(found, groups) if shrink else None)
            messages.put(Message(worker, tally, key, text))

        parent = multiprocessing.parent_process()
        for tally in check_seeds(itertools.count(first, step), graphs, groups, report):
            messages.put(Message(worker, tally))
            if parent is not None and not parent.is_alive():
                return
        messages.put(Message(worker, tally, is_last=True))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.passes.fuzz", description=__doc__)
    parser.add_argument("--graphs", type=int, default=5000, help="how many graphs to check")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first program")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--only", type=int, metavar="SEED", help="check one program and print it")
    parser.add_argument("--no-shrink", action="store_true", help="print failing programs as they are")
    options = parser.parse_args()
    if options.only is not None:
        return _only(options.only, not options.no_shrink)
    return _all(options)


def _only(seed: int, shrink: bool) -> int:
    with environment() as groups:
        plan = draw(seed)
        written = write(plan)
        print(plan, written.source, sep="\n")
        for site in written.expected:
            print(f"# {site.label}: {sorted(site.reasons) or site.numerics}")
        failures = check_plan(plan, groups, Tally())
        for found in failures:
            print(report_of(found, shrunk(found, groups) if shrink else None))
    print(f"{len(failures)} failures")
    return 1 if failures else 0


def _all(options: argparse.Namespace) -> int:
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    share = -(-options.graphs // options.jobs)
    workers = [
        context.Process(
            target=_work, args=(i, options.seed + i, options.jobs, share, not options.no_shrink, messages), daemon=True
        )
        for i in range(options.jobs)
    ]
    progress = Progress(options.graphs)
    for worker in workers:
        worker.start()
    tallies: dict[int, Tally] = {}
    signatures: Counter[str] = Counter()
    is_complete = False
    try:
        is_complete = _collect(options, workers, messages, tallies, signatures, progress)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    finally:
        progress.end()
        for worker in workers:
            if not is_complete:
                worker.terminate()
            worker.join()
        messages.close()
        messages.join_thread()
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    return _summary(total, signatures, time.monotonic() - progress.start, is_complete)


def _collect(
    options: argparse.Namespace, workers: list[Any], messages: Any, tallies: dict[int, Tally],
    signatures: Counter[str], progress: Progress,
) -> bool:  # fmt: skip
    """Whether all workers came to their end."""
    running = set(range(options.jobs))
    shown: set[str] = set()
    while running:
        try:
            message = messages.get(timeout=1)
        except queue.Empty:
            dead = [i for i in running if not workers[i].is_alive() and workers[i].exitcode]
            if dead:
                print(f"\nworker {dead[0]} ended with code {workers[dead[0]].exitcode}", file=sys.stderr)
                return False
            continue
        if message.signature:
            signatures[message.signature] += 1
            if message.report and message.signature not in shown:
                shown.add(message.signature)
                print(f"\n{message.report}", flush=True)
        else:
            tallies[message.worker] = message.tally
        if message.is_last:
            running.discard(message.worker)
        progress.show(sum(t.graphs for t in tallies.values()), sum(signatures.values()))
    return True


class Progress:
    """A line on stderr: on a terminal one that is written over, else a new one now and then."""

    def __init__(self, graphs: int) -> None:
        self.graphs = graphs
        self.start = self.last = time.monotonic()
        self.is_terminal = sys.stderr.isatty()

    def show(self, graphs: int, failures: int) -> None:
        now = time.monotonic()
        if now - self.last > (0.2 if self.is_terminal else 20):
            self.last = now
            rate = graphs / (now - self.start)
            text = f"{graphs}/{self.graphs} graphs, {rate:.1f}/s, {failures} failures"
            print(f"\r{text} " if self.is_terminal else text, end="" if self.is_terminal else "\n", file=sys.stderr)
            sys.stderr.flush()

    def end(self) -> None:
        if self.is_terminal:
            print(file=sys.stderr)


def _summary(total: Tally, signatures: Counter[str], seconds: float, is_complete: bool) -> int:
    print(
        f"{total.graphs} graphs of {total.programs} programs in {seconds:.0f} s: {total.graphs / seconds:.1f} graphs/s"
    )
    print(f"captured: {dict(total.captures)}; variants: {dict(total.variants)}")
    print(
        f"{total.legal_share:.0%} of the graphs hold a legal site; {total.legal_sites} of {total.sites} sites are legal"
    )
    print(f"fused: {dict(total.fused)}")
    print("refused: " + ", ".join(f"{reason} {count}" for reason, count in total.reasons.most_common()))
    for key, count in signatures.most_common():
        print(f"{count} x {key}")
    print(f"{sum(signatures.values())} failures")
    if not is_complete:
        return 130
    is_varied = total.legal_share >= LEGAL_SHARE
    if not is_varied:
        print(f"expected a legal site in {LEGAL_SHARE:.0%} of the graphs")
    return 1 if signatures or not is_varied else 0
