"""Stand-in for torch_npu.distributed."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.host.standin.hccl import is_hccl_available  # noqa: F401
from npu_fused_graph.host.standin.refusal import refused_attribute


def _is_support_hccl_comm_name() -> bool:
    return True


def __getattr__(name: str) -> Any:
    raise refused_attribute("torch_npu.distributed", name)
