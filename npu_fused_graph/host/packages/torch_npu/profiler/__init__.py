"""Stand-in for torch_npu.profiler: torch's own profiler, of CPU activities."""

from __future__ import annotations

import types
from typing import Any

from torch.profiler import ProfilerAction, schedule, tensorboard_trace_handler
from torch.profiler import profile as _profile

__all__ = [
    "AiCMetrics",
    "ExportType",
    "ProfilerAction",
    "ProfilerActivity",
    "ProfilerLevel",
    "_ExperimentalConfig",
    "profile",
    "schedule",
    "supported_activities",
    "tensorboard_trace_handler",
]


class ProfilerActivity:
    """What can be recorded: the CPU is all there is."""

    CPU = "CPU"
    NPU = "NPU"


ProfilerLevel = types.SimpleNamespace(Level0="Level0", Level1="Level1", Level2="Level2", Level_none="Level_none")
AiCMetrics = types.SimpleNamespace(
    PipeUtilization="PipeUtilization", ArithmeticUtilization="ArithmeticUtilization", Memory="Memory",
    MemoryL0="MemoryL0", MemoryUB="MemoryUB", L2Cache="L2Cache", AiCoreNone="AiCoreNone",
)  # fmt: skip
ExportType = types.SimpleNamespace(Text="Text", Db="Db")


class _ExperimentalConfig:
    """Options of the NPU's own profiler, taken and not used."""

    def __init__(self, **options: Any) -> None:
        self.options = options


def supported_activities() -> set[str]:
    return {ProfilerActivity.CPU}


class profile(_profile):
    """torch.profiler.profile of CPU activities, whatever activities are asked for."""

    def __init__(self, *, activities: Any = None, experimental_config: Any = None, **options: Any) -> None:
        from torch.profiler import ProfilerActivity as TorchActivity

        super().__init__(activities=[TorchActivity.CPU], **options)
        self._is_stopped = False

    def stop(self) -> None:
        self._is_stopped = True
        super().stop()

    def step(self) -> None:
        """Nothing after stop(): torch 2.13 ends the process there."""
        if not self._is_stopped:
            super().step()
