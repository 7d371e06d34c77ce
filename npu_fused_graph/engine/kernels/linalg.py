"""Fourier transforms and systems of equations."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.registry import kernel


@kernel("FFT")
def fft(x: Tensor) -> Tensor:
    """Forward, along the last axis, not normalised."""
    y: Tensor = torch.fft.fft(x)
    return y


@kernel("FFT2D")
def fft2d(x: Tensor) -> Tensor:
    """Forward, along the last two axes, not normalised."""
    y: Tensor = torch.fft.fft2(x)
    return y


@kernel("MatrixTriangularSolve", same_dtype=("matrix", "rhs"))
def matrix_triangular_solve(matrix: Tensor, rhs: Tensor, *, lower: bool = True, adjoint: bool = False) -> Tensor:
    """The triangle that ``lower`` does not name is not read; ``adjoint`` solves with the conjugate transpose."""
    if adjoint:
        matrix, lower = matrix.mH, not lower
    y: Tensor = torch.linalg.solve_triangular(matrix, rhs, upper=not lower)
    return y
