"""What follows from the nodes a site becomes: its class of numerics and its modelled gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm import SPEC
from npu_fused_graph.passes.fx import dtype_of, shape_of
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm import costs
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.site import Site
from npu_fused_graph.passes.options import FusionOptions
from npu_fused_graph.passes.verdicts import Numerics

TWO_NODES = "MatmulAllReduce + AddRmsNorm"
_LONG_ROW = 2000
"""Elements of a row beyond which AddRmsNorm takes a bfloat16 norm from the sum before that is rounded."""


@dataclass(frozen=True, slots=True)
class Target:
    """name: as converters.targets has it."""

    name: str

    def numerics(self, site: Site) -> Numerics:
        """The class of the rewrite."""
        n = shape_of(site.product.node)[-1]
        is_long = not isinstance(n, int) or n > _LONG_ROW
        if self.name != TWO_NODES or dtype_of(site.reduced) is not torch.bfloat16 or not is_long:
            return site.numerics
        if site.norm.addends is not None:
            return site.numerics  # the unfused graph has the same operator
        return "any"

    def gain(self, rows: int, n: int, k: int) -> float:
        """Of the time of the separate operators, modelled."""
        return costs.cost(rows, n, k, overlaps_norm=self.name != TWO_NODES).gain


def target(options: FusionOptions) -> Target:
    """What sites become on this machine."""
    return Target(options.targets.get(SPEC.stem, SPEC.ge_type))


def facts(chosen: Target, site: Site) -> dict[str, Any]:
    """Of a site, for its record."""
    rows, n = site.rows, shape_of(site.product.node)[-1]
    found: dict[str, Any] = {"shape": site.shape, "rows": rows if isinstance(rows, int) else None}
    if all(isinstance(size, int) for size in (rows, n, site.k)):
        found["gain"] = round(chosen.gain(rows, n, site.k), 2)
    return found | {"target": chosen.name}
