"""What a fused operator is lowered to: a table, best first, of which the first that the machine has is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from npu_fused_graph.ops import ascend
from npu_fused_graph.ops import flash_attention_score as attention
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as fused
from npu_fused_graph.spec import OpSpec


@dataclass(frozen=True, slots=True)
class GeNode:
    """A GE type with the inputs, outputs and attributes we use, as the prototype has to begin."""

    ge_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """nodes: of a GE graph. chips: prefixes of their names, () = every one. calls: of torch_npu, where each operator
    runs by itself; () = one kernel for the whole operator, MindSpeed's or torch_npu's.
    """

    nodes: tuple[GeNode, ...]
    chips: tuple[str, ...]
    calls: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " + ".join(node.ge_type for node in self.nodes)

    def runs_on(self, soc: str) -> bool:
        """Whether a chip has it; soc: its name, "" = any."""
        return not soc or not self.chips or soc.startswith(self.chips)


def _own(spec: OpSpec) -> GeNode:
    _, *parts = spec.ir_def().registered()
    return GeNode(spec.ge_type, *(tuple(name for name, _ in part) for part in parts))


_MATMUL_ALL_REDUCE = GeNode(
    "MatmulAllReduce",
    ("x1", "x2", "bias", "x3", "antiquant_scale", "antiquant_offset", "dequant_scale"),
    ("y",),
    ("group", "reduce_op", "is_trans_a", "is_trans_b", "comm_turn", "antiquant_group_size"),
)
_ADD_RMS_NORM = GeNode("AddRmsNorm", ("x1", "x2", "gamma"), ("y", "rstd", "x"), ("epsilon",))

_FURTHER: Mapping[str, tuple[Target, ...]] = {
    fused.SPEC.stem: (Target((_MATMUL_ALL_REDUCE, _ADD_RMS_NORM), fused.PARTS_CHIPS, fused.PARTS),),
    attention.SPEC.stem: (Target((_own(attention.SPEC),), attention.SPEC.chips, ("npu_fusion_attention_v2",)),),
}
"""Behind the operator's own type. CANN marks MatmulAllReduceAddRmsNorm as deprecated, and names two others instead;
torch_npu has attention under another name.
"""


def targets_of(spec: OpSpec) -> tuple[Target, ...]:
    """Of an operator, best first."""
    return Target((_own(spec),), spec.chips), *_FURTHER.get(spec.stem, ())


@dataclass(frozen=True, slots=True)
class Choice:
    """target: the first the machine has, None = none. gaps: (reason, text, cure) of those before it, best first."""

    target: Target | None
    gaps: tuple[tuple[str, str, str], ...] = field(default=())


def choose(spec: OpSpec, mode: str = "max-autotune") -> Choice:
    """The target of an operator on this machine. mode: TorchAir's ``config.mode``. TorchAir is loaded."""
    gaps: list[tuple[str, str, str]] = []
    for target in targets_of(spec):
        gap = _gap(spec, target, mode)
        if gap is None:
            return Choice(target, tuple(gaps))
        gaps.append(gap)
    return Choice(None, tuple(gaps))


def _gap(spec: OpSpec, target: Target, mode: str) -> tuple[str, str, str] | None:
    soc = ascend.soc_name()
    if not target.runs_on(soc):
        has = spec.chips_text if target.chips == spec.chips else " and ".join(f"{chip}x" for chip in target.chips)
        return "soc", f"CANN has {target.name} for {has} only, this is {soc}", "Keep the separate ops on this chip."
    if mode == "max-autotune":
        return next((gap for gap in map(ge_gap, target.nodes) if gap is not None), None)
    # no GE graph: each op runs by itself
    if ascend.has_kernels(target.calls) if target.calls else ascend.native_op(spec) is not None:
        return None
    return (
        "no_eager_kernel",
        f"mode {mode!r} runs ops one by one, and no package here brings a kernel for this one",
        "Use mode 'max-autotune', or import mindspeed.ops first.",
    )


def ge_gap(node: GeNode) -> tuple[str, str, str] | None:
    """Why the installed CANN cannot be given this node."""
    from torchair.core import _torchair

    found: Any = _torchair.get_registered_ir_def(node.ge_type)
    status, inputs, outputs, attrs = found
    if status != "SUCCESS":
        return (
            "ge_type_not_registered", f"the installed CANN does not know the GE op type {node.ge_type}",
            "Install a CANN that has it, or register the custom op package.",
        )  # fmt: skip
    for what, theirs, ours in (
        ("inputs", inputs, node.inputs), ("outputs", outputs, node.outputs), ("attributes", attrs, node.attrs),
    ):  # fmt: skip
        names = [name for name, _ in theirs]
        if names[: len(ours)] != list(ours):  # newer ones have more behind
            return (
                "ge_ir_differs",
                f"the installed CANN's {node.ge_type} has the {what} {names}, expected {list(ours)}",
                "Install a CANN with the same prototype.",
            )  # fmt: skip
    return None
