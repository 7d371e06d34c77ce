"""One form for what a CPU cannot stand in for: an error with the name, when it is used and not before."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.errors import UnsupportedModeError


def refused(name: str, reason: str) -> type:
    """A class in the place of function or class ``name``; making an instance, or calling it, raises."""

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedModeError(f"[run] {name}: expected an NPU, got a machine without one: {reason}.")

    return type(name.rpartition(".")[2], (), {"__new__": new, "__doc__": f"Not without an NPU: {reason}."})


def refused_attribute(module: str, name: str) -> AttributeError:
    """For a name the stand-in does not have: scripts ask with hasattr, so it must be an AttributeError."""
    return AttributeError(
        f"[run] {module}.{name}: expected a name that has a meaning without an NPU, got one this stand-in does not "
        "have. See docs/run_on_a_laptop.md."
    )
