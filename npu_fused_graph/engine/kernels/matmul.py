"""Matrix products.

Half types go through torch's own product where oneDNN has one for this CPU, so results equal eager's bit for bit.
Elsewhere torch falls back to a loop that is 5 to 60 times slower than float32 for anything but tiny problems; such
products are computed in float32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.registry import kernel

BOTH = ("x1", "x2")
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
TORCH_MM = torch.library.get_kernel("aten::mm", "CPU")
"""torch's own product; what host.standin.mixed_dtypes puts in its place costs 10 us a call."""
_is_profiled = torch._C._autograd._profiler_enabled
_modes = torch._C._len_torch_dispatch_stack


def _onednn_has(probe: str) -> bool:
    op = getattr(torch.ops.mkldnn, probe, None)
    return op is not None and bool(op())


WIDENED = frozenset(
    dtype
    for dtype, probe in (
        (torch.float16, "_is_mkldnn_fp16_supported"),
        (torch.bfloat16, "_is_mkldnn_bf16_supported"),
    )
    if not _onednn_has(probe)
)
"""Half types whose products are computed in float32 on this CPU."""

SMALL = 8192
"""Multiplications up to which torch's own half product beats two conversions (measured, 1 and 2 threads)."""


def mm(x1: Tensor, x2: Tensor, bias: Tensor | None = None) -> Tensor:
    """x1 @ x2 + bias for matrices; a bias is added before the result is rounded."""
    dtype = x1.dtype
    if dtype is torch.int8:
        product = _int_mm(x1, x2)
        return product if bias is None else product.add_(bias)
    if bias is not None and bias.dtype is not dtype:
        return torch.addmm(bias.float(), x1.float(), x2.float()).to(dtype)
    # a vector times a transposed weight is torch's one fast half product without oneDNN
    if (
        dtype in WIDENED
        and x1.numel() * x2.shape[1] > SMALL
        and not (bias is None and x1.shape[0] == 1 and x2.stride(0) == 1)
    ):
        if bias is None:
            return torch.mm(x1.float(), x2.float()).to(dtype)
        return torch.addmm(bias.float(), x1.float(), x2.float()).to(dtype)
    if bias is not None:
        return torch.addmm(bias, x1, x2)
    # who looks on, a profiler or a mode, sees only what goes through torch
    return torch.mm(x1, x2) if _is_profiled() or _modes() else TORCH_MM.call_boxed(CPU, x1, x2)


def bmm(x1: Tensor, x2: Tensor, bias: Tensor | None = None) -> Tensor:
    """x1 @ x2 + bias with the broadcasting of torch.matmul; a bias is added before the result is rounded."""
    dtype = x1.dtype
    if dtype is torch.int8:
        product = int_matmul(x1, x2)
        return product if bias is None else product + bias
    half = dtype is torch.float16 or dtype is torch.bfloat16
    if bias is not None and (half or bias.dtype is not dtype):
        return (torch.matmul(x1.float(), x2.float()) + bias).to(dtype)
    if half and dtype in WIDENED and x1.numel() * x2.shape[-1] > SMALL:
        return torch.matmul(x1.float(), x2.float()).to(dtype)
    if bias is None and x1.dim() == 3 and x2.dim() == 3 and x1.shape[0] == x2.shape[0]:
        return torch.bmm(x1, x2)
    product = torch.matmul(x1, x2)
    return product if bias is None else product + bias


def _int_mm_is_exact() -> bool:
    """Whether torch's int8 product is right on this CPU: without VNNI instructions oneDNN's saturates."""
    left = torch.full((4, 64), 127, dtype=torch.int8)
    right = torch.full((64, 32), 127, dtype=torch.int8)
    return bool((torch._int_mm(left, right) == 127 * 127 * 64).all())


_EXACT_INT_MM = _int_mm_is_exact()
_EXACT_IN_FLOAT32 = (1 << 24) >> 14
"""Number of int8 products whose sum float32 holds without rounding."""


def _int_mm(x1: Tensor, x2: Tensor) -> Tensor:
    """int8 @ int8 -> int32 for matrices."""
    if _EXACT_INT_MM:
        return torch._int_mm(x1, x2)
    wide = torch.float32 if x1.shape[1] <= _EXACT_IN_FLOAT32 else torch.float64
    return torch.mm(x1.to(wide), x2.to(wide)).to(torch.int32)


def int_matmul(x1: Tensor, x2: Tensor) -> Tensor:
    """int8 @ int8 -> int32, with batch dimensions that broadcast."""
    if x1.dim() == 2 and x2.dim() == 2:
        return _int_mm(x1, x2)
    if x2.dim() == 2:
        return _int_mm(x1.reshape(-1, x1.shape[-1]), x2).reshape(*x1.shape[:-1], x2.shape[-1])
    batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    left = x1.expand(*batch, *x1.shape[-2:]).reshape(batch.numel(), *x1.shape[-2:])
    right = x2.expand(*batch, *x2.shape[-2:]).reshape(batch.numel(), *x2.shape[-2:])
    out = torch.empty(left.shape[0], left.shape[1], right.shape[2], dtype=torch.int32)
    for i in range(left.shape[0]):
        out[i] = _int_mm(left[i], right[i])
    return out.reshape(*batch, left.shape[1], right.shape[2])


def _transposed(x: Tensor) -> Tensor:
    return x.mT if x.dim() > 1 else x


def _product(x1: Tensor, x2: Tensor, bias: Tensor | None, transpose_x1: bool, transpose_x2: bool) -> Tensor:
    if transpose_x1:
        x1 = _transposed(x1)
    if transpose_x2:
        x2 = _transposed(x2)
    if x1.dim() == 2 and x2.dim() == 2:
        return mm(x1, x2, bias)
    return bmm(x1, x2, bias)


@kernel("MatMul", same_dtype=BOTH)
def matmul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    *,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
) -> Tensor:
    return _product(x1, x2, bias, transpose_x1, transpose_x2)


@kernel("MatMulV2", same_dtype=BOTH, allowed={"offset_x": (0,)}, unfed=("offset_w",))
def matmul_v2(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    offset_x: int = 0,
) -> Tensor:
    return _product(x1, x2, bias, transpose_x1, transpose_x2)


@kernel("MatMulV3", same_dtype=BOTH, ignored=("opImplMode",), allowed={"offset_x": (0,)}, unfed=("offset_w",))
def matmul_v3(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    offset_x: int = 0,
) -> Tensor:
    return _product(x1, x2, bias, transpose_x1, transpose_x2)


@kernel("BatchMatMul", same_dtype=BOTH)
def batch_matmul(x1: Tensor, x2: Tensor, *, adj_x1: bool = False, adj_x2: bool = False) -> Tensor:
    return bmm(_transposed(x1) if adj_x1 else x1, _transposed(x2) if adj_x2 else x2)


@kernel("BatchMatMulV2", same_dtype=BOTH, allowed={"offset_x": (0,)}, unfed=("offset_w",))
def batch_matmul_v2(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    adj_x1: bool = False,
    adj_x2: bool = False,
    offset_x: int = 0,
) -> Tensor:
    return bmm(_transposed(x1) if adj_x1 else x1, _transposed(x2) if adj_x2 else x2, bias)


@kernel("BatchMatMulV3", same_dtype=BOTH, ignored=("enable_hf32",), allowed={"offset_x": (0,)}, unfed=("offset_w",))
def batch_matmul_v3(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    *,
    adj_x1: bool = False,
    adj_x2: bool = False,
    offset_x: int = 0,
) -> Tensor:
    return bmm(_transposed(x1) if adj_x1 else x1, _transposed(x2) if adj_x2 else x2, bias)
