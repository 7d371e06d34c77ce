"""Memory of the device: that of this process and of the machine, in bytes."""

from __future__ import annotations

import resource
from typing import Any

from npu_fused_graph.errors import warn_once
from npu_fused_graph.host.standin.refusal import refused

_PAGE = resource.getpagesize()


def empty_cache() -> None:
    """The CPU's allocator keeps no cache of its own."""


def memory_allocated(device: Any = None) -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE


def max_memory_allocated(device: Any = None) -> int:
    """Largest resident memory of this process so far; it cannot be reset."""
    # the kernel's two counts are not exact to the page
    return max(memory_allocated(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


memory_reserved = memory_cached = memory_allocated
max_memory_reserved = max_memory_cached = max_memory_allocated


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """(available, total) memory of the machine."""
    with open("/proc/meminfo", encoding="ascii") as file:
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in file)}
    return sizes["MemAvailable"], sizes["MemTotal"]


def memory_stats(device: Any = None) -> dict[str, int]:
    """The keys scripts read, from :func:`memory_allocated` and :func:`max_memory_allocated`."""
    now, peak = memory_allocated(), max_memory_allocated()
    kinds = ("allocated_bytes", "reserved_bytes", "active_bytes")
    stats = {f"{kind}.all.current": now for kind in kinds} | {f"{kind}.all.peak": peak for kind in kinds}
    return {**stats, "num_alloc_retries": 0, "num_ooms": 0}


def host_memory_stats() -> dict[str, int]:
    """Host memory is the device's."""
    return memory_stats()


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    return "\n".join(f"{name}: {value}" for name, value in memory_stats().items())


def memory_snapshot(mempool_id: Any = None) -> list[dict[str, Any]]:
    """No segments: the CPU's allocator tells of none."""
    return []


def reset_peak_memory_stats(device: Any = None) -> None:
    """The kernel's record of this process stays."""


reset_max_memory_allocated = reset_max_memory_cached = reset_accumulated_memory_stats = reset_peak_memory_stats


def reset_peak_host_memory_stats() -> None:
    """Nor that of the host."""


reset_accumulated_host_memory_stats = reset_peak_host_memory_stats
host_empty_cache = empty_cache


def set_per_process_memory_fraction(fraction: float, device: Any = None) -> None:
    """The CPU's allocator has no limit of its own."""


def get_per_process_memory_fraction(device: Any = None) -> float:
    return 1.0


def get_allocator_backend() -> str:
    return "native"


def _record_memory_history(*args: Any, **kwargs: Any) -> None:
    warn_once("[run] _record_memory_history: expected an NPU, got a machine without one. It has no effect.")


def _snapshot(device: Any = None) -> dict[str, Any]:
    return {"segments": [], "device_traces": []}


def _dump_snapshot(filename: str = "dump_snapshot.pickle") -> None:
    warn_once("[run] _dump_snapshot: expected an NPU, got a machine without one. It writes nothing.")


caching_allocator_alloc = refused("torch.npu.caching_allocator_alloc", "the address would be one of a device")
caching_allocator_delete = refused("torch.npu.caching_allocator_delete", "the address would be one of a device")
