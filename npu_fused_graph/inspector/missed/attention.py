"""Sites of FlashAttentionScore in a GE graph: a softmax between two products of activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import NoReturn

from npu_fused_graph.inspector.missed.wiring import CASTS, Miss, Missed, Unread, Value, Wiring

STEM = "flash_attention_score"
PRODUCTS = ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
SOFTMAXES = ("SoftmaxV2", "Softmax", "SoftmaxV3")
_SCALES = ("Mul", "Muls", "RealDiv", "Div")
_SUMS = ("Add", "AddV2", "Sub", "Axpy", "AxpyV2")
_SELECTS = ("SelectV2", "Select", "Where")
_FILLS = ("MaskedFill", "MaskedFillV2", "InplaceMaskedFill")
_DROPOUTS = ("DropOutDoMask", "DropOutDoMaskV3", "DropOutV3")
HIDES = -9900.0
"""What is put in the place of a score that is hidden, at most."""
_LEAST = -65504.0
"""What scores are kept above without a change: the least of float16."""
FAR = 32
"""Ops that are looked at on a path."""


@dataclass(slots=True)
class Site:
    """softmax(scale * query key^T + biases, masked) value.

    anchor: the softmax, or the Exp of one that is divided after the second product. weights: the value it gives.
    query: (.., S, D). key: (.., Skv, D), or (.., D, Skv) where is_key_turned. is_guarded: torch's own function, lowered
    in float32. inner: ops between the products.
    """

    anchor: int
    product: int
    last: int
    query: Value
    key: Value
    value: Value
    is_key_turned: bool
    is_guarded: bool
    biases: list[Value] = field(default_factory=list)
    has_mask: bool = False
    has_finite_scale: bool = True
    inner: list[int] = field(default_factory=list)
    dropout: int | None = None


def anchors(wiring: Wiring) -> Iterator[int]:
    """Every softmax between two products, whatever else stands between, in file order."""
    for op in wiring.graph.of_type(*SOFTMAXES, "Exp"):
        if wiring.type(op) == "Exp" and (_largest(wiring, op) is None or not _is_divided_later(wiring, op)):
            continue
        if _leads_from_a_product(wiring, op) and _leads_to_a_product(wiring, op):
            yield op


def read(wiring: Wiring, anchor: int) -> Site:
    """The site of an anchor. Raises Missed."""
    kind = wiring.type(anchor)
    scores = wiring.input(anchor, 0)
    if kind == "Exp":
        scores = wiring.input(_into(wiring, anchor), 0)
    else:
        axes = wiring.node(anchor).attrs.get("axes", [-1])
        axes = [axes] if isinstance(axes, int) else axes
        shape = wiring.shape((anchor, 0))
        last = (-1,) if shape is None else (-1, len(shape) - 1)
        if not isinstance(axes, list) or [axis for axis in axes if axis not in last]:
            raise Missed(Miss("softmax_axis", anchor, f"the softmax runs along axis {axes}"))
    assert scores is not None
    site = _scores(wiring, anchor, scores)
    _weights(wiring, site)
    return site


def _into(wiring: Wiring, exp: int) -> int:
    """The op that subtracts the largest score."""
    found = wiring.input(exp, 0)
    return exp if found is None else wiring.past_views(found)[0]


def _largest(wiring: Wiring, exp: int) -> int | None:
    """The op that finds the largest score of a row, where ``exp`` is the exponent of what is less by it."""
    sub = _into(wiring, exp)
    b = wiring.input(sub, 1) if wiring.type(sub) == "Sub" else None
    if b is None:
        return None
    value = wiring.past_views(b)
    if wiring.type(value[0]) == "Maximum" and (a := wiring.input(value[0], 0)) is not None:
        value = wiring.past_views(a)
    return value[0] if wiring.type(value[0]).startswith("ReduceMax") else None


def _is_divided_later(wiring: Wiring, exp: int) -> bool:
    """Torch's own function divides what the second product gives, a softmax that is written out its weights."""
    pending = [(exp, 0)]
    for value in pending:
        for reader in wiring.readers(value):
            kind = wiring.type(reader)
            if kind in CASTS or wiring.shows(reader) == value:
                pending.append((reader, 0))
            elif kind not in PRODUCTS and not kind.startswith("ReduceSum"):
                return False
        if len(pending) > FAR:
            return False
    return True


