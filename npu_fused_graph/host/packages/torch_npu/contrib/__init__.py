"""Stand-in for torch_npu.contrib, of which transfer_to_npu works without an NPU."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.host.standin.refusal import refused_attribute


def __getattr__(name: str) -> Any:
    raise refused_attribute("torch_npu.contrib", name)
