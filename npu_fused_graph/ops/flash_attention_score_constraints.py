"""What attention and its gradient demand of their arguments."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from npu_fused_graph.errors import argument_error
from npu_fused_graph.spec import CallFacts, Constraint, OpSpec, TensorFacts

LAYOUTS = {"BNSD": 4, "BSH": 3, "SBH": 3}
"""Number of axes by layout."""

_HALF = ("float16", "bfloat16")
_MASKS = ("bool", "uint8", *_HALF, "float32")
_LIKE_QUERY = ("key", "value", "dy", "attention_out")


class Sizes(NamedTuple):
    """b: batch. n: heads. s: sequence. d: head_dim."""

    b: Any
    n: Any
    s: Any
    d: Any


def sizes_of(shape: tuple[Any, ...], io_layout: str, head_num: int) -> Sizes:
    """Of a query. head_num divides H."""
    if io_layout == "BNSD":
        return Sizes(*shape)
    b, s = shape[:2] if io_layout == "BSH" else (shape[1], shape[0])
    return Sizes(b, head_num, s, shape[2] // head_num)


def _query(call: CallFacts) -> TensorFacts:
    facts = call.tensors["query"]
    assert facts is not None
    return facts


def _sizes(call: CallFacts) -> Sizes:
    return sizes_of(_query(call).shape, call.attrs["io_layout"], call.attrs["head_num"])


def _j1_query_dtype(spec: OpSpec, call: CallFacts) -> None:
    """query is float16 or bfloat16."""
    dtype = _query(call).dtype
    if dtype not in _HALF:
        raise argument_error(spec.stem, "query", "dtype float16 or bfloat16", dtype, "Convert query, key and value.")


def _j2_one_dtype(spec: OpSpec, call: CallFacts) -> None:
    """key, value, and in the gradient dy and attention_out, have query's dtype."""
    dtype = _query(call).dtype
    for name in _LIKE_QUERY:
        facts = call.tensors.get(name)
        if facts is not None and facts.dtype != dtype:
            raise argument_error(spec.stem, name, f"dtype {dtype}, as query has", facts.dtype, "Use one dtype.")


def _j3_layout(spec: OpSpec, call: CallFacts) -> None:
    """io_layout is BNSD, BSH or SBH."""
    layout = call.attrs["io_layout"]
    if layout not in LAYOUTS:
        cure = "The call with 14 arguments says 0, 1 or 2 for them."
        raise argument_error(spec.stem, "io_layout", f"one of {', '.join(LAYOUTS)}", repr(layout), cure)


def _j4_axes(spec: OpSpec, call: CallFacts) -> None:
    """query has the layout's axes: 4 for BNSD, 3 for BSH and SBH."""
    layout = call.attrs["io_layout"]
    if len(_query(call).shape) != LAYOUTS[layout]:
        raise argument_error(
            spec.stem, "query", f"{LAYOUTS[layout]} axes for io_layout {layout}", f"{len(_query(call).shape)}",
            "Reshape it, or name the layout it has.",
        )  # fmt: skip


def _j5_heads(spec: OpSpec, call: CallFacts) -> None:
    """head_num is positive; it is the N axis of BNSD and divides H of BSH and SBH."""
    layout, heads, shape = call.attrs["io_layout"], call.attrs["head_num"], _query(call).shape
    if heads < 1:
        raise argument_error(spec.stem, "head_num", "a positive number", heads, "Pass the number of heads.")
    if layout == "BNSD" and shape[1] != heads:
        raise argument_error(spec.stem, "head_num", f"{shape[1]}, the N axis of query", heads, "Make them agree.")
    if layout != "BNSD" and shape[2] % heads:
        raise argument_error(spec.stem, "head_num", f"a divisor of H = {shape[2]}", heads, "H is heads times head_dim.")


def _j6_one_shape(spec: OpSpec, call: CallFacts) -> None:
    """key, value, and in the gradient dy and attention_out, have query's shape."""
    shape = _query(call).shape
    for name in _LIKE_QUERY:
        facts = call.tensors.get(name)
        if facts is not None and facts.shape != shape:
            raise argument_error(
                spec.stem, name, f"shape {list(shape)}, as query has", f"shape {list(facts.shape)}",
                "Repeat the heads of key and value that several query heads share.",
            )  # fmt: skip


def _j7_head_dim(spec: OpSpec, call: CallFacts) -> None:
    """head_dim is a multiple of 16 of at most 128."""
    d = _sizes(call).d
    if d < 1 or d > 128 or d % 16:
        raise argument_error(spec.stem, "query", "a head_dim of 16, 32, ... or 128", d, "Pad it, with head_num right.")


def _j8_sequence(spec: OpSpec, call: CallFacts) -> None:
    """The sequence length is a positive multiple of 256."""
    s = _sizes(call).s
    if s < 1 or s % 256:
        cure = "Pad the sequence, and hide the keys that were added with atten_mask."
        raise argument_error(spec.stem, "query", "a sequence length that is a positive multiple of 256", s, cure)


def _j9_mask(spec: OpSpec, call: CallFacts) -> None:
    """atten_mask is (S, S), (1, 1, S, S), (B, 1, S, S) or (B, N, S, S) of bool, uint8 or a floating dtype."""
    mask, (b, n, s, _) = call.tensors["atten_mask"], _sizes(call)
    if mask is None:
        return
    if mask.shape not in ((s, s), (1, 1, s, s), (b, 1, s, s), (b, n, s, s)):
        expected = f"shape [{s}, {s}], or [{b} or 1, {n} or 1, {s}, {s}] with as many batches as heads ask for"
        raise argument_error(spec.stem, "atten_mask", expected, f"shape {list(mask.shape)}", "Reshape it.")
    if mask.dtype not in _MASKS:
        raise argument_error(
            spec.stem, "atten_mask", f"dtype {', '.join(_MASKS[:-1])} or {_MASKS[-1]}", mask.dtype,
            "Compare it with 0: what is not 0 is hidden.",
        )  # fmt: skip


