"""Streams that are current, and versions: no CANN here, and TorchAir asks."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.host.capture.streams import current_stream, default_stream, set_stream, stream

__all__ = ["StreamContext", "current_stream", "default_stream", "get_cann_version", "set_stream", "stream"]


class StreamContext:
    """``with torch.npu.stream(s)``, as a class."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self._inside = stream(self.stream)
        self._inside.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inside.__exit__(*error)


def get_cann_version(module: str = "CANN") -> str:
    """No CANN is installed: the version whose public headers and prototypes this project is checked against."""
    return "8.1.RC1"


def _is_gte_cann_version(version: str, module: str = "CANN") -> bool:
    """The engine is not bound to a CANN: what is asked for is there or is refused by name."""
    return True


def is_support_inf_nan() -> bool:
    """As from the Ascend 910B on."""
    return True


def get_npu_overflow_flag() -> bool:
    """No kernel here raises it: overflows give inf or nan."""
    return False


def clear_npu_overflow_flag() -> None:
    """Nothing is raised."""


def ipc_collect() -> None:
    """No memory is shared by handles of a device."""
