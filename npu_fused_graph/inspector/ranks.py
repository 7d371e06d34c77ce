"""Whether all ranks issue the same collectives in the same order: what hangs otherwise, told before it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector.catalogue import COLLECTIVES
from npu_fused_graph.inspector.counting import groups_at
from npu_fused_graph.inspector.dump import Dump, DumpGraph
from npu_fused_graph.inspector.formats import facts_of

_RANK_LIST = re.compile(r"rank_list=([\d,]+)")
_ONE_SIDED = frozenset({"HcomSend", "HcomReceive", "AttentionToFFN", "FFNToAttention"})
_REDUCTIONS = ("reduction", "reduce_op", "reduce_type")


@dataclass(frozen=True, slots=True)
class Collective:
    """What ranks must agree on, but for name. dtype, shape: of the first output; None where the dump does not say."""

    type: str
    dtype: str | None
    shape: tuple[int, ...] | None
    reduction: str | None
    name: str

    def differs(self, other: Collective) -> list[str]:
        """Names of what differs; what one of the two does not say differs from nothing."""
        found = ["type"] if self.type != other.type else []
        for name in ("dtype", "shape", "reduction"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None and theirs is not None and mine != theirs:
                found.append(name)
        return found

    def __str__(self) -> str:
        shape = "?" if self.shape is None else list(self.shape)
        reduction = f" {self.reduction}" if self.reduction else ""
        return f"{self.name} ({self.type}{reduction} {self.dtype or '?'}{shape})"


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place where two ranks part.

    index: in the group's sequence. around: the collectives before and behind, by rank.
    """

    group: str
    index: int
    ranks: tuple[int, int]
    what: tuple[str, ...]
    ops: tuple[str, str]
    around: dict[int, list[str]]

    def __str__(self) -> str:
        a, b = self.ranks
        return (
            f"group {self.group}, collective {self.index}: rank {a} has {self.ops[0]}, rank {b} has {self.ops[1]} "
            f"({', '.join(self.what)})"
        )


@dataclass(slots=True)
class RankReport:
    """groups: name -> the ranks with a dump that use it. alike: ranks that issue the same, together. missing: ranks a
    group names of which there is no dump. cycle: collectives of two groups that ranks issue in opposite orders.
    """

    ranks: list[int]
    groups: dict[str, list[int]]
    counts: dict[str, int]
    alike: list[list[int]]
    divergences: list[Divergence]
    cycle: list[str]
    missing: dict[str, list[int]]
    notes: list[str] = field(default_factory=list)

    @property
    def is_same(self) -> bool:
        return not self.divergences and not self.cycle

    def as_dict(self) -> dict[str, Any]:
        return {"is_same": self.is_same, **asdict(self)}


def compare_ranks(dumps: Mapping[int, Dump]) -> RankReport:
    """dumps: of the same graph on each rank. Raises DumpError for fewer than two."""
    if len(dumps) < 2:
        raise DumpError(f"[ranks] dumps: expected those of two ranks at least, got {len(dumps)}. Name more files.")
    sequences = {rank: _sequence(dump) for rank, dump in sorted(dumps.items())}
    names, notes = _names(sequences)
    by_group: dict[str, dict[int, list[Collective]]] = {}
    for rank, sequence in sequences.items():
        for group, collective in sequence:
            by_group.setdefault(names[rank][group], {}).setdefault(rank, []).append(collective)
    divergences = []
    missing: dict[str, list[int]] = {}
    for group, of_ranks in by_group.items():
        found = _RANK_LIST.search(group)
        members = [int(r) for r in found[1].split(",")] if found else []
        absent = [r for r in members if r not in sequences]
        if absent:
            missing[group] = absent
        for rank in members:
            if rank in sequences:
                of_ranks.setdefault(rank, [])
        first, *others = sorted(of_ranks)
        for rank in others:
            parted = _part(group, first, of_ranks[first], rank, of_ranks[rank])
            if parted is not None:
                divergences.append(parted)
    if not all(dump.is_from_ge for dump in dumps.values()):
        notes.append("before GE: the order of collectives that do not depend on each other is up to its scheduler")
    orders = {rank: [(names[rank][g], c) for g, c in sequence] for rank, sequence in sequences.items()}
    cycle = [] if divergences else _cycle(orders)
    alike = _alike(orders)
    counts = {group: max(map(len, of_ranks.values())) for group, of_ranks in by_group.items()}
    groups = {group: sorted(of_ranks) for group, of_ranks in by_group.items()}
    return RankReport(sorted(sequences), groups, counts, alike, divergences, cycle, missing, notes)


def _sequence(dump: Dump) -> list[tuple[str, Collective]]:
    """(group, collective) in the order in which the rank issues them."""
    rows: list[tuple[int, str, Collective]] = []
    for graph in dump.graphs:
        for op in graph.of_type(*COLLECTIVES):
            if graph.types[op] not in _ONE_SIDED:
                rows += [(_place(graph, op), group, _collective(graph, op)) for group in groups_at(graph, op)]
    return [(group, collective) for _, group, collective in sorted(rows, key=lambda row: row[0])]


def _place(graph: DumpGraph, op: int) -> int:
    """GE's number of the op where it gave one, else its line."""
    build = graph.node(op).build
    return build.id if build is not None and build.id else op


