"""What the loaded TorchAir's CANN, the chip and the packages here have of our operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from npu_fused_graph import converters
from npu_fused_graph.host import load
from npu_fused_graph.passes.refusals import CATALOGUE, Refusal


class Capabilities(NamedTuple):
    """By stem of an operator. unavailable: the refusal of its sites. targets: what it is lowered to."""

    unavailable: Mapping[str, Refusal]
    targets: Mapping[str, str]


def capabilities(mode: str = "max-autotune") -> Capabilities:
    """Of this machine. mode: TorchAir's ``config.mode``."""
    load.load_torchair()
    gaps, targets = converters.gaps(mode), converters.lowered_to(mode)
    if load.mode() == "host":  # our own CPU implementations stand for a device's kernels
        gaps = {stem: gap for stem, gap in gaps.items() if gap.reason != "no_eager_kernel"}
    return Capabilities({stem: CATALOGUE[gap.reason](gap.text, gap.cure) for stem, gap in gaps.items()}, targets)
