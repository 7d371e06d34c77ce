"""The package's rules on attention, as far as a dump can answer them: one function each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from npu_fused_graph.inspector.missed import table
from npu_fused_graph.inspector.missed.attention import FAR, STEM, Site
from npu_fused_graph.inspector.missed.row_rules import UNKNOWN, Answer
from npu_fused_graph.inspector.missed.wiring import CASTS, HALF, Miss, Shape, Value, Wiring, is_equal

_MOVES = ("Transpose", "TransposeD", "BroadcastTo", "Tile", "Expand", "ExpandDims", "RepeatInterleave")
"""Types that only move or repeat what they read."""


@dataclass(slots=True)
class Context:
    """min_rows: the setting of get_npu_backend."""

    wiring: Wiring
    min_rows: int | None = None

    def query(self, site: Site) -> Shape | None:
        return self.wiring.shape(site.query)

    def key(self, site: Site) -> Shape | None:
        """(.., Skv, D)."""
        shape = self.wiring.shape(site.key)
        return None if shape is None else (*shape[:-2], shape[-1], shape[-2]) if site.is_key_turned else shape

    def value(self, site: Site) -> Shape | None:
        return self.wiring.shape(site.value)

    def dtype(self, site: Site, value: Value) -> str | None:
        """Of query, key or value; where torch's function was lowered in float32, of what it was given."""
        wiring = self.wiring
        if not site.is_guarded:
            return wiring.dtype(value)
        for _ in range(FAR):
            op = value[0]
            source = wiring.input(op, 0)
            is_scale = wiring.type(op) in ("Mul", "Muls") and wiring.dtype(value) in ("float32", None)
            if source is None or not (wiring.shows(op) or wiring.type(op) in (*CASTS, *_MOVES) or is_scale):
                return wiring.dtype(value)
            value = source
        return None

    def is_widened(self, site: Site) -> bool:
        """Whether query is converted before it is multiplied: by torch's function, or by the model."""
        return site.is_guarded and self.wiring.dtype(site.query) not in (self.dtype(site, site.query), None)


def _sizes_known(site: Site, context: Context) -> Answer:
    shapes = [context.query(site), context.key(site), context.value(site)]
    if any(shape is None for shape in shapes):
        return UNKNOWN
    if all(min(shape, default=0) >= 0 for shape in shapes if shape is not None):
        return None
    return Miss("dynamic_shape", site.anchor, "a size of query, key or value is symbolic")


def _lengths(site: Site, context: Context) -> Answer:
    query, key = context.query(site), context.key(site)
    if query is None or key is None:
        return UNKNOWN
    if min(query[-2], key[-2]) < 0:
        return UNKNOWN
    if query[-2] == key[-2]:
        return None
    return Miss("unequal_lengths", site.anchor, f"{query[-2]} queries look at {key[-2]} keys")


def _shapes(site: Site, context: Context) -> Answer:
    query, key, value = context.query(site), context.key(site), context.value(site)
    if query is None or key is None or value is None:
        return UNKNOWN
    for name, shape in (("key", key), ("value", value)):
        if is_equal(shape, query) is False:
            text = f"{name} has the shape {list(shape)} beside {list(query)} of query"
            return Miss("attention_shape", site.anchor, text)
    return None


def _half(site: Site, context: Context) -> Answer:
    dtype = context.dtype(site, site.query)
    if dtype is None:
        return UNKNOWN
    if dtype in HALF:
        return UNKNOWN if context.is_widened(site) else None
    return Miss("dtype", site.anchor, f"query has the dtype {dtype}")


def _dtypes(site: Site, context: Context) -> Answer:
    wanted = context.dtype(site, site.query)
    others = [context.dtype(site, x) for x in (site.key, site.value)]
    if not site.is_guarded:
        others.append(context.wiring.dtype((site.last, 0)))
    if wanted is None:
        return UNKNOWN
    for dtype in others:
        if dtype not in (None, wanted):
            return Miss("mixed_dtypes", site.anchor, f"{wanted} and {dtype} meet")
    return UNKNOWN if None in others else None


def _head_dim(site: Site, context: Context) -> Answer:
    shape = context.query(site)
    if shape is None:
        return UNKNOWN
    d = shape[-1]
    return None if 0 < d <= 128 and d % 16 == 0 else Miss("head_dim", site.anchor, f"head_dim is {d}")


def _length(site: Site, context: Context) -> Answer:
    shape = context.query(site)
    if shape is None:
        return UNKNOWN
    s = shape[-2]
    return None if s > 0 and s % 256 == 0 else Miss("sequence_length", site.anchor, f"the sequence has {s} tokens")


def _no_dropout(site: Site, context: Context) -> Answer:
    if site.dropout is None:
        return None
    return Miss("attention_dropout", site.dropout, f"weights are dropped by {context.wiring.name(site.dropout)}")


def _private(site: Site, context: Context) -> Answer:
    wiring = context.wiring
    known = {*site.inner, site.last, site.anchor}
    guards = ("Equal", "ZerosLike") if site.is_guarded else ()
    for op in site.inner:
        for reader in wiring.readers((op, 0)):
            kind = wiring.type(reader)
            is_own = kind == "Shape" or kind in guards
            is_own = is_own or (site.is_guarded and kind.startswith(("ReduceMax", "ReduceSum", "Sub")))
            if reader not in known and not is_own:
                text = f"the scores {wiring.name(op)} are also read by {wiring.name(reader)}"
                return Miss("attention_weights_used", reader, text)
    return None


def _bias_dtype(site: Site, context: Context) -> Answer:
    wanted = context.dtype(site, site.query)
    for value in site.biases:
        dtype = context.dtype(site, value)
        if None in (dtype, wanted):
            return UNKNOWN
        if dtype != wanted:
            return Miss("bias_dtype", site.anchor, f"{context.wiring.name(value[0])} is {dtype}, query {wanted}")
    return None


def _finite(site: Site, context: Context) -> Answer:
    return None if site.has_finite_scale else Miss("score_function", site.anchor, "the scale is not finite")


def _enough(site: Site, context: Context) -> Answer:
    shape = context.query(site)
    if shape is None or min(shape) < 0:
        return UNKNOWN
    least = table.least(STEM)["rows"] if context.min_rows is None else context.min_rows
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return (
        None if rows >= least else Miss("few_scores", site.anchor, f"{rows} queries over all heads, less than {least}")
    )


CHECKS: Mapping[str, Callable[[Site, Context], Answer]] = {
    "dynamic_shape": _sizes_known,
    "unequal_lengths": _lengths,
    "attention_shape": _shapes,
    "dtype": _half,
    "mixed_dtypes": _dtypes,
    "head_dim": _head_dim,
    "sequence_length": _length,
    "attention_dropout": _no_dropout,
    "attention_weights_used": _private,
    "bias_dtype": _bias_dtype,
    "score_function": _finite,
    "few_scores": _enough,
}
"""Reason of a rule -> its check. Of the other reasons no dump tells."""
