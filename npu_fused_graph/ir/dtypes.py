"""The two dtype enumerations of GE and the names this package uses for them.

``proto`` numbers stand in ``TensorDescriptor.dtype``; ``ge`` numbers stand in attributes (``dst_type``,
``dtype``, ``AttrDef.dt``) and in the graph attribute ``_output_dtypes``. Names are those of torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from npu_fused_graph.errors import GraphError


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    name: torch's name. reg_op: the name in REG_OP texts. itemsize: bytes per element (0 = sub-byte or none).
    """

    name: str
    reg_op: str
    proto: int
    ge: int
    itemsize: int


DTYPES: tuple[DType, ...] = (
    DType("float32", "DT_FLOAT", 1, 0, 4),
    DType("float16", "DT_FLOAT16", 2, 1, 2),
    DType("int8", "DT_INT8", 3, 2, 1),
    DType("uint8", "DT_UINT8", 4, 4, 1),
    DType("int16", "DT_INT16", 5, 6, 2),
    DType("uint16", "DT_UINT16", 6, 7, 2),
    DType("int32", "DT_INT32", 7, 3, 4),
    DType("int64", "DT_INT64", 8, 9, 8),
    DType("uint32", "DT_UINT32", 9, 8, 4),
    DType("uint64", "DT_UINT64", 10, 10, 8),
    DType("bool", "DT_BOOL", 11, 12, 1),
    DType("float64", "DT_DOUBLE", 12, 11, 8),
    DType("string", "DT_STRING", 13, 13, 0),
    DType("complex64", "DT_COMPLEX64", 16, 16, 8),
    DType("complex128", "DT_COMPLEX128", 17, 17, 16),
    DType("complex32", "DT_COMPLEX32", 32, 33, 4),
    DType("bfloat16", "DT_BF16", 27, 27, 2),
    DType("int4", "DT_INT4", 28, 29, 0),
    DType("hifloat8", "DT_HIFLOAT8", 33, 34, 1),
    DType("float8_e5m2", "DT_FLOAT8_E5M2", 34, 35, 1),
    DType("float8_e4m3fn", "DT_FLOAT8_E4M3FN", 35, 36, 1),
    DType("float8_e8m0fnu", "DT_FLOAT8_E8M0", 36, 37, 1),
    DType("float4_e2m1", "DT_FLOAT4_E2M1", 39, 40, 0),
    DType("float4_e1m2", "DT_FLOAT4_E1M2", 40, 41, 0),
)

BY_NAME = {d.name: d for d in DTYPES}
BY_REG_OP = {d.reg_op: d for d in DTYPES}
_BY_PROTO = {d.proto: d for d in DTYPES}
_BY_GE = {d.ge: d for d in DTYPES}

PROTO_UNDEFINED = 0
GE_UNDEFINED = 28


def from_proto(number: int) -> str | None:
    """Name of a proto dtype number; None for DT_UNDEFINED."""
    if number == PROTO_UNDEFINED:
        return None
    try:
        return _BY_PROTO[number].name
    except KeyError:
        raise GraphError(f"[ir] dtype: expected a known proto DataType number, got {number}.") from None


def from_ge(number: int) -> str | None:
    """Name of a GE dtype number (attributes, ``_output_dtypes``); None for DT_UNDEFINED."""
    if number == GE_UNDEFINED:
        return None
    try:
        return _BY_GE[number].name
    except KeyError:
        raise GraphError(f"[ir] dtype: expected a known ge::DataType number, got {number}.") from None
