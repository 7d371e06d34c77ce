"""Losses as GE knows them, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import (
    HALF_AND_FLOAT,
    by_decomposition,
    by_torch,
    computed_in,
    ge,
    ints,
    lower,
    sizes,
    to,
    torch_dtype,
    typed,
)

aten = torch.ops.aten

_REDUCTIONS = ("none", "mean", "sum")
_SUM = 2
_NLL, _NLL_BACKWARD = aten.nll_loss_forward.default, aten.nll_loss_backward.default


def nll_loss_forward(x: Any, target: Any, weight: Any, reduction: int, ignore_index: int) -> Any:
    """NLLLoss takes rows of float32; TorchAir hands it the other dtypes and a single row too."""
    if torch_dtype(x) is not torch.float32 or x.rank == 1:
        compute = _nll_in_float64 if torch_dtype(x) is torch.float64 else _nll_of_float32_rows
        # without reduction a single row still has a total weight
        return lower(compute, (x, target, weight, reduction if x.rank > 1 else _SUM, ignore_index), {})
    return ge.NLLLoss(
        x, to(target, torch.int32), weight, reduction=_REDUCTIONS[reduction], ignore_index=int(ignore_index)
    )


def _nll_of_float32_rows(
    x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, reduction: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = None if weight is None else weight.float()
    rows = x.float().reshape(-1, x.shape[-1])
    loss, total = _NLL(rows, target.reshape(-1), wide, reduction, ignore_index)
    loss = loss.reshape(target.shape) if reduction == 0 else loss
    return loss.to(x.dtype), total.to(x.dtype)


def nll_loss_backward(
    grad: Any, x: Any, target: Any, weight: Any, reduction: int, ignore_index: int, total_weight: Any
) -> Any:
    """As nll_loss_forward; NLLLossGrad wants weights in any case."""
    if torch_dtype(x) is not torch.float32 or x.rank == 1:
        compute = _nll_backward_in_float64 if torch_dtype(x) is torch.float64 else _nll_backward_of_float32_rows
        return lower(compute, (grad, x, target, weight, reduction, ignore_index, total_weight), {})
    if weight is None:
        weight = typed(ge.Fill(ints([sizes(x)[1]]), to(1.0, torch.float32)), torch.float32)
    return ge.NLLLossGrad(
        x, grad, to(target, torch.int32), weight, total_weight, reduction=_REDUCTIONS[reduction],
        ignore_index=int(ignore_index),
    )  # fmt: skip


def _nll_backward_of_float32_rows(
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: torch.Tensor,
) -> torch.Tensor:
    wide = None if weight is None else weight.float()
    rows = x.float().reshape(-1, x.shape[-1])
    grad = grad.float().reshape(-1) if reduction == 0 else grad.float()
    found = _NLL_BACKWARD(grad, rows, target.reshape(-1), wide, reduction, ignore_index, total_weight.float())
    result: torch.Tensor = found.reshape(x.shape).to(x.dtype)
    return result


def _counted(
    x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mask of the targets' places among the classes, weights of the targets): GE gathers no float64."""
    target = target.reshape(-1, 1).to(torch.int64)
    counts = target != ignore_index
    mask = (torch.arange(x.shape[-1]) == target) & counts
    weights = counts.to(x.dtype) if weight is None else torch.where(mask, weight.to(x.dtype), 0).sum(1, keepdim=True)
    return mask, weights.squeeze(1)


def _nll_in_float64(
    x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, reduction: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    mask, weights = _counted(x, target, weight, ignore_index)
    each = -torch.where(mask, x.reshape(-1, x.shape[-1]), 0).sum(1) * weights
    if reduction == 0:
        return each.reshape(target.shape), x.new_zeros(())
    total = weights.sum()
    return (each.sum() / total if reduction == 1 else each.sum()), total


def _nll_backward_in_float64(
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: torch.Tensor,
) -> torch.Tensor:
    mask, weights = _counted(x, target, weight, ignore_index)
    each = -weights * grad.reshape(-1)
    each = each / total_weight if reduction == 1 else each
    return torch.where(mask, each.unsqueeze(1), 0).reshape(x.shape)


def nll_loss2d_forward(
    x: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, reduction: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One row of classes per place."""
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    loss, total = _NLL(rows, target.reshape(-1), weight, reduction, ignore_index)
    return (loss.reshape(target.shape) if reduction == 0 else loss), total


def nll_loss2d_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: torch.Tensor,
) -> torch.Tensor:
    n, classes, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, classes)
    grad = grad.reshape(-1) if reduction == 0 else grad
    found = _NLL_BACKWARD(grad, rows, target.reshape(-1), weight, reduction, ignore_index, total_weight)
    result: torch.Tensor = found.reshape(n, height, width, classes).permute(0, 3, 1, 2)
    return result


def smooth_l1_loss_backward(grad: Any, x: Any, target: Any, reduction: int, beta: float) -> Any:
    op = aten.smooth_l1_loss_backward.default
    if beta == 0 or torch_dtype(x) is torch.float64:  # GE divides by it
        return by_decomposition(op)(grad, x, target, reduction, beta)
    return _of_floats(op, "SmoothL1LossGradV2", (x, target, grad), reduction, sigma=float(beta))


def soft_margin_loss_backward(grad: Any, x: Any, target: Any, reduction: int) -> Any:
    op = aten.soft_margin_loss_backward.default
    if torch_dtype(x) is torch.float64:
        return by_decomposition(op)(grad, x, target, reduction)
    return _of_floats(op, "SoftMarginLossGrad", (x, target, grad), reduction)


def binary_cross_entropy_backward(grad: Any, x: Any, target: Any, weight: Any = None, reduction: int = 1) -> Any:
    op = aten.binary_cross_entropy_backward.default
    if torch_dtype(x) is torch.float64:
        return by_decomposition(op)(grad, x, target, weight, reduction)
    return _of_floats(op, "BinaryCrossEntropyGrad", (x, target, grad, weight), reduction)


def _of_floats(op: Any, ge_type: str, parts: tuple[Any, ...], reduction: int, **attrs: Any) -> Any:
    """A gradient GE computes in half or single precision only."""
    dtype = torch_dtype(parts[0])
    work = computed_in(dtype, HALF_AND_FLOAT, op.overloadpacket.__name__)
    inputs = [part if part is None else to(part, work) for part in parts]
    result = getattr(ge, ge_type)(*inputs, reduction=_REDUCTIONS[reduction], **attrs)
    return to(typed(result, work), dtype)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.nll_loss2d_forward.default: by_torch(nll_loss2d_forward),
    aten.nll_loss2d_backward.default: by_torch(nll_loss2d_backward),
    aten.smooth_l1_loss_backward.default: smooth_l1_loss_backward,
    aten.soft_margin_loss_backward.default: soft_margin_loss_backward,
    aten.binary_cross_entropy_backward.default: binary_cross_entropy_backward,
    aten.huber_loss_backward.default: by_decomposition(aten.huber_loss_backward.default),
}
