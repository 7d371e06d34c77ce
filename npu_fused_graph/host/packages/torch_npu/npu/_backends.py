"""The chip as a number, as the operators' Meta functions ask for it."""

from __future__ import annotations

from npu_fused_graph.host.standin import state

_SOC_NUMBERS = (("Ascend910_95", 260), ("Ascend950", 260), ("Ascend910_93", 250), ("Ascend910B", 220))


def get_soc_version() -> int:
    """A number of the family of ``--soc``: what asks for it only compares with 260, the Ascend 950's."""
    name = state.options().soc or state.ANY_SOC
    return next((number for prefix, number in _SOC_NUMBERS if name.startswith(prefix)), 220)
