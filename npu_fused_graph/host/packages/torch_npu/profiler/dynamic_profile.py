"""Profiling switched on from outside while a program runs: not here."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.errors import warn_once

__all__ = ["init", "set_state", "start", "step"]


def init(path: str) -> None:
    warn_once("[run] dynamic_profile: expected an NPU, got a machine without one. It profiles nothing.")


def step() -> None:
    """The next step of a loop."""


def start(config_path: str | None = None) -> None:
    init("")


def set_state(state_step: dict[str, Any]) -> None:
    """Where a loop is."""
