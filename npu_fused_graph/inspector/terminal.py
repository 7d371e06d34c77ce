"""Facts for people: lines that fit a terminal, and that no name in a dump can turn into anything else."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from npu_fused_graph.inspector.arena import Memory
from npu_fused_graph.inspector.counting import Summary
from npu_fused_graph.inspector.difference import Difference
from npu_fused_graph.inspector.expectations import Finding
from npu_fused_graph.inspector.fusions import FusedOp
from npu_fused_graph.inspector.ranks import RankReport


def width() -> int:
    return max(40, min(shutil.get_terminal_size((80, 24)).columns, 160))


def safe(text: object) -> str:
    """Names come from users: what moves a cursor or reorders text is shown as its number."""
    return "".join(c if c.isprintable() and not 0xD800 <= ord(c) < 0xE000 else f"\\x{ord(c):02x}" for c in str(text))


def cut(text: object, room: int) -> str:
    shown = safe(text)
    return shown if len(shown) <= room else shown[: max(1, room - 3)] + "..."


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Columns as wide as they need; the last one gets what is left of the line."""
    cells = [[safe(cell) for cell in row] for row in rows]
    if not cells:
        return []
    sizes = [max(len(row[i]) for row in (head, *cells)) for i in range(len(head))]
    room = width()
    for i in range(len(sizes) - 1):
        sizes[i] = min(sizes[i], max(12, room // 2))
    sizes[-1] = max(8, room - sum(sizes[:-1]) - 2 * len(sizes) + 2)
    lines = []
    for row in (list(head), *cells):
        parts = [cut(cell, size).ljust(size) for cell, size in zip(row, sizes, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return lines


def megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count:,} bytes"


def summary_text(found: Summary) -> str:
    file = found.file
    places = [f"{name} {file[name]}" for name in ("rank", "pid", "device") if file[name] is not None]
    graph_id = [] if file["graph_id"] is None else [f"graph {file['graph_id']}"]
    about = [found.format, file["stage"], *graph_id, *places, megabytes(found.bytes)]
    lines = [cut(found.path, width()), " | ".join(safe(part) for part in about if part), f"  {found.what}"]
    for graph in found.graphs:
        edges = f"{graph.data_edges:,} data edges, {graph.control_edges:,} control edges"
        outside = f", {graph.outside:,} inputs from elsewhere" if graph.outside else ""
        lines.append(cut(f"graph {graph.name or '(unnamed)'}: {graph.ops:,} ops, {edges}{outside}", width()))
        if graph.streams:
            streams = ", ".join(f"{stream}: {count:,} ops" for stream, count in list(graph.streams.items())[:8])
            lines.append(cut(f"  streams {streams}", width()))
    fused = ", ".join(f"{count} {kind}" for kind, count in found.fused.items())
    lines.append(cut(f"fused types: {fused or 'none'}", width()))
    for group, types in found.groups.items():
        counted = ", ".join(f"{count} {kind}" for kind, count in types.items())
        lines.append(cut(f"group {group}: {counted}", width()))
    if found.shapes is not None:
        for name, counts in (("shapes", found.shapes), ("dtypes", found.dtypes), ("layouts", found.layouts)):
            parts = ", ".join(f"{count:,} {_SOURCES.get(kind, kind)}" for kind, count in (counts or {}).items())
            lines.append(cut(f"{name} of {found.outputs:,} outputs: {parts}", width()))
    if found.attrs:
        lines.append(cut("model: " + ", ".join(f"{key} {value}" for key, value in found.attrs.items()), width()))
    lines += ["", *table(("ops", "type"), [(f"{count:,}", kind) for kind, count in found.types.items()])]
    lines += [cut(f"note: {note}", 400) for note in found.notes]
    lines += [cut(f"warning: {warning}", 400) for warning in found.warnings]
    return "\n".join(lines)


_SOURCES = {"stated": "stated", "meta": "from _meta", "unknown": "unknown"}


def tensor_text(facts: Mapping[str, Any]) -> str:
    """``float16[4, 16] from _meta``."""
    shape = (
        "[?]"
        if facts["shape"] is None
        else str(["?" if size < 0 else size for size in facts["shape"]]).replace("'", "")
    )
    source = " from _meta" if facts["shape_source"] == "meta" else ""
    layout = f" {facts['layout']}" if facts["layout"] and facts["layout"] != "ND" else ""
    return f"{facts['dtype'] or '?'}{shape}{source}{layout}"


def node_text(facts: Mapping[str, Any]) -> str:
    lines = [f"{safe(facts['name'])}  {safe(facts['type'])}"]
    lines.append(f"  in graph {safe(facts['graph']) or '(unnamed)'}")
    if facts.get("id") is not None:
        stream = "" if facts["stream"] is None else f", stream {facts['stream']}"
        lines.append(f"  id {facts['id']}{stream}")
    for i, item in enumerate(facts["inputs"]):
        lines.append(cut(f"  in {i}  {item['port']:<8} {item['from'] or 'nothing':<24} {tensor_text(item)}", width()))
    lines += [cut(f"  after {name}", width()) for name in facts["waits_for"]]
    for i, item in enumerate(facts["outputs"]):
        fx = f"  {item['fx']}" if item["fx"] else ""
        lines.append(cut(f"  out {i} {item['port']:<8} {tensor_text(item)}{fx}", width()))
    if facts.get("output_offsets"):
        lines.append(cut(f"  offsets {facts['output_offsets']} workspaces {facts['workspaces']}", width()))
    lines += [cut(f"  read by {name}", width()) for name in facts["readers"]]
    lines += [cut(f"  calls graph {name}", width()) for name in facts["subgraphs"]]
    lines += [cut(f"  {key} = {value}", width()) for key, value in facts["attrs"].items()]
    return "\n".join(lines)


def fused_text(ops: Sequence[FusedOp], counts: Mapping[str, int]) -> str:
    if not ops:
        return "nothing is fused"
    stands = {op.type: op.stands_for for op in ops}
    rows = [(f"{count:,}", kind, stands[kind] or "(GE's notes say so)") for kind, count in counts.items()]
    lines = [*table(("ops", "type", "stands for"), rows), ""]
    for op in ops:
        extra = [f"group {g}" for g in op.groups] + ([f"of {', '.join(op.origins)}"] if op.origins else [])
        extra += [f"by {', '.join(op.passes)}"] if op.passes else []
        lines.append(cut(f"{op.name}  {op.type}  {'  '.join(extra)}".rstrip(), width()))
    return "\n".join(lines)


def memory_text(found: Memory) -> str:
    kind = (
        "estimate (no offsets in this dump; an op's results live to their last reader)"
        if found.is_estimate
        else "arena"
    )
    exact = f" ({found.high_water:,} bytes)" if found.high_water >= 2**20 else ""
    lines = [f"{kind}: {megabytes(found.high_water)}{exact}"]
    if not found.is_estimate and found.declared is not None:
        lines.append(f"GE's memory_size: {found.declared:,} bytes, {found.declared - found.high_water:+,} from here")
    lines.append(cut(f"most alive at once: {megabytes(found.live_peak)} at {found.peak_at}", width()))
    lines.append(f"constants whose shape is known: {megabytes(found.weights)}")
    lines += [f"{key}: {value:,} bytes" for key, value in found.declared_others.items() if value]
    if found.unknown:
        lines.append(f"{found.unknown:,} outputs have no size here: the truth is more")
    rows = [(f"{t.bytes:,}", t.type, "?" if t.offset is None else f"{t.offset:,}", t.name) for t in found.top]
    return "\n".join([*lines, "", *table(("bytes", "type", "offset", "alive at the peak"), rows)])


def ranks_text(found: RankReport) -> str:
    lines = []
    for group, ranks in found.groups.items():
        lines.append(cut(f"group {group}: {found.counts[group]} collectives on ranks {_numbers(ranks)}", width()))
    lines += [f"the same on ranks {_numbers(ranks)}" for ranks in found.alike]
    for parted in found.divergences:
        lines.append(f"DIFFERS: {safe(parted)}")
        for rank, around in parted.around.items():
            lines += [cut(f"  rank {rank}: {text}", width()) for text in around]
    if found.cycle:
        lines += ["DEADLOCK: ranks wait for each other", *(cut(f"  {text}", width()) for text in found.cycle)]
    for group, absent in found.missing.items():
        lines.append(cut(f"no dump of ranks {_numbers(absent)} of group {group}: nothing is said about them", 400))
    lines += [f"note: {note}" for note in found.notes]
    lines.append("all ranks issue the same collectives in the same order" if found.is_same else "ranks differ")
    return "\n".join(lines)


def _numbers(ranks: Sequence[int]) -> str:
    """0-3, 5."""
    parts: list[str] = []
    begin = before = None
    for rank in [*ranks, None]:
        if begin is not None and before is not None and rank != before + 1:
            parts.append(str(begin) if begin == before else f"{begin}-{before}")
            begin = None
        if begin is None:
            begin = rank
        before = rank
    return ", ".join(parts)


def diff_text(found: Difference) -> str:
    lines = [f"alike: {found.same:,} ops, {found.renamed:,} of them under another name"]
    for exchange in found.exchanges:
        lines.append(f"{exchange.count:,} times" if exchange.count > 1 else "once")
        for sign, types, names in (
            ("-", exchange.removed, exchange.removed_names), ("+", exchange.added, exchange.added_names),
        ):  # fmt: skip
            if types:
                lines.append(cut(f"  {sign} {', '.join(types)}", width()))
                lines.append(cut(f"      at {names[0]}", width()))
    kinds = found.kinds
    for count, change in kinds[:_CHANGES]:
        name = change.name if change.name == change.other_name else f"{change.name} / {change.other_name}"
        times = f"{count:,} times, first " if count > 1 else ""
        text = f"~ {times}{name} ({change.type}) {change.what}: {change.before} -> {change.after}"
        lines.append(cut(text, 2 * width()))
    if len(kinds) > _CHANGES:
        lines.append(f"and {len(kinds) - _CHANGES:,} more kinds of changes (--json has all)")
    lines += [f"note: {safe(note)}" for note in found.notes]
    return "\n".join([*lines, "the same" if found.is_same else "they differ"])


_CHANGES = 50
"""Kinds of changes that are shown."""


def check_text(findings: Sequence[Finding]) -> str:
    rows = [("ok" if f.is_fine else "FAILS", f.got, f.asked) for f in findings]
    return "\n".join(table(("", "got", "asked"), rows))
