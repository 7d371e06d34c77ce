"""Products of matrices and vectors of aten, plain and grouped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import (
    by_torch,
    ge,
    stock,
    to,
    torch_dtype,
    typed,
    unsupported,
)

aten = torch.ops.aten


def mm(x: Any, mat2: Any) -> Any:
    """Operands of two dtypes, as torch_npu's eager product takes them: in float32, the result in the first one's.

    TorchAir hands both on to a MatMul, whose operands have one dtype.
    """
    return _mixed(x, mat2) or stock(aten.mm.default, x, mat2)


def matmul(x: Any, other: Any, meta_outputs: Any = None) -> Any:
    """Likewise; TorchAir casts both to the result's dtype first, or neither."""
    return _mixed(x, other) or stock(aten.matmul.default, x, other, meta_outputs=meta_outputs)


def _mixed(x: Any, other: Any) -> Any:
    first, second = torch_dtype(x), torch_dtype(other)
    if first is second or not (first.is_floating_point and second.is_floating_point):
        return None
    multiply = ge.BatchMatMul if max(x.rank, other.rank) > 2 else ge.MatMul
    operands = (to(x, torch.float32), to(other, torch.float32))
    product = multiply(*operands) if multiply is ge.BatchMatMul else multiply(*operands, None)
    return to(typed(product, torch.float32), first)


def mv(x: torch.Tensor, vec: torch.Tensor) -> torch.Tensor:
    return torch.mm(x, vec.unsqueeze(-1)).squeeze(-1)


def dot(x: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return torch.mm(x.unsqueeze(0), tensor.unsqueeze(-1)).reshape(())


def addmv(x: torch.Tensor, mat: torch.Tensor, vec: torch.Tensor, *, beta: Any = 1, alpha: Any = 1) -> torch.Tensor:
    return _plus(x, mv(mat, vec), beta, alpha)


def addr(x: torch.Tensor, vec1: torch.Tensor, vec2: torch.Tensor, *, beta: Any = 1, alpha: Any = 1) -> torch.Tensor:
    return _plus(x, vec1.unsqueeze(-1) * vec2, beta, alpha)


def addbmm(
    x: torch.Tensor, batch1: torch.Tensor, batch2: torch.Tensor, *, beta: Any = 1, alpha: Any = 1
) -> torch.Tensor:
    """One product: the batch becomes part of the summed dim."""
    b, n, k = batch1.shape
    wide = torch.mm(batch1.transpose(0, 1).reshape(n, b * k), batch2.reshape(b * k, batch2.shape[-1]))
    return _plus(x, wide, beta, alpha)


def baddbmm(
    x: torch.Tensor, batch1: torch.Tensor, batch2: torch.Tensor, *, beta: Any = 1, alpha: Any = 1
) -> torch.Tensor:
    return _plus(x, torch.bmm(batch1, batch2), beta, alpha)


def _plus(x: torch.Tensor, product: torch.Tensor, beta: Any, alpha: Any) -> torch.Tensor:
    """beta * x + alpha * product; beta = 0 hides nan in x; factors of whole numbers are whole, as in torch."""
    if not (x.is_floating_point() or x.is_complex()):
        beta, alpha = int(beta), int(alpha)
    scaled = product if alpha == 1 else product * alpha
    if beta == 0:
        return scaled
    return (x if beta == 1 else x * beta) + scaled


def linalg_cross(x: torch.Tensor, other: torch.Tensor, *, dim: int = -1) -> torch.Tensor:
    a, b = torch.broadcast_tensors(x, other)
    a0, a1, a2 = torch.unbind(a, dim)
    b0, b1, b2 = torch.unbind(b, dim)
    return torch.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], dim)


def cdist(x1: torch.Tensor, x2: torch.Tensor, p: float, compute_mode: int | None = None) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)
    return norm


def weight_int8pack_mm(x: torch.Tensor, mat2: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return torch.mm(x, mat2.to(x.dtype).t()) * scales


def int_mm(x: Any, mat2: Any) -> Any:
    """int8 x int8 -> int32. MatMul does not take int8, MatMulV2 does."""
    return ge.MatMulV2(x, mat2, None, None)


def grouped_mm(x: Any, mat2: Any, offs: Any = None, bias: Any = None, out_dtype: torch.dtype | None = None) -> Any:
    """Rows of ``x`` up to offs[0] times mat2[0], up to offs[1] times mat2[1], ...

    Every optional list is fed: TorchAir's pass over GroupedMatmul indexes inputs by position (defect T4).
    """
    if bias is not None or out_dtype not in (None, torch_dtype(x)):
        raise unsupported("_grouped_mm", "bias, out_dtype", "none", "one", "Add the bias and cast after the product.")
    if x.rank == 3 and mat2.rank == 3:
        return ge.BatchMatMul(x, mat2)
    if (x.rank, mat2.rank) != (2, 3) or offs is None:
        raise unsupported(
            "_grouped_mm",
            "self, mat2",
            "2-D rows with 3-D weights and offs",
            f"{x.rank}-D with {mat2.rank}-D",
            "Use bmm.",
        )
    return _grouped(x, mat2, offs)


def grouped_mm_fallback(input: Any, weight: Any, offs: Any) -> Any:
    """transformers' own spelling, for dtypes torch._grouped_mm does not compile."""
    return _grouped(input, weight, offs)


def _grouped(x: Any, weight: Any, offs: Any) -> Any:
    from torchair.ge import DataType

    def unused(dtype: torch.dtype) -> Any:
        return [ge.Fill([0], to(0, dtype))]

    # a Cast, because not every TorchAir has constants of uint64
    no_scales = [ge.Fill([0], ge.Cast(to(0, torch.int64), dst_type=DataType.DT_UINT64))]
    bias = torch.float16 if torch_dtype(x) is torch.float16 else torch.float32
    products = ge.GroupedMatmul(
        [x],
        [weight],
        unused(bias),
        no_scales,
        unused(torch.float32),
        unused(torch.float16),
        unused(torch.float16),
        to(offs, torch.int64),
        None,
        split_item=3,
        dtype=-1,
        group_type=0,
        group_list_type=0,
    )
    return products[0]


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.mv.default: by_torch(mv),
    aten.dot.default: by_torch(dot),
    aten.vdot.default: by_torch(dot),
    aten.addmv.default: by_torch(addmv),
    aten.addr.default: by_torch(addr),
    aten.addbmm.default: by_torch(addbmm),
    aten.linalg_cross.default: by_torch(linalg_cross),
    aten._cdist_forward.default: by_torch(cdist),
    aten._weight_int8pack_mm.default: by_torch(weight_int8pack_mm),
    aten._int_mm.default: int_mm,
    aten._grouped_mm.default: grouped_mm,
}
