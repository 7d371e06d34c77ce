"""Samples for engine/kernels/matmul.py."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.engine.op_case import FLOATS, Make, OpCase


def _dot(x1: Tensor, x2: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product as sums of elementwise products."""
    if x1.dim() == 1:
        y = (x1.unsqueeze(-1) * x2).sum(-2)
    elif x2.dim() == 1:
        y = (x1 * x2).sum(-1)
    else:
        y = (x1.unsqueeze(-1) * x2.unsqueeze(-3)).sum(-2)
    return y if bias is None else y + bias


def _swap(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


WITH_INT = (*FLOATS, "int32")


def _int8(m: Make, *shape: int) -> Tensor:
    return m.ints(*shape, low=-128, high=128, dtype=torch.int8)


CASES = [
    OpCase("MatMul", lambda m: {"x1": m(3, 5), "x2": m(5, 7)}, _dot, dtypes=WITH_INT),
    OpCase("MatMul", lambda m: {"x1": m(24, 32), "x2": m(32, 40)}, _dot, name="large"),
    OpCase("MatMul", lambda m: {"x1": m(1, 128), "x2": m(128, 96)}, _dot, name="row"),
    OpCase(
        "MatMul",
        lambda m: {"x1": m(5, 3), "x2": m(5, 7), "bias": m(7)},
        lambda x1, x2, bias: _dot(_swap(x1), x2, bias),
        {"transpose_x1": True},
        dtypes=WITH_INT,
        name="transpose_x1_bias",
    ),
    OpCase(
        "MatMul",
        lambda m: {"x1": m(3, 5), "x2": m(7, 5), "bias": None},
        lambda x1, x2, bias: _dot(x1, _swap(x2)),
        {"transpose_x2": True},
        name="transpose_x2",
    ),
    OpCase("MatMul", lambda m: {"x1": m(5), "x2": m(5, 7)}, _dot, name="vector_matrix"),
    OpCase("MatMul", lambda m: {"x1": m(3, 5), "x2": m(5)}, _dot, name="matrix_vector"),
    OpCase("MatMul", lambda m: {"x1": m(0, 5), "x2": m(5, 7)}, _dot, name="no_rows"),
    OpCase("MatMul", lambda m: {"x1": m(3, 0), "x2": m(0, 7), "bias": m(7)}, _dot, name="no_columns"),
    OpCase(
        "MatMulV2",
        lambda m: {"x1": m(5, 3), "x2": m(7, 5), "bias": m(7), "offset_w": None},
        lambda x1, x2, bias, offset_w: _dot(_swap(x1), _swap(x2), bias),
        {"transpose_x1": True, "transpose_x2": True, "offset_x": 0},
    ),
    OpCase(
        "MatMulV2",
        lambda m: {"x1": m(24, 32), "x2": m(32, 40), "bias": m(1, 40).float()},
        _dot,
        name="large_float_bias",
    ),
    OpCase(
        "MatMulV2",
        lambda m: {"x1": _int8(m, 3, 5), "x2": _int8(m, 5, 7), "bias": m.ints(7, low=-9, high=9, dtype=torch.int32)},
        lambda x1, x2, bias: _dot(x1.long(), x2.long(), bias),
        dtypes=("float32",),
        name="int8",
    ),
    OpCase(
        "MatMulV3",
        lambda m: {"x1": m(5, 3), "x2": m(7, 5), "bias": m(7)},
        lambda x1, x2, bias: _dot(_swap(x1), _swap(x2), bias),
        {"transpose_x1": True, "transpose_x2": True, "offset_x": 0, "opImplMode": 2},
    ),
    OpCase("BatchMatMul", lambda m: {"x1": m(2, 3, 5), "x2": m(2, 5, 7)}, _dot, dtypes=WITH_INT),
    OpCase("BatchMatMul", lambda m: {"x1": m(2, 1, 3, 5), "x2": m(4, 5, 7)}, _dot, name="broadcast"),
    OpCase("BatchMatMul", lambda m: {"x1": m(4, 3, 5), "x2": m(5, 7)}, _dot, name="one_matrix"),
    OpCase("BatchMatMul", lambda m: {"x1": m(4, 16, 24), "x2": m(4, 24, 16)}, _dot, name="large"),
    OpCase("BatchMatMul", lambda m: {"x1": m(0, 3, 5), "x2": m(0, 5, 7)}, _dot, name="no_batch"),
    OpCase(
        "BatchMatMul",
        lambda m: {"x1": m(2, 5, 3), "x2": m(2, 7, 5)},
        lambda x1, x2: _dot(_swap(x1), _swap(x2)),
        {"adj_x1": True, "adj_x2": True},
        name="adjoints",
    ),
    OpCase(
        "BatchMatMulV2",
        lambda m: {"x1": m(2, 5, 3), "x2": m(2, 5, 7), "bias": m(7)},
        lambda x1, x2, bias: _dot(_swap(x1), x2, bias),
        {"adj_x1": True, "offset_x": 0},
    ),
    OpCase(
        "BatchMatMulV2",
        lambda m: {"x1": m(2, 3, 5), "x2": m(7, 5)},
        lambda x1, x2: _dot(x1, _swap(x2)),
        {"adj_x2": True},
        name="no_bias",
    ),
    OpCase(
        "BatchMatMulV2",
        lambda m: {
            "x1": _int8(m, 2, 1, 3, 5),
            "x2": _int8(m, 4, 5, 7),
            "bias": m.ints(7, low=-9, high=9, dtype=torch.int32),
        },
        lambda x1, x2, bias: _dot(x1.long(), x2.long(), bias),
        dtypes=("float32",),
        name="int8",
    ),
    OpCase(
        "BatchMatMulV2",
        lambda m: {"x1": _int8(m, 2, 3, 5), "x2": _int8(m, 5, 7)},
        lambda x1, x2: _dot(x1.long(), x2.long()),
        dtypes=("float32",),
        name="int8_one_matrix",
    ),
    OpCase(
        "BatchMatMulV3",
        lambda m: {"x1": m(2, 5, 3), "x2": m(2, 7, 5), "bias": m(2, 1, 7)},
        lambda x1, x2, bias: _dot(_swap(x1), _swap(x2), bias),
        {"adj_x1": True, "adj_x2": True, "enable_hf32": True},
    ),
]
