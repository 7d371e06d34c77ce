"""What a selftest found: one check after the other, and the page that is sent around."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["agrees", "DIFFERS", "FAILED", "skipped", "told"]


@dataclass(frozen=True, slots=True)
class Check:
    """outcome: "agrees" with its reference, "DIFFERS", "FAILED" (text says how), "skipped" (text says why), or "told":
    a fact or a time, which is neither right nor wrong. ranks: on how many.
    """

    part: str
    name: str
    outcome: Outcome
    text: str = ""
    seconds: float = 0.0
    ranks: int = 1

    @property
    def is_bad(self) -> bool:
        return self.outcome in ("DIFFERS", "FAILED")


@dataclass(slots=True)
class SelftestReport:
    """device: "cpu" or "npu". facts: what ``doctor`` says. checks: in the order of the parts."""

    device: str
    facts: dict[str, Any]
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def bad(self) -> list[Check]:
        return [check for check in self.checks if check.is_bad]

    def as_dict(self) -> dict[str, Any]:
        return {
            "device": self.device, "seconds": round(self.seconds, 1), "bad": len(self.bad), "facts": self.facts,
            "checks": [asdict(check) for check in self.checks],
        }  # fmt: skip

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        where = "on the CPU, by this package's engine" if self.device == "cpu" else "on an NPU"
        yield f"npu-fused-graph selftest {where}, {self.seconds:.0f} s"
        yield f"npu_fused_graph {self.facts['npu_fused_graph']}"
        yield (self.facts["versions"] or {}).get("text", "versions unknown: see the problems")
        yield f"CANN {self.facts['cann'] or 'none'}, chip {self.facts['chip'] or 'none'}, {self.facts['machine']}"
        for problem in self.facts["problems"]:
            yield f"problem: {problem['problem']}. {problem['cure']}"
        for part in dict.fromkeys(check.part for check in self.checks):
            checks = [check for check in self.checks if check.part == part]
            counts = Counter(check.outcome for check in checks)
            yield ""
            yield f"{part}: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
            for check in checks:
                if check.outcome != "agrees":
                    yield f"  {check.outcome:<8}{check.name}: {check.text}"
        yield ""
        yield f"{len(self.bad)} checks are bad" if self.bad else "everything that was checked agrees"
