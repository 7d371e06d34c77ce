"""torch.profiler, of CPU activities, under the names and with the arguments of torch_npu."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.profiler as torch_profiler
from torch.profiler.profiler import _KinetoProfile

from npu_fused_graph.errors import warn_once

__all__ = [
    "ProfilerActivity",
    "_KinetoProfile",
    "analyse",
    "profile",
    "schedule",
    "supported_activities",
    "tensorboard_trace_handler",
]


class ProfilerActivity:
    """What can be recorded: the CPU is all there is."""

    CPU = "CPU"
    NPU = "NPU"


def supported_activities() -> set[str]:
    return {ProfilerActivity.CPU}


def schedule(
    wait: int, active: int, warmup: int = 0, repeat: int = 0, skip_first: int = 0, skip_first_wait: int = 0
) -> Callable[[int], Any]:
    """Steps to leave out, to warm up and to record: torch.profiler.schedule, in torch_npu's order of arguments."""
    options = {"skip_first_wait": skip_first_wait} if skip_first_wait else {}  # torch 2.9 has no such argument
    return torch_profiler.schedule(
        wait=wait, warmup=warmup, active=active, repeat=repeat, skip_first=skip_first, **options
    )


def tensorboard_trace_handler(
    dir_name: str | None = None, worker_name: str | None = None, analyse_flag: bool = True, async_mode: bool = False
) -> Callable[[Any], None]:
    """Write a trace into ``dir_name``, ./profiler without one."""
    handler: Callable[[Any], None] = torch_profiler.tensorboard_trace_handler(dir_name or "profiler", worker_name)
    return handler


class profile(torch_profiler.profile):
    """torch.profiler.profile of CPU activities, whatever activities are asked for."""

    def __init__(
        self, *, activities: Any = None, experimental_config: Any = None, use_cuda: Any = None, **options: Any
    ) -> None:
        super().__init__(activities=[torch_profiler.ProfilerActivity.CPU], **options)
        self._is_stopped = False

    def stop(self) -> None:
        self._is_stopped = True
        super().stop()

    def step(self) -> None:
        """Nothing after stop(): torch 2.13 ends the process there."""
        if not self._is_stopped:
            super().step()


def analyse(profiler_path: str, *args: Any, **kwargs: Any) -> None:
    warn_once("[run] profiler.analyse: expected data of an NPU, got a machine without one. It has no effect.")
