"""Stand-in for torch.npu: one CPU that claims to be several devices; work is done when a call returns."""

from __future__ import annotations

import contextlib
import importlib
import types
from collections.abc import Iterator
from typing import Any

import torch

from npu_fused_graph.host.capture.recording import forbid
from npu_fused_graph.host.capture.tape import check_nothing_waits
from npu_fused_graph.host.standin import state
from npu_fused_graph.host.standin.refusal import refused, refused_attribute
from torch_npu.npu import aclnn, amp, memory, random, streams, utils
from torch_npu.npu._backends import get_soc_version
from torch_npu.npu.graphs import (
    NPUGraph,
    graph,
    graph_pool_handle,
    graph_task_group_begin,
    graph_task_group_end,
    graph_task_update_begin,
    graph_task_update_end,
    is_current_stream_capturing,
    super_kernel_scope_begin,
    super_kernel_scope_end,
)
from torch_npu.npu.memory import (
    caching_allocator_alloc,
    caching_allocator_delete,
    empty_cache,
    get_allocator_backend,
    get_per_process_memory_fraction,
    host_empty_cache,
    host_memory_stats,
    max_memory_allocated,
    max_memory_cached,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_cached,
    memory_reserved,
    memory_snapshot,
    memory_stats,
    memory_summary,
    reset_accumulated_host_memory_stats,
    reset_accumulated_memory_stats,
    reset_max_memory_allocated,
    reset_max_memory_cached,
    reset_peak_host_memory_stats,
    reset_peak_memory_stats,
    set_per_process_memory_fraction,
)
from torch_npu.npu.mstx import mstx
from torch_npu.npu.npu_config import (
    are_compatible_impl_enabled,
    disable_deterministic_with_backward,
    enable_deterministic_with_backward,
    finalize_dump,
    get_device_limit,
    get_mm_bmm_format_nd,
    get_stream_limit,
    get_task_queue_enable,
    init_dump,
    is_jit_compile_false,
    reset_stream_limit,
    set_aoe,
    set_compile_mode,
    set_device_limit,
    set_dump,
    set_mm_bmm_format_nd,
    set_op_timeout_ms,
    set_option,
    set_stream_limit,
    set_task_queue_enable,
    use_compatible_impl,
)
from torch_npu.npu.random import (
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    seed,
    seed_all,
    set_rng_state,
    set_rng_state_all,
)
from torch_npu.npu.streams import Event, ExternalEvent, ExternalStream, Stream
from torch_npu.npu.utils import (
    StreamContext,
    clear_npu_overflow_flag,
    current_stream,
    default_stream,
    get_npu_overflow_flag,
    ipc_collect,
    is_support_inf_nan,
    set_stream,
    stream,
)

__all__ = [
    "Event",
    "ExternalEvent",
    "ExternalStream",
    "NPUGraph",
    "Stream",
    "StreamContext",
    "SyncLaunchStream",
    "aclnn",
    "amp",
    "are_compatible_impl_enabled",
    "caching_allocator_alloc",
    "caching_allocator_delete",
    "clear_npu_overflow_flag",
    "current_stream",
    "default_stream",
    "disable_deterministic_with_backward",
    "empty_cache",
    "enable_deterministic_with_backward",
    "finalize_dump",
    "get_allocator_backend",
    "get_device_limit",
    "get_mm_bmm_format_nd",
    "get_npu_overflow_flag",
    "get_per_process_memory_fraction",
    "get_rng_state",
    "get_rng_state_all",
    "get_soc_version",
    "get_stream_limit",
    "get_task_queue_enable",
    "graph",
    "graph_pool_handle",
    "graph_task_group_begin",
    "graph_task_group_end",
    "graph_task_update_begin",
    "graph_task_update_end",
    "host_empty_cache",
    "host_memory_stats",
    "init_dump",
    "initial_seed",
    "ipc_collect",
    "is_current_stream_capturing",
    "is_jit_compile_false",
    "is_support_inf_nan",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_cached",
    "max_memory_reserved",
    "mem_get_info",
    "memory",
    "memory_allocated",
    "memory_cached",
    "memory_reserved",
    "memory_snapshot",
    "memory_stats",
    "memory_summary",
    "mstx",
    "random",
    "reset_accumulated_host_memory_stats",
    "reset_accumulated_memory_stats",
    "reset_max_memory_allocated",
    "reset_max_memory_cached",
    "reset_peak_host_memory_stats",
    "reset_peak_memory_stats",
    "reset_stream_limit",
    "seed",
    "seed_all",
    "set_aoe",
    "set_compile_mode",
    "set_device_limit",
    "set_dump",
    "set_mm_bmm_format_nd",
    "set_op_timeout_ms",
    "set_option",
    "set_per_process_memory_fraction",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "set_stream_limit",
    "set_task_queue_enable",
    "stream",
    "streams",
    "super_kernel_scope_begin",
    "super_kernel_scope_end",
    "use_compatible_impl",
    "utils",
]

