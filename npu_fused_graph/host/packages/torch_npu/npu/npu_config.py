"""Settings: limits of cores are remembered, what ACL would read has no effect."""

from __future__ import annotations

from typing import Any

import torch

from npu_fused_graph.errors import warn_once
from npu_fused_graph.host.standin.refusal import refused

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


# -- without effect -------------------------------------------------------------------------------------------

_flags = {"compatible_impl": False, "mm_bmm_format_nd": True, "task_queue_enable": 1}


def set_compile_mode(jit_compile: bool = False) -> None:
    """No operator is compiled for an NPU here."""


def is_jit_compile_false() -> bool:
    return True


def set_option(option: dict[str, Any]) -> None:
    """ACL options have nobody to read them."""


def set_op_timeout_ms(timeout: int) -> None:
    """No operator here is ended for its time."""


def set_aoe(dump_path: str) -> None:
    warn_once("[run] torch.npu.set_aoe: expected an NPU, got a machine without one. It has no effect.")


def use_compatible_impl(is_enable: bool) -> None:
    _flags["compatible_impl"] = is_enable


def are_compatible_impl_enabled() -> bool:
    return bool(_flags["compatible_impl"])


def set_mm_bmm_format_nd(is_nd: bool = True) -> None:
    _flags["mm_bmm_format_nd"] = is_nd


def get_mm_bmm_format_nd() -> bool:
    return bool(_flags["mm_bmm_format_nd"])


def set_task_queue_enable(mode: int) -> None:
    _flags["task_queue_enable"] = mode


def get_task_queue_enable() -> int:
    return int(_flags["task_queue_enable"])


def enable_deterministic_with_backward(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``: no kernel here is other than deterministic."""
    return tensor


disable_deterministic_with_backward = enable_deterministic_with_backward

init_dump = refused("torch.npu.init_dump", "it dumps what ACL executes")
set_dump = refused("torch.npu.set_dump", "it dumps what ACL executes")
finalize_dump = refused("torch.npu.finalize_dump", "it dumps what ACL executes")
