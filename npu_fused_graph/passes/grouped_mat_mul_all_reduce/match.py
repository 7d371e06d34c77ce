"""Puts candidates that follow each other into groups."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.fx import Graph, Node

from npu_fused_graph.ops.grouped_mat_mul_all_reduce_constraints import MOST_GROUPS
from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.grouped_mat_mul_all_reduce.rules import PART_RULES
from npu_fused_graph.passes.grouped_mat_mul_all_reduce.site import Part
from npu_fused_graph.passes.grouped_mat_mul_all_reduce.sources import Sources, is_heavy
from npu_fused_graph.passes.refusals import Refusal, Refused
from npu_fused_graph.passes.rules import Context, check
from npu_fused_graph.passes.spellings.reduces import candidates
from npu_fused_graph.passes.tracing import named


def groups(graph: Graph, context: Context) -> list[Group]:
    """Candidates that may become one node, in graph order; what ended each group, where that matters."""
    found = _Sweep(graph, context).groups
    _forget_what_ended(found)
    return found


@dataclass
class Group:
    """node: the first candidate. refusal: of a candidate by itself, which has no parts. ended: why no more joined."""

    node: Node
    parts: list[Part] = field(default_factory=list)
    refusal: Refusal | None = None
    ended: Refusal | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What all-reduces of a group have in common."""
        return self.parts[0].reduce.group, self.parts[0].result_dtype


class _Sweep:
    """One pass over the graph. groups: candidates that follow each other, in graph order."""

    def __init__(self, graph: Graph, context: Context) -> None:
        self.groups: list[Group] = []
        self._context = context
        self._sources = Sources()
        self._is_open = False
        self._inner: set[Node] = set()
        self._depends: dict[Node, int] = {}  # number of the last group whose results a node is computed from
        collectives = set(candidates(graph))
        for node in graph.nodes:
            self._depends[node] = max((self._depends[x] for x in node.all_input_nodes), default=-1)
            if node in collectives:
                self._candidate(node)
            elif self._is_open and node not in self._inner:
                self._other(node)

    @property
    def _number(self) -> int:
        """Of the group that is open, or was last."""
        return len(self.groups) - 1

    def _end(self, why: Refusal) -> None:
        if self._is_open:
            self.groups[-1].ended = why
        self._is_open = False

    def _candidate(self, node: Node) -> None:
        part = self._part(node)
        if isinstance(part, Refusal):
            self._end(refusals.CollectiveInBetween.at(node, f"{named(node)} cannot be grouped"))
            self.groups.append(Group(node, refusal=part))
            return
        if self._is_open and self._depends[node] == self._number:
            self._end(refusals.CriticalPath.at(node, f"{named(node)} reduces what is computed from the result"))
        elif self._is_open and not _fits(part, self.groups[-1]):
            text = f"{named(node)} runs before the next all-reduce of this group and dtype"
            self._end(refusals.CollectiveInBetween.at(node, text))
        if not self._is_open:
            self.groups.append(Group(node))
            self._is_open = True
        self.groups[-1].parts.append(part)
        self._inner.update(part.reduce.inner)
        self._depends.update(dict.fromkeys(part.reduce.inner, self._number))

    def _other(self, node: Node) -> None:
        positions = self._context.positions
        if positions.is_collective(node):
            self._end(refusals.CollectiveInBetween.at(node, f"{named(node)} runs before the next all-reduce"))
        elif positions.is_stream_change(node):
            self._end(refusals.OtherStream.at(node, f"{named(node)} changes the stream"))
        elif positions.writes(node):
            self._end(refusals.MutationInBetween.at(node, f"{named(node)} writes"))
        elif self._depends[node] == self._number and is_heavy(node):
            self._end(refusals.CriticalPath.at(node, f"{named(node)} reads the result before the next all-reduce"))

    def _part(self, node: Node) -> Part | Refusal:
        try:
            part = self._sources.part(node)
            check(part, self._context, PART_RULES)
            return part
        except Refused as refused:
            return refused.refusal


def _fits(part: Part, group: Group) -> bool:
    first = group.parts[0]
    return (
        not (part.is_joined or first.is_joined)
        and (part.reduce.group, part.result_dtype) == group.key
        and len(group.parts) < MOST_GROUPS
    )


def _forget_what_ended(groups: list[Group]) -> None:
    """What ended a group matters only if something that could have joined comes later."""
    later: set[tuple[str, str]] = set()
    for group in reversed(groups):
        if group.parts and not group.parts[0].is_joined:
            if group.key not in later:
                group.ended = None
            later.add(group.key)
