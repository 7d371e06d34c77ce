"""What a fusion may do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch.fx import GraphModule

from npu_fused_graph.errors import argument_error
from npu_fused_graph.passes.refusals import Refusal
from npu_fused_graph.passes.verdicts import NUMERICS, FusionSite, Numerics

Pass = Callable[[GraphModule, "FusionOptions"], list[FusionSite]]
"""Fuses what it finds, in place; one record per candidate, in graph order."""


@dataclass(frozen=True, slots=True)
class BeforeAutograd:
    """A pass on the graph as Dynamo hands it over: torch functions and methods, not taken apart, not differentiated.

    Other passes see the graph of aten operators that TorchAir gets, in training its forward half.
    """

    run: Pass


AttentionSites = Literal["all", "calls", "none"]
ATTENTION_SITES: tuple[AttentionSites, ...] = ("all", "calls", "none")


@dataclass(frozen=True, slots=True)
class FusionOptions:
    """What a fusion may do.

    numerics: largest class allowed. min_rows: fuse only sites with at least that many rows; None = from CANN's cost
    model (``costs.least_rows``: 768 and more), 0 = whatever is legal. in_place: where the residual dies, let the op
    write the sum into its memory. grouped: put independent matmul + all-reduce pairs into one GroupedMatMulAllReduce,
    which CANN marks as deprecated. compare_ranks: exchange the decisions with the other ranks of each group, and raise
    CommunicationError where they differ. unavailable: operators the installed CANN or the chip does not have, by stem,
    with the refusal of their sites. targets: what a fused operator is lowered to, by stem, where it is not its own GE
    type. attention: fuse it where it is written out, too ("all"), only where
    scaled_dot_product_attention is called ("calls"), or leave it ("none").
    """

    numerics: Numerics = "same_rounding"
    min_rows: int | None = None
    in_place: bool = False
    grouped: bool = False
    compare_ranks: bool = False
    attention: AttentionSites = "all"
    unavailable: Mapping[str, Refusal] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.numerics not in NUMERICS:
            expected = f"one of {NUMERICS}"
            raise argument_error("fusion", "numerics", expected, repr(self.numerics), "See get_npu_backend.")
        is_count = self.min_rows is None or (type(self.min_rows) is int and self.min_rows >= 0)
        if not is_count:
            raise argument_error("fusion", "min_rows", "a number of rows or None", repr(self.min_rows), "Leave it out.")
        if self.attention not in ATTENTION_SITES:
            expected = f"one of {ATTENTION_SITES}"
            raise argument_error("fusion", "attention", expected, repr(self.attention), "See get_npu_backend.")
        for name in ("in_place", "grouped", "compare_ranks"):
            if type(getattr(self, name)) is not bool:
                raise argument_error("fusion", name, "True or False", repr(getattr(self, name)), "Leave it out.")
