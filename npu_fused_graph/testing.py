"""Comparison tools for tests: one tolerance table by dtype, and graph text against golden files."""

from __future__ import annotations

import os
import re
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


def in_order_of_use(text: str) -> str:
    """A text of graphs, with the inputs of each named and put in the order in which its nodes use them.

    In which order a graph has them depends on the version of torch.
    """
    return re.sub(r"(?ms)^graph .*?(?=^graph |\Z)", lambda found: _in_order_of_use(found[0]), text)


def _in_order_of_use(graph: str) -> str:
    head, *lines = graph.splitlines(keepends=True)
    inputs = {match[1]: line for line in lines if (match := _DATA.match(line))}
    nodes = "".join(line for line in lines if not _DATA.match(line))
    used = dict.fromkeys(name for name in re.findall(r"(?<==)([\w.]+)(?=:-?\d)", nodes) if name in inputs)
    order = [*used, *sorted(set(inputs) - set(used), key=lambda name: _DATA.sub("", inputs[name]))]
    names = {name: f"input_{place}" for place, name in enumerate(order)}
    data = [f"{names[name]} = Data() {{index={i}}}{_DATA.sub('', inputs[name])}" for i, name in enumerate(order)]
    return head + "".join(data) + re.sub(r"(?<==)[\w.]+(?=:-?\d)", lambda found: names.get(found[0], found[0]), nodes)


_DATA = re.compile(r"([\w.]+) = Data\(\) \{index=\d+\}")


def assert_same_graph(text: str, golden: Path) -> None:
    """Compare a graph text with a golden file, whatever the order of inputs; ``NFG_ACCEPT=1`` rewrites it instead."""
    text = in_order_of_use(text)
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
