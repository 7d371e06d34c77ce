"""Stand-in for torch_npu.atb: operators of ATB."""

from __future__ import annotations

from typing import Any

from npu_fused_graph.host.standin import atb
from npu_fused_graph.host.standin.refusal import refused_attribute


def __getattr__(name: str) -> Any:
    if name in atb.OF_ATB:
        return atb.python_function(name)
    raise refused_attribute("torch_npu.atb", name)
