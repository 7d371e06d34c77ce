"""Stand-in for torch_npu's native module: the process group class, and what captured graphs ask it for."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.host.capture.graphs import checkpoint as _npu_getCheckpointState
from npu_fused_graph.host.capture.graphs import construct_storage as _construct_storage_from_data_pointer
from npu_fused_graph.host.capture.graphs import construct_tensor as _construct_NPU_Tensor_From_Storage_And_Metadata
from npu_fused_graph.host.capture.graphs import set_checkpoint as _npu_setCheckpointPoolState
from npu_fused_graph.host.standin.refusal import refused_attribute
from torch_npu._C import _distributed_c10d  # noqa: F401

__all__ = [
    "_construct_NPU_Tensor_From_Storage_And_Metadata",
    "_construct_storage_from_data_pointer",
    "_npu_getCheckpointState",
    "_npu_setCheckpointPoolState",
]


def __getattr__(name: str) -> Any:
    raise refused_attribute("torch_npu._C", name)
