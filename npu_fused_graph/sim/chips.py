"""Chips that kernels are tiled for here."""

from __future__ import annotations

from collections.abc import Mapping

CHIPS: Mapping[str, int] = {
    "Ascend910B1": 1850, "Ascend910B2": 1800, "Ascend910B3": 1800, "Ascend910B4": 1500, "Ascend910_9391": 1850,
    "Ascend910_9381": 1800, "Ascend910_9372": 1800, "Ascend910_9362": 1500,
}  # fmt: skip
"""MHz of a chip (CANN's platform_config); what else there is stands in kernels/sim/host/chips.h."""