SyncLaunchStream = Stream
"""Every stream here is synchronous."""
matmul = types.SimpleNamespace(allow_hf32=False)
conv = types.SimpleNamespace(allow_hf32=True)
config = types.SimpleNamespace(allow_internal_format=False)
"""Settings without effect on a CPU; scripts set and read them."""


# -- devices -------------------------------------------------------------------------------------------------


def is_available() -> bool:
    """Whether this process stands for one on a device, and does not only capture graphs."""
    return not state.only_captures


def is_initialized() -> bool:
    return True


def init() -> None:
    """Nothing to initialise."""


def _lazy_init() -> None:
    """Nothing to initialise."""


def _is_in_bad_fork() -> bool:
    return False


def device_count() -> int:
    """``--devices`` of the run, 16 by default."""
    return state.options().devices


def current_device() -> int:
    return state.current_device()


def set_device(device: Any) -> None:
    state.set_current_device(state.device_index(device))


@contextlib.contextmanager
def device(device: Any) -> Iterator[None]:
    """That device is the current one inside."""
    before = state.current_device()
    set_device(device)
    try:
        yield
    finally:
        state.set_current_device(before)


device_of = device


def get_device_name(device: Any = None) -> str:
    """``--soc`` of the run, or a name where any chip will do."""
    return state.options().soc or state.ANY_SOC


def stands_for_any_chip() -> bool:
    """Whether nobody said which chip this is: operators of all chips run."""
    return not state.options().soc


def get_device_properties(device: Any = None) -> types.SimpleNamespace:
    state.device_index(device)
    return types.SimpleNamespace(
        name=get_device_name(), total_memory=mem_get_info()[1], multi_processor_count=1, cube_core_num=24,
        vector_core_num=48, L2_cache_size=192 * 1024 * 1024,
    )  # fmt: skip


def get_device_capability(device: Any = None) -> None:
    """As torch_npu: NPUs have no such number."""


def can_device_access_peer(device: Any, peer: Any) -> bool:
    return True


def synchronize(device: Any = None) -> None:
    """Work is done when a call returns. Raises CaptureError inside a capture, and where a replay waits for an event."""
    forbid("torch.npu.synchronize", "a captured graph runs without the host", "Wait outside the capture.")
    check_nothing_waits("torch.npu.synchronize")


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16]


def utilization(device: Any = None) -> int:
    """In percent: no device is busy when a call returns."""
    state.device_index(device)
    return 0


def is_autocast_enabled() -> bool:
    return torch.is_autocast_enabled("cpu")


def set_autocast_enabled(enabled: bool) -> None:
    torch.set_autocast_enabled("cpu", enabled)


def get_autocast_dtype() -> torch.dtype:
    return torch.get_autocast_dtype("cpu")


def set_autocast_dtype(dtype: torch.dtype) -> None:
    torch.set_autocast_dtype("cpu", dtype)


def is_bf16_supported(including_emulation: bool = True) -> bool:
    return True


default_generators = (torch.default_generator,) * 64

# -- settings without effect ---------------------------------------------------------------------------------


def _get_deterministic_level() -> int:
    return int(torch.are_deterministic_algorithms_enabled())


def set_deterministic_level(level: int) -> None:
    torch.use_deterministic_algorithms(level > 0)


def set_sync_debug_mode(debug_mode: Any) -> None:
    """Nothing is asynchronous here."""


def get_sync_debug_mode() -> int:
    return 0


# -- what cannot be emulated ---------------------------------------------------------------------------------

stop_device = refused("torch.npu.stop_device", "it stops a device that others work on")
restart_device = refused("torch.npu.restart_device", "it restarts a device that was stopped")
current_blas_handle = refused("torch.npu.current_blas_handle", "no BLAS of a device is there")
make_graphed_callables = refused(
    "torch.npu.make_graphed_callables", "it captures a backward, too. Use torch.npu.graph for the forward"
)


_TYPES = tuple(
    f"{name}{what}"
    for name in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
    for what in ("Storage", "Tensor")
)
"""Legacy classes: those of the CPU."""


def __getattr__(name: str) -> Any:
    if name == "npugraph_ex":
        return importlib.import_module("torch_npu.npu.npugraph_ex")
    if name in _TYPES:
        return getattr(torch, name)
    raise refused_attribute("torch.npu", name)
