"""Calls of the aten ops that only training needs: gradients, and losses with a GE type of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from npu_fused_graph.selftest.aten_samples import F
from npu_fused_graph.selftest.calls import Call, Make, Sample

aten = torch.ops.aten

EVERY = (*F, "float64")
TARGET = torch.tensor([2, 0, 4, 2])
IGNORE = 4
NONE, MEAN, SUM = 0, 1, 2


def two(*shape: int, args: tuple[Any, ...] = (), **options: Any) -> Callable[[Make], Call]:
    """A call with an incoming gradient, the point, and further arguments."""
    return lambda make: Call(make(*shape), make(*shape), *args, **options)


def weights(make: Make) -> torch.Tensor:
    return make(5, low=0.5, high=2)


def total(make: Make) -> torch.Tensor:
    return weights(make)[TARGET[TARGET != IGNORE]].sum()


def scalar(make: Make) -> torch.Tensor:
    return make(1).reshape(())


def _entropy(r: int, m: Make) -> Call:
    return Call(
        m(3, 4) if r == NONE else scalar(m), m(3, 4, low=0.1, high=0.9), m(3, 4, low=0, high=1),
        m(3, 4, low=0.5) if r else None, r,
    )  # fmt: skip


def losses(op: Any, *args: Any) -> list[Sample]:
    """The gradient of a loss in every reduction. args: what follows it."""

    def call(r: int) -> Callable[[Make], Call]:
        return lambda m: Call(m(3, 4) if r == NONE else scalar(m), m(3, 4), m(3, 4), r, *args)

    return [Sample(op, call(r), EVERY, name=name, scale=4) for r, name in ((MEAN, ""), (SUM, "sum"), (NONE, "none"))]


def image(make: Make) -> torch.Tensor:
    return make(2, 5, 2, 3)


PLACES = torch.arange(12).reshape(2, 2, 3) % 5

NLL = [
    Sample(aten.nll_loss_forward.default, lambda m: Call(m(4, 5), TARGET, None, MEAN, -100), EVERY, scale=4),
    Sample(
        aten.nll_loss_forward.default, lambda m: Call(m(4, 5), TARGET, weights(m), MEAN, IGNORE), EVERY,
        name="weight",
        scale=4,
    ),
    Sample(
        aten.nll_loss_forward.default, lambda m: Call(m(4, 5), TARGET, weights(m), SUM, IGNORE), EVERY, name="sum"
    ),
    Sample(
        aten.nll_loss_forward.default, lambda m: Call(m(4, 5), TARGET, weights(m), NONE, IGNORE), EVERY, name="none"
    ),
    Sample(aten.nll_loss_forward.default, lambda m: Call(m(5), TARGET[0], None, NONE, -100), EVERY, name="row"),
    Sample(
        aten.nll_loss_backward.default,
        lambda m: Call(scalar(m), m(4, 5), TARGET, None, MEAN, -100, scalar(m) * 0 + 4),
        EVERY, scale=4,
    ),
    Sample(
        aten.nll_loss_backward.default,
        lambda m: Call(scalar(m), m(4, 5), TARGET, weights(m), MEAN, IGNORE, total(m)),
        EVERY, name="weight", scale=4,
    ),
    Sample(
        aten.nll_loss_backward.default,
        lambda m: Call(m(4), m(4, 5), TARGET, weights(m), NONE, IGNORE, total(m)),
        EVERY, name="none", scale=4,
    ),
    Sample(
        aten.nll_loss_backward.default,
        lambda m: Call(scalar(m), m(5), TARGET[0], None, SUM, -100, scalar(m) * 0 + 1),
        EVERY, name="row", scale=4,
    ),
    Sample(aten.nll_loss2d_forward.default, lambda m: Call(image(m), PLACES, weights(m), MEAN, IGNORE), scale=4),
    Sample(aten.nll_loss2d_forward.default, lambda m: Call(image(m), PLACES, None, NONE, -100), name="none"),
    Sample(
        aten.nll_loss2d_backward.default,
        lambda m: Call(scalar(m), image(m), PLACES, None, MEAN, -100, scalar(m) * 0 + 12),
        scale=4,
    ),
    Sample(
        aten.nll_loss2d_backward.default,
        lambda m: Call(m(2, 2, 3), image(m), PLACES, weights(m), NONE, IGNORE, scalar(m)),
        name="none", scale=4,
    ),
]  # fmt: skip


def batch_norm_call(shape: tuple[int, ...], *, train: bool, affine: bool = True) -> Callable[[Make], Call]:
    def call(make: Make) -> Call:
        x = make(*shape)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        weight, running = (make(3, low=0.5) if affine else None), (make(3), make(3, low=0.5))
        saved = x.mean(axes), (x.var(axes, correction=0) + 1e-3).rsqrt()
        return Call(make(*shape), x, weight, *running, *saved, train, 1e-3, [True] * 3)

    return call


def group_norm_call(make: Make) -> Call:
    x = make(2, 6, 4)
    groups = x.float().reshape(2, 3, 8)
    mean, rstd = groups.mean(-1), (groups.var(-1, correction=0) + 1e-5).rsqrt()
    return Call(make(2, 6, 4), x, mean.to(x.dtype), rstd.to(x.dtype), make(6), 2, 6, 4, 3, [True, True, True])


GRADIENTS = [
    *NLL,
    *losses(aten.smooth_l1_loss_backward.default, 0.7),
    Sample(
        aten.smooth_l1_loss_backward.default, lambda m: Call(scalar(m), m(3, 4), m(3, 4), MEAN, 0.0), EVERY,
        name="beta 0", scale=4,
    ),
    *losses(aten.huber_loss_backward.default, 0.7),
    *losses(aten.soft_margin_loss_backward.default),
    *[
        Sample(
            aten.binary_cross_entropy_backward.default,
            partial(_entropy, r),
            EVERY, name=name, scale=8,
        )
        for r, name in ((MEAN, ""), (SUM, "sum"), (NONE, "none"))
    ],
    Sample(aten.silu_backward.default, two(4, 33), EVERY, scale=2),
    Sample(aten.gelu_backward.default, two(4, 33), EVERY, scale=2),
    Sample(aten.gelu_backward.default, two(4, 33, approximate="tanh"), EVERY, name="tanh", scale=2),
    Sample(aten.softplus_backward.default, two(4, 33, args=(1, 20)), EVERY, scale=2),
    Sample(aten.softplus_backward.default, two(4, 33, args=(2.0, 1.0)), EVERY, name="threshold", scale=2),
    Sample(
        aten.logit_backward.default, lambda m: Call(m(4, 33), m(4, 33, low=0.1, high=0.9), 0.2), scale=4, wide=False
    ),
    Sample(
        aten.upsample_nearest2d_backward.default, lambda m: Call(m(1, 2, 6, 6), [6, 6], [1, 2, 4, 4], 1.7, 1.7),
        name="scales", scale=4,
    ),
    Sample(
        aten.upsample_nearest2d_backward.default, lambda m: Call(m(1, 2, 6, 8), [6, 8], [1, 2, 3, 4], 2.0, None),
        scale=4,
    ),
    Sample(aten.mish_backward.default, two(4, 33), scale=2),
    Sample(aten.select_backward.default, lambda m: Call(m(2, 5), [2, 3, 5], 1, -1), (*EVERY, "int64"), exact=True),
    Sample(aten.slice_backward.default, lambda m: Call(m(2, 3), [2, 5], -1, -9, 3, 1), EVERY, "start", exact=True),
    Sample(aten.slice_backward.default, lambda m: Call(m(2, 2), [2, 5], 1, -4, 9, 2), EVERY, name="step", exact=True),
    Sample(aten.slice_backward.default, lambda m: Call(m(2, 5), [2, 5], 1, -5, 9, 1), EVERY, name="all", exact=True),
    Sample(aten.slice_backward.default, lambda m: Call(m(2, 2), [5, 2], 0, 1, 3, 1), EVERY, exact=True),
    Sample(aten.diagonal_backward.default, lambda m: Call(m(2, 3), [2, 4, 3], 0, 1, 2), EVERY, "static", exact=True),
    Sample(aten.unfold_backward.default, lambda m: Call(m(2, 3, 4), [2, 8], 1, 4, 2), scale=2),
    Sample(
        aten.embedding.default, lambda m: Call(m(5, 3), torch.tensor([[0, 4], [2, 0]]), 2, True), EVERY, exact=True
    ),
    Sample(aten._native_batch_norm_legit.no_stats, lambda m: Call(m(4, 3, 5), m(3), None, True, 0.1, 1e-5), F[:1]),
    *[
        Sample(
            aten.native_batch_norm_backward.default, batch_norm_call(shape, **options), F[:1], name=name, scale=4
        )
        for name, shape, options in (
            ("", (2, 3, 4, 5), {"train": True}),
            ("rows", (8, 3), {"train": True}),
            ("line", (4, 3, 5), {"train": True, "affine": False}),
            ("volume", (2, 3, 2, 2, 3), {"train": True}),
            ("inference", (2, 3, 4, 5), {"train": False}),
            ("plain inference", (8, 3), {"train": False, "affine": False}),
        )
    ],
    Sample(aten.native_group_norm_backward.default, group_norm_call, scale=8, wide=False),
]  # fmt: skip
