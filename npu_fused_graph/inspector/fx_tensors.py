"""What FX writes of a value: ``f16[4, s0]``."""

from __future__ import annotations

import re

from npu_fused_graph.ir.graph import TensorDesc

DTYPES = {
    "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "b8": "bool", "u8": "uint8",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64", "u16": "uint16", "u32": "uint32", "u64": "uint64",
    "c32": "complex32", "c64": "complex64", "c128": "complex128", "f8e5m2": "float8_e5m2",
    "f8e4m3fn": "float8_e4m3fn", "f8e8m0fnu": "float8_e8m0fnu",
}  # fmt: skip
"""FX's short names."""

_TENSOR = re.compile(r"^(?:\w+\()?(\w+)\[([^\]]*)\](?:\[([^\]]*)\])?(?:(\w+)(?::\d+)?)?")
_SYMBOL = re.compile(r"^Sym\((.*)\)$")


def described(annotation: str | None) -> TensorDesc:
    """``f16[4, s0]``, with strides and a device behind it or not; ``Sym(s0)`` for a number that is not known yet."""
    text = annotation or ""
    if symbol := _SYMBOL.match(text):
        return TensorDesc("", shape=(), shape_source="stated", attrs={"symbol": symbol[1]})
    found = _TENSOR.match(text)
    if found is None:
        return TensorDesc("")
    desc = TensorDesc("", DTYPES.get(found[1], found[1]), _sizes(found[2]), True, shape_source="stated")
    desc.device = (found[4] or "").upper()
    if found[3] is not None:
        desc.attrs["stride"] = list(_sizes(found[3]))
    return desc


def _sizes(text: str) -> tuple[int, ...]:
    """-1 for one with a name."""
    return tuple(int(part) if part.isdecimal() else -1 for part in split(text))


def split(text: str) -> list[str]:
    """At the commas that are in no bracket."""
    parts, depth, begin = [], 0, 0
    for place, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append(text[begin:place].strip())
            begin = place + 1
    return [part for part in (*parts, text[begin:].strip()) if part]
