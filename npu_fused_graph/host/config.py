"""What a ``torchair.CompilerConfig`` can ask for on a machine without an NPU."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from npu_fused_graph.errors import UnsupportedModeError
from npu_fused_graph.host.load import mode

_WITHOUT_EFFECT = ("dump_config.enable_dump", "aoe_config.aoe_mode")
"""Options GE's runtime or AOE acts on: on a CPU nothing would happen, silently."""


def check_host_mode(config: Any) -> None:
    """Without an NPU: raise UnsupportedModeError for a mode without a GE graph, warn about options without effect."""
    if mode() == "device":
        return
    for name in _WITHOUT_EFFECT:
        option = functools.reduce(getattr, name.split("."), config)
        if option:
            text = f"[backend] {name}: expected no value without an NPU, got {option.value!r}. It has no effect."
            warnings.warn(text, stacklevel=3)
    if config.mode.value != "max-autotune":
        raise UnsupportedModeError(
            f"[backend] mode: expected 'max-autotune' without an NPU, got {config.mode.value!r}: it captures NPU "
            "streams and has no GE graph. Set config.mode = 'max-autotune'."
        )