def _leads_from_a_product(wiring: Wiring, op: int) -> bool:
    pending, seen = [x for x in wiring.inputs(op) if x is not None], set[int]()
    while pending and len(seen) < FAR:
        found = pending.pop(0)[0]
        if wiring.type(found) in PRODUCTS and _is_of_activations(wiring, found):
            return True
        if found not in seen and not wiring.type(found).endswith(("MatMul", "MatMulV2", "MatMulV3")):
            seen.add(found)
            pending += [x for x in wiring.inputs(found) if x is not None]
    return False


def _leads_to_a_product(wiring: Wiring, op: int) -> bool:
    pending, seen = [op], 0
    while pending and seen < FAR:
        seen += 1
        found = pending.pop(0)
        for reader in wiring.readers((found, 0)):
            first = wiring.input(reader, 0)
            if wiring.type(reader) in PRODUCTS and first == (found, 0):
                return True
            if wiring.type(reader) != "NetOutput":
                pending.append(reader)
    return False


def _is_of_activations(wiring: Wiring, op: int) -> bool:
    shapes = [wiring.shape(x) for x in wiring.inputs(op)[:2]]
    return all(shape is None or len(shape) > 2 for shape in shapes)


# -- back to the first product -----------------------------------------------------------------------------------


def _scores(wiring: Wiring, anchor: int, value: Value) -> Site:
    biases: list[Value] = []
    inner: list[int] = []
    has_mask, is_finite = False, True
    for _ in range(2 * FAR):
        op = value[0]
        kind = wiring.type(op)
        inner.append(op)
        if kind in PRODUCTS:
            query, key = (*wiring.inputs(op), None, None)[:2]
            if query is None or key is None:
                _refuse(wiring, op)
            if any(len(shape) < 3 for x in (query, key) if (shape := wiring.shape(x)) is not None):
                _refuse(wiring, op)
            if wiring.node(op).attrs.get("adj_x1"):
                raise Unread("attention_shape")
            turned = not wiring.node(op).attrs.get("adj_x2", False)
            guarded = _is_guarded(wiring, anchor)
            return Site(anchor, op, anchor, query, key, key, turned, guarded, biases, has_mask, is_finite, inner)
        source = wiring.shows(op) or (wiring.input(op, 0) if kind in CASTS else None)
        if source is None and kind == "Maximum":
            least = wiring.number(wiring.input(op, 1))
            source = wiring.input(op, 0) if least is not None and least <= _LEAST else None
        elif source is None and kind in _SCALES:
            source, number = _unscaled(wiring, op)
            is_finite = is_finite and (number is None or isfinite(number))
        elif source is None and kind in _SUMS:
            source, other = _unbiased(wiring, op)
            if other is not None:
                biases.append(other)
        elif source is None and kind in (*_SELECTS, *_FILLS):
            inputs, has_mask = wiring.inputs(op), True
            places = inputs[:1] if kind in _FILLS else inputs[1:3]
            source = next((x for x in places if x is not None and _has_product(wiring, x)), None)
            others = inputs[2:3] if kind in _FILLS else [x for x in places if x != source]
            if any((number := wiring.number(x)) is not None and number > HIDES for x in others):
                _refuse(wiring, op)
        elif source is None and kind == "Adds":
            source = wiring.input(op, 0)
        if source is None:
            _refuse(wiring, op)
        value = source
    raise Missed(Miss("score_function", anchor, "too much stands between the product and the softmax"))


def _refuse(wiring: Wiring, op: int) -> NoReturn:
    text = f"{wiring.name(op)} stands between the product and the softmax"
    raise Missed(Miss("score_function", op, text))


