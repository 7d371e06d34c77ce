"""``python -m tests.kernels.mutants``: every fault of every kind in both kernels, and how many are noticed."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from npu_fused_graph.sim.build import kernels_folder
from tests.kernels.mutants.operators import mutants_of
from tests.kernels.mutants.run import CAUGHT, REFUSED, SURVIVED, Verdict, baseline, targets, try_mutant

SURVIVORS = Path(__file__).parent / "survivors.txt"
GOAL = 0.95


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.mutants", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--file", default="", help="only files whose name has this in it")
    parser.add_argument("--kind", default="", help="only kinds of faults whose name has this in it")
    parser.add_argument("--every", type=int, default=1, help="every n-th fault")
    parser.add_argument("--json", type=Path, help="write all verdicts here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = kernels_folder()
    found = [m for path in targets(folder) for m in mutants_of(path, (folder / path).read_text())]
    chosen = [m for m in found if options.file in str(m.file) and options.kind in m.operator][:: options.every]
    print(f"{len(chosen)} of {len(found)} faults", flush=True)
    if why := baseline():
        print(f"the battery fails on the kernels as they are: {why}", file=sys.stderr)
        return 2
    verdicts: list[Verdict] = []
    begin = time.monotonic()
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        for verdict in pool.imap_unordered(try_mutant, chosen):
            verdicts.append(verdict)
            mutant = verdict.mutant
            if verdict.verdict == SURVIVED:
                print(
                    f"survived: {mutant.file}:{mutant.line}: {mutant.operator}: {mutant.before}  ->  {mutant.after}",
                    flush=True,
                )
            elif len(verdicts) % 100 == 0:
                print(f"... {len(verdicts)} after {time.monotonic() - begin:.0f} s", flush=True)
    if options.json:
        kept = ("file", "line", "operator", "before", "after")
        rows = [
            {**{name: str(getattr(v.mutant, name)) for name in kept}, "verdict": v.verdict, "why": v.why}
            for v in verdicts
        ]
        options.json.write_text(json.dumps(rows, indent=1))
    return report(verdicts, time.monotonic() - begin, is_whole=len(chosen) == len(found))


def report(verdicts: list[Verdict], seconds: float, *, is_whole: bool) -> int:
    """Per kind; 1 if too many survive, or one that survivors.txt does not argue."""
    counts = Counter((v.mutant.operator, v.verdict) for v in verdicts)
    for kind in sorted({v.mutant.operator for v in verdicts}):
        caught, survived, refused = (counts[kind, verdict] for verdict in (CAUGHT, SURVIVED, REFUSED))
        print(f"{kind:32} {caught:4} caught {survived:4} survived {refused:4} do not compile")
    caught = sum(v.verdict == CAUGHT for v in verdicts)
    survived = [v for v in verdicts if v.verdict == SURVIVED]
    share = caught / max(1, caught + len(survived))
    print(f"{caught} of {caught + len(survived)} caught, {share:.1%} (goal {GOAL:.0%}); {seconds:.0f} s")
    argued = (
        {line for line in SURVIVORS.read_text().splitlines() if line and not line.startswith(("#", "  "))}
        if SURVIVORS.exists()
        else set()
    )
    unargued = [v.mutant.key for v in survived if v.mutant.key not in argued]
    for key in unargued:
        print(f"not argued in {SURVIVORS.name}: {key}")
    if is_whole:
        for key in sorted(argued - {v.mutant.key for v in survived}):
            print(f"argued, but noticed now or gone: {key}")
    return int(share < GOAL or bool(unargued))


if __name__ == "__main__":
    sys.exit(main())
