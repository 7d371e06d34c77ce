"""What a mutant must survive: launches whose results are known, those that notice most first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from npu_fused_graph.errors import KernelError
from npu_fused_graph.sim.launch import Kernel, Store
from tests.kernels import dispatch_case, norm_case
from tests.kernels.dispatch_case import compare, random_dispatch
from tests.kernels.norm_case import Case

Trial = Callable[[], None]


def norm_trials(library: Path, dtype: torch.dtype) -> Iterator[Trial]:
    """The add and norm stage. library: of the mutant, for ``dtype``."""
    shapes = [
        (7, 63, 3), (300, 64, 4), (40, 1000, 3), (600, 130, 2), (1, 1, 1), (33, 2032, 4), (9, 2033, 2), (12, 5000, 4),
        (3, 8192, 2), (2, 9984, 1), (3, 12289, 2), (35, 16400, 2), (2, 65552, 1), (5, 17, 2), (260, 16, 1),
        (24, 8192, 2), (32, 20000, 2), (40, 65, 2), (20, 129, 2), (30, 256, 2), (800, 16, 1), (1, 1024129, 1),
    ]  # fmt: skip
    for function in ("add_rms_norm", "add_rms_norm_far"):
        for number, (rows, n, cores) in enumerate(shapes):
            if function != "add_rms_norm" and number % 3:
                continue
            case = Case(rows, n, dtype, cores, epsilon=1e-3)
            for is_deferred in (False, True):

                def trial(
                    case: Case = case, number: int = number, is_deferred: bool = is_deferred, function: str = function
                ) -> None:
                    inputs = case.inputs(number)
                    y, norm, figures = norm_case.run(
                        case, *inputs, seed=number, is_deferred=is_deferred, function=function, library=library
                    )
                    norm_case.check(case, *inputs, y, norm)
                    norm_case.check_figures(case, figures, library)

                yield trial
    for rows, n in ((9, 64), (3, 2048), (2, 16384)):

        def ties(rows: int = rows, n: int = n) -> None:
            norm_case.check_ties(rows, n, dtype, library=library)

        yield ties


def dispatch_trials(kernel: Kernel, dtype: torch.dtype) -> Iterator[Trial]:
    """AttentionToFFN. kernel: of the mutant, for ``dtype``."""
    sizes: list[dict[str, object]] = [
        {},
        {"tokens": 9, "k": 6, "experts": 12, "shared": 4},
        {"hidden": 1056},
        {"hidden": 1025, "tokens": 5},
        {"hidden": 8192, "tokens": 3},
        {"tokens": 200, "k": 2, "experts": 4, "shared": 0},
        {"tokens": 512, "k": 2, "experts": 4, "shared": 1, "hidden": 1024},
        {"world": (1, 40), "tokens": 20, "k": 6, "experts": 12},
        {"world": (3, 1), "micro_batches": 3},
    ]
    for number, given in enumerate(sizes):
        for form in range(len(dispatch_case.FORMS)):
            for cores in (1, 3, 48):
                if (number + form + cores) % 2 and number > 1:
                    continue

                def trial(
                    number: int = number, given: dict[str, object] = given, form: int = form, cores: int = cores
                ) -> None:
                    seed = form + len(dispatch_case.FORMS) * (2 * number + (dtype != torch.float16))
                    plan, calls, windows, _ = random_dispatch(seed, **given)
                    figures = compare(
                        plan, calls, windows, cores=cores, seed=seed, is_deferred=cores == 3,
                        is_registered=form % 2 == 0, kernel_=kernel,
                    )  # fmt: skip
                    dispatch_case.check_local_memory(plan, calls[0], cores, figures)

                yield trial
    for number in range(4):

        def last_core(number: int = number) -> None:
            """A token per core, each to ranks of its own: what the last core has hit nobody else has."""
            seed = 2 + len(dispatch_case.FORMS) * (2 * number + (dtype != torch.float16))
            plan, calls, windows, _ = random_dispatch(seed, world=(1, 12), tokens=6, k=1, experts=12, shared=0)
            compare(plan, calls, windows, cores=6, seed=number, kernel_=kernel)

        yield last_core
    for form, is_hit in ((0, True), (2, True), (0, False)):

        def waits(form: int = form, is_hit: bool = is_hit) -> None:
            sizes = {} if is_hit else {"k": 1, "experts": 1, "shared": 0}
            plan, calls, windows, _ = random_dispatch(form, world=(1, 3), tokens=3, **sizes)
            word = 4 * int(calls[0]["micro_batch_id"]) * (2 + plan.tokens * plan.slots)
            hit = {plan.rows[e][0][0] for e in range(len(plan.rows))}
            target = next(r for r in plan.ffn_ranks if (r in hit) == is_hit)
            windows[target][word : word + 4] = [1, 0, 0, 0]
            with pytest.raises(KernelError, match="Deadlock"):
                dispatch_case.launch(plan, calls, windows, cores=2, kernel_=kernel)
            compare(plan, calls, windows, cores=2, stores=[Store(300, target, word, 0)], kernel_=kernel)

        yield waits
