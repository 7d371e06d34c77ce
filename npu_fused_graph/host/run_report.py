"""What happened in a run: what its processes told the launcher, as one report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import InvalidArgumentError
from npu_fused_graph.host.standin.causes import Kind

_KINDS: tuple[Kind, ...] = ("own", "killed", "peer", "child")
"""In the order of the report."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A process that did not end well. rank: -1 = it never joined a process group.

    kind: "own" = an error of its own, "killed" = an end without one, "peer" = it lost another rank, "child" = a process
    it started failed.
    """

    pid: int
    rank: int
    what: str
    kind: Kind = "own"


@dataclass(slots=True)
class SiteCounts:
    """Sites of MatmulAllReduceAddRmsNorm in compiled graphs, summed over processes.

    legal: that could be fused with min_rows=0, of which fused were; off would be by nfg.enable_fusion(config), without
    which their graphs were compiled. small_on, small_off: legal ones of fewer rows than pay, in graphs with and without
    fusion. refused: reason -> number. unexamined: errors because of which a graph was not looked at.
    """

    legal: int = 0
    fused: int = 0
    off: int = 0
    small_on: int = 0
    small_off: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    unexamined: dict[str, int] = field(default_factory=dict)

    def cure(self) -> str:
        """What fuses the legal sites that are not; "" = nothing is left to do."""
        few = f"min_rows=0 fuses the {self.small_on + self.small_off} with few rows, too"
        if self.off:
            return "add nfg.enable_fusion(config)" + (f"; {few}" if self.small_off or self.small_on else "")
        if self.small_off:
            return "add nfg.enable_fusion(config, min_rows=0), they have few rows"
        return few if self.small_on else ""


@dataclass(slots=True)
class RunReport:
    """What happened in a run.

    exit_code: the script's (128 + n for signal n). ranks: processes that joined a process group. graphs: GE graphs
    TorchAir built, summed over processes, like captured: graphs of calls, and fused: calls by operator, eager,
    replayed or as a node. graph_breaks: reason -> times Dynamo gave a part of a model back to Python. fallbacks:
    errors of TorchAir after which a model ran eagerly, with how often. gaps: with --survey, what was missing and
    where -> calls that got zeros instead. sites: what was or would be fused in these graphs. guarded: defect of
    TorchAir -> graphs in which it was repaired. spoiled: defect -> graphs whose numbers it spoils, with --stock.
    failures: processes that did not end well, whether or not the script looked, those at fault first; who only hands
    on a failure that is in the list is left out. recorded: calls that --record wrote, None without it. left:
    processes that had to be ended. versions: of torch and TorchAir, and what is known of them; "" where no process
    needed TorchAir.
    """

    exit_code: int = 0
    ranks: int = 0
    graphs: int = 0
    captured: int = 0
    fused: dict[str, int] = field(default_factory=dict)
    graph_breaks: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    sites: SiteCounts = field(default_factory=SiteCounts)
    guarded: dict[str, int] = field(default_factory=dict)
    spoiled: dict[str, list[str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    recorded: int | None = None
    left: int = 0
    versions: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether nothing happened that ``--strict`` refuses."""
        return self.exit_code == 0 and not (self.fallbacks or self.failures or self.gaps)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_report(folder: Path, exit_code: int, left: int) -> RunReport:
    """What the processes of a run wrote into ``folder``. exit_code, left: see RunReport.

    Raises InvalidArgumentError if one of them refused to begin.
    """
    report = RunReport(exit_code=exit_code, left=left)
    breaks: Counter[str] = Counter()
    fused: Counter[str] = Counter()
    fallbacks: Counter[str] = Counter()
    guarded: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    unexamined: Counter[str] = Counter()
    gaps: Counter[str] = Counter()
    handed_on: dict[Failure, set[int]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        events = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            events[event["event"]] = event
        if "refused" in events:
            raise InvalidArgumentError(events["refused"]["text"])
        report.versions = report.versions or events.get("versions", {}).get("text", "")
        end, rank = events.get("end"), events.get("rank", {}).get("rank", -1)
        report.ranks += rank >= 0
        if end is None:
            if rank >= 0:
                what = "killed, or ended without Python's knowledge"
                report.failures.append(Failure(int(path.stem), rank, what, "killed"))
            continue
        if end.get("code"):
            what = end.get("error") or f"exit code {end['code']}"
            report.failures.append(Failure(int(path.stem), rank, what, end.get("kind", "own")))
            handed_on[report.failures[-1]] = set(end.get("children", ()))
        report.graphs += end["counts"].get("graphs", 0)
        report.captured += end["counts"].get("captured", 0)
        for name in ("legal", "fused", "off", "small_on", "small_off"):
            total = getattr(report.sites, name) + end["counts"].get(f"sites {name}", 0)
            setattr(report.sites, name, total)
        for kind, found in (
            ("fused ", fused), ("fallback ", fallbacks), ("guarded ", guarded), ("refused ", refused),
            ("unexamined ", unexamined), ("gap ", gaps),
        ):  # fmt: skip
            found.update({k.removeprefix(kind): v for k, v in end["counts"].items() if k.startswith(kind)})
        who = f"rank {rank}" if rank >= 0 else f"pid {path.stem}"
        for defect, graph in (k.split()[1:] for k in end["counts"] if k.startswith("spoiled ")):
            report.spoiled.setdefault(defect, []).append(f"{graph} of {who}")
        breaks.update(end["breaks"])
    report.fused = dict(sorted(fused.items()))
    report.graph_breaks = dict(breaks)
    report.fallbacks = dict(fallbacks)
    report.gaps = dict(sorted(gaps.items(), key=lambda item: (-item[1], item[0])))
    report.sites.refused = dict(sorted(refused.items()))
    report.sites.unexamined = dict(unexamined)
    report.guarded = dict(sorted(guarded.items(), key=lambda item: (item[0][0], int(item[0][1:]))))
    report.failures = _at_fault_first(report.failures, handed_on)
    return report


def _at_fault_first(failures: list[Failure], handed_on: dict[Failure, set[int]]) -> list[Failure]:
    told = {failure.pid for failure in failures}
    kept = [f for f in failures if f.kind != "child" or not handed_on[f] or not handed_on[f] <= told]
    return sorted(kept, key=lambda f: (_KINDS.index(f.kind), f.rank))


def format_report(report: RunReport) -> str:
    """The report in a few lines."""
    fused = ", ".join(f"{name} {n}" for name, n in report.fused.items()) or "none"
    captured = f", {report.captured} captured" if report.captured else ""
    lines = [
        f"npu-fused-graph run: on the CPU, exit code {report.exit_code}, {_count(report.ranks, 'rank')}, "
        f"{_count(report.graphs, 'graph')} compiled{captured}, "
        f"{_count(sum(report.fallbacks.values()), 'eager fallback')}; fused calls: {fused}"
    ]
    for reason, n in report.fallbacks.items():
        lines.append(f"  eager fallback ({n}): TorchAir failed, and the model ran eagerly instead: {reason}")
    for gap, n in report.gaps.items():
        lines.append(f"  missing ({n}): {gap}")
    if report.gaps:
        lines.append("  results of what is missing were zeros: the numbers of this run mean nothing")
    lines += _site_lines(report.sites, report.ranks)
    for defect, n in report.guarded.items():
        how = "ran eagerly" if defect in ("T10", "D3") else "repaired"
        lines.append(f"  guarded: TorchAir's defect {defect} in {_count(n, 'graph')}, {how}; a device may show it")
    for defect, graphs in report.spoiled.items():
        lines.append(f"  spoiled: TorchAir's defect {defect} in {', '.join(graphs)}: their numbers are wrong")
    if report.recorded == 0:
        lines.append("  nothing recorded: no fused operator was called")
    for failure in report.failures:
        who = f"rank {failure.rank}" if failure.rank >= 0 else "process"
        lines.append(f"  {who} (pid {failure.pid}) failed: {failure.what}")
    if report.left:
        lines.append(f"  {_count(report.left, 'process')} still ran after the script and had to be ended")
    if report.versions:
        lines.append(f"  {report.versions}")
    return "\n".join(lines)


def _site_lines(sites: SiteCounts, ranks: int) -> Iterator[str]:
    where = f" in {ranks} ranks" if ranks > 1 else ""
    if sites.legal or sites.refused:
        cure = sites.cure()
        yield f"  legal sites {sites.legal}{where}, fused {sites.fused}" + (f": {cure}" if cure else "")
    if sites.refused:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sites.refused.items())
        yield f"  refused sites {sum(sites.refused.values())}{where}: {reasons}; nfg.explain says why"
    for error, n in sites.unexamined.items():
        yield f"  {_count(n, 'graph')} not examined for sites: {error}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "es" if what.endswith("s") else "s")