def _j10_alibi(spec: OpSpec, call: CallFacts) -> None:
    """alibi_mask is (B or 1, N or 1, S or 1, S) of query's dtype."""
    alibi, (b, n, s, _) = call.tensors["alibi_mask"], _sizes(call)
    if alibi is None:
        return
    wanted = ((1, b), (1, n), (1, s), (s,))
    fits = len(alibi.shape) == 4 and all(
        any(size == x for x in among) for size, among in zip(alibi.shape, wanted, strict=True)
    )
    if not fits:
        expected = f"shape [{b} or 1, {n} or 1, {s} or 1, {s}]"
        raise argument_error(spec.stem, "alibi_mask", expected, f"shape {list(alibi.shape)}", "Reshape it.")
    if alibi.dtype != _query(call).dtype:
        expected = f"dtype {_query(call).dtype}, as query has"
        raise argument_error(spec.stem, "alibi_mask", expected, alibi.dtype, "Convert it.")


def _j11_keep_prob(spec: OpSpec, call: CallFacts) -> None:
    """keep_prob is greater than 0 and at most 1."""
    keep = call.attrs["keep_prob"]
    if not 0 < keep <= 1:
        raise argument_error(spec.stem, "keep_prob", "a number in (0, 1]", keep, "1 means no dropout.")


def _j12_tokens(spec: OpSpec, call: CallFacts) -> None:
    """pre_tockens and next_tockens are not negative: a query sees itself."""
    for name in ("pre_tockens", "next_tockens"):
        if call.attrs[name] < 0:
            raise argument_error(spec.stem, name, "a number of tokens, not negative", call.attrs[name], "See its text.")


def _j13_dropout(spec: OpSpec, call: CallFacts) -> None:
    """With keep_prob below 1 there is a drop_mask (uint8, a bit per score) or a drop_seed (two int64), else neither."""
    bits, seed = call.tensors["drop_mask"], call.tensors["drop_seed"]
    keep, (b, n, s, _) = call.attrs["keep_prob"], _sizes(call)
    given = [name for name, x in (("drop_mask", bits), ("drop_seed", seed)) if x is not None]
    if len(given) != (keep < 1):
        expected = "one of drop_mask and drop_seed" if keep < 1 else "neither drop_mask nor drop_seed"
        raise argument_error(
            spec.stem, "keep_prob", f"{expected} with {keep}", " and ".join(given) or "none", "Pass what belongs to it."
        )
    if bits is not None and (bits.dtype != "uint8" or len(bits.shape) != 1 or bits.shape[0] * 8 < b * n * s * s):
        raise argument_error(
            spec.stem, "drop_mask", f"uint8 of shape [at least {(b * n * s * s + 7) // 8}], a bit for each score",
            f"{bits.dtype} of shape {list(bits.shape)}", "The lowest bit comes first; 1 keeps.",
        )  # fmt: skip
    if seed is not None and (seed.dtype != "int64" or seed.shape != (2,)):
        got = f"{seed.dtype} of shape {list(seed.shape)}"
        raise argument_error(spec.stem, "drop_seed", "int64 of shape [2]", got, "A seed and an offset.")


def _j14_one_device(spec: OpSpec, call: CallFacts) -> None:
    """All tensors are on one device."""
    device = _query(call).device
    for name, facts in call.tensors.items():
        if facts is not None and facts.device != device:
            raise argument_error(spec.stem, name, f"a tensor on {device}, as query is", facts.device, "Move it.")


def _j15_scale(spec: OpSpec, call: CallFacts) -> None:
    """scale_value is finite."""
    scale = call.attrs["scale_value"]
    if not math.isfinite(scale):
        raise argument_error(spec.stem, "scale_value", "a finite number", scale, "Usually 1 / sqrt(head_dim).")


def _j16_sums(spec: OpSpec, call: CallFacts) -> None:
    """attention_out and softmax_lse, float32 (B, N, S), are what the forward operator returned."""
    lse, (b, n, s, _) = call.tensors["softmax_lse"], _sizes(call)
    assert lse is not None
    if call.tensors["attention_out"] is None:
        raise argument_error(spec.stem, "attention_out", "a tensor", "None", "Pass what the forward operator returned.")
    if lse.dtype != "float32" or lse.shape != (b, n, s):
        got = f"{lse.dtype} of shape {list(lse.shape)}"
        cure = "Pass what the forward operator returned."
        raise argument_error(spec.stem, "softmax_lse", f"float32 of shape [{b}, {n}, {s}]", got, cure)


CONSTRAINTS = (
    Constraint("J1", _j1_query_dtype),
    Constraint("J2", _j2_one_dtype),
    Constraint("J3", _j3_layout),
    Constraint("J4", _j4_axes),
    Constraint("J5", _j5_heads),
    Constraint("J6", _j6_one_shape),
    Constraint("J7", _j7_head_dim),
    Constraint("J8", _j8_sequence),
    Constraint("J9", _j9_mask),
    Constraint("J10", _j10_alibi),
    Constraint("J11", _j11_keep_prob),
    Constraint("J12", _j12_tokens),
    Constraint("J13", _j13_dropout),
    Constraint("J14", _j14_one_device),
    Constraint("J15", _j15_scale),
)
GRADIENT_CONSTRAINTS = (*CONSTRAINTS, Constraint("J16", _j16_sums))
