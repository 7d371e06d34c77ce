"""What a compiler configuration can ask for on a machine without an NPU."""

from __future__ import annotations

import functools
import sys
import warnings
from typing import Any

from npu_fused_graph.host.defects import CAPTURING, guard_reinplacing, guard_removed_copies, guard_single_results
from npu_fused_graph.host.load import load_torchair, mode
from npu_fused_graph.host.lost_writes import tell_lost_writes_of_captures

_WITHOUT_EFFECT = ("dump_config.enable_dump", "aoe_config.aoe_mode")
"""Options GE's runtime or AOE acts on: on a CPU nothing would happen, silently."""


def is_npugraph_ex(config: Any) -> bool:
    """Whether ``config`` is npugraph_ex's own CompilerConfig."""
    package = sys.modules.get("npugraph_ex")
    return package is not None and isinstance(config, package.CompilerConfig)


def is_known(config: Any) -> bool:
    """Whether ``config`` is a CompilerConfig of TorchAir or of npugraph_ex."""
    return is_npugraph_ex(config) or isinstance(config, load_torchair().CompilerConfig)


def check_host_mode(config: Any) -> None:
    """Get ready for a mode that captures; without an NPU warn about options of GE's without effect.

    Raises HostError where such a mode is asked for and cannot be served.
    """
    if config.mode.value in CAPTURING and not is_npugraph_ex(config):
        guard_reinplacing("torchair")
        guard_removed_copies("torchair")
        guard_single_results("torchair")
        tell_lost_writes_of_captures("torchair")
    if mode() == "device":
        return
    for name in () if is_npugraph_ex(config) else _WITHOUT_EFFECT:
        option = functools.reduce(getattr, name.split("."), config)
        if option:
            text = f"[backend] {name}: expected no value without an NPU, got {option.value!r}. It has no effect."
            warnings.warn(text, stacklevel=3)
    if config.mode.value in CAPTURING:
        from npu_fused_graph.host.npugraph_ex import serve_captures

        serve_captures()
