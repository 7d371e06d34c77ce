"""The command line: runs the database, writes the table, prints the counts."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from tests.opinfo.running import Case, run_units
from tests.opinfo.samples import DTYPES, units
from tests.opinfo.table import REMAINDER, TABLE, counts, remainder, rows, written


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.opinfo", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="pattern that an operator's whole name matches")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="may be repeated; all of them if left out")
    parser.add_argument("--output", metavar="FILE", type=Path, help=f"the table; {TABLE.name} here, for a whole run")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    is_whole = options.only is None and options.dtype is None
    output = options.output or (TABLE if is_whole else None)

    wanted = units(options.only, tuple(options.dtype or DTYPES))
    if not wanted:
        parser.error(f"--only {options.only}: expected the name of an operator in torch's database, got none like it")
    done, lock = 0, threading.Lock()

    def progress(cases: list[Case]) -> None:
        nonlocal done
        with lock:
            done += 1
            if sys.stderr.isatty():
                print(f"\r{done} of {len(wanted)}", end="", file=sys.stderr)
        for case in cases:
            if not is_whole and case.verdict.result != "runs":
                print(f"{case.unit.op} {case.unit.dtype} sample {case.place}: {': '.join(case.verdict)}", flush=True)

    cases = run_units(wanted, options.jobs, progress)
    if output is not None:
        output.write_text(written(rows(cases)), encoding="utf-8")
    if is_whole and options.output is None:
        REMAINDER.write_text(remainder(cases), encoding="utf-8")
    print(counts(cases))
    return int(any(case.verdict.result in ("wrong", "crash") for case in cases))
