"""Commands that read graph dumps. None of them imports torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npu_fused_graph.errors import argument_error

if TYPE_CHECKING:
    from npu_fused_graph.inspector import Dump

Log = Callable[[str], None]

LARGE = 50 * 2**20
"""Bytes from which reading takes long enough to say that it began."""


def inspect(arguments: argparse.Namespace, log: Log) -> int:
    """What is in a dump, or which dumps are in a folder; or its ops that fit; or one op and its neighbourhood."""
    from npu_fused_graph.inspector import Filter, select, summary
    from npu_fused_graph.inspector.folders import inspect_folder, is_collection, listing_text
    from npu_fused_graph.inspector.selection import facts_of, neighbours, place_of, tensor
    from npu_fused_graph.inspector.terminal import node_text, summary_text, table, tensor_text

    wanted = Filter(arguments.type, arguments.name, arguments.stream, arguments.group, arguments.dtype)
    if is_collection(arguments.dump):
        if arguments.node or arguments.fold or wanted != Filter():
            raise argument_error("inspect", "DUMP", "a dump", "a folder", "Name one of its dumps.")
        listing = inspect_folder(arguments.dump)
        _print(arguments, log, listing.as_dict(), listing_text(listing))
        return 0 if listing.dumps else 3
    if arguments.fold and (arguments.node or wanted != Filter()):
        raise argument_error("inspect", "--fold", "nothing beside it but --full", "ops to look for", "Leave one out.")
    if passes := _passes(arguments.dump):
        facts, text = passes
        _print(arguments, log, facts, text)
        return 0
    dump = _read(arguments.dump, log)
    if arguments.fold:
        from npu_fused_graph.inspector.folding import fold
        from npu_fused_graph.inspector.folding_text import fold_text

        folds = [fold(graph, is_full=arguments.full) for graph in dump.graphs]
        facts = {"graphs": [found.as_dict() for found in folds]}
        _print(arguments, log, facts, "\n\n".join(map(fold_text, folds)), dump)
        return 0
    if arguments.node:
        graph, op = place_of(dump, arguments.node)
        facts = facts_of(graph, op)
        text = node_text(facts)
        if arguments.hops:
            near = sorted(neighbours(graph, op, arguments.hops).items(), key=lambda item: (item[1], item[0]))
            facts["neighbours"] = [
                {"hops": hops, "name": graph.names[o], "type": graph.types[o]} for o, hops in near if o != op
            ]
            rows = [(f"{n['hops']:+d}", n["type"], n["name"]) for n in facts["neighbours"]]
            text += "\n\n" + "\n".join(table(("hops", "type", "name"), rows))
        _print(arguments, log, facts, text, dump)
        return 0
    if wanted == Filter():
        found = summary(dump, is_full=arguments.full)
        _print(arguments, log, found.as_dict(), summary_text(found))
        return 0
    places = list(select(dump, wanted))
    shown = places if arguments.json else places[: arguments.limit]
    ops: list[dict[str, Any]] = []
    for graph, op in shown:
        node = graph.node(op)
        ops.append({"name": node.name, "type": node.type, "graph": graph.name, "outputs": [*map(tensor, node.outputs)]})
    columns = [(o["type"], o["name"], ", ".join(map(tensor_text, o["outputs"]))) for o in ops]
    lines = table(("type", "name", "outputs"), columns)
    left = f", the first {len(shown)} above (--limit)" if len(shown) < len(places) else ""
    _print(arguments, log, {"count": len(places), "ops": ops}, "\n".join([*lines, f"{len(places):,} ops{left}"]), dump)
    return 0


def fused(arguments: argparse.Namespace, log: Log) -> int:
    from npu_fused_graph.inspector.fusions import by_type
    from npu_fused_graph.inspector.fusions import fused as find
    from npu_fused_graph.inspector.terminal import fused_text

    dump = _read(arguments.dump, log)
    ops = find(dump)
    counts = by_type(ops)
    facts = {"count": len(ops), "types": counts, "ops": [op.as_dict() for op in ops]}
    _print(arguments, log, facts, fused_text(ops, counts), dump)
    return 0


def why(arguments: argparse.Namespace, log: Log) -> int:
    from npu_fused_graph.inspector.missed import why as ask
    from npu_fused_graph.inspector.missed.text import why_text

    dump = _read(arguments.dump, log)
    found = ask(
        dump, min_rows=arguments.min_rows, numerics=arguments.numerics, explain=arguments.explain,
        switches=arguments.switches,
    )  # fmt: skip
    _print(arguments, log, found.as_dict(), why_text(found), dump)
    return 0


def memory(arguments: argparse.Namespace, log: Log) -> int:
    from npu_fused_graph.inspector.arena import memory as measure
    from npu_fused_graph.inspector.terminal import memory_text

    dump = _read(arguments.dump, log)
    found = measure(dump, top=arguments.top)
    _print(arguments, log, found.as_dict(), memory_text(found), dump)
    return 0


def diff(arguments: argparse.Namespace, log: Log) -> int:
    from npu_fused_graph.inspector import compare
    from npu_fused_graph.inspector.terminal import diff_text

    dumps = _read(arguments.dump, log), _read(arguments.other, log)
    found = compare(*dumps)
    _print(arguments, log, found.as_dict(), diff_text(found), *dumps)
    return 0 if found.is_same else 1


def ranks(arguments: argparse.Namespace, log: Log) -> int:
    from npu_fused_graph.inspector import compare_ranks, dumps_by_rank
    from npu_fused_graph.inspector.terminal import ranks_text

    files = dumps_by_rank(arguments.dumps)
    dumps = {rank: _read(file, log) for rank, file in files.items()}
    found = compare_ranks(dumps)
    _print(arguments, log, found.as_dict(), ranks_text(found), *dumps.values())
    return 0 if found.is_same else 1


def report(arguments: argparse.Namespace, log: Log) -> int:
    from npu_fused_graph.inspector import dumps_by_rank
    from npu_fused_graph.inspector.page import report as write

    dump = _read(arguments.dump, log)
    against = None if arguments.against is None else _read(arguments.against, log)
    files = dumps_by_rank(arguments.ranks) if arguments.ranks else {}
    ranks = {rank: _read(file, log) for rank, file in files.items()}
    notes = write(
        dump, arguments.output, against=against, ranks=ranks, explain=arguments.explain, title=arguments.title,
        is_reproducible=arguments.reproducible, is_anonymous=arguments.anonymous, most_megabytes=arguments.max_mb,
        command=["npu-fused-graph", *sys.argv[1:]],
    )  # fmt: skip
    for note in notes:
        log(f"note: {note}")
    size = arguments.output.stat().st_size
    facts = {"output": str(arguments.output), "bytes": size, "notes": notes}
    others = [] if against is None else [against]
    _print(arguments, log, facts, f"{arguments.output}: {size / 2**20:.2f} MiB", dump, *others, *ranks.values())
    return 0


def check(arguments: argparse.Namespace, log: Log) -> int:
    from npu_fused_graph.inspector.expectations import check as ask
    from npu_fused_graph.inspector.terminal import check_text

    if not arguments.expect and arguments.memory_below is None:
        raise argument_error("check", "--expect", "something to check", "nothing", "Pass --expect TYPE=N.")
    dump = _read(arguments.dump, log)
    findings = ask(dump, arguments.expect, memory_below=arguments.memory_below)
    is_fine = all(f.is_fine for f in findings)
    _print(arguments, log, {"ok": is_fine, "findings": [f.as_dict() for f in findings]}, check_text(findings), dump)
    return 0 if is_fine else 1


def _passes(path: Path) -> tuple[dict[str, Any], str] | None:
    """What a table of passes or ops says; None for another file."""
    from npu_fused_graph.inspector.formats import format_of
    from npu_fused_graph.inspector.fusion_files import read_fusion_config, read_fusion_result
    from npu_fused_graph.inspector.fx_summary import read_fx_summary
    from npu_fused_graph.inspector.terminal import safe, table

    if not path.is_file() or path.stat().st_size > LARGE:
        return None
    kind = format_of(path.read_bytes(), path.name)
    if kind == "fusion result":
        counts, warnings = read_fusion_result(path)
        rows = [(f"{c.effective:,}", f"{c.matched:,}", c.session, c.kind, c.name) for c in counts]
        lines = table(("effect", "match", "graph", "kind", "pass"), rows)
        lines += [f"warning: {safe(warning)}" for warning in warnings]
        return {"passes": [c.as_dict() for c in counts], "warnings": warnings}, "\n".join(lines)
    if kind == "fusion config":
        switches = read_fusion_config(path)
        lines = table(("kind", "switched off"), [key for key, is_on in switches.items() if not is_on])
        on = sum(switches.values())
        facts = [{"kind": k, "pass": name, "is_on": is_on} for (k, name), is_on in switches.items()]
        return {"switches": facts}, "\n".join([*lines, f"{on:,} others are switched on"])
    if kind == "fx summary":
        uses, warnings = read_fx_summary(path)
        lines = table(("calls", "converter", "op"), [(f"{u.calls:,}", u.status, u.target) for u in uses])
        lines += [f"warning: {safe(warning)}" for warning in warnings]
        return {"ops": [u.as_dict() for u in uses], "warnings": warnings}, "\n".join(lines)
    return None


def _read(path: Path, log: Log) -> Dump:
    from npu_fused_graph.inspector import read_dump

    if path.is_file() and path.stat().st_size > LARGE:
        log(f"reading {path.stat().st_size / 2**20:,.0f} MiB ...")
    return read_dump(path)


def _print(arguments: argparse.Namespace, log: Log, facts: Any, text: str, *dumps: Dump) -> None:
    """dumps: what was read; what of it could not be is told beside the answer."""
    from npu_fused_graph.inspector.selection import jsonable
    from npu_fused_graph.inspector.terminal import safe

    print(json.dumps(jsonable(facts), indent=2, allow_nan=False) if arguments.json else text)
    for dump in dumps:
        for warning in dump.warnings:
            log(f"warning: {safe(warning)}")
