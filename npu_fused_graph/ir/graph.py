"""The GE graph as plain data.

Reading direction: ``Graph.nodes`` (emission order) -> ``Node.inputs`` (each bound by descriptor name)
-> ``Source`` (producer, output index). Nothing here knows torch, protobuf or an operator's meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Union


@dataclass(frozen=True, slots=True)
class Source:
    """Output ``index`` of node ``node``: where a value comes from."""

    node: str
    index: int

    def __str__(self) -> str:
        return f"{self.node}:{self.index}"


@dataclass(frozen=True, slots=True)
class TensorValue:
    """The payload of a Const: dtype name, shape, little-endian bytes without a header."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class DTypeValue:
    """A dtype held by an attribute, by torch's name (None = undefined)."""

    name: str | None


AttrValue = Union[str, int, float, bool, bytes, DTypeValue, TensorValue, "Graph", Sequence["AttrValue"], None]


@dataclass(slots=True)
class TensorDesc:
    """What a descriptor says about one input or output.

    dtype and shape are None where the graph does not say. ``dtype_trusted``: TorchAir knew the meta
    tensor; without it the dtype is a default that must not be believed. ``fx_name``: the FX node and
    output the value belongs to, e.g. ``add_3-aten.add.Tensor.OUTPUT.0``. ``device``: "CPU", "NPU" or "".
    Readers of dumps add: ``shape_source``, "stated" or "meta" (TorchAir's note of the torch tensor, which a
    view may have changed since); ``layout``, such as "ND"; ``size`` in bytes; other attributes.
    """

    name: str
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    dtype_trusted: bool = False
    fx_name: str | None = None
    device: str = ""
    shape_source: str = ""
    layout: str = ""
    size: int | None = None
    attrs: dict[str, AttrValue] = field(default_factory=dict)


@dataclass(slots=True)
class NodeInput:
    """One data input: its descriptor and its producer (None = optional input left unfed)."""

    desc: TensorDesc
    source: Source | None


@dataclass(slots=True)
class Build:
    """What GE decided about a node. Offsets are bytes in the arena of the model; what it did not say is None or empty.

    workspaces: (offset, bytes).
    """

    id: int | None = None
    stream: int | None = None
    input_offsets: list[int] = field(default_factory=list)
    output_offsets: list[int] = field(default_factory=list)
    workspaces: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Node:
    """One GE op. ``controls`` are names of nodes that must run before it. Attributes keep GE's names.

    subgraphs: names of graphs it calls. build: in dumps of GE, from its own passes on.
    """

    name: str
    type: str
    inputs: list[NodeInput] = field(default_factory=list)
    outputs: list[TensorDesc] = field(default_factory=list)
    controls: list[str] = field(default_factory=list)
    attrs: dict[str, AttrValue] = field(default_factory=dict)
    subgraphs: list[str] = field(default_factory=list)
    build: Build | None = None

    def sources(self) -> Iterator[Source]:
        """Producers of the fed inputs, in order."""
        for item in self.inputs:
            if item.source is not None:
                yield item.source

    def input_names(self) -> list[str]:
        return [item.desc.name for item in self.inputs]

    @property
    def group(self) -> str | None:
        """Of a collective, the group whose ranks run it together."""
        named = (self.attrs.get(name) for name in ("group", "group_ep"))
        return next((group for group in named if isinstance(group, str)), None)


@dataclass(slots=True)
class Graph:
    """A GE graph: nodes by name in emission order, plus graph attributes (``_output_dtypes``, ...)."""

    name: str
    nodes: dict[str, Node] = field(default_factory=dict)
    attrs: dict[str, AttrValue] = field(default_factory=dict)

    def of_type(self, *types: str) -> list[Node]:
        """Nodes whose type is one of ``types``, in emission order."""
        return [node for node in self.nodes.values() if node.type in types]
