"""CANN's other products with a collective: a matmul of the engine, then the group's all-reduce or reduce-scatter, or an
all-gather before it. The numbers are those of the two operators one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.comm import Communicator, communicator
from npu_fused_graph.engine.dtypes import HALVES
from npu_fused_graph.engine.kernels.fused import antiquantised
from npu_fused_graph.engine.kernels.matmul import bmm, int_matmul, mm
from npu_fused_graph.engine.kernels.quant import dequantised
from npu_fused_graph.engine.registry import kernel, unsupported

_GE_DTYPES = {0: torch.float32, 1: torch.float16, 27: torch.bfloat16}
_UNDEFINED = 28


@kernel(
    "MatmulAllReduce",
    ignored=("comm_turn",),
    pure=False,
    is_collective=True,
    allowed={"comm_quant_mode": (0,), "comm_mode": ("ai_cpu",), "group_size": (0,)},
    unfed=("comm_quant_scale_1", "comm_quant_scale_2"),
)
def matmul_all_reduce(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    x3: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    comm_quant_scale_1: Tensor | None = None,
    comm_quant_scale_2: Tensor | None = None,
    *,
    group: str,
    reduce_op: str = "sum",
    is_trans_a: bool = False,
    is_trans_b: bool = False,
    antiquant_group_size: int = 0,
    group_size: int = 0,
    y_dtype: int = _UNDEFINED,
    comm_quant_mode: int = 0,
    comm_mode: str = "ai_cpu",
) -> Tensor:
    """all_reduce(x1 @ x2 + bias + x3), the product rounded first. int8 x int8 is scaled, an int8 weight widened."""
    left, right = (x.mT if is_transposed else x for x, is_transposed in ((x1, is_trans_a), (x2, is_trans_b)))
    if dequant_scale is not None:
        if x1.dtype is not torch.int8 or x2.dtype is not torch.int8:
            raise unsupported("MatmulAllReduce", "dequant_scale", "int8 x1 and x2 with it", (x1.dtype, x2.dtype))
        default = torch.bfloat16 if dequant_scale.dtype is torch.bfloat16 else torch.float16
        dtype = _GE_DTYPES.get(y_dtype, default)
        if pertoken_scale is not None:
            pertoken_scale = pertoken_scale.reshape(left.shape[:-1])
        summed = int_matmul(left, right)
        product = dequantised(summed, dequant_scale, pertoken_scale, bias, None, dtype, "MatmulAllReduce")
    else:
        if antiquant_scale is not None:
            scale, offset = antiquant_scale, antiquant_offset
            if is_trans_b and antiquant_group_size:
                scale, offset = scale.mT, None if offset is None else offset.mT
            right = antiquantised(right, scale, offset, antiquant_group_size)
        product = _product("MatmulAllReduce", left, right, bias)
    if x3 is not None:
        product = product + x3
    return communicator(group).all_reduce(product, reduce_op)


@kernel("MatmulReduceScatter", ignored=("comm_turn",), same_dtype=("x1", "x2"), pure=False, is_collective=True)
def matmul_reduce_scatter(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    *,
    group: str,
    reduce_op: str = "sum",
    is_trans_a: bool = False,
    is_trans_b: bool = False,
    rank_size: int = 0,
) -> Tensor:
    """This rank's rows of the sum of x1 @ x2 + bias over the ranks."""
    peer = _sized("MatmulReduceScatter", group, rank_size)
    product = _product("MatmulReduceScatter", x1.mT if is_trans_a else x1, x2.mT if is_trans_b else x2, bias)
    return peer.reduce_scatter(product, reduce_op)


@kernel(
    "MatmulReduceScatterV2",
    ignored=("comm_turn",),
    same_dtype=("x1", "x2"),
    pure=False,
    is_collective=True,
    allowed={"comm_mode": ("ai_cpu", "aiv"), "group_size": (0,), "block_size": (0,), "is_amax_out": (False,)},
    unfed=("quant_scale",),
)
def matmul_reduce_scatter_v2(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    quant_scale: Tensor | None = None,
    *,
    group: str,
    reduce_op: str = "sum",
    is_trans_a: bool = False,
    is_trans_b: bool = False,
    rank_size: int = 0,
    block_size: int = 0,
    group_size: int = 0,
    is_amax_out: bool = False,
    y_dtype: int = _UNDEFINED,
    comm_mode: str = "ai_cpu",
) -> tuple[Tensor, Tensor]:
    """(this rank's rows of the sum of x1 @ x2 + bias over the ranks, nothing); int8 products times x1_scale, x2_scale.

    x1_scale: per row, x2_scale: per column. Every rank rounds what it adds.
    """
    ge_type = "MatmulReduceScatterV2"
    peer = _sized(ge_type, group, rank_size)
    left, right = (x.mT if is_transposed else x for x, is_transposed in ((x1, is_trans_a), (x2, is_trans_b)))
    if x1.dtype is torch.int8:
        if bias is not None:
            raise unsupported(ge_type, "bias", "none with int8 x1 and x2", bias)
        if y_dtype not in (_UNDEFINED, 1, 27):
            raise unsupported(ge_type, "y_dtype", "float16 or bfloat16 with int8 x1 and x2", y_dtype)
        default = torch.float16 if x2_scale is not None and x2_scale.dtype.itemsize == 8 else torch.bfloat16
        dtype = _GE_DTYPES.get(y_dtype, default)
        token = None if x1_scale is None else x1_scale.flatten()
        factor = None if x2_scale is None else x2_scale.flatten()
        product = dequantised(int_matmul(left, right), factor, token, None, None, dtype, ge_type)
    else:
        for name, scale in (("x1_scale", x1_scale), ("x2_scale", x2_scale)):
            if scale is not None:
                raise unsupported(ge_type, name, f"none for x1 in {x1.dtype}", scale)
        product = _product(ge_type, left, right, bias)
    return peer.reduce_scatter(product, reduce_op), product.new_empty(0, dtype=torch.float32)


@kernel(
    "AllGatherMatmul",
    ignored=("comm_turn",),
    same_dtype=("x1", "x2"),
    pure=False,
    is_collective=True,
    allowed={"gather_index": (0,)},
)
def all_gather_matmul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    *,
    group: str,
    is_trans_a: bool = False,
    is_trans_b: bool = False,
    gather_index: int = 0,
    rank_size: int = 0,
    is_gather_out: bool = True,
) -> tuple[Tensor, Tensor]:
    """(all ranks' x1 @ x2 + bias, all ranks' x1), rows of rank 0 first; without is_gather_out the second is empty."""
    peer = _sized("AllGatherMatmul", group, rank_size)
    rows = peer.all_gather_rows(x1.mT if is_trans_a else x1)
    product = _product("AllGatherMatmul", rows, x2.mT if is_trans_b else x2, bias)
    return product, rows if is_gather_out else x1.new_empty(0)


def _product(ge_type: str, x1: Tensor, x2: Tensor, bias: Tensor | None) -> Tensor:
    if x1.dtype not in HALVES or x2.dtype is not x1.dtype:
        raise unsupported(ge_type, "x1, x2", "float16 or bfloat16 for both, or int8 with scales", (x1.dtype, x2.dtype))
    return mm(x1, x2, bias) if x1.dim() == 2 else bmm(x1, x2, bias)


def _sized(ge_type: str, group: str, rank_size: int) -> Communicator:
    peer = communicator(group)
    if rank_size not in (0, peer.size):
        raise unsupported(ge_type, "rank_size", f"0 or the size of {peer}, {peer.size}", rank_size)
    return peer
