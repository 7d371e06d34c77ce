"""What the installed CANN and chip can do with our GE ops; asked before a pass emits one."""

from __future__ import annotations

from typing import NamedTuple

from npu_fused_graph.converters.targets import Target, choose
from npu_fused_graph.errors import UnsupportedDeviceError, argument_error
from npu_fused_graph.ops import ascend, specs
from npu_fused_graph.spec import OpSpec


class Gap(NamedTuple):
    """Why an op cannot be used here. reason: stable key."""

    reason: str
    text: str
    cure: str


def gaps(mode: str = "max-autotune") -> dict[str, Gap]:
    """The gap of each op that cannot be used, by stem. mode: TorchAir's ``config.mode``. TorchAir is loaded."""
    _check_mode(mode)
    found = {spec.stem: choose(spec, mode) for spec in specs()}
    return {stem: Gap(*choice.gaps[0]) for stem, choice in found.items() if choice.target is None}


def lowered_to(mode: str = "max-autotune") -> dict[str, str]:
    """What each op that can be used becomes, by stem, e.g. "MatmulAllReduce + AddRmsNorm"."""
    _check_mode(mode)
    found = {spec.stem: choose(spec, mode).target for spec in specs()}
    return {stem: target.name for stem, target in found.items() if target is not None}


def require_target(spec: OpSpec) -> Target:
    """What the op becomes in a GE graph. Raises UnsupportedDeviceError where CANN, or the chip, has none of it."""
    choice = choose(spec)
    if choice.target is not None:
        return choice.target
    reason, text, cure = choice.gaps[0]
    if reason == "soc":
        ascend.check_soc(spec, ascend.soc_name())
    raise UnsupportedDeviceError(f"[{spec.stem}] {text}. {cure}")


def _check_mode(mode: str) -> None:
    from torchair import CompilerConfig

    known = CompilerConfig().mode.optional
    if mode not in known:
        raise argument_error("converters", "mode", f"one of {known}", repr(mode), "As in CompilerConfig.mode.")
