"""Sites of MatmulAllReduceAddRmsNorm in a GE graph: back from an all-reduce to the matmul, on to the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from npu_fused_graph.inspector.catalogue import SOURCES
from npu_fused_graph.inspector.counting import groups_at
from npu_fused_graph.inspector.missed.norms import ADDING, Norm, Norms, is_vector_of, norms_of
from npu_fused_graph.inspector.missed.wiring import (
    CASTS,
    HALF,
    MATMULS,
    QUANTISED_MATMULS,
    Miss,
    Missed,
    Unread,
    Value,
    Wiring,
)

STEM = "matmul_all_reduce_add_rms_norm"
CANDIDATES = ("HcomAllReduce", "HcomReduceScatter", "MatmulAllReduce")

ADDS = ("Add", "AddV2", "Adds", "Axpy", "AxpyV2", *ADDING)
_MULTIPLIERS = ("Mul", "Muls", "RealDiv", "Div", "DivNoNan")
_DROPOUTS = ("DropOutDoMask", "DropOutDoMaskV3", "DropOutV3", "StatelessDropOut")
_END = "NetOutput"
CALLS = ("PartitionedCall", "StatefulPartitionedCall")
"""Types that run another graph of the dump."""
_FAR = 32
"""Ops that are looked at on a path; a damaged dump may have a ring of them."""


@dataclass(frozen=True, slots=True)
class Product:
    """A matmul with a matrix of weights. op: the one whose output is the result. matmul: the one that multiplies."""

    op: int
    matmul: int
    x: Value | None
    weight: Value | None
    bias: Value | None
    is_quantised: bool


@dataclass(frozen=True, slots=True)
class Reduce:
    """op: the collective. source: what it sums. result: what later ops read, as the collective gives it."""

    op: int
    source: Value
    result: Value
    group: str
    inner: frozenset[int]
    product: Product | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """before: ops from the matmul to the collective. reduced: what the residual is added to. bias: a vector added
    after the collective. add: the residual add, or the op that adds and normalises."""

    reduce: Reduce
    product: Product
    before: frozenset[int]
    reduced: Value
    bias: Value | None
    add: int
    residual: Value
    norm: Norm

    @property
    def numerics(self) -> str:
        return self.norm.numerics if self.bias is None else "any"

    @property
    def ops(self) -> frozenset[int]:
        return self.before | self.reduce.inner | {self.add, self.product.op} | self.norm.inner


class Matcher:
    """Of one graph. is_part: another one runs it."""

    def __init__(self, wiring: Wiring, *, is_part: bool = False) -> None:
        self.wiring = wiring
        self.is_part = is_part
        self.norms: Norms = norms_of(wiring)

    def match(self, op: int) -> Site:
        """The site of a candidate. Raises Missed."""
        reduce = self._reduce(op)
        product, before = self._product(reduce)
        reduced, add, bias = self._residual_add(reduce)
        residual = self._residual(add, reduced)
        norm = self._norm(add)
        if norm is None:
            self._refuse_missing_norm(add, residual, reduced)
        if norm.miss is not None:
            raise Missed(norm.miss)
        return Site(reduce, product, before, reduced, bias, add, residual, norm)

    # -- the collective -------------------------------------------------------------------------------------------

    def _reduce(self, op: int) -> Reduce:
        wiring = self.wiring
        group = groups_at(wiring.graph, op)[0]
        if wiring.type(op) == "MatmulAllReduce":
            x, weight, bias, third, *scales = (*wiring.inputs(op), None, None, None, None)
            if third is not None:
                _refuse("quantisation", op, f"{wiring.name(op)} has x3, which the fused op has not")
            product = Product(op, op, x, weight, bias, any(item is not None for item in scales))
            return Reduce(op, (op, 0), (op, 0), group, frozenset({op}), product)
        source = wiring.input(op, 0)
        if source is None:
            _refuse("no_matmul", op, "what is reduced comes from outside the graph")
        if len(wiring.inputs(op)) > 1:
            _refuse("coalesced", op, "the collective reduces several tensors")
        if wiring.type(op) == "HcomAllReduce":
            return Reduce(op, source, (op, 0), group, frozenset({op}))
        return self._scattered(op, source, group)

    def _scattered(self, op: int, source: Value, group: str) -> Reduce:
        """A reduce-scatter whose parts the same ranks gather at once, both along dim 0."""
        wiring = self.wiring
        gather = self._only_reader((op, 0))
        is_moved = self._moves_parts(source[0])
        if gather is None or wiring.type(gather) != "HcomAllGather":
            along = " along another dim than the first" if is_moved else ""
            _refuse("sequence_parallel", op, f"the sum is scattered{along} over group {group!r} and stays so")
        other = groups_at(wiring.graph, gather)[0]
        if other != group:
            _refuse("sequence_parallel", op, f"scattered over group {group!r}, gathered over {other!r}")
        parts = self._only_reader((gather, 0))
        if is_moved or (parts is not None and wiring.type(parts) in ("SplitV", "SplitVD", "Split", "SplitD")):
            _refuse("scatter_dim", op, "parts of it are moved around before it is scattered or after it is gathered")
        return Reduce(op, source, (gather, 0), group, frozenset({op, gather}))

    def _only_reader(self, value: Value) -> int | None:
        """The one op that reads it, past views."""
        for _ in range(_FAR):
            readers = self.wiring.readers(value)
            if len(readers) != 1:
                return None
            if self.wiring.shows(readers[0]) != value:
                return readers[0]
            value = (readers[0], 0)
        return None

    def _moves_parts(self, op: int) -> bool:
        wiring = self.wiring
        op = wiring.past_views((op, 0))[0]
        if not wiring.type(op).startswith("Concat"):
            return False
        return any(x is not None and wiring.type(x[0]).startswith("Split") for x in wiring.inputs(op))

    # -- back to the matmul ---------------------------------------------------------------------------------------

    def _product(self, reduce: Reduce) -> tuple[Product, frozenset[int]]:
        if reduce.product is not None:
            return reduce.product, frozenset()
        before = [op for op, _ in self.wiring.shown(reduce.source)]
        product = self._matmul(before[-1])
        if product is None:
            self._refuse_no_matmul(before[-1])
        return product, frozenset(before)

    def _matmul(self, op: int) -> Product | None:
        wiring = self.wiring
        kind, inputs = wiring.type(op), (*wiring.inputs(op), None, None, None)
        if kind in QUANTISED_MATMULS:
            return Product(op, op, inputs[0], inputs[1], None, True)
        if kind in MATMULS:
            x, weight, bias = inputs[:3]
            shape = wiring.shape(weight)
            if kind.startswith("Batch") and shape is not None and any(size != 1 for size in shape[:-2]):
                return None
            self._refuse_scaled(op, x)
            return Product(op, op, x, weight, bias, False)
        return self._addmm(op) if kind in ("Add", "AddV2") else None

    def _addmm(self, op: int) -> Product | None:
        """TorchAir lowers addmm with a bias that is no vector to a matmul, a product with alpha, and an add."""
        wiring = self.wiring
        if ".addmm." not in self._fx(op):
            return None
        for value, other in (wiring.inputs(op), wiring.inputs(op)[::-1]):
            if value is None:
                continue
            scaled, number = value[0], 1.0
            if wiring.type(scaled) in ("Mul", "Muls"):
                held = wiring.node(scaled).attrs.get("value")
                found = held if isinstance(held, (int, float)) else wiring.number(wiring.input(scaled, 1))
                source = wiring.input(scaled, 0)
                number = 0.0 if found is None else float(found)
                scaled = scaled if source is None else source[0]
            if wiring.type(scaled) in MATMULS:
                if number != 1:
                    _refuse("scaled_matmul", op, f"{wiring.name(op)} is addmm with a factor of {number:g}")
                x, weight = wiring.inputs(scaled)[:2]
                return Product(op, scaled, x, weight, other, False)
        return None

    def _refuse_scaled(self, op: int, x: Value | None) -> None:
        """TorchAir multiplies x by addmm's alpha."""
        wiring = self.wiring
        if x is None or ".addmm." not in self._fx(op) or wiring.type(x[0]) != "Mul" or self._fx(x[0]):
            return
        number = wiring.number(wiring.input(x[0], 1))
        if number not in (None, 1):
            _refuse("scaled_matmul", op, f"{wiring.name(op)} is addmm with alpha={number:g}")

    def _fx(self, op: int) -> str:
        return next((desc.fx_name for desc in self.wiring.node(op).outputs if desc.fx_name), "")

    def _refuse_no_matmul(self, op: int) -> NoReturn:
        wiring = self.wiring
        kind, name = wiring.type(op), wiring.name(op)
        if kind in CALLS or (kind == "Data" and "_parent_node_index" in wiring.node(op).attrs):
            raise Unread("no_matmul")  # it comes from another graph
        if kind in _DROPOUTS:
            _refuse("training_dropout", op, f"a dropout stands between the matmul and the collective: {name}")
        if kind in SOURCES:
            _refuse("no_matmul", op, f"what is reduced is {name}, which the graph is given")
        _refuse("no_matmul", op, f"what is reduced comes from {name}, not from a plain matmul")

    # -- on to the norm -------------------------------------------------------------------------------------------

    def _norm(self, add: int) -> Norm | None:
        found = self.norms.by_adder.get(add)
        return found or self.norms.by_source.get(self.wiring.past_views((add, 0)))

    def _residual_add(self, reduce: Reduce) -> tuple[Value, int, Value | None]:
        """(what the residual is added to, the add, a bias added in between)."""
        wiring, value, bias = self.wiring, reduce.result, None
        for _ in range(_FAR):
            norm = self.norms.by_source.get(wiring.past_views(value))
            if norm is not None and bias is not None:
                _refuse("no_residual_add", value[0], "only a vector is added to the reduced result before the norm")
            if norm is not None:
                name = wiring.name(norm.anchor)
                _refuse("norm_before_add", norm.anchor, f"the reduced result is normalised first: {name}")
            readers = [reader for reader in wiring.readers(value) if wiring.type(reader) != "Shape"]
            if len(readers) != 1:
                what = ", ".join(map(self._reader, readers[:3]))
                text = f"it is read by {what}" if readers else "nothing reads it"
                at = readers[-1] if readers else value[0]
                _refuse("result_used_elsewhere", at, f"the reduced result goes not to one add alone: {text}")
            reader = readers[0]
            if wiring.shows(reader) == value or self._widens(reader):
                value = (reader, 0)
            elif bias is None and (vector := self._added_vector(reader, value)) is not None:
                bias, value = vector, (reader, 0)
            elif wiring.type(reader) in ADDS:
                return value, reader, bias
            elif wiring.type(reader) in CALLS or self._leaves(reader):
                raise Unread("no_residual_add")
            else:
                self._refuse_no_add(reader)
        _refuse("no_residual_add", value[0], "too much stands between the collective and an add")

    def _leaves(self, op: int) -> bool:
        """Whether it hands on to the graph that runs this one."""
        return self.wiring.type(op) == _END and self.is_part

    def _widens(self, op: int) -> bool:
        return self.wiring.type(op) in CASTS and self.wiring.dtype((op, 0)) == "float32"

    def _reader(self, op: int) -> str:
        if self.wiring.type(op) == _END:
            return "the caller: it is a result of the graph"
        return self.wiring.name(op)

    def _refuse_no_add(self, op: int) -> NoReturn:
        wiring, kind = self.wiring, self.wiring.type(op)
        if kind in _MULTIPLIERS:
            _refuse("scaled_before_add", op, f"the reduced result is multiplied before the add: {wiring.name(op)}")
        if kind in _DROPOUTS:
            _refuse("training_dropout", op, f"a dropout stands before the add: {wiring.name(op)}")
        if kind == _END:
            cure = "Nothing to fuse here, or compile what adds the residual together with it."
            _refuse("no_residual_add", op, "the reduced result is a result of the graph", cure)
        _refuse("no_residual_add", op, f"the reduced result goes to {wiring.name(op)}")

    def _added_vector(self, op: int, reduced: Value) -> Value | None:
        """The bias of reduced + bias, where bias is a vector of the last dim and reduced has several rows."""
        wiring = self.wiring
        if wiring.type(op) not in ("Add", "AddV2"):
            return None
        other = self._other(op, reduced)
        shape, full = wiring.shape(other), wiring.shape(reduced)
        if other is None or shape is None or not full or all(x == 1 for x in full[:-1]):
            return None
        return other if is_vector_of(shape, full[-1]) else None

    def _other(self, op: int, value: Value) -> Value | None:
        """The other operand of an add."""
        a, b = (*self.wiring.inputs(op), None, None)[:2]
        return b if a == value else a

    def _residual(self, add: int, reduced: Value) -> Value:
        wiring = self.wiring
        if wiring.type(add) == "Adds":
            _refuse("residual_is_a_number", add, f"{wiring.name(add)} adds a number")
        residual = self._other(add, reduced)
        if residual is None:
            _refuse("no_residual_add", add, f"what {wiring.name(add)} adds comes from outside the graph")
        if wiring.is_scalar(residual):
            _refuse("residual_is_a_number", add, f"{wiring.name(add)} adds a number")
        if residual == reduced:
            _refuse("residual_is_the_result", add, f"{wiring.name(add)} adds the reduced result to itself")
        return residual

    def is_reduced(self, value: Value) -> bool:
        """Whether it shows a reduced result that has one reader."""
        wiring = self.wiring
        for _ in range(_FAR):
            if len(wiring.readers(value)) != 1:
                break
            shown = wiring.shows(value[0])
            if wiring.type(value[0]) == "HcomAllGather":
                shown = wiring.input(value[0], 0)
            if shown is None:
                return wiring.type(value[0]) in CANDIDATES
            value = shown
        return False

    def _refuse_missing_norm(self, add: int, residual: Value, reduced: Value) -> NoReturn:
        wiring = self.wiring
        narrow = wiring.widened(reduced) or reduced
        dtype, total = wiring.dtype(narrow), wiring.dtype((add, 0))
        if dtype is not None and dtype not in HALF:
            _refuse("dtype", reduced[0], f"the reduced result is {dtype}")
        if None not in (dtype, total) and total != dtype:
            _refuse("mixed_dtypes", add, f"the sum is {total}, the reduced result {dtype}")
        if self.is_reduced(residual):
            _refuse("sum_of_reduces", add, f"{wiring.name(add)} adds two reduced results")
        reader = self._only_reader((add, 0))
        if reader is not None and wiring.type(reader) in ("Add", "AddV2"):
            others = [x for x in wiring.inputs(reader) if x is not None and wiring.past_views(x) != (add, 0)]
            if any(map(self.is_reduced, others)):
                _refuse("sum_of_reduces", reader, f"{wiring.name(reader)} adds another reduced result")
        is_outside = any(wiring.type(r) in CALLS or self._leaves(r) for r in wiring.all_readers((add, 0)))
        if is_outside or not wiring.graph.is_stated:
            raise Unread("no_rms_norm")  # it is in another graph, or written with constants that are not said
        missed = self.norms.missed.get((add, 0))
        if missed is not None:
            raise Missed(missed)
        _refuse("no_rms_norm", add, f"no RMSNorm reads the sum {wiring.name(add)}")


def _refuse(reason: str, op: int, text: str, cure: str = "") -> NoReturn:
    raise Missed(Miss(reason, op, text, cure))
