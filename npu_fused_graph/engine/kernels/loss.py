"""Negative log likelihood, and the gradients of losses. The other losses are sums of elementwise results."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.aten import aten_op, aten_tuple_op
from npu_fused_graph.engine.registry import Allowed, kernel

_BINARY_CROSS_ENTROPY_BACKWARD = aten_op("binary_cross_entropy_backward")
_MSE_LOSS_BACKWARD = aten_op("mse_loss_backward")
_NLL_LOSS_BACKWARD = aten_op("nll_loss_backward")
_NLL_LOSS_FORWARD = aten_tuple_op("nll_loss_forward")
_SMOOTH_L1_LOSS_BACKWARD = aten_op("smooth_l1_loss_backward")
_SOFT_MARGIN_LOSS_BACKWARD = aten_op("soft_margin_loss_backward")

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_KNOWN: Allowed = {"reduction": tuple(_REDUCTIONS)}


@kernel("NLLLoss", allowed=_KNOWN)
def nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "mean", ignore_index: int = -100
) -> tuple[Tensor, ...]:
    """x: log probabilities (rows, classes). total_weight: of the targets that count; 0 without reduction."""
    return _NLL_LOSS_FORWARD(x, target.to(torch.int64), weight, _REDUCTIONS[reduction], ignore_index)


@kernel("NLLLossGrad", allowed=_KNOWN)
def nll_loss_grad(
    x: Tensor,
    y_grad: Tensor,
    target: Tensor,
    weight: Tensor,
    total_weight: Tensor,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    places = target.to(torch.int64)
    return _NLL_LOSS_BACKWARD(y_grad, x, places, weight, _REDUCTIONS[reduction], ignore_index, total_weight)


@kernel("MseLossGrad", same_dtype=("predict", "label", "dout"), allowed=_KNOWN)
def mse_loss_grad(predict: Tensor, label: Tensor, dout: Tensor, *, reduction: str = "mean") -> Tensor:
    return _MSE_LOSS_BACKWARD(dout, predict, label, _REDUCTIONS[reduction])


@kernel("SmoothL1LossGradV2", same_dtype=("predict", "label", "dout"), allowed=_KNOWN)
def smooth_l1_loss_grad_v2(
    predict: Tensor, label: Tensor, dout: Tensor, *, sigma: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """sigma is torch's beta: where the square ends and the line begins."""
    return _SMOOTH_L1_LOSS_BACKWARD(dout, predict, label, _REDUCTIONS[reduction], sigma)


@kernel("SoftMarginLossGrad", same_dtype=("predict", "label", "dout"), allowed=_KNOWN)
def soft_margin_loss_grad(predict: Tensor, label: Tensor, dout: Tensor, *, reduction: str = "mean") -> Tensor:
    return _SOFT_MARGIN_LOSS_BACKWARD(dout, predict, label, _REDUCTIONS[reduction])


@kernel("BinaryCrossEntropyGrad", same_dtype=("x", "y", "grad_output"), allowed=_KNOWN)
def binary_cross_entropy_grad(
    x: Tensor, y: Tensor, grad_output: Tensor, weight: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """x: probabilities, y: targets."""
    return _BINARY_CROSS_ENTROPY_BACKWARD(grad_output, x, y, weight, _REDUCTIONS[reduction])
