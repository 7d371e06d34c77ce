"""Samples for engine/kernels/loss.py: sums over the targets written out, and gradients against autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.engine.cases.grad_cases import gradient_of
from tests.engine.op_case import OpCase

TARGET = torch.tensor([2, 0, 4, 2], dtype=torch.int32)
IGNORE = 4
SCALAR = {"none": (3, 4), "sum": (), "mean": ()}
NAMES = tuple(SCALAR)


def _reduced(each: Tensor, reduction: str) -> Tensor:
    return {"none": each, "sum": each.sum(), "mean": each.mean()}[reduction]


def _nll(x: Tensor, weight: Tensor, reduction: str) -> list[Tensor]:
    """[loss, total weight]; the target IGNORE does not count."""
    counts = [0.0 if t == IGNORE else float(weight[t]) for t in TARGET.tolist()]
    each = torch.stack([-row[t] * count for row, t, count in zip(x, TARGET.tolist(), counts, strict=True)])
    total = torch.tensor(sum(counts), dtype=x.dtype)
    if reduction == "none":
        return [each, torch.zeros_like(total)]
    return [each.sum() / (total if reduction == "mean" else 1), total]


def _nll_inputs(m: Any, weighted: bool = True) -> dict[str, Tensor | None]:
    return {"x": m(4, 5), "target": TARGET, "weight": m(5, low=0.5, high=2) if weighted else None}


def _nll_grad_inputs(reduction: str) -> Callable[[Any], dict[str, Tensor]]:
    def make(m: Any) -> dict[str, Tensor]:
        weight = m(5, low=0.5, high=2)
        total = sum(weight[t] for t in TARGET.tolist() if t != IGNORE)
        assert isinstance(total, Tensor)
        grad = m(4) if reduction == "none" else m(1).reshape(())
        return {"x": m(4, 5), "y_grad": grad, "target": TARGET, "weight": weight, "total_weight": total.reshape(())}

    return make


def _pairs(ge_type: str, formula: Callable[[Tensor, Tensor], Tensor], output: str, **attrs: Any) -> list[OpCase]:
    """The gradient of ``formula(predict, label)`` in every reduction."""
    return [
        OpCase(
            ge_type,
            lambda m, r=r: {"predict": m(3, 4), "label": m(3, 4), "dout": m(*SCALAR[r] or (1,)).reshape(SCALAR[r])},
            lambda predict, label, dout, r=r: gradient_of(lambda t: _reduced(formula(t, label), r), dout, predict),
            {"reduction": r, **attrs},
            outputs=(output,),
            name=r,
        )
        for r in NAMES
    ]


def _smooth_l1(x: Tensor, y: Tensor, beta: float) -> Tensor:
    far = (x - y).abs()
    return torch.where(far < beta, far**2 / (2 * beta), far - beta / 2)


def _cross_entropy(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    return -weight * (y * x.log() + (1 - y) * (1 - x).log())


CASES = [
    *[
        OpCase(
            "NLLLoss",
            _nll_inputs,
            lambda x, target, weight, r=r: _nll(x, weight, r),
            {"reduction": r, "ignore_index": IGNORE},
            outputs=("y", "total_weight"),
            name=r,
        )
        for r in NAMES
    ],
    OpCase(
        "NLLLoss",
        lambda m: _nll_inputs(m, weighted=False),
        lambda x, target, weight: [
            -sum(row[t] for row, t in zip(x, TARGET.tolist(), strict=True)) / 4,
            torch.tensor(4.0),
        ],
        outputs=("y", "total_weight"),
        name="unweighted",
    ),
    *[
        OpCase(
            "NLLLossGrad",
            _nll_grad_inputs(r),
            lambda x, y_grad, target, weight, total_weight, r=r: gradient_of(
                lambda t: _nll(t, weight, r)[0], y_grad, x
            ),
            {"reduction": r, "ignore_index": IGNORE},
            outputs=("x_grad",),
            name=r,
        )
        for r in NAMES
    ],
    *_pairs("MseLossGrad", lambda x, y: (x - y) ** 2, "y"),
    *_pairs("SmoothL1LossGradV2", lambda x, y: _smooth_l1(x, y, 0.7), "gradient", sigma=0.7),
    *_pairs("SoftMarginLossGrad", lambda x, y: torch.log1p(torch.exp(-x * y)), "gradient"),
    *[
        OpCase(
            "BinaryCrossEntropyGrad",
            lambda m, r=r: {
                "x": m(3, 4, low=0.1, high=0.9),
                "y": m(3, 4, low=0, high=1),
                "grad_output": m(*SCALAR[r] or (1,)).reshape(SCALAR[r]),
                "weight": m(3, 4, low=0.5, high=2),
            },
            lambda x, y, grad_output, weight, r=r: gradient_of(
                lambda t: _reduced(_cross_entropy(t, y, weight), r), grad_output, x
            ),
            {"reduction": r},
            outputs=("output",),
            name=r,
        )
        for r in NAMES
    ],
]
