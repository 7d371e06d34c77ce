"""What a pass says about each candidate site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from npu_fused_graph.passes.refusals import Refusal

Numerics = Literal["same_rounding", "one_ulp", "any"]
NUMERICS: tuple[Numerics, ...] = ("same_rounding", "one_ulp", "any")
"""How much of the unfused graph's rounding a fusion keeps, strictest first.

"same_rounding": only the order in which ranks are summed may differ. "one_ulp": norm_out is rounded once more (at most
one unit in the last place, in about a quarter of its elements). "any": roundings move, as when a bias is folded.
"""


@dataclass(frozen=True, slots=True)
class FusionSite:
    """One candidate site and its verdict.

    op: stem of the fused operator. node: name of the FX node the site hangs on (the collective; for a fused site
    the fused node). source: "file:line" of the user's model, "" if unknown. layer: path of the module, "" if unknown.
    numerics: class of the rewrite, for fused sites and those refused because of it. refusal: None = fused. collective:
    name of the first in the graph as it was; "" of those in a graph of a node, or in none.
    facts: of this kind of site, as far as they are known; docs/fusion.md lists them.
    """

    op: str
    node: str
    source: str
    layer: str
    numerics: Numerics | None = None
    refusal: Refusal | None = None
    group: str = ""
    collective: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def is_fused(self) -> bool:
        return self.refusal is None

    @property
    def is_legal(self) -> bool:
        """Whether the site could be fused with min_rows=0 and grouped=True."""
        return self.refusal is None or self.refusal.is_legal

    @property
    def reason(self) -> str:
        return self.refusal.reason if self.refusal else ""

    @property
    def cure(self) -> str:
        return self.refusal.cure if self.refusal else ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: facts beside the common fields."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("refusal", "facts")}
        refusal = self.refusal
        return {**record, **self.facts} | {
            "fused": self.is_fused,
            "legal": self.is_legal,
            "reason": self.reason,
            "text": refusal.text if refusal else "",
            "cure": self.cure,
            "refused_at": refusal.node if refusal else "",
            "refused_source": refusal.source if refusal else "",
        }

    def __str__(self) -> str:
        where = f"{self.layer or self.node} at {self.source or 'unknown source'}"
        gain, matmuls = self.facts.get("gain"), self.facts.get("matmuls", 1)
        worth = "" if gain is None else f", modelled gain {gain:.2f}x"
        if matmuls > 1:
            worth += f", {_count(matmuls, 'matmul')} and {_count(self.facts['collectives'], 'collective')} -> 1 node"
        if self.refusal is None and self.facts.get("is_call"):
            return f"is {self.op}, one node: {where}"
        if self.refusal is None:
            parts = self.facts.get("target", "")
            made_of = f" as {parts}" if " + " in parts else ""
            return f"fused into {self.op}{made_of} ({self.numerics}{worth}): {where}"
        legal = f" (legal{worth})" if self.is_legal else ""
        found, line = self.refusal.text, self.refusal.source
        if line and line != self.source and line not in found:
            found += f" ({line})"
        return f"not fused into {self.op}{legal}: {where}: {found} [{self.reason}] {self.cure}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


site_listeners: list[Callable[[Sequence[FusionSite]], None]] = []
"""Called with the verdicts on every graph that is compiled with fusion, besides its own ``on_sites``."""
