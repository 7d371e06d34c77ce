"""``make kernels-full``: both kernels over the product of forms, types, sizes, ranks, cores and orders."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator

import torch

from tests.kernels.dispatch_case import FORMS, compare, random_dispatch
from tests.kernels.norm_case import Case, check, check_figures, run
from tests.kernels.test_add_rms_norm import SHAPES, check_random

SEEDS = range(3)


def norms() -> Iterator[str]:
    """Every shape in both types, on 1 to 48 cores, in both orders; then random ones."""
    for (rows, n, _, _), dtype, cores in itertools.product(
        SHAPES, (torch.float16, torch.bfloat16), (1, 2, 3, 5, 8, 16, 40, 48)
    ):
        case = Case(rows, n, dtype, cores)
        inputs = case.inputs(rows + n)
        for seed, is_deferred in itertools.product(SEEDS, (False, True)):
            y, norm, figures = run(case, *inputs, seed=seed, is_deferred=is_deferred)
            check(case, *inputs, y, norm)
            check_figures(case, figures)
            yield f"norm {rows} x {n} on {cores} cores"
    for seed in range(5000, 6000):
        check_random(seed, 65_552)
        yield "norm, random"


def dispatches() -> Iterator[str]:
    """Every form in both types, 2 to 16 ranks, 1 to 48 cores, in both orders; then random ones."""
    worlds = [(1, 1), (1, 3), (3, 1), (2, 2), (4, 4), (11, 5), (5, 11), (8, 8), (15, 1), (1, 15)]
    for form, offset, world, cores in itertools.product(range(len(FORMS)), (0, len(FORMS)), worlds, (1, 2, 7, 40, 48)):
        plan, calls, windows, _ = random_dispatch(form + offset, world=world)
        for seed in SEEDS:
            compare(
                plan, calls, windows, cores=cores, seed=seed, is_deferred=seed == 1, is_registered=seed != 2
            )  # fmt: skip
            yield f"dispatch, {world[0]} + {world[1]} ranks on {cores} cores"
    for seed in range(5000, 6000):
        plan, calls, windows, cores = random_dispatch(seed)
        compare(plan, calls, windows, cores=cores, seed=seed, is_deferred=seed % 2 == 0)
        yield "dispatch, random"


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.kernels.full", description=__doc__).parse_args()
    torch.set_num_threads(1)
    begin = said = time.monotonic()
    count = 0
    for count, what in enumerate(itertools.chain(norms(), dispatches()), 1):
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"{count} launches after {said - begin:.0f} s: {what}", file=sys.stderr, flush=True)
    print(f"{count} launches agree, {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