def _collective(graph: DumpGraph, op: int) -> Collective:
    node = graph.node(op)
    desc = node.outputs[0] if node.outputs else None
    reduction = next((str(node.attrs[key]) for key in _REDUCTIONS if node.attrs.get(key)), None)
    dtype = desc.dtype if desc is not None and desc.dtype_trusted else None
    return Collective(node.type, dtype, None if desc is None else desc.shape, reduction, node.name)


def _names(sequences: Mapping[int, Sequence[tuple[str, Collective]]]) -> tuple[dict[int, dict[str, str]], list[str]]:
    """Of each rank: its group's name -> one that all use: the list of ranks in it, else as it is, else by position."""
    found: dict[int, dict[str, str]] = {}
    for rank, sequence in sequences.items():
        own = dict.fromkeys(group for group, _ in sequence)
        found[rank] = {g: f"rank_list={m[1]}" if (m := _RANK_LIST.search(g)) else g for g in own}
    named = [set(names.values()) for names in found.values() if names]
    if not named or set.intersection(*named) or any("rank_list=" in n for names in named for n in names):
        return found, []
    for names in found.values():
        for position, group in enumerate(names):
            names[group] = f"#{position + 1}"
    return found, ["groups have other names on each rank: they were matched by the order in which they are first used"]


def _part(group: str, a: int, mine: list[Collective], b: int, theirs: list[Collective]) -> Divergence | None:
    for index in range(max(len(mine), len(theirs))):
        one = mine[index] if index < len(mine) else None
        other = theirs[index] if index < len(theirs) else None
        what = ["count"] if one is None or other is None else one.differs(other)
        if what:
            around = {r: [str(c) for c in s[max(0, index - 2) : index + 3]] for r, s in ((a, mine), (b, theirs))}
            texts = (str(one) if one else "nothing more", str(other) if other else "nothing more")
            return Divergence(group, index, (a, b), tuple(what), texts, around)
    return None


def _alike(orders: Mapping[int, Sequence[tuple[str, Collective]]]) -> list[list[int]]:
    """Ranks whose sequences say the same, together."""
    found: list[list[int]] = []
    for rank, sequence in orders.items():
        for group in found:
            other = orders[group[0]]
            if len(other) == len(sequence) and all(
                g == h and not c.differs(d) for (g, c), (h, d) in zip(sequence, other, strict=True)
            ):
                group.append(rank)
                break
        else:
            found.append([rank])
    return found


def _cycle(orders: Mapping[int, Sequence[tuple[str, Collective]]]) -> list[str]:
    """Collectives that wait for each other in a ring, because ranks issue them in different orders."""
    after: dict[tuple[str, int], dict[tuple[str, int], int]] = {}
    for rank, sequence in orders.items():
        counted: dict[str, int] = {}
        before: tuple[str, int] | None = None
        for group, _ in sequence:
            here = group, counted.get(group, 0)
            counted[group] = here[1] + 1
            after.setdefault(here, {})
            if before is not None:
                after[before].setdefault(here, rank)
            before = here
    state: dict[tuple[str, int], int] = {}
    for start in after:
        if state.get(start):
            continue
        path = [start]
        state[start] = 1
        todo = [iter(after[start])]
        while todo:
            step = next(todo[-1], None)
            if step is None:
                state[path.pop()] = 2
                todo.pop()
            elif state.get(step) == 1:
                ring = path[path.index(step) :]
                pairs = zip(ring, [*ring[1:], step], strict=True)
                return [f"rank {after[a][b]} issues {_label(a)} before {_label(b)}" for a, b in pairs]
            elif step not in state:
                state[step] = 1
                path.append(step)
                todo.append(iter(after[step]))
    return []


def _label(collective: tuple[str, int]) -> str:
    return f"collective {collective[1]} of group {collective[0]}"


def dumps_by_rank(paths: Sequence[Path]) -> dict[int, Path]:
    """One file per rank, of files and of folders that are searched: the latest graph, after TorchAir's passes.

    Files whose names do not tell their ranks are those of ranks 0, 1, ... in the order given. Raises DumpError for what
    names no rank, and for ranks with several graphs.
    """
    if len(paths) > 1 and all(path.is_file() for path in paths):
        stated = [facts_of(path).rank for path in paths]
        if None in stated or len(set(stated)) < len(stated):
            return dict(enumerate(paths))
    files = [f for path in paths for f in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    found: dict[int, list[Path]] = {}
    for file in files:
        if file.is_file() and (file.suffix in (".pbtxt", ".txt", ".air", ".om", ".json", ".gz") or file in paths):
            facts = facts_of(file)
            if facts.rank is not None:
                found.setdefault(facts.rank, []).append(file)
    if not found:
        raise DumpError(
            f"[ranks] {', '.join(map(str, paths))}: expected dumps whose names or folders say rank_<r>, got none. Name "
            "the files themselves, in the order of the ranks."
        )
    chosen = {}
    for rank, candidates in sorted(found.items()):
        optimized = [f for f in candidates if "optimized" in f.name] or candidates
        graphs = {facts_of(f).graph_id for f in optimized}
        if len(graphs) > 1:
            raise DumpError(
                f"[ranks] rank {rank}: expected dumps of one graph, got those of graphs "
                f"{', '.join(map(str, sorted(graphs, key=str)))}. Name the files themselves."
            )
        chosen[rank] = max(optimized, key=lambda f: (facts_of(f).sequence or 0, facts_of(f).time, f.name))
    return chosen
