"""What the installed CANN and chip can do with our GE ops; asked before a pass emits one."""

from __future__ import annotations

from typing import NamedTuple

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
    from torchair import CompilerConfig

    known = CompilerConfig().mode.optional
    if mode not in known:
        raise argument_error("converters", "mode", f"one of {known}", repr(mode), "As in CompilerConfig.mode.")
    found = {spec.stem: _gap(spec, mode) for spec in specs()}
    return {stem: gap for stem, gap in found.items() if gap is not None}


def require_ge_type(spec: OpSpec) -> None:
    """Raise UnsupportedDeviceError unless the installed CANN has the op as we emit it, for this chip."""
    ascend.check_soc(spec, ascend.soc_name())
    gap = _ge_type_gap(spec)
    if gap is not None:
        raise UnsupportedDeviceError(f"[{spec.stem}] {gap.text}. {gap.cure}")


def _gap(spec: OpSpec, mode: str) -> Gap | None:
    soc = ascend.soc_name()
    if not spec.runs_on(soc):
        return Gap(
            "soc", f"CANN has {spec.ge_type} for {spec.chips_text} only, this is {soc}",
            "Keep the separate ops on this chip.",
        )  # fmt: skip
    if mode != "max-autotune":
        # no GE graph: each op runs by itself
        if ascend.native_op(spec) is not None:
            return None
        return Gap(
            "no_eager_kernel", f"mode {mode!r} runs ops one by one, and no package here brings a kernel for this one",
            "Use mode 'max-autotune', or import mindspeed.ops first.",
        )  # fmt: skip
    return _ge_type_gap(spec)


def _ge_type_gap(spec: OpSpec) -> Gap | None:
    from torchair.core import _torchair

    status, inputs, outputs, attrs = _torchair.get_registered_ir_def(spec.ge_type)
    if status != "SUCCESS":
        return Gap(
            "ge_type_not_registered", f"the installed CANN does not know the GE op type {spec.ge_type}",
            "Install a CANN that has it, or register the custom op package.",
        )  # fmt: skip
    _, own_inputs, own_outputs, own_attrs = spec.ir_def().registered()
    for what, theirs, ours in (
        ("inputs", inputs, own_inputs), ("outputs", outputs, own_outputs), ("attributes", attrs, own_attrs),
    ):  # fmt: skip
        if [name for name, _ in theirs][: len(ours)] != [name for name, _ in ours]:  # newer ones have more behind
            return Gap(
                "ge_ir_differs",
                f"the installed CANN's {spec.ge_type} has the {what} {[n for n, _ in theirs]}, "
                f"expected {[n for n, _ in ours]}",
                "Install a CANN with the same prototype.",
            )  # fmt: skip
    return None
