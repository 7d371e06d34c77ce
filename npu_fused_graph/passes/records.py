"""What a pass says about each candidate site."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Numerics = Literal["same_rounding", "one_ulp", "any"]
NUMERICS: tuple[Numerics, ...] = ("same_rounding", "one_ulp", "any")
"""How much of the unfused graph's rounding a fusion keeps, strictest first.

"same_rounding": only the order in which ranks are summed may differ. "one_ulp": norm_out is rounded once more (at most
one unit in the last place, in about a quarter of its elements). "any": roundings move, as when a bias is folded.
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a site is not fused. reason: stable snake_case key. text: what was found. cure: what to change."""

    reason: str
    text: str
    cure: str


@dataclass(frozen=True, slots=True)
class FusionSite:
    """One candidate site and its verdict.

    op: stem of the fused operator. node: name of the FX node the site hangs on (the collective; for a fused site
    the fused node). source: "file:line" of the user's model, "" if unknown. layer: path of the module, "" if unknown.
    numerics: class of the rewrite, for fused sites and those refused because of it. refusal: None = fused.
    """

    op: str
    node: str
    source: str
    layer: str
    numerics: Numerics | None = None
    refusal: Refusal | None = None
    group: str = ""
    rows: int | None = None

    @property
    def is_fused(self) -> bool:
        return self.refusal is None

    @property
    def reason(self) -> str:
        return self.refusal.reason if self.refusal else ""

    @property
    def cure(self) -> str:
        return self.refusal.cure if self.refusal else ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        record = asdict(self)
        refusal = record.pop("refusal") or {"reason": "", "text": "", "cure": ""}
        return record | {"fused": self.is_fused} | refusal

    def __str__(self) -> str:
        where = f"{self.layer or self.node} at {self.source or 'unknown source'}"
        if self.refusal is None:
            return f"fused into {self.op} ({self.numerics}): {where}"
        return f"not fused into {self.op}: {where}: {self.refusal.text} [{self.refusal.reason}] {self.refusal.cure}"
