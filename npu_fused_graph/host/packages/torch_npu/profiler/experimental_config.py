"""Options of the NPU's own profiler: taken, and without effect."""

from __future__ import annotations

import types
from typing import Any

__all__ = [
    "AiCMetrics",
    "ExportType",
    "HostSystem",
    "ProfilerLevel",
    "_ExperimentalConfig",
    "supported_ai_core_metrics",
    "supported_export_type",
    "supported_profiler_level",
]


def _names(*names: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(**dict(zip(names, names, strict=True)))


ProfilerLevel = _names("Level0", "Level1", "Level2", "Level_none")
AiCMetrics = _names(
    "PipeUtilization", "ArithmeticUtilization", "Memory", "MemoryL0", "MemoryUB", "ResourceConflictRatio", "L2Cache",
    "MemoryAccess", "AiCoreNone",
)  # fmt: skip
ExportType = _names("Text", "Db")
HostSystem = _names("CPU", "MEM", "DISK", "NETWORK", "OSRT", "NUMA")


def supported_profiler_level() -> set[Any]:
    return set(vars(ProfilerLevel).values())


def supported_ai_core_metrics() -> set[Any]:
    return set(vars(AiCMetrics).values())


def supported_export_type() -> set[Any]:
    return set(vars(ExportType).values())


class _ExperimentalConfig:
    """What the NPU's own profiler is told."""

    def __init__(
        self, profiler_level: Any = ProfilerLevel.Level0, aic_metrics: Any = AiCMetrics.AiCoreNone,
        l2_cache: bool = False, msprof_tx: bool = False, mstx: bool = False, data_simplification: bool = True,
        record_op_args: bool = False, op_attr: bool = False, gc_detect_threshold: float | None = None,
        export_type: Any = ExportType.Text, host_sys: list[Any] | None = None,
        mstx_domain_include: list[str] | None = None, mstx_domain_exclude: list[str] | None = None,
        sys_io: bool = False, sys_interconnection: bool = False,
    ) -> None:  # fmt: skip
        """Nothing of it has a meaning on a CPU."""
