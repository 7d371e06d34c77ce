"""AscendSpeed's functions: the older name of requirement 000, and requirement 003's."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph import ops
from npu_fused_graph.errors import warn_once
from npu_fused_graph.ops.ascend_flash_attention import ascend_flash_attention as ascend_flash_attention
from npu_fused_graph.ops.grouped_mat_mul_all_reduce import npu_grouped_mat_mul_all_reduce

ops.register()


def ascend_grouped_mat_mul_all_reduce(
    x: list[Tensor],
    weight: list[Tensor],
    hcomm: str,
    *,
    bias: list[Tensor] | None = None,
    group_list: list[int] | None = None,
    split_item: int | None = 0,
    reduce_op: str = "sum",
    comm_turn: int = 0,
) -> list[Tensor]:
    """The older name of :func:`npu_fused_graph.npu_grouped_mat_mul_all_reduce` (requirement 000); deprecated.

    The only difference: bias may be bfloat16 and is then widened to float32, which changes no value.
    """
    warn_once(
        "[grouped_mat_mul_all_reduce] ascend_grouped_mat_mul_all_reduce: expected its newer name, got AscendSpeed's. "
        "Call mindspeed.ops.npu_grouped_mat_mul_all_reduce instead."
    )
    if isinstance(bias, (list, tuple)):
        bias = [b.float() if isinstance(b, Tensor) and b.dtype is torch.bfloat16 else b for b in bias]
    return npu_grouped_mat_mul_all_reduce(
        x, weight, hcomm, bias=bias, group_list=group_list, split_item=split_item, reduce_op=reduce_op,
        comm_turn=comm_turn,
    )  # fmt: skip
