"""Kernels of the tests, built once per process; the libraries themselves are in the user's cache."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from npu_fused_graph.sim.build import library
from npu_fused_graph.sim.launch import Kernel

ENTRIES = Path(__file__).parent / "entries"


@functools.lru_cache(maxsize=8)
def entry(name: str, defines: tuple[tuple[str, str], ...] = (), function: str = "") -> Kernel:
    """The kernel ``function``, without one ``name``, of ``entries/<name>.cpp``."""
    macros: Mapping[str, str] = dict(defines)
    return Kernel(library(name, [ENTRIES / f"{name}.cpp"], macros), name, function or name)
