"""What the installed CANN, or the engine in its place, knows of every operator."""

from __future__ import annotations

from collections.abc import Iterator

from npu_fused_graph import converters
from npu_fused_graph.host import load_torchair
from npu_fused_graph.ops import ascend, specs
from npu_fused_graph.selftest.report import Check

PART = "capabilities"


def checks() -> Iterator[Check]:
    """GE type, prototype and chip of each operator: a gap is no fault, it is what a pass refuses a site for."""
    load_torchair()
    gaps, soc = converters.gaps(), ascend.soc_name()
    for spec in specs():
        gap = gaps.get(spec.stem)
        if gap is not None:
            yield Check(PART, spec.ge_type, "told", f"{gap.reason}: {gap.text}")
        else:
            yield Check(PART, spec.ge_type, "agrees", f"type and prototype are known; chip {soc or 'none'}")
