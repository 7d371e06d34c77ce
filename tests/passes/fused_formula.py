"""What the fused operators compute, written from CANN's public kernels, not from our operators.

Accumulators they have in float32 are computed in float64 and rounded where they round. T is the dtype of the
residual.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map

PRODUCT_ARGUMENTS = (
    "x1", "x2", "bias", "antiquant_scale", "antiquant_offset", "dequant_scale", "antiquant_group_size",
)  # fmt: skip


def npu_mm_all_reduce_add_rms_norm(
    calls: list[dict[str, Any]], all_reduce: Callable[[list[Tensor]], Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """(y, norm_out) of every rank. calls: the arguments of every rank, x2 as (k, n)."""
    total = all_reduce(
        [
            product(**{name: call[name] for name in PRODUCT_ARGUMENTS}, dtype=call["residual"].dtype)  # steps 1 to 3
            for call in calls
        ]
    )  # step 4
    return [add_rms_norm(total, call["residual"], call["gamma"], call["epsilon"]) for call in calls]


def add_rms_norm(total: Tensor, residual: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Steps 5 to 8."""
    dtype = residual.dtype
    y = (total.reshape(residual.shape).float() + residual.float()).to(dtype)
    v = y.float()
    ss = (v.double().square() / v.size(-1)).sum(-1, keepdim=True).float()
    rstd = 1 / torch.sqrt(ss + epsilon)
    h = (v * rstd).to(dtype)
    return y, (h.float() * gamma.float()).to(dtype)


def product(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    antiquant_group_size: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """p_r: this rank's product with its own bias, rounded to T; the dtypes choose the scenario."""
    if x2.dtype is torch.int8 and x1.dtype is torch.int8:
        assert dequant_scale is not None
        scale = unpacked(dequant_scale)
        result = dtype or (torch.bfloat16 if dequant_scale.dtype is torch.bfloat16 else torch.float16)
        sums = x1.double() @ x2.double() + (0 if bias is None else bias.double())  # int32: exact
        return (sums.float() * scale).to(result)
    if x2.dtype is torch.int8:
        assert antiquant_scale is not None
        x2 = antiquantised(x2, antiquant_scale, antiquant_offset, antiquant_group_size)
    sums = x1.double() @ x2.double() + (0 if bias is None else bias.double())
    return sums.float().to(x1.dtype)


def npu_grouped_mat_mul_all_reduce(
    calls: list[dict[str, Any]], all_reduce: Callable[[list[Tensor]], Tensor]
) -> list[list[Tensor]]:
    """The results of every rank."""
    partials = [_groups(**{name: call[name] for name in GROUPED_ARGUMENTS}) for call in calls]
    totals = [all_reduce(list(of_group)) for of_group in zip(*partials, strict=True)]
    if calls[0]["split_item"] in (2, 3):
        totals = [torch.cat(totals)]
    return [[total.clone() for total in totals] for _ in calls]


GROUPED_ARGUMENTS = ("x", "weight", "bias", "group_list", "split_item")


def _groups(
    x: list[Tensor], weight: list[Tensor], bias: list[Tensor] | None, group_list: list[int] | None, split_item: int
) -> list[Tensor]:
    """This rank's product of each group with its own bias, rounded to T."""
    count = weight[0].size(0) if weight[0].dim() == 3 else len(weight)
    results, start = [], 0
    for i in range(count):
        w = weight[0][i] if weight[0].dim() == 3 else weight[i]
        if split_item in (1, 3):
            assert group_list is not None
            rows, start = x[0][start : group_list[i]], group_list[i]
        else:
            rows = x[i]
        sums = rows.double() @ w.double() + (bias[i].double() if bias else 0)
        results.append(sums.float().to(rows.dtype))
    return results


def antiquantised(weight: Tensor, scale: Tensor, offset: Tensor | None, group_size: int) -> Tensor:
    """(w + offset) * scale, rounded to T: float16 after each of the two steps, bfloat16 once."""
    dtype = scale.dtype
    step = torch.float16 if dtype is torch.float16 else torch.float32

    def rows(parameter: Tensor) -> Tensor:
        if not group_size:
            return parameter
        index = torch.arange(weight.size(0)) // group_size
        return parameter[index]

    wide = weight.to(step)
    if offset is not None:
        wide = (wide.double() + rows(offset).double()).to(step)
    return (wide.double() * rows(scale).double()).to(step).to(dtype)


def unpacked(scale: Tensor) -> Tensor:
    """float32 scale: of a bfloat16 tensor, or the upper 19 of the low 32 bits of a packed word."""
    if scale.dtype not in (torch.int64, torch.uint64):
        return scale.float()
    low = scale.contiguous().view(torch.int32)[..., ::2]  # little-endian: the low half comes first
    return (low & -(1 << 13)).contiguous().view(torch.float32)


_accepted: set[tuple[Any, ...]] = set()


def check_call(target: OpOverload, call: dict[str, Any], ranks: int) -> None:
    """Ask the operator's own fake implementation, once, whether it takes these arguments; raises what it raises."""
    facts = tree_map(lambda x: (x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x, call)
    key = (target, ranks, repr(facts))
    if key not in _accepted:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, warnings.catch_warnings():
            # tests run graphs of several groups in one process
            warnings.filterwarnings("ignore", ".*one communication domain", UserWarning)
            target(**tree_map(lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, call))
        _accepted.add(key)
