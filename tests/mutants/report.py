"""What was caught: tables by kind and by file, and the survivors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.mutants.running import CAUGHT, Verdict
from tests.mutants.sites import Site
from tests.mutants.targets import MutantsError

EQUIVALENTS = Path(__file__).with_name("equivalents.txt")


def equivalents() -> dict[tuple[str, str, str], str]:
    """Why a fault changes nothing, by path, kind and change."""
    found = {}
    for number, line in enumerate(EQUIVALENTS.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            first, *middle, why = line.split(" | ")
            if len(middle) < 2:
                raise MutantsError(f"{EQUIVALENTS}:{number}: expected path | kind | before -> after | why")
            found[first, middle[0], " | ".join(middle[1:])] = why
    return found


def facts(judged: Mapping[Site, Verdict], excluded: Mapping[str, str], seconds: float) -> dict[str, Any]:
    argued = equivalents()
    survivors = sorted((s for s, v in judged.items() if v.verdict != CAUGHT), key=lambda s: (s.path, s.start, s.kind))
    return {
        "sites": len(judged),
        "caught": len(judged) - len(survivors),
        "seconds": round(seconds, 1),
        "by_kind": _counts(judged, "kind"),
        "by_file": _counts(judged, "path"),
        "survivors": [
            {
                **{name: getattr(site, name) for name in ("path", "line", "kind", "change")},
                **asdict(judged[site]),
                "equivalent": argued.get((site.path, site.kind, site.change), ""),
            }
            for site in survivors
        ],
        "not_used": dict(sorted(excluded.items())),
    }


def as_json(found: Any) -> str:
    return json.dumps(found, indent=1)


def as_text(found: Mapping[str, Any]) -> str:
    lines = []
    for title in ("kind", "file"):
        table = found[f"by_{title}"]
        width = max([len(title), *map(len, table)])
        lines += [f"{title:{width}}  caught  survivors"]
        lines += [f"{name:{width}}  {caught:6}  {left:9}" for name, (caught, left) in table.items()]
        lines += [""]
    for survivor in found["survivors"]:
        note = f" [equivalent: {survivor['equivalent']}]" if survivor["equivalent"] else ""
        where = f"{survivor['path']}:{survivor['line']} {survivor['kind']}: {survivor['change']}"
        lines += [f"{where} [{survivor['verdict']}, {survivor['ran']} tests]{note}"]
    lines += [f"not used, fails without a fault: {test}: {why}" for test, why in found["not_used"].items()]
    argued = sum(bool(survivor["equivalent"]) for survivor in found["survivors"])
    share = found["caught"] / found["sites"] if found["sites"] else 0.0
    lines += [
        f"{found['caught']} of {found['sites']} caught: {share:.1%}; {len(found['survivors'])} survivors, "
        f"{argued} of them argued to be equivalent; {found['seconds']:.0f} s"
    ]
    return "\n".join(lines)


def _counts(judged: Mapping[Site, Verdict], name: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for site, verdict in judged.items():
        found.setdefault(getattr(site, name), [0, 0])[verdict.verdict != CAUGHT] += 1
    return dict(sorted(found.items()))
