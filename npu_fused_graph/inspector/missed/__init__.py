"""Why sites of a dump are not fused: the package's own rules, asked of a GE graph."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import DumpError, argument_error
from npu_fused_graph.inspector.catalogue import COLLECTIVES, FUSED
from npu_fused_graph.inspector.counting import groups_at
from npu_fused_graph.inspector.dump import Dump, DumpGraph
from npu_fused_graph.inspector.missed import attention, attention_rules, dispatch, row_parallel, row_rules, table
from npu_fused_graph.inspector.missed.wiring import Miss, Missed, Unread, Value, Wiring

GE_PASSES = {"matmul_all_reduce_add_rms_norm": "MatmulAllReduceAddRmsNormFusionPass"}
"""Stem -> the pass of GE that makes the same op; CANN's own configuration switches it off."""
_KEYS = ("op", "node", "collective", "reason", "text", "source")
"""Texts of a record."""
_ONE_SIDED = frozenset(["AttentionToFFN", "FFNToAttention"])
"""Types that have no part in what CANN says of several groups."""
_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile", "For")


@dataclass(frozen=True, slots=True)
class MissedSite:
    """A site that is not fused.

    operator: stem of the fused operator. op: name of the collective, softmax or dispatch. graph: its graph's name. fx:
    the FX node it came from, "" if unknown. shape: of the result, as far as known. reason: "" where nothing in the dump
    forbids fusing. clause: number of the rule in docs/fusion_rules.md, "site" where no site is found at all. found:
    what was seen, at op ``at``. is_legal: only a setting keeps it from being fused. untold: reasons that a dump cannot
    tell of. recorded: what the package said about it when it compiled the graph, if that was stored.
    """

    operator: str
    op: str
    graph: str
    group: str
    fx: str
    shape: tuple[int, ...] | None
    reason: str
    clause: str
    statement: str
    found: str
    at: str
    cure: str
    is_legal: bool
    untold: tuple[str, ...]
    recorded: Mapping[str, Any] | None = field(default=None, hash=False)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Why:
    """sites: in file order. fused: ops that are fused, by type. ge_passes: of GE's passes that make the same ops,
    whether they are switched on; those of which no configuration was given are left out. notes: for the whole dump."""

    sites: list[MissedSite]
    fused: dict[str, int]
    ge_passes: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "sites": [site.as_dict() for site in self.sites],
            "fused": self.fused,
            "ge_passes": self.ge_passes,
            "notes": self.notes,
        }


def why(
    dump: Dump,
    *,
    min_rows: int | None = None,
    numerics: str = "same_rounding",
    explain: Path | str | None = None,
    switches: Path | str | None = None,
) -> Why:
    """Every all-reduce, attention and dispatch of a dump that is not fused, and the rule that it breaks.

    min_rows, numerics: the settings of ``get_npu_backend`` that are asked about. explain: a file with the package's own
    verdicts, as they are stored beside TorchAir's dumps; None: the one beside the dump, of the same process. switches:
    GE's fusion_config.json or fusion_switch.cfg. Raises InvalidArgumentError for a setting that is none, DumpError for
    a file that is none.
    """
    if numerics not in row_rules.NUMERICS:
        raise argument_error("why", "numerics", f"one of {row_rules.NUMERICS}", repr(numerics), "See get_npu_backend.")
    if min_rows is not None and min_rows < 0:
        raise argument_error("why", "min_rows", "a number of rows or None", repr(min_rows), "Leave it out.")
    found = Why([], {})
    counted: Counter[str] = Counter()
    for graph in dump.graphs:
        counted.update({kind: count for kind, count in graph.histogram.items() if kind in FUSED})
        found.sites += _sites(dump, graph, min_rows, numerics)
    found.fused = dict(counted.most_common())
    if not all(graph.is_stated for graph in dump.graphs):
        found.notes.append(f"a {dump.format} dump has no dtypes and shapes: rules about them could not be asked")
    if dump.format == "torchair py":
        found.notes.append("TorchAir's passes do not rewrite this file: what they fused is not seen in it")
    if switches is not None:
        found.ge_passes = _switches(Path(switches))
    records = _records(dump, None if explain is None else Path(explain))
    found.sites = _with_records(found.sites, records)
    return found


def _sites(dump: Dump, graph: DumpGraph, min_rows: int | None, numerics: str) -> Iterator[MissedSite]:
    wiring = Wiring(graph)
    found: list[tuple[int, MissedSite]] = []
    found += _row_parallel(dump, wiring, min_rows, numerics)
    found += _attention(wiring, min_rows)
    found += ((op, _record(wiring, dispatch.STEM, op, miss, [])) for op, miss in dispatch.dispatches(wiring))
    yield from (site for _, site in sorted(found, key=lambda item: item[0]))


