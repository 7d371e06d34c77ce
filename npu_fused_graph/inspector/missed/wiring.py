"""A graph as sites are read in it: what feeds an op and what reads it, past ops that only show the same elements."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from npu_fused_graph.errors import GraphError
from npu_fused_graph.inspector.dump import DumpGraph
from npu_fused_graph.inspector.message import split_input
from npu_fused_graph.ir.dtypes import from_ge
from npu_fused_graph.ir.graph import DTypeValue, Node, TensorValue

Value = tuple[int, int]
"""An op and which of its outputs."""
Shape = tuple[int, ...]

HALF = ("float16", "bfloat16")
CASTS = ("Cast",)
VIEWS = frozenset(
    [
        "Identity", "IdentityN", "Reshape", "Squeeze", "SqueezeV2", "SqueezeV3", "Unsqueeze", "UnsqueezeV2",
        "UnsqueezeV3", "ExpandDims", "FlattenV2", "TransData", "TensorMove", "MemcpyAsync",
    ]
)  # fmt: skip
"""Types whose output holds the elements of their first input, in the same order."""
POINTWISE = frozenset(
    ["Add", "Adds", "AddV2", "Sub", "Mul", "Muls", "RealDiv", "Div", "DivNoNan", "Maximum", "Minimum", "Pow", "Square",
     "Sqrt", "Rsqrt", "Neg", "Axpy", "AxpyV2", "SelectV2", "Select", "MaskedFill", "Fill", "BroadcastTo", "Tile"]
)  # fmt: skip
"""Types whose output has the dtype of what they read first."""
MATMULS = ("MatMul", "MatMulV2", "MatMulV3", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
QUANTISED_MATMULS = (
    "QuantBatchMatmul", "QuantBatchMatmulV2", "QuantBatchMatmulV3", "QuantBatchMatmulV4", "WeightQuantBatchMatmul",
    "WeightQuantBatchMatmulV2",
)  # fmt: skip

_NUMBERS = {
    "float32": "f",
    "float16": "e",
    "float64": "d",
    "int64": "q",
    "int32": "i",
    "int8": "b",
    "uint8": "B",
    "bool": "?",
}


def is_equal(a: Shape, b: Shape) -> bool | None:
    """None: a size that is not known, -1, may be the other one's, or not."""
    if len(a) != len(b):
        return None if -2 in a or -2 in b else False
    if any(x != y and x >= 0 and y >= 0 for x, y in zip(a, b, strict=True)):
        return False
    return None if any(x != y for x, y in zip(a, b, strict=True)) else True


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a site is not fused. op: where that shows. text: what was found there."""

    reason: str
    op: int
    text: str
    cure: str = ""


class Missed(Exception):
    """A step from op to op that fails."""

    def __init__(self, miss: Miss) -> None:
        super().__init__(miss.text)
        self.miss = miss


class Unread(Exception):
    """What would tell is not in this graph, or not in a form that is read. reasons: that stay open."""

    def __init__(self, *reasons: str) -> None:
        super().__init__(*reasons)
        self.reasons = reasons


_DEEP = 64
"""Ops without a dtype or a shape that are looked through."""


class Wiring:
    """Answers about one graph. Ops are decoded when somebody asks for what only that tells."""

    def __init__(self, graph: DumpGraph) -> None:
        self.graph = graph
        self._dtypes: dict[Value, str | None] = {}
        self._shapes: dict[Value, Shape | None] = {}
        self._inputs: dict[int, list[Value | None]] = {}

    def type(self, op: int) -> str:
        return self.graph.types[op]

    def name(self, op: int) -> str:
        """For texts: ``Add_3 (Add)``."""
        name, kind = self.graph.names[op], self.graph.types[op]
        return name if name.rpartition("_")[0] == kind or name == kind else f"{name} ({kind})"

    def node(self, op: int) -> Node:
        return self.graph.node(op)

    def inputs(self, op: int) -> list[Value | None]:
        """By port; None for one that is not fed, or from outside the graph."""
        known = self._inputs.get(op)
        if known is not None:
            return known
        found: list[Value | None] = []
        for text in self.graph.inputs[op]:
            name, index = split_input(text)
            if index is None or index >= 0:
                place = self.graph.places.get(name, -1)
                found.append(None if index is None or place < 0 else (place, index))
        self._inputs[op] = found
        return found

    def input(self, op: int, port: int) -> Value | None:
        found = self.inputs(op)
        return found[port] if port < len(found) else None

    def readers(self, value: Value) -> list[int]:
        """Ops that read it, each once, in file order."""
        return self._readers.get(value, [])

    @cached_property
    def _readers(self) -> dict[Value, list[int]]:
        found: dict[Value, list[int]] = {}
        for op in range(len(self.graph)):
            for item in dict.fromkeys(self.inputs(op)):
                if item is not None:
                    found.setdefault(item, []).append(op)
        return found

    # -- what a value is ------------------------------------------------------------------------------------------

    def dtype(self, value: Value | None, deep: int = 0) -> str | None:
        """As the dump says, or as it follows from what a pointwise op reads; None: unknown."""
        if value is None or deep > _DEEP:
            return None
        if value not in self._dtypes:
            self._dtypes[value] = None  # a damaged dump may have a cycle
            self._dtypes[value] = self._dtype(value, deep + 1)
        return self._dtypes[value]

    def _dtype(self, value: Value, deep: int) -> str | None:
        op, index = value
        outputs = self.node(op).outputs
        if index < len(outputs) and outputs[index].dtype_trusted:
            return outputs[index].dtype
        kind = self.type(op)
        if kind == "Const":
            held = self.node(op).attrs.get("value")
            return held.dtype if isinstance(held, TensorValue) else None
        if kind in CASTS:
            wanted = self.node(op).attrs.get("dst_type")
            if isinstance(wanted, DTypeValue):
                return wanted.name
            try:
                return from_ge(wanted) if isinstance(wanted, int) else None
            except GraphError:
                return None
        if kind in POINTWISE or kind in VIEWS:
            known = [dtype for item in self.inputs(op) if (dtype := self.dtype(item, deep))]
            return known[0] if known else None
        return None

    def shape(self, value: Value | None, deep: int = 0) -> Shape | None:
        """As the dump says, or as it follows; None: unknown. A size of -1 is not known, either."""
        if value is None or deep > _DEEP:
            return None
        if value not in self._shapes:
            self._shapes[value] = None
            self._shapes[value] = self._shape(value, deep + 1)
        return self._shapes[value]

    def _shape(self, value: Value, deep: int) -> Shape | None:
        op, index = value
        outputs = self.node(op).outputs
        if index < len(outputs) and outputs[index].layout.startswith(("FRACTAL", "NC1HWC0")):
            return None  # as it is stored
        if index < len(outputs) and outputs[index].shape is not None:
            return outputs[index].shape
        kind = self.type(op)
        if kind == "Const":
            held = self.node(op).attrs.get("value")
            return held.shape if isinstance(held, TensorValue) else None
        if kind in CASTS or kind in ("Muls", "Adds", "Identity", "Neg", "Square", "Sqrt", "Rsqrt"):
            return self.shape(self.input(op, 0), deep)
        return self._broadcast(op, deep) if kind in ("Add", "AddV2", "Sub", "Mul", "RealDiv", "Div") else None

    def _broadcast(self, op: int, deep: int) -> Shape | None:
        """Of what an op of two operands gives."""
        shapes = [self.shape(item, deep) for item in self.inputs(op)[:2]]
        if len(shapes) < 2 or any(shape is None for shape in shapes):
            return None
        a, b = sorted((shape or () for shape in shapes), key=len)
        a = (1,) * (len(b) - len(a)) + a
        return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))

    def numbers(self, value: Value | None) -> tuple[float, ...] | None:
        """What a constant holds; None for anything else."""
        if value is None:
            return None
        op, _ = self.past_views(value, casts=True)
        held = self.node(op).attrs.get("value") if self.type(op) in ("Const", "Constant") else None
        if not isinstance(held, TensorValue):
            return None
        if held.dtype == "bfloat16":
            data = b"".join(b"\0\0" + held.data[i : i + 2] for i in range(0, len(held.data) - 1, 2))
            return tuple(x for (x,) in struct.iter_unpack("<f", data))
        code = _NUMBERS.get(held.dtype)
        if code is None or len(held.data) % struct.calcsize(code):
            return None
        return tuple(x for (x,) in struct.iter_unpack(f"<{code}", held.data))

    def number(self, value: Value | None) -> float | None:
        """What a constant of one element holds."""
        found = self.numbers(value)
        return found[0] if found and len(found) == 1 else None

    def is_scalar(self, value: Value | None) -> bool:
        return self.number(value) is not None

    # -- past what changes nothing --------------------------------------------------------------------------------

    def shows(self, op: int) -> Value | None:
        """What an op only shows: the same elements, in the same order and dtype."""
        kind = self.type(op)
        source = self.input(op, 0)
        if source is None:
            return None
        if kind in VIEWS:
            return source
        if kind in CASTS:
            dtype = self.dtype(source)
            return source if dtype is not None and dtype == self.dtype((op, 0)) else None
        return None

    def shown(self, value: Value) -> list[Value]:
        """A value and what it shows, one view after the other."""
        found = [value]
        while (source := self.shows(found[-1][0])) is not None and source not in found:
            found.append(source)
        return found

    def past_views(self, value: Value, *, casts: bool = False) -> Value:
        """Where its elements come from. casts: whatever their dtype was."""
        seen = {value}
        while True:
            source = self.input(value[0], 0) if casts and self.type(value[0]) in CASTS else self.shows(value[0])
            if source is None or source in seen:
                return value
            seen.add(source)
            value = source

    def widened(self, value: Value | None) -> Value | None:
        """x of a float32 value that is x converted, or of a float32 value itself."""
        if value is None:
            return None
        value = self.past_views(value)
        op, _ = value
        if self.dtype(value) != "float32" and (self.graph.is_stated or self.dtype(value) is not None):
            return None
        source = self.input(op, 0) if self.type(op) in CASTS else None
        return value if source is None else self.past_views(source)

    def all_readers(self, value: Value) -> Iterator[int]:
        """Readers of a value and of what only shows it."""
        pending, seen = [value], {value}
        while pending:
            current = pending.pop(0)
            for reader in self.readers(current):
                yield reader
                if self.shows(reader) == current and (reader, 0) not in seen:
                    seen.add((reader, 0))
                    pending.append((reader, 0))
