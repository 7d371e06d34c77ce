"""A dump as every reader gives it: graphs whose ops are named at once, and decoded when somebody asks for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from npu_fused_graph.inspector.message import split_input
from npu_fused_graph.ir.graph import AttrValue, Graph, Node

_KEPT = 4096
"""Decoded nodes that a graph keeps."""


class Warnings(list[str]):
    """What could not be read, each once; ops that are decoded later add theirs."""

    def say(self, text: str) -> None:
        if len(self) < _TOLD and text not in self:
            self.append(text)
            if len(self) == _TOLD:
                self.append("and more")


_TOLD = 20
"""Warnings that are kept."""


@dataclass(slots=True)
class FileFacts:
    """What a file's name tells. stage: "original", "optimized", or GE's name of a step. sequence: GE's counter."""

    stage: str = ""
    graph_id: int | None = None
    rank: int | None = None
    pid: int | None = None
    device: int | None = None
    sequence: int | None = None
    time: str = ""


class Search(Protocol):
    """Answers about all ops of a large graph without decoding one."""

    def streams(self) -> list[int]:
        """Of each op."""

    def having(self, attr: str) -> list[int]:
        """Ops with this attribute."""

    def text(self, op: int, attr: str) -> str | None:
        """Of an op: an attribute that is a text; None where there is none."""


class DumpGraph:
    """One graph: its ops in file order.

    names, types: of each op. inputs: of each op, as written: ``producer:output``, -1 for a control edge, "" for a
    port that nothing feeds. is_stated: its ops say of their outputs what they are (a readable dump does not).
    """

    def __init__(
        self, name: str, names: list[str], types: list[str], inputs: list[tuple[str, ...]],
        decode: Callable[[int], Node], *, attrs: Callable[[], dict[str, AttrValue]] = dict,
        has_streams: Callable[[], bool] = bool, is_stated: bool = True, search: Search | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.names, self.types, self.inputs = names, types, inputs
        self.is_stated = is_stated
        self._decode = decode
        self._attrs = attrs
        self._has_streams = has_streams
        self._search = search
        self._nodes: dict[int, Node] = {}

    def __len__(self) -> int:
        return len(self.names)

    def node(self, op: int) -> Node:
        """An op in full."""
        found = self._nodes.get(op)
        if found is None:
            found = self._decode(op)
            if len(self._nodes) >= _KEPT:
                del self._nodes[next(iter(self._nodes))]
            self._nodes[op] = found
        return found

    def nodes(self) -> Iterator[Node]:
        """Every op in full, in order."""
        return map(self.node, range(len(self)))

    @cached_property
    def has_streams(self) -> bool:
        """Whether the dump says on which stream each op runs."""
        return self._has_streams()

    @cached_property
    def attrs(self) -> dict[str, AttrValue]:
        return self._attrs()

    @cached_property
    def places(self) -> dict[str, int]:
        """Op by name; the first of those with one name."""
        found: dict[str, int] = {}
        for op, name in enumerate(self.names):
            found.setdefault(name, op)
        return found

    @cached_property
    def sources(self) -> list[list[tuple[int, int]]]:
        """Of each op: (op, output) of every data input that is fed; an op of -1 is not in this graph."""
        places = self.places
        found = []
        for written in self.inputs:
            row = []
            for text in written:
                name, index = split_input(text)
                if index is not None and index >= 0:
                    row.append((places.get(name, -1), index))
            found.append(row)
        return found

    @cached_property
    def controls(self) -> dict[int, list[int]]:
        """Op -> the ops it waits for without reading them, where there are any."""
        places = self.places
        found: dict[int, list[int]] = {}
        for op, written in enumerate(self.inputs):
            row = [places.get(text[:-3], -1) for text in written if text.endswith(":-1")]
            if row:
                found[op] = row
        return found

    @cached_property
    def readers(self) -> list[list[int]]:
        """Of each op: the ops that read one of its outputs, as often as they do."""
        found: list[list[int]] = [[] for _ in self.names]
        for op, row in enumerate(self.sources):
            for source, _ in row:
                if source >= 0:
                    found[source].append(op)
        return found

    def read_by(self, op: int) -> list[int]:
        """The ops that read one of its outputs, each once; without looking at every edge, as ``readers`` does."""
        if "readers" in self.__dict__:
            return sorted(set(self.readers[op]))
        name = self.names[op]
        if self.places.get(name) != op:
            return []
        begin, size = f"{name}:", len(name) + 1
        return [
            reader
            for reader, written in enumerate(self.inputs)
            if any(text == name or (text.startswith(begin) and text[size:].isdecimal()) for text in written)
        ]

    @cached_property
    def histogram(self) -> Counter[str]:
        return Counter(self.types)

    @cached_property
    def streams(self) -> list[int]:
        """Of each op, where has_streams."""
        if self._search is not None:
            return self._search.streams()
        return [node.build.stream or 0 if node.build else 0 for node in self.nodes()]

    def having(self, attr: str) -> list[int]:
        """Ops with this attribute."""
        if self._search is not None:
            return self._search.having(attr)
        return [op for op, node in enumerate(self.nodes()) if attr in node.attrs]

    def text(self, op: int, attr: str) -> str | None:
        """Of an op: an attribute that is a text; None where there is none."""
        if self._search is not None:
            return self._search.text(op, attr)
        value = self.node(op).attrs.get(attr)
        return value if isinstance(value, str) else None

    def of_type(self, *types: str) -> list[int]:
        wanted = frozenset(types)
        return [op for op, kind in enumerate(self.types) if kind in wanted]

    def to_ir(self) -> Graph:
        """The whole graph, decoded. Of ops with one name the later ones get ``#2``, ``#3``, ..."""
        graph = Graph(self.name, attrs=self.attrs)
        for node in self.nodes():
            name, count = node.name, 1
            while name in graph.nodes:
                count += 1
                name = f"{node.name}#{count}"
            graph.nodes[name] = node
        return graph


@dataclass
class Dump:
    """A file that was read. graphs: the root first, then those it calls. warnings: what could not be read, by line."""

    path: Path
    format: str
    file: FileFacts
    graphs: Sequence[DumpGraph]
    size: int
    attrs: dict[str, AttrValue] = field(default_factory=dict)
    warnings: Warnings = field(default_factory=Warnings)

    @property
    def root(self) -> DumpGraph:
        return self.graphs[0]

    @property
    def ops(self) -> int:
        return sum(len(graph) for graph in self.graphs)

    @property
    def is_from_ge(self) -> bool:
        """GE's passes had it; TorchAir only builds the graph that GE gets."""
        return not self.format.startswith("torchair")

    def find(self, name: str) -> tuple[DumpGraph, int] | None:
        """The op of this name."""
        for graph in self.graphs:
            op = graph.places.get(name)
            if op is not None:
                return graph, op
        return None
