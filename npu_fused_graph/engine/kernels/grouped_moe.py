"""Quantised products of the rows of experts, with what a mixture of experts does next."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.fused import unpacked_int4
from npu_fused_graph.engine.kernels.grouped import four_bit_product, is_four_bit, per_group, spans_of
from npu_fused_graph.engine.kernels.quant import dynamically_quantised
from npu_fused_graph.engine.registry import Ints, kernel, unsupported

_FLOAT32, _INT8 = 0, 2
"""GE's numbers; the operators' texts give plain numbers as defaults, not dtypes."""


@kernel(
    "GroupedMatmulFinalizeRouting",
    ignored=("tuning_config",),
    allowed={"dtype": (_FLOAT32,), "group_list_type": (0, 1)},
)
def grouped_matmul_finalize_routing(
    x: Tensor,
    w: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    group_list: Ints | None = None,
    shared_input: Tensor | None = None,
    logit: Tensor | None = None,
    row_index: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    dtype: int = _FLOAT32,
    shared_input_weight: float = 1.0,
    shared_input_offset: int = 0,
    transpose_x: bool = False,
    transpose_w: bool = False,
    output_bs: int = 0,
    group_list_type: int = 1,
) -> Tensor:
    """Rows of y, output_bs of them: the sums of logit * (row of x @ its expert's weight) by row_index.

    The rows from shared_input_offset on also get shared_input_weight * shared_input. int4 weights come as int8.
    """
    ge_type = "GroupedMatmulFinalizeRouting"
    for name, given in (("scale", scale), ("group_list", group_list), ("row_index", row_index)):
        if given is None:
            raise unsupported(ge_type, name, "a tensor", None)
    assert group_list is not None and row_index is not None
    x, w = x.mT if transpose_x else x, w.mT if transpose_w else w
    spans = spans_of(group_list, group_list_type, len(w), len(x))
    value = _products(ge_type, x, w, scale, pertoken_scale, bias, offset, spans)
    if logit is not None:
        value = value * logit[: len(value)].unsqueeze(1)
    y = value.new_zeros(output_bs or len(x), value.shape[1])
    if shared_input is not None:
        y[shared_input_offset : shared_input_offset + len(shared_input)] += shared_input_weight * shared_input.float()
    return y.index_add_(0, row_index[: len(value)].long(), value)


@kernel(
    "GroupedMatmulSwigluQuantV2",
    ignored=("tuning_config", "dequant_dtype"),
    unfed=("bias",),
    allowed={"dequant_mode": (0,), "quant_mode": (0,), "quant_dtype": (_INT8,), "group_list_type": (0, 1)},
)
def grouped_matmul_swiglu_quant_v2(
    x: Tensor,
    x_scale: Tensor,
    group_list: Ints,
    weight: list[Tensor],
    weight_scale: list[Tensor],
    weight_assist_matrix: list[Tensor],
    bias: Tensor | None,
    smooth_scale: list[Tensor],
    *,
    dequant_mode: int = 0,
    quant_mode: int = 0,
    quant_dtype: int = 1,
    transpose_weight: bool = False,
    group_list_type: int = 0,
) -> tuple[Tensor, Tensor]:
    """(int8, scale per row) of swish(left half) * right half of every row of x times its expert's weight.

    weight_assist_matrix: 8 * weight * scale summed over K, of int4 weights. Rows of no expert give zeros.
    """
    given = weight[0].mT if transpose_weight else weight[0]
    spans = spans_of(group_list, group_list_type, len(given), len(x))
    if given.dtype is torch.int32:
        given = unpacked_int4(given, -1)
    assist = weight_assist_matrix[0] if weight_assist_matrix and weight_assist_matrix[0].numel() else None
    value = _products("GroupedMatmulSwigluQuantV2", x, given, weight_scale[0], x_scale, assist, None, spans)
    gate, up = value.chunk(2, -1)
    value = torch.nn.functional.silu(gate) * up
    smooth = per_group([s for s in smooth_scale if s.numel()], len(given))
    if smooth is not None:
        for group, begin, end in spans:
            value[begin:end] *= smooth[group]
    part, scales = dynamically_quantised(value)
    y, y_scale = part.new_zeros(len(x), part.shape[1]), scales.new_zeros(len(x))
    y[: len(part)], y_scale[: len(part)] = part, scales
    return y, y_scale


def _products(
    ge_type: str,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    token: Tensor | None,
    bias: Tensor | None,
    offset: Tensor | None,
    spans: list[tuple[int, int, int]],
) -> Tensor:
    """In float32, the rows that belong to an expert."""
    if x.dtype is not torch.int8 or weight.dtype is not torch.int8 or scale is None:
        raise unsupported(ge_type, "x, weight, scale", "int8 rows and int8 or int4 weights, with scales", x)
    if bias is not None and not is_four_bit(scale, bias):
        raise unsupported(ge_type, "bias", "none but with an int4 weight and 64-bit scales", bias)
    value = torch.empty(spans[-1][2] if spans else 0, weight.shape[-1])
    for group, begin, end in spans:
        if end > begin:
            value[begin:end] = four_bit_product(
                x[begin:end],
                weight[group],
                scale[group],
                None if bias is None else bias[group],
                None if offset is None else offset[group],
            )
    return value if token is None else value * token.reshape(-1)[: len(value)].unsqueeze(1)
