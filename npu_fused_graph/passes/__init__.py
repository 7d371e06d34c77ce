"""Fusion passes on FX graphs. ``fuse_all(gm)`` works on any post-AOT GraphModule, with or without TorchAir."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import GraphModule

from npu_fused_graph.errors import argument_error
from npu_fused_graph.passes import matmul_all_reduce_add_rms_norm
from npu_fused_graph.passes.records import NUMERICS, FusionSite, Numerics, Refusal

Pass = Callable[[GraphModule, "FusionOptions"], list[FusionSite]]

DEFAULT_PASSES: tuple[Pass, ...] = (matmul_all_reduce_add_rms_norm.run,)
"""All passes, in the order they run."""


@dataclass(frozen=True, slots=True)
class FusionOptions:
    """numerics: largest class allowed. min_rows: size policy; None = fuse whatever is legal.

    unavailable: operators the installed CANN or the chip does not have, by stem, with the refusal of their sites.
    """

    numerics: Numerics = "same_rounding"
    min_rows: int | None = None
    passes: Sequence[Pass] = DEFAULT_PASSES
    unavailable: Mapping[str, Refusal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.numerics not in NUMERICS:
            expected = f"one of {NUMERICS}"
            raise argument_error("fusion", "numerics", expected, repr(self.numerics), "See get_npu_backend.")
        is_count = self.min_rows is None or (type(self.min_rows) is int and self.min_rows >= 0)
        if not is_count:
            raise argument_error("fusion", "min_rows", "a number of rows or None", repr(self.min_rows), "Leave it out.")
        if not isinstance(self.passes, Sequence) or not all(callable(p) for p in self.passes):
            raise argument_error("fusion", "passes", "a sequence of passes", repr(self.passes), "() means none.")


def fuse_all(gm: GraphModule, options: FusionOptions | None = None) -> list[FusionSite]:
    """Rewrite ``gm`` in place; one record per candidate site, in graph order."""
    from npu_fused_graph import ops

    ops.register()
    options = options or FusionOptions()
    sites = [site for run in options.passes for site in run(gm, options)]
    gm.graph.lint()
    gm.recompile()
    return sites


__all__ = ["DEFAULT_PASSES", "FusionOptions", "FusionSite", "Refusal", "fuse_all"]
