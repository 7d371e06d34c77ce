"""Comparison tools for tests: one tolerance table by dtype, and graph text against golden files."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

TOLERANCE: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
    torch.complex64: (1e-5, 1e-5),
}
"""(relative, absolute) per result dtype: a few roundings of that dtype. Anything not listed compares exactly."""


def assert_close(actual: Tensor, expected: Tensor, *, scale: float = 1.0, message: str = "") -> None:
    """Raise AssertionError unless ``actual`` equals ``expected`` within its dtype's tolerance.

    expected: usually float64. scale: multiplies the tolerance, for chains of roundings; say why at the call.
    """
    relative, absolute = TOLERANCE.get(actual.dtype, (0.0, 0.0))
    wide = torch.complex128 if actual.is_complex() or expected.is_complex() else torch.float64
    torch.testing.assert_close(
        actual.to(wide),
        expected.to(wide),
        rtol=relative * scale,
        atol=absolute * scale,
        equal_nan=True,
        msg=(lambda text: f"{message}: {text}") if message else None,
    )


def assert_same_graph(text: str, golden: Path) -> None:
    """Compare a graph text with a golden file; ``NFG_ACCEPT=1`` rewrites the file instead."""
    if os.environ.get("NFG_ACCEPT") == "1":
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text, encoding="utf-8")
        return
    if not golden.exists():
        raise AssertionError(f"no golden file {golden.name}; run with NFG_ACCEPT=1 to write it")
    wanted = golden.read_text(encoding="utf-8")
    if text != wanted:
        import difflib

        diff = "".join(difflib.unified_diff(wanted.splitlines(True), text.splitlines(True), golden.name, "now"))
        raise AssertionError(f"the graph changed (NFG_ACCEPT=1 accepts it):\n{diff}")
