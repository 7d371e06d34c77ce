"""Fusion passes on FX graphs. ``fuse_all(gm)`` works on any graph of aten operators, with or without TorchAir."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule

from npu_fused_graph.errors import argument_error
from npu_fused_graph.passes import agreement, grouped_mat_mul_all_reduce, matmul_all_reduce_add_rms_norm
from npu_fused_graph.passes.records import NUMERICS, FusionSite, Numerics
from npu_fused_graph.passes.refusals import CATALOGUE, Refusal

Pass = Callable[[GraphModule, "FusionOptions"], list[FusionSite]]

DEFAULT_PASSES: tuple[Pass, ...] = (matmul_all_reduce_add_rms_norm.run, grouped_mat_mul_all_reduce.run)
"""All passes, in the order they run."""


@dataclass(frozen=True, slots=True)
class FusionOptions:
    """What a fusion may do.

    numerics: largest class allowed. min_rows: fuse only sites with at least that many rows; None = from CANN's cost
    model (``costs.least_rows``: 768 and more), 0 = whatever is legal. in_place: where the residual dies, let the op
    write the sum into its memory. grouped: put independent matmul + all-reduce pairs into one GroupedMatMulAllReduce,
    which CANN marks as deprecated. compare_ranks: exchange the decisions with the other ranks of each group, and raise
    CommunicationError where they differ. unavailable: operators the installed CANN or the chip does not have, by stem,
    with the refusal of their sites.
    """

    numerics: Numerics = "same_rounding"
    min_rows: int | None = None
    in_place: bool = False
    grouped: bool = False
    compare_ranks: bool = False
    passes: Sequence[Pass] = DEFAULT_PASSES
    unavailable: Mapping[str, Refusal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.numerics not in NUMERICS:
            expected = f"one of {NUMERICS}"
            raise argument_error("fusion", "numerics", expected, repr(self.numerics), "See get_npu_backend.")
        is_count = self.min_rows is None or (type(self.min_rows) is int and self.min_rows >= 0)
        if not is_count:
            raise argument_error("fusion", "min_rows", "a number of rows or None", repr(self.min_rows), "Leave it out.")
        for name in ("in_place", "grouped", "compare_ranks"):
            if type(getattr(self, name)) is not bool:
                raise argument_error("fusion", name, "True or False", repr(getattr(self, name)), "Leave it out.")
        if not isinstance(self.passes, Sequence) or not all(callable(p) for p in self.passes):
            raise argument_error("fusion", "passes", "a sequence of passes", repr(self.passes), "() means none.")


def fuse_all(gm: GraphModule, options: FusionOptions | None = None) -> list[FusionSite]:
    """Rewrite ``gm`` in place; one record per candidate site, in graph order.

    gm: a graph of aten operators whose nodes carry fake tensors, as AOTAutograd, ``make_fx`` and
    ``torch.export(...).graph_module`` make it. Raises InvalidArgumentError for another kind of graph,
    CommunicationError where the ranks decide differently (with compare_ranks).
    """
    from npu_fused_graph import ops

    ops.register()
    _check_graph(gm)
    options = options or FusionOptions()
    sites = [site for run in options.passes for site in run(gm, options)]
    if options.compare_ranks:
        agreement.compare(sites)
    gm.graph.lint()
    gm.recompile()
    return sites


def _check_graph(gm: GraphModule) -> None:
    if not isinstance(gm, GraphModule):
        raise argument_error("fusion", "gm", "a torch.fx.GraphModule", type(gm).__name__, "See passes.fuse_all.")
    for node in gm.graph.nodes:
        is_aten = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
        if node.op == "call_method" or (is_aten and node.users and "val" not in node.meta):
            raise argument_error(
                "fusion", "gm", "aten operators with fake tensors (meta['val'])",
                f"{node.op} {node.target} without one",
                "Make the graph with torch.compile, make_fx or torch.export(...).graph_module.",
            )  # fmt: skip


__all__ = ["CATALOGUE", "DEFAULT_PASSES", "FusionOptions", "FusionSite", "Refusal", "fuse_all"]
