"""Unfused sites for people: one finding at a time, and where else it is the same."""

from __future__ import annotations

from textwrap import wrap

from npu_fused_graph.inspector.missed import MissedSite, Why
from npu_fused_graph.inspector.terminal import cut, safe, width

_MORE = 6
"""Names that are listed of the other sites of a finding."""


def why_text(found: Why) -> str:
    sites = found.sites
    count = f"{len(sites):,} site{'s are' if len(sites) != 1 else ' is'} not fused"
    fused = ", ".join(f"{n:,} {kind}" for kind, n in found.fused.items()) or "none"
    lines = [count, cut(f"fused types: {fused}", width())]
    for name, is_on in found.ge_passes.items():
        lines += _wrapped("GE", f"its own {name} is switched {'on' if is_on else 'off'}", "")
    lines += [cut(f"note: {note}", 400) for note in found.notes]
    alike: dict[tuple[object, ...], list[MissedSite]] = {}
    for site in sites:
        alike.setdefault((site.reason, site.operator, site.cure, site.untold), []).append(site)
    for group in alike.values():
        lines += ["", *_finding(group)]
    return "\n".join(lines)


def _finding(group: list[MissedSite]) -> list[str]:
    first = group[0]
    head = f"{first.reason} [{first.clause}]" if first.reason else "nothing in the dump forbids it"
    lines = [f"{head}: {first.operator}"]
    about = [first.op, f"fx {first.fx}" if first.fx else "", f"group {first.group}" if first.group else ""]
    if first.shape is not None:
        about.append(str(list(first.shape)))
    lines.append(cut("  " + " | ".join(part for part in about if part), width()))
    if first.reason:
        at = f" (at {first.at})" if first.at not in first.found else ""
        lines += _wrapped("found", first.found + at)
        if first.statement:
            lines += _wrapped("rule", first.statement)
        lines += _wrapped("cure", first.cure)
        if first.is_legal:
            lines += _wrapped("legal", "only a setting keeps it from being fused")
    elif first.untold:
        lines += _wrapped("a dump cannot tell of", ", ".join(first.untold))
    if first.recorded is not None:
        said = first.recorded.get("reason") or "fused"
        text = first.recorded.get("text") or ""
        source = first.recorded.get("source") or ""
        lines += _wrapped("when compiled", " ".join(part for part in (said, text, source) if part))
    if len(group) > 1:
        names = ", ".join(site.op for site in group[1 : 1 + _MORE])
        left = f", and {len(group) - 1 - _MORE:,} more" if len(group) > 1 + _MORE else ""
        lines += _wrapped(f"the same rule at {len(group) - 1:,} more", names + left)
    return lines


def _wrapped(label: str, text: str, indent: str = "  ") -> list[str]:
    return wrap(f"{label}: {safe(text)}", width(), initial_indent=indent, subsequent_indent=indent + "  ")
