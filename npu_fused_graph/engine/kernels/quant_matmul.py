"""Matrix products of quantised matrices, and those that quantise their result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.matmul import bmm, int_matmul
from npu_fused_graph.engine.kernels.quant import dequantised, integers, unpacked
from npu_fused_graph.engine.registry import kernel, unsupported


@kernel(
    "QuantBatchMatmulV3",
    same_dtype=("x1", "x2"),
    allowed={"dtype": (torch.float16, torch.bfloat16, torch.int8, torch.int32)},
)
def quant_batch_matmul_v3(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    *,
    dtype: torch.dtype,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
) -> Tensor:
    """(x1 @ x2 + int32 bias) * scale * pertoken_scale + float bias; the offset belongs to int8 results.

    int4 matrices come as int8. An int32 result is the bare product with its bias: CANN's kernel leaves out the scale.
    """
    ge_type = "QuantBatchMatmulV3"
    if x1.dtype is not torch.int8:
        raise unsupported(ge_type, "x1, x2", "int8 or int4 for both", x1)
    for name, parameter in (("scale", scale), ("pertoken_scale", pertoken_scale)):
        if parameter is not None and parameter.dim() > 1:
            raise unsupported(ge_type, name, "a vector, no scales per group", parameter)
    product = int_matmul(x1.mT if transpose_x1 else x1, x2.mT if transpose_x2 else x2)
    used = None if dtype is torch.int32 else scale
    return dequantised(product, used, pertoken_scale, bias, offset, dtype, ge_type)


@kernel(
    "TransposeBatchMatMul",
    ignored=("enable_hf32",),
    unfed=("bias",),
    same_dtype=("x1", "x2"),
    allowed={"perm_x1": ([0, 1, 2], [1, 0, 2]), "perm_x2": ([0, 1, 2], [0, 2, 1]), "perm_y": ([1, 0, 2],)},
)
def transpose_batch_mat_mul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    perm_x1: Sequence[int] = (),
    perm_x2: Sequence[int] = (),
    perm_y: Sequence[int] = (),
    batch_split_factor: int = 1,
) -> Tensor:
    """x1 @ x2 of (B, M, K) and (B, K, N) as (M, B, N), or (F, M, B * N / F) with F = batch_split_factor.

    With packed scales of the B * N columns: (M, 1, B * N) in int8.
    """
    left, right = x1.permute(*perm_x1), x2.permute(*perm_x2)
    if scale is None:
        product = bmm(left, right).permute(*perm_y)
        if batch_split_factor == 1:
            return product
        return product.unflatten(1, (batch_split_factor, -1)).transpose(0, 1).flatten(2)
    if x1.dtype is not torch.float16:
        raise unsupported("TransposeBatchMatMul", "scale", f"none for x1 in {x1.dtype}", scale)
    if batch_split_factor != 1:
        raise unsupported("TransposeBatchMatMul", "batch_split_factor", "1 with a scale", batch_split_factor)
    factor, offset = unpacked(scale)
    # the cube unit quantises its float32 sums, which float16 never holds
    product = torch.matmul(left.float(), right.float()).permute(*perm_y).flatten(1).unsqueeze(1)
    return integers(product * factor + offset, torch.int8)
