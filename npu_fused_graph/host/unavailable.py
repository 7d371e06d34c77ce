"""Refusals of operators that the loaded TorchAir's CANN or the chip does not have."""

from __future__ import annotations

from npu_fused_graph import converters
from npu_fused_graph.host.load import load_torchair
from npu_fused_graph.passes.refusals import CATALOGUE, Refusal


def unavailable(mode: str = "max-autotune") -> dict[str, Refusal]:
    """Refusals, by stem, of operators the installed CANN or the chip lacks. mode: TorchAir's ``config.mode``."""
    load_torchair()
    return {stem: CATALOGUE[gap.reason](gap.text, gap.cure) for stem, gap in converters.gaps(mode).items()}