def _unscaled(wiring: Wiring, op: int) -> tuple[Value | None, float | None]:
    """What is multiplied by a number, and that; of a division what it is like."""
    if wiring.type(op) == "Muls":
        held = wiring.node(op).attrs.get("value")
        return wiring.input(op, 0), float(held) if isinstance(held, (int, float)) else None
    a, b = (*wiring.inputs(op), None, None)[:2]
    if (number := wiring.number(b)) is not None:
        return a, number if wiring.type(op) == "Mul" else 1 / number if number else inf
    if (number := wiring.number(a)) is not None and wiring.type(op) == "Mul":
        return b, number
    for scores, other in ((a, b), (b, a)):
        shape = wiring.shape(other)
        if shape is not None and scores is not None and other is not None and all(x == 1 for x in shape):
            raise Missed(Miss("scale_is_a_tensor", op, f"the scale {wiring.name(other[0])} is a tensor"))
    return None, None


def _unbiased(wiring: Wiring, op: int) -> tuple[Value | None, Value | None]:
    """(scores, what is added to them)."""
    a, b = (*wiring.inputs(op), None, None)[:2]
    if a is not None and _has_product(wiring, a):
        return a, None if wiring.number(b) is not None else b
    if b is not None and _has_product(wiring, b) and wiring.type(op) in ("Add", "AddV2"):
        return b, None if wiring.number(a) is not None else a
    return None, None


def _has_product(wiring: Wiring, value: Value) -> bool:
    """Whether scores come from it: a product lies behind, with nothing but pointwise ops in between."""
    pending, seen = [value], set[int]()
    while pending and len(seen) < FAR:
        op = pending.pop()[0]
        if wiring.type(op) in PRODUCTS:
            return True
        kinds = (*_SCALES, *_SUMS, *_SELECTS, *_FILLS, *CASTS, "Adds", "Maximum")
        if op not in seen and (wiring.type(op) in kinds or wiring.shows(op) is not None):
            seen.add(op)
            pending += [x for x in wiring.inputs(op) if x is not None]
    return False


def _is_guarded(wiring: Wiring, anchor: int) -> bool:
    """torch's function gives zeros for a row whose scores are all -inf, or divides behind the second product."""
    readers = wiring.readers((anchor, 0))
    return wiring.type(anchor) == "Exp" or any(_is_guard(wiring, reader) for reader in readers)


def _is_guard(wiring: Wiring, op: int) -> bool:
    condition = wiring.input(op, 0)
    return wiring.type(op) in _SELECTS and condition is not None and wiring.type(condition[0]).startswith("ReduceAll")


# -- on to the second --------------------------------------------------------------------------------------------


def _weights(wiring: Wiring, site: Site) -> None:
    value: Value = (site.anchor, 0)
    for _ in range(2 * FAR):
        site.inner.append(value[0])
        readers = [r for r in wiring.readers(value) if wiring.type(r) != "Shape"]
        if wiring.type(value[0]) == "Exp":
            readers = [r for r in readers if not wiring.type(r).startswith("ReduceSum")]
        if len(readers) != 1:
            text = f"the weights {wiring.name(value[0])} are read {len(readers)} times"
            at = next((r for r in readers if wiring.type(r) not in PRODUCTS), value[0])
            raise Missed(Miss("attention_weights_used", at, text))
        reader = readers[0]
        kind = wiring.type(reader)
        if kind in PRODUCTS and wiring.input(reader, 0) == value and (second := wiring.input(reader, 1)) is not None:
            if wiring.node(reader).attrs.get("adj_x1") or wiring.node(reader).attrs.get("adj_x2"):
                raise Unread("attention_shape")
            site.last, site.value = reader, second
            return
        if kind in ("Transpose", "TransposeD"):
            raise Unread("attention_weights_used", "attention_shape")
        if kind in _DROPOUTS:
            site.dropout = reader
        elif kind == "NetOutput":
            text = f"the weights {wiring.name(value[0])} are a result of the graph"
            raise Missed(Miss("attention_weights_used", value[0], text))
        elif wiring.shows(reader) != value and kind not in CASTS and not _is_guard(wiring, reader):
            text = f"the weights are changed by {wiring.name(reader)}"
            raise Missed(Miss("attention_weights_used", reader, text))
        value = (reader, 0)
    raise Missed(Miss("attention_weights_used", site.anchor, "too much stands between the softmax and the values"))
