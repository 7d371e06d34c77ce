"""Systems of equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import ge, lower, torch_dtype, typed

aten = torch.ops.aten


def solve_triangular(a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Any:
    """MatrixTriangularSolve stands for the left side, a diagonal that is given, and equal batch dims."""
    matrix, rhs = lower(_system, (a, b, left, unitriangular), {})
    result = ge.MatrixTriangularSolve(matrix, rhs, lower=upper != left, adjoint=False)
    typed(result, torch_dtype(a)).set_meta(rhs.meta)
    return result if left else lower(_transposed, (result,), {})


def _system(a: torch.Tensor, b: torch.Tensor, left: bool, unitriangular: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of ``x a = b`` the transpose, which is solved from the left."""
    if unitriangular:
        place = torch.arange(a.shape[-1])
        a = torch.where(place.unsqueeze(-1) == place, torch.ones((), dtype=a.dtype), a)
    if not left:
        a, b = a.mT, b.mT
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return a.expand(*batch, *a.shape[-2:]).clone(), b.expand(*batch, *b.shape[-2:]).clone()


def _transposed(x: torch.Tensor) -> torch.Tensor:
    return x.mT.clone()


CONVERTERS: dict[Any, Callable[..., Any]] = {aten.linalg_solve_triangular.default: solve_triangular}
