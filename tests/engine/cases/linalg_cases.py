"""Samples for engine/kernels/linalg.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.engine.op_case import Make, OpCase

EXACT = ("float32", "float64")


def _complex(m: Make, *shape: int) -> Tensor:
    return torch.complex(m(*shape), m(*shape))


def _transform(x: Tensor, axis: int) -> Tensor:
    """By its definition: a product with the matrix of the roots of unity."""
    size = x.shape[axis]
    power = torch.outer(torch.arange(size), torch.arange(size)).double()
    roots = torch.polar(torch.ones_like(power), -2 * math.pi * power / size)
    return (x.to(torch.complex128).movedim(axis, -1) @ roots).movedim(-1, axis)


def _triangle(m: Make, *shape: int) -> Tensor:
    """Its other triangle is not read."""
    return m(*shape) + 5 * torch.eye(shape[-1], dtype=m.dtype)


def _inverse(matrix: Tensor, lower: bool) -> Tensor:
    return torch.linalg.inv(matrix.tril() if lower else matrix.triu())


CASES = [
    OpCase("FFT", lambda m: {"x": _complex(m, 3, 5)}, lambda x: _transform(x, -1), dtypes=("float32",)),
    OpCase(
        "FFT2D",
        lambda m: {"x": _complex(m, 2, 3, 5)},
        lambda x: _transform(_transform(x, -1), -2),
        dtypes=("float32",),
    ),
    OpCase(
        "MatrixTriangularSolve",
        lambda m: {"matrix": _triangle(m, 2, 4, 4), "rhs": m(2, 4, 3)},
        lambda matrix, rhs: _inverse(matrix, True) @ rhs,
        dtypes=EXACT,
    ),
    OpCase(
        "MatrixTriangularSolve",
        lambda m: {"matrix": _triangle(m, 4, 4), "rhs": m(4, 3)},
        lambda matrix, rhs: _inverse(matrix, False) @ rhs,
        {"lower": False},
        dtypes=EXACT,
        name="upper",
    ),
    OpCase(
        "MatrixTriangularSolve",
        lambda m: {"matrix": _triangle(m, 4, 4), "rhs": m(4, 3)},
        lambda matrix, rhs: _inverse(matrix, True).mT @ rhs,
        {"adjoint": True},
        dtypes=EXACT,
        name="adjoint",
    ),
]