def _row_parallel(dump: Dump, wiring: Wiring, min_rows: int | None, numerics: str) -> Iterator[tuple[int, MissedSite]]:
    candidates = wiring.graph.of_type(*row_parallel.CANDIDATES)
    if not candidates:
        return
    stem = row_parallel.STEM
    matcher = row_parallel.Matcher(wiring, is_part=wiring.graph is not dump.root)
    fused = wiring.graph.of_type(*(FUSED.keys() & COLLECTIVES - _ONE_SIDED))
    context = row_rules.Context(dump, wiring, matcher, min_rows, numerics)
    context.domain = groups_at(wiring.graph, fused[0])[0] if fused else ""
    is_nested = _is_nested(dump, wiring.graph)
    for op in candidates:
        miss: Miss | None
        untold: list[str] = []
        if is_nested:
            miss = Miss("nested_graph", op, f"it is in a graph of its own, {wiring.graph.name!r}")
        else:
            try:
                site = matcher.match(op)
                miss, untold = row_rules.first_broken(site, context)
                if miss is None and not context.domain:
                    context.domain = site.reduce.group
            except Missed as missed:
                miss = missed.miss
            except Unread as unread:
                miss, untold = None, list(unread.reasons)
        yield op, _record(wiring, stem, op, miss, untold)


def _is_nested(dump: Dump, graph: DumpGraph) -> bool:
    """Whether a branch or a loop runs it; GE's partitions are parts of the root."""
    if graph is dump.root:
        return False
    for other in dump.graphs:
        for op in other.of_type(*_BRANCHES):
            if graph.name in other.node(op).subgraphs:
                return True
    return False


def _attention(wiring: Wiring, min_rows: int | None) -> Iterator[tuple[int, MissedSite]]:
    context = attention_rules.Context(wiring, min_rows)
    for anchor in attention.anchors(wiring):
        miss: Miss | None = None
        untold: list[str] = []
        try:
            site = attention.read(wiring, anchor)
            for reason in table.reasons(attention.STEM):
                check = attention_rules.CHECKS.get(reason)
                answer = row_rules.UNKNOWN if check is None else check(site, context)
                if isinstance(answer, Miss):
                    miss = answer
                    break
                if answer == row_rules.UNKNOWN:
                    untold.append(reason)
            if site.has_mask or site.biases:
                untold.append("row_may_be_hidden")  # what a mask hides is known when it is computed
        except Missed as missed:
            miss = missed.miss
        except Unread as unread:
            untold = list(unread.reasons)
        yield anchor, _record(wiring, attention.STEM, anchor, miss, untold if miss is None else [])


def _record(wiring: Wiring, stem: str, op: int, miss: Miss | None, untold: list[str]) -> MissedSite:
    graph = wiring.graph
    value: Value = (op, 0)
    fx = next((desc.fx_name for desc in graph.node(op).outputs if desc.fx_name), "")
    groups = groups_at(graph, op)[0] if stem != attention.STEM else ""
    where = graph.names[op], graph.name, groups, fx.rpartition("-")[0], wiring.shape(value)
    if miss is None:
        return MissedSite(stem, *where, "", "", "", "", "", "", True, tuple(untold))
    clause = table.clause(stem, miss.reason)
    return MissedSite(
        stem, *where, miss.reason, clause.id, clause.statement, miss.text, graph.names[miss.op],
        miss.cure or clause.cure, clause.is_legal, tuple(untold),
    )  # fmt: skip


# -- what others wrote down --------------------------------------------------------------------------------------


def _switches(path: Path) -> dict[str, bool]:
    from npu_fused_graph.inspector.fusion_files import read_fusion_config

    found = {name: is_on for (_, name), is_on in read_fusion_config(path).items()}
    return {name: found[name] for name in GE_PASSES.values() if name in found}


def _records(dump: Dump, path: Path | None) -> list[dict[str, Any]]:
    """What the package said when it compiled the graphs of this process."""
    if path is None:
        if dump.file.pid is None:
            return []
        path = next(iter(sorted(dump.path.parent.glob(f"fusion_sites_*pid_{dump.file.pid}.json"))), None)
        if path is None:
            return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sites = [site for graph in found["graphs"] for site in list(graph["sites"])]
        if not all(isinstance(s, dict) and all(isinstance(s.get(k, ""), str) for k in _KEYS) for s in sites):
            raise TypeError("a site is an object")
        return sites
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DumpError(
            f"[why] explain: expected a file that get_npu_backend or enable_fusion stored beside a dump, got {path}: "
            f"{error}. Leave it out."
        ) from None


def _with_records(sites: list[MissedSite], records: list[dict[str, Any]]) -> list[MissedSite]:
    """By the FX node of a collective; attention, which is read in an earlier graph, in order where numbers agree."""
    keys = [(r.get("op"), r.get("collective") or r.get("node")) for r in records]
    counts = Counter(keys)  # the graphs of a process have nodes of one name: such a record may be another graph's
    by_node = {key: record for key, record in zip(keys, records, strict=True) if counts[key] == 1}
    attention_sites = [site for site in sites if site.operator == attention.STEM]
    refused = [r for r in records if r.get("op") == attention.STEM and not r.get("fused")]
    in_order = iter(refused if len(refused) == len(attention_sites) else ())
    found = []
    for site in sites:
        record = next(in_order, None) if site.operator == attention.STEM else by_node.get((site.operator, site.fx))
        found.append(site if record is None else replace(site, recorded=record))
    return found
