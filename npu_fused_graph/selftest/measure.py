"""One comparison of a selftest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from npu_fused_graph.host.replay import compare
from npu_fused_graph.selftest.report import Check


def measured(part: str, name: str, run: Callable[[], Sequence[Tensor]], wanted: Sequence[Tensor], ranks: int) -> Check:
    """One check: what ``run`` gives against ``wanted``; what it raises is told."""
    begin = time.perf_counter()
    try:
        with torch.no_grad():
            results = run()
        if len(results) != len(wanted):
            raise ValueError(f"expected {len(wanted)} results, got {len(results)}")
        found = compare(name, [wanted], [results], ranks)
    except Exception as error:
        return Check(part, name, "FAILED", failure(error), time.perf_counter() - begin, ranks)
    seconds = time.perf_counter() - begin
    text = f"largest difference {found.max_error:.3g}"
    return Check(part, name, "agrees" if found.is_close else "DIFFERS", text, seconds, ranks)


def failure(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]
