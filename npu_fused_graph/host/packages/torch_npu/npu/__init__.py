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
from torch_npu.npu import amp, streams, utils  # noqa: F401
from torch_npu.npu._backends import get_soc_version  # noqa: F401
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
    empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_reserved,
    memory_snapshot,
    memory_stats,
    memory_summary,
    reset_max_memory_allocated,
    reset_peak_memory_stats,
    set_per_process_memory_fraction,
)
from torch_npu.npu.npu_config import (
    get_device_limit,
    get_stream_limit,
    reset_stream_limit,
    set_device_limit,
    set_stream_limit,
)
from torch_npu.npu.streams import Event, ExternalEvent, ExternalStream, Stream
from torch_npu.npu.utils import current_stream, default_stream, set_stream, stream

__all__ = [
    "Event",
    "ExternalEvent",
    "ExternalStream",
    "NPUGraph",
    "Stream",
    "current_stream",
    "default_stream",
    "empty_cache",
    "get_device_limit",
    "get_stream_limit",
    "graph",
    "graph_pool_handle",
    "graph_task_group_begin",
    "graph_task_group_end",
    "graph_task_update_begin",
    "graph_task_update_end",
    "is_current_stream_capturing",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_snapshot",
    "memory_stats",
    "memory_summary",
    "reset_max_memory_allocated",
    "reset_peak_memory_stats",
    "reset_stream_limit",
    "set_device_limit",
    "set_per_process_memory_fraction",
    "set_stream",
    "set_stream_limit",
    "stream",
    "super_kernel_scope_begin",
    "super_kernel_scope_end",
]

matmul = types.SimpleNamespace(allow_hf32=False)
conv = types.SimpleNamespace(allow_hf32=True)
config = types.SimpleNamespace(allow_internal_format=False)
"""Settings without effect on a CPU; scripts set and read them."""

FloatTensor, HalfTensor, BFloat16Tensor = torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor
IntTensor, LongTensor, BoolTensor, ByteTensor = torch.IntTensor, torch.LongTensor, torch.BoolTensor, torch.ByteTensor


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


def is_bf16_supported(including_emulation: bool = True) -> bool:
    return True


# -- random numbers ------------------------------------------------------------------------------------------

default_generators = (torch.default_generator,) * 64


def manual_seed(seed: int) -> None:
    torch.default_generator.manual_seed(int(seed))  # torch.manual_seed calls this function


manual_seed_all = manual_seed


def seed() -> int:
    return torch.default_generator.seed()


seed_all = seed


def initial_seed() -> int:
    return torch.initial_seed()


def get_rng_state(device: Any = "npu") -> torch.Tensor:
    return torch.get_rng_state()


def set_rng_state(new_state: torch.Tensor, device: Any = "npu") -> None:
    torch.set_rng_state(new_state)


def get_rng_state_all() -> list[torch.Tensor]:
    return [torch.get_rng_state()]


def set_rng_state_all(new_states: list[torch.Tensor]) -> None:
    torch.set_rng_state(new_states[0])


# -- settings without effect ---------------------------------------------------------------------------------


def set_compile_mode(jit_compile: bool = False) -> None:
    """No operator is compiled for an NPU here."""


def set_option(option: dict[str, Any]) -> None:
    """ACL options have nobody to read them."""


def _get_deterministic_level() -> int:
    return int(torch.are_deterministic_algorithms_enabled())


def set_deterministic_level(level: int) -> None:
    torch.use_deterministic_algorithms(level > 0)


def set_sync_debug_mode(debug_mode: Any) -> None:
    """Nothing is asynchronous here."""


def get_sync_debug_mode() -> int:
    return 0


# -- what cannot be emulated ---------------------------------------------------------------------------------

make_graphed_callables = refused(
    "torch.npu.make_graphed_callables", "it captures a backward, too. Use torch.npu.graph for the forward"
)
init_dump = refused("torch.npu.init_dump", "it dumps what ACL executes")
set_dump = refused("torch.npu.set_dump", "it dumps what ACL executes")
finalize_dump = refused("torch.npu.finalize_dump", "it dumps what ACL executes")


def __getattr__(name: str) -> Any:
    if name == "npugraph_ex":
        return importlib.import_module("torch_npu.npu.npugraph_ex")
    raise refused_attribute("torch.npu", name)
