"""Captured graphs: recorded calls, replayed in the same memory."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.host.capture import recording
from npu_fused_graph.host.capture.graphs import (
    NPUGraph,
    graph,
    graph_pool_handle,
    graph_task_group_begin,
    graph_task_group_end,
    graph_task_update_begin,
    graph_task_update_end,
)

__all__ = [
    "NPUGraph",
    "graph",
    "graph_pool_handle",
    "graph_task_group_begin",
    "graph_task_group_end",
    "graph_task_update_begin",
    "graph_task_update_end",
    "is_current_stream_capturing",
    "super_kernel_scope_begin",
    "super_kernel_scope_end",
]


def is_current_stream_capturing() -> bool:
    return recording.current is not None


def super_kernel_scope_begin(scope_name: Any = None) -> None:
    """No kernel here is fused into a larger one."""


def super_kernel_scope_end(scope_name: Any = None) -> None:
    """The end of such a scope."""
