"""What only an Ascend 950 has: operators of GE and element types. Nothing here computes them."""

from __future__ import annotations

from torch import Tensor

from npu_fused_graph.ir.dtypes import DTYPES
from npu_fused_graph.ir.graph import DTypeValue

_MX = "MX formats"
_FP8 = "8-bit floating point"
OPERATORS = {
    "AddRmsNormDynamicMxQuant": _MX,
    "AntiMxQuant": _MX,
    "DynamicBlockMxQuant": _MX,
    "DynamicDualLevelMxQuant": _MX,
    "DynamicMxQuant": _MX,
    "DynamicMxQuantWithDualAxis": _MX,
    "GroupedDynamicBlockQuant": _FP8,
    "GroupedDynamicMxQuant": _MX,
    "QuantBatchMatmulInplaceAdd": _FP8,
    "QuantGroupedMatmulInplaceAdd": _FP8,
    "QuantMax": _FP8,
    "RmsNormDynamicMxQuant": _MX,
    "SwigluMxQuant": _MX,
    "TransposeQuantBatchMatMul": _FP8,
}
"""By GE type, what it is for. From the lists of products in the documents of CANN's operators."""
CURE = "Use a configuration with int8, int4 or 16-bit elements."
_TYPES = ("float8_", "hifloat8", "float4_")
_NUMBERS = {
    23: "float8_e5m2", 24: "float8_e4m3fn", 44: "float8_e8m0fnu", 45: "float4_e2m1fn_x2", 290: "hifloat8",
    291: "float8_e5m2", 292: "float8_e4m3fn", 293: "float8_e8m0fnu", 296: "float4_e2m1fn_x2", 297: "float4_e1m2fn_x2",
}  # fmt: skip
"""torch's and torch_npu's numbers of element types, as operators of torch_npu take them."""


def element_type(value: object) -> str | None:
    """The name of the type of an Ascend 950 that ``value`` has or is: a tensor, a dtype or a dtype's name."""
    name = str(value.dtype if isinstance(value, Tensor) else value).removeprefix("torch.")
    return name if name.startswith(_TYPES) else None


def numbered(value: object) -> str | None:
    """The same for what an operator of torch_npu takes as a dtype."""
    return _NUMBERS.get(value) if isinstance(value, int) else element_type(value)


def attribute(name: str, value: object) -> str | None:
    """The same for an attribute of a GE node."""
    if not name.endswith(("dtype", "dst_type")):
        return None
    if isinstance(value, int):
        return next((element_type(d.name) for d in DTYPES if d.ge == value), None)
    return element_type(value.name if isinstance(value, DTypeValue) else value)
