"""Stand-in for torch_npu.distributed."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.host.standin.hccl import is_hccl_available
from npu_fused_graph.host.standin.refusal import refused_attribute
from npu_fused_graph.host.standin.uneven import all_gather_into_tensor_uneven, reduce_scatter_tensor_uneven

__all__ = ["all_gather_into_tensor_uneven", "is_hccl_available", "reduce_scatter_tensor_uneven"]


def is_available() -> bool:
    return True


def _is_support_hccl_comm_name() -> bool:
    return True


def __getattr__(name: str) -> Any:
    raise refused_attribute("torch_npu.distributed", name)
