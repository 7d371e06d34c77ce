"""Matrix products of quantised matrices, and those that quantise their result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.fused import antiquantised, unpacked_int4
from npu_fused_graph.engine.kernels.matmul import bmm, int_matmul, mm
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
    left, right = x1.mT if transpose_x1 else x1, x2.mT if transpose_x2 else x2
    return _scaled_product("QuantBatchMatmulV3", left, right, scale, pertoken_scale, bias, offset, dtype)


@kernel(
    "QuantBatchMatmulV4",
    ignored=("compute_type",),
    same_dtype=("x1", "x2"),
    unfed=("y_scale", "x1_offset", "y_offset", "x2_table"),
    allowed={"dtype": (torch.float16, torch.bfloat16, torch.int8, torch.int32), "group_size": (0, -1)},
)
def quant_batch_matmul_v4(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    x1_scale: Tensor | None = None,
    x2_scale: Tensor | None = None,
    y_scale: Tensor | None = None,
    x1_offset: Tensor | None = None,
    x2_offset: Tensor | None = None,
    y_offset: Tensor | None = None,
    x2_table: Tensor | None = None,
    *,
    dtype: torch.dtype,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    group_size: int = -1,
) -> Tensor:
    """As version 3: x1_scale is its pertoken_scale, x2_scale its scale, x2_offset its offset."""
    left, right = x1.mT if transpose_x1 else x1, x2.mT if transpose_x2 else x2
    return _scaled_product("QuantBatchMatmulV4", left, right, x2_scale, x1_scale, bias, x2_offset, dtype)


def _scaled_product(
    ge_type: str,
    x1: Tensor,
    x2: Tensor,
    scale: Tensor | None,
    token: Tensor | None,
    bias: Tensor | None,
    offset: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    if x1.dtype is not torch.int8:
        raise unsupported(ge_type, "x1, x2", "int8 or int4 for both", x1)
    for name, parameter in (("scale", scale), ("scale per token", token)):
        if parameter is not None and parameter.dim() > 1:
            raise unsupported(ge_type, name, "a vector, no scales per group", parameter)
    if token is not None and token.numel() != x1.shape[-2]:
        raise ValueError(f"scale per token: expected {x1.shape[-2]}, one per row of x1, got {token.numel()}.")
    used = None if dtype is torch.int32 else scale
    return dequantised(int_matmul(x1, x2), used, token, bias, offset, dtype, ge_type)


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
        size = product.shape[1] // batch_split_factor
        split: Tensor = product.unflatten(1, (batch_split_factor, size)).transpose(0, 1).flatten(2)
        return split
    if x1.dtype is not torch.float16:
        raise unsupported("TransposeBatchMatMul", "scale", f"none for x1 in {x1.dtype}", scale)
    if batch_split_factor != 1:
        raise unsupported("TransposeBatchMatMul", "batch_split_factor", "1 with a scale", batch_split_factor)
    factor, offset = unpacked(scale)
    # the cube unit quantises its float32 sums, which float16 never holds
    sums: Tensor = torch.matmul(left.float(), right.float()).permute(*perm_y).flatten(1).unsqueeze(1)
    return integers(sums * factor + offset, torch.int8)


@kernel("WeightQuantBatchMatmulV2", ignored=("dtype", "inner_precise"))
def weight_quant_batch_matmul_v2(
    x: Tensor,
    weight: Tensor,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    transpose_x: bool = False,
    transpose_weight: bool = False,
    antiquant_group_size: int = 0,
) -> Tensor:
    """x @ ((weight + offset) * scale) + bias, with quant_scale times that plus quant_offset in int8.

    weight: int8, or int4, eight in an int32. A scale for all, per column, or per group of rows and column.
    """
    if transpose_x:
        x = x.mT
    if transpose_weight:
        weight = weight.mT
    if weight.dtype is torch.int32:
        weight = unpacked_int4(weight, 1 if weight.shape[0] == x.shape[1] else 0)
    if weight.dtype is not torch.int8:
        raise unsupported("WeightQuantBatchMatmulV2", "weight", "int8, or int4 in int32", weight)
    if antiquant_scale.dtype.itemsize == 8:
        # scales of the columns that the cube unit applies to its sums
        scale, _ = unpacked(antiquant_scale.flatten())
        plain = weight.float() if antiquant_offset is None else weight.float() + antiquant_offset.flatten()
        product = torch.mm(x.float(), plain) * scale
        return (product if bias is None else product + bias).to(x.dtype)
    plain = antiquantised(weight, antiquant_scale, antiquant_offset, antiquant_group_size).to(x.dtype)
    bias = None if bias is None else bias.flatten()
    if quant_scale is None:
        return mm(x, plain, bias)
    product = mm(x.float(), plain.float(), None if bias is None else bias.float())
    if quant_scale.dtype.itemsize == 8:
        quant_scale, packed_offset = unpacked(quant_scale)
        quant_offset = packed_offset if quant_offset is None else quant_offset
    product = product * quant_scale
    return integers(product if quant_offset is None else product + quant_offset, torch.int8)


@kernel("DequantBias", allowed={"output_dtype": (torch.float16, torch.bfloat16)})
def dequant_bias(
    x: Tensor,
    weight_scale: Tensor,
    activate_scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    output_dtype: torch.dtype,
) -> Tensor:
    """(x + int32 bias) * weight_scale * activate_scale + float bias, activate_scale per row."""
    token = None if activate_scale is None else activate_scale.flatten()
    return dequantised(x, weight_scale.flatten(), token, bias, None, output_dtype, "DequantBias")
