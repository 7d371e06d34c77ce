"""Stand-in for torch_npu's native module: the process group class is all that scripts name in it."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.host.standin.refusal import refused_attribute
from torch_npu._C import _distributed_c10d  # noqa: F401


def __getattr__(name: str) -> Any:
    raise refused_attribute("torch_npu._C", name)
