"""Stand-in for torch_npu.utils: error codes are all that TorchAir asks for."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.host.standin.refusal import refused_attribute
from torch_npu.utils import _error_code  # noqa: F401


def __getattr__(name: str) -> Any:
    raise refused_attribute("torch_npu.utils", name)
