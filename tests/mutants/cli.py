"""Command line: ``python -m tests.mutants --sites 300 --seed 0 --jobs 2``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from tests.mutants.checkout import Checkout
from tests.mutants.recording import Recording, key_of, recorded
from tests.mutants.report import as_json, as_text, equivalents, facts
from tests.mutants.running import Trust, Verdict, Worker, judge_all
from tests.mutants.selection import Selection
from tests.mutants.sites import Site, all_sites, sample
from tests.mutants.targets import NPU_FUSED_GRAPH, MutantsError, Project, target_files

HERE = Path(__file__).parents[2]
VERDICTS = "verdicts.jsonl"


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Mutation testing of the fast suite.")
    parser.add_argument("--sites", type=int, default=300, help="how many faults to try; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time, and processes of the recorded run")
    parser.add_argument("--budget", type=float, default=180, metavar="S", help="seconds of tests per fault")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: build/mutants of this checkout")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parents[2], metavar="CHECKOUT", help="what to judge"
    )
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="faults whose path:line kind: change has it")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="judge these tests only")
    parser.add_argument("--record-only", action="store_true", help="find out which test executes what, and stop")
    parser.add_argument("--resume", action="store_true", help="keep the verdicts that are there")
    parser.add_argument("--list", action="store_true", help="print the faults and stop")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def main(arguments: Sequence[str] | None = None, project: Project = NPU_FUSED_GRAPH) -> int:
    parser = parser_of()
    options = parser.parse_args(arguments)
    if options.jobs < 1 or options.sites < 0 or options.budget <= 0:
        parser.error("expected --jobs of at least 1, --sites of at least 0 and a --budget above 0")
    try:
        return _main(options, project)
    except MutantsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; --resume continues", file=sys.stderr)
        return 130


def _main(options: argparse.Namespace, project: Project) -> int:
    root = options.root.resolve()
    if not root.is_dir():
        raise MutantsError(f"--root: expected a checkout, got {options.root}")
    target_files(project, root)
    equivalents()  # a broken line is told before the work
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        checkout = Checkout.taken(project, root, folder / "original")
        sites = sample(all_sites(checkout.root, target_files(project, checkout.root)), options.seed)
        sites = [site for site in sites if options.only in str(site)][: options.sites or None]
        if not sites:
            raise MutantsError(f"--only: expected a part of path:line kind: change, got {options.only!r}")
        if options.list:
            print(as_json([asdict(s) for s in sites]) if options.json else "\n".join(map(str, sites)))
            return 0
        tests = options.tests or list(project.tests)
        for path in tests:
            if not (checkout.root / path).exists():
                raise MutantsError(f"--tests: {path} is not in {root}")
        output = (options.output or HERE / "build" / "mutants").resolve()
        output.mkdir(parents=True, exist_ok=True)
        recording = recorded(checkout, output, folder / "recorded", tests, options.jobs)
        _describe(recording)
        if options.record_only:
            return 0
        with _Verdicts(output / VERDICTS, f"{key_of(checkout, tests)} {options.budget}", options.resume) as verdicts:
            _judge(options, checkout, folder, sites, recording, verdicts)
    return 0


def _describe(recording: Recording) -> None:
    print(f"{len(recording.tests)} tests passed in the recorded run", file=sys.stderr)
    for test, why in recording.failed.items():
        print(f"not used: {test}: {why}", file=sys.stderr)


def _judge(
    options: argparse.Namespace, checkout: Checkout, folder: Path, sites: list[Site], recording: Recording,
    verdicts: _Verdicts,
) -> None:  # fmt: skip
    selection, trust, begin = Selection(checkout, recording), Trust(), time.monotonic()
    judged = {site: verdicts.known[site.key] for site in sites if site.key in verdicts.known}

    def report(site: Site, verdict: Verdict) -> None:
        judged[site] = verdict
        verdicts.add(verdict)
        text = f"[{len(judged)}/{len(sites)}] {verdict.verdict}, {verdict.seconds:.1f} s: {site} {verdict.test}"
        print(text.rstrip(), file=sys.stderr, flush=True)

    def make_worker(number: int) -> Worker:
        return Worker(checkout, folder / str(number), selection, options.budget, trust)

    waiting = [site for site in sites if site not in judged]
    shared = set(Path("/dev/shm").iterdir())
    try:
        judge_all(waiting, make_worker, min(options.jobs, len(waiting)), report)
    finally:
        left = set(Path("/dev/shm").iterdir()) - shared
        if left:
            print(f"new in /dev/shm, perhaps left by a test: {', '.join(map(str, sorted(left)))}", file=sys.stderr)
        found = facts(judged, trust.excluded, time.monotonic() - begin)
        print(as_json(found) if options.json else as_text(found))


class _Verdicts:
    """The verdicts so far, one a line; the first line says what they hold for."""

    def __init__(self, path: Path, key: str, resume: bool) -> None:
        self.path = path
        self.known: dict[str, Verdict] = {}
        if resume and path.is_file():
            first, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            if json.loads(first) != key:
                raise MutantsError(f"--resume: {path} is of other files, tests or another budget")
            whole = [line for line in lines if line.endswith("\n")]  # the last may have been cut off
            self.known = {verdict.key: verdict for verdict in (Verdict(**json.loads(line)) for line in whole)}
        self.stream: IO[str] = path.open("w", encoding="utf-8")
        self.stream.write(json.dumps(key) + "\n")
        for verdict in self.known.values():
            self.add(verdict)

    def add(self, verdict: Verdict) -> None:
        self.stream.write(json.dumps(asdict(verdict)) + "\n")
        self.stream.flush()

    def __enter__(self) -> _Verdicts:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
