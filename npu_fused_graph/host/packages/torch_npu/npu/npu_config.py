"""Limits of the cores kernels may use."""

from __future__ import annotations

from typing import Any

_CORES = {"cube_core_num": 24, "vector_core_num": 48}
_limits: dict[str, dict[str, int]] = {}


def get_device_limit(device: Any = None) -> dict[str, int]:
    """Cores a device's kernels may use: what was set, else those of an Ascend 910B."""
    return dict(_limits.get("device", _CORES))


def set_device_limit(device: Any, cube_num: int = -1, vector_num: int = -1) -> None:
    """Remembered; no kernel here has cores to count."""
    _limits["device"] = _limited(get_device_limit(), cube_num, vector_num)


def get_stream_limit(stream: Any) -> dict[str, int]:
    return dict(_limits.get("stream", get_device_limit()))


def set_stream_limit(stream: Any, cube_num: int = -1, vector_num: int = -1) -> None:
    """Remembered, like set_device_limit."""
    _limits["stream"] = _limited(get_stream_limit(stream), cube_num, vector_num)


def reset_stream_limit(stream: Any) -> None:
    _limits.pop("stream", None)


def _limited(limit: dict[str, int], cube_num: int, vector_num: int) -> dict[str, int]:
    wanted = {"cube_core_num": cube_num, "vector_core_num": vector_num}
    return {name: limit[name] if number < 0 else number for name, number in wanted.items()}
