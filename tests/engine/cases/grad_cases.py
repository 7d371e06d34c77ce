"""Samples for engine/kernels/grad.py: every gradient against autograd of the forward formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.engine.cases.nn_cases import adaptive_avg_pool, avg_pool, nearest
from tests.engine.op_case import OpCase


def gradient_of(formula: Callable[..., Tensor], grad: Tensor, *points: Tensor) -> Any:
    """Derivatives of ``formula`` at ``points`` against ``grad``."""
    leaves = [p.double().clone().requires_grad_() for p in points]
    found = torch.autograd.grad(formula(*leaves), leaves, grad.double())
    return found[0] if len(found) == 1 else list(found)


def _log_softmax(x: Tensor, dim: int) -> Tensor:
    return x - x.exp().sum(dim, keepdim=True).log()


def _layer_norm_grad(dy: Tensor, x: Tensor, rstd: Tensor, mean: Tensor, gamma: Tensor) -> list[Tensor]:
    """With the statistics as given: those of half data are rounded."""
    normal = (x - mean) * rstd
    scaled = dy * gamma
    pd_x = rstd * (scaled - scaled.mean(-1, keepdim=True) - normal * (scaled * normal).mean(-1, keepdim=True))
    return [pd_x, (dy * normal).sum((0, 1)), dy.sum((0, 1))]


def _layer_norm_inputs(m: Any) -> dict[str, Tensor]:
    x = m(2, 3, 5)
    wide = x.float()
    mean = wide.mean(-1, keepdim=True)
    rstd = (wide.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()
    return {"dy": m(2, 3, 5), "x": x, "rstd": rstd.to(m.dtype), "mean": mean.to(m.dtype), "gamma": m(5)}


def _rows(x: Tensor) -> Tensor:
    return x[:, None, None]


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * _rows(weight) + _rows(bias)


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    centred = x - x.mean((0, 2, 3), keepdim=True)
    return _affine(centred * ((centred**2).mean((0, 2, 3), keepdim=True) + epsilon).rsqrt(), weight, bias)


def _batch_norm_inputs(m: Any) -> dict[str, Tensor]:
    x = m(2, 3, 4, 5)
    mean, variance = x.float().mean((0, 2, 3)), x.float().var((0, 2, 3), correction=0)
    return {"dy": m(2, 3, 4, 5), "x": x, "save_mean": mean, "save_rstd": (variance + 1e-5).rsqrt()}


def _reduce_grad_inputs(m: Any) -> dict[str, Tensor]:
    """What BNTrainingUpdateGrad gives for them, and statistics in float32, as GE has them."""
    grads, x, scale = m(2, 3, 4, 5), m(2, 3, 4, 5), m(3).float()
    wide = x.double()
    mean, variance = wide.mean((0, 2, 3)), wide.var((0, 2, 3), correction=0)
    normal = (wide - _rows(mean)) * (_rows(variance) + 0.001).rsqrt()
    sums = {"diff_scale": (grads.double() * normal).sum((0, 2, 3)), "diff_offset": grads.double().sum((0, 2, 3))}
    statistics = {"batch_mean": mean, "batch_variance": variance}
    floats = {name: value.float() for name, value in (sums | {"scale": scale} | statistics).items()}
    return {"grads": grads, "x": x, **floats}


def _elu(x: Tensor, alpha: float, scale: float, input_scale: float) -> Tensor:
    return scale * torch.where(x > 0, x, alpha * torch.expm1(x * input_scale))


def _embedding_grad(grad: Tensor, indices: Tensor, padding_idx: int = -1, by_count: bool = False) -> Tensor:
    table = torch.zeros(6, grad.shape[-1], dtype=grad.dtype)
    flat = indices.flatten().tolist()
    for row, index in zip(grad.flatten(0, -2), flat, strict=True):
        if index != padding_idx:
            table[index] += row / (flat.count(index) if by_count else 1)
    return table


def _tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def _with_swish(grad: Tensor, x: Tensor, scale: float) -> dict[str, Tensor]:
    return {"grad": grad, "x": x, "y": (x.double() / (1 + torch.exp(-scale * x.double()))).to(x.dtype)}


def _unary(ge_type: str, names: tuple[str, str], formula: Callable[[Tensor], Tensor], **more: Any) -> OpCase:
    """A gradient of two inputs: names of the incoming gradient and of the point; ``swapped`` = point first."""
    swapped = more.pop("swapped", False)
    order = (names[1], names[0]) if swapped else names
    return OpCase(
        ge_type,
        lambda m: {n: m(3, 4) for n in order},
        lambda **inputs: gradient_of(formula, inputs[names[0]], inputs[names[1]]),
        **more,
    )


def _places_of_largest(x: Tensor) -> Tensor:
    """Of windows of 2 x 2, counted as torch counts them."""
    rows, columns = x.shape[-2:]
    place = torch.arange(rows * columns, dtype=torch.int32).reshape(rows, columns).expand(x.shape)
    x, place = (part.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).transpose(-3, -2).flatten(-2) for part in (x, place))
    return place.gather(-1, x.argmax(-1, keepdim=True)).squeeze(-1)


AVG = {"ksize": [1, 1, 3, 2], "strides": [1, 1, 2, 1], "pads": [1, 1, 0, 0]}
SHAPE = torch.tensor([2, 3, 7, 5], dtype=torch.int32)
POINT = torch.zeros(2, 3, 7, 5)


def _avg_grad(grad: Tensor, **options: Any) -> Tensor:
    pad = options.pop("pad", (1, 0))
    result: Tensor = gradient_of(lambda x: avg_pool(x, (3, 2), (2, 1), pad, **options), grad, POINT)
    return result


CASES = [
    _unary("ReluGrad", ("gradients", "features"), lambda x: x.clamp(min=0), outputs=("backprops",)),
    _unary(
        "ThresholdGradV2D",
        ("gradients", "features"),
        lambda x: torch.where(x > 0.7, x, 0),
        attrs={"threshold": 0.7},
        outputs=("backprops",),
    ),
    OpCase(
        "TanhGrad",
        lambda m: {"y": m(3, 4, low=-0.9, high=0.9), "dy": m(3, 4)},
        lambda y, dy: gradient_of(torch.tanh, dy, torch.atanh(y)),
        {"complex_conj": False},
        outputs=("z",),
    ),
    OpCase(
        "SigmoidGrad",
        lambda m: {"y": m(3, 4, low=0.1, high=0.9), "dy": m(3, 4)},
        lambda y, dy: gradient_of(torch.sigmoid, dy, torch.logit(y)),
        outputs=("z",),
    ),
    OpCase(
        "GeluGrad",
        lambda m: {"dy": m(3, 4), "x": m(3, 4), "y": m(3, 4)},
        lambda dy, x, y: gradient_of(lambda t: t * 0.5 * (1 + torch.erf(t / 2**0.5)), dy, x),
        outputs=("z",),
    ),
    _unary("GeluGradV2", ("dy", "x"), lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)), outputs=("z",)),
    _unary("GeluGradV2", ("dy", "x"), _tanh_gelu, attrs={"approximate": "tanh"}, outputs=("z",), name="tanh"),
    OpCase(
        "SwishGrad",
        lambda m: _with_swish(m(3, 4), m(3, 4), 1.0),
        lambda grad, x, y: gradient_of(lambda t: t / (1 + torch.exp(-t)), grad, x),
        outputs=("grad_x",),
    ),
    OpCase(
        "SwishGrad",
        lambda m: _with_swish(m(3, 4), m(3, 4), 1.5),
        lambda grad, x, y: gradient_of(lambda t: t / (1 + torch.exp(-1.5 * t)), grad, x),
        {"scale": 1.5},
        outputs=("grad_x",),
        name="scale",
    ),
    _unary(
        "SoftplusV2Grad",
        ("input_gradients", "input_features"),
        lambda x: torch.log1p(torch.exp(x)),
        outputs=("output_backprops",),
    ),
    _unary(
        "SoftplusV2Grad",
        ("input_gradients", "input_features"),
        lambda x: torch.where(2 * x > 1, x, torch.log1p(torch.exp(2 * x)) / 2),
        attrs={"beta": 2.0, "threshold": 1.0},
        outputs=("output_backprops",),
        name="threshold",
    ),
    OpCase(
        "MishGrad",
        lambda m: {"grad": m(3, 4), "x": m(3, 4), "tanhx": None},
        lambda grad, x, tanhx: gradient_of(lambda t: t * torch.tanh(torch.log1p(torch.exp(t))), grad, x),
        outputs=("x_grad",),
    ),
    _unary(
        "LeakyReluGrad",
        ("gradients", "features"),
        lambda x: torch.where(x > 0, x, 0.25 * x),
        attrs={"negative_slope": 0.25},
        outputs=("backprops",),
    ),
    _unary("HardtanhGrad", ("grad", "result"), lambda x: x.clamp(-1, 1), swapped=True),
    _unary(
        "HardtanhGrad",
        ("grad", "result"),
        lambda x: x.clamp(-0.5, 2),
        swapped=True,
        attrs={"min_val": -0.5, "max_val": 2.0},
        name="bounds",
    ),
    _unary("HardSwishGrad", ("grad", "x"), lambda x: x * (x + 3).clamp(0, 6) / 6),
    _unary("HardSigmoidGrad", ("grads", "input_x"), lambda x: (x / 6 + 0.5).clamp(0, 1)),
    _unary("EluGradV2", ("grads", "activations"), lambda x: _elu(x, 1, 1, 1)),
    _unary(
        "EluGradV2",
        ("grads", "activations"),
        lambda x: _elu(x, 0.5, 2.0, 1.5),
        attrs={"alpha": 0.5, "scale": 2.0, "input_scale": 1.5},
        name="scales",
    ),
    OpCase(
        "EluGradV2",
        lambda m: {"grads": m(3, 4), "activations": m(3, 4, low=-0.9, high=2)},
        lambda grads, activations: torch.where(activations > 0, grads, grads * (activations + 1)),
        {"is_result": True},
        name="result",
    ),
    _unary("LogSigmoidGrad", ("grads", "features"), lambda x: -torch.log1p(torch.exp(-x)), outputs=("backprops",)),
    OpCase(
        "PReluGrad",
        lambda m: {"grads": m(2, 3, 4), "features": m(2, 3, 4), "weights": m(1, 3, 1)},
        lambda grads, features, weights: [
            torch.where(features > 0, grads, grads * weights),
            torch.where(features > 0, 0.0, grads * features),
        ],
        outputs=("dx", "da"),
    ),
    OpCase(
        "GLUGrad",
        lambda m: {"y_grad": m(3, 4), "x": m(3, 8)},
        lambda y_grad, x: gradient_of(lambda t: t[:, :4] / (1 + torch.exp(-t[:, 4:])), y_grad, x),
        outputs=("x_grad",),
    ),
    OpCase(
        "GLUGrad",
        lambda m: {"y_grad": m(3, 4), "x": m(6, 4)},
        lambda y_grad, x: gradient_of(lambda t: t[:3] / (1 + torch.exp(-t[3:])), y_grad, x),
        {"dim": 0},
        outputs=("x_grad",),
        name="dim",
    ),
    OpCase(
        "SoftmaxGrad",
        lambda m: {"softmax": m(3, 4, low=0, high=0.5), "grad_softmax": m(3, 4)},
        lambda softmax, grad_softmax: softmax * (grad_softmax - (softmax * grad_softmax).sum(-1, keepdim=True)),
        outputs=("grad_x",),
    ),
    OpCase(
        "SoftmaxGrad",
        lambda m: {"softmax": m(3, 4, low=0, high=0.5), "grad_softmax": m(3, 4)},
        lambda softmax, grad_softmax: softmax * (grad_softmax - (softmax * grad_softmax).sum(0)),
        {"axes": [0]},
        outputs=("grad_x",),
        name="axis",
    ),
    OpCase(
        "LogSoftmaxGrad",
        lambda m: {"grad": m(3, 4), "x": m(3, 4, low=-3, high=0)},
        lambda grad, x: grad - x.exp() * grad.sum(-1, keepdim=True),
    ),
    OpCase(
        "LogSoftmaxGrad",
        lambda m: {"grad": m(3, 4), "x": m(3, 4, low=-3, high=0)},
        lambda grad, x: grad - x.exp() * grad.sum(0),
        {"axis": [0]},
        name="axis",
    ),
    OpCase(
        "EmbeddingDenseGrad",
        lambda m: {"grad": m(2, 4, 3), "indices": torch.tensor([[0, 5, 2, 2], [2, 0, 1, 5]])},
        lambda grad, indices: _embedding_grad(grad, indices),
        {"num_weights": 6},
    ),
    OpCase(
        "EmbeddingDenseGrad",
        lambda m: {"grad": m(4, 3), "indices": torch.tensor([0, 2, 2, 1], dtype=torch.int32)},
        lambda grad, indices: _embedding_grad(grad, indices, 1, True),
        {"num_weights": 6, "padding_idx": 1, "scale_grad_by_freq": True},
        name="padding_frequency",
    ),
    OpCase(
        "LayerNormGradV3",
        _layer_norm_inputs,
        _layer_norm_grad,
        outputs=("pd_x", "pd_gamma", "pd_beta"),
    ),
    OpCase(
        "BatchNormGradV3",
        lambda m: _batch_norm_inputs(m) | {"weight": m(3), "running_mean": m(3), "running_var": m(3, low=1)},
        lambda dy, x, weight, **statistics: gradient_of(_batch_norm, dy, x, weight, weight),
        outputs=("dx", "dweight", "dbias"),
    ),
    OpCase(
        "BatchNormGradV3",
        lambda m: _batch_norm_inputs(m) | {"weight": m(3), "running_mean": m(3), "running_var": m(3, low=1)},
        lambda dy, x, weight, running_mean, running_var, **saved: gradient_of(
            lambda x, w, b: _affine((x - _rows(running_mean)) * _rows(running_var + 0.1).rsqrt(), w, b),
            dy,
            x,
            weight,
            weight,
        ),
        {"is_training": False, "epsilon": 0.1},
        outputs=("dx", "dweight", "dbias"),
        name="inference",
    ),
    OpCase(
        "BNTrainingUpdateGrad",
        lambda m: {"grads": m(2, 3, 4, 5), "x": m(2, 3, 4, 5), "batch_mean": m(3), "batch_variance": m(3, low=1)},
        lambda grads, x, batch_mean, batch_variance: [
            (grads * (x - _rows(batch_mean)) * (_rows(batch_variance) + 0.0001).rsqrt()).sum((0, 2, 3)),
            grads.sum((0, 2, 3)),
        ],
        outputs=("diff_scale", "diff_offset"),
    ),
    OpCase(
        "BNTrainingReduceGrad",
        _reduce_grad_inputs,
        lambda grads, x, diff_scale, diff_offset, scale, batch_mean, batch_variance: gradient_of(
            lambda t: _batch_norm(t, scale, scale, 0.001), grads, x
        ),
        {"epsilon": 0.001},
    ),
    OpCase(
        "AdaptiveAvgPool2dGrad",
        lambda m: {"input_grad": m(2, 3, 3, 2)},
        lambda input_grad: gradient_of(lambda x: adaptive_avg_pool(x, [3, 2]), input_grad, POINT),
        {"orig_input_shape": [2, 3, 7, 5]},
        outputs=("output_grad",),
    ),
    OpCase(
        "AvgPoolV2Grad",
        lambda m: {"orig_input_shape": SHAPE, "input_grad": m(2, 3, 4, 4)},
        lambda orig_input_shape, input_grad: _avg_grad(input_grad),
        AVG,
        outputs=("out_grad",),
        const=("orig_input_shape",),
    ),
    OpCase(
        "AvgPoolV2Grad",
        lambda m: {"orig_input_shape": SHAPE, "input_grad": m(2, 3, 4, 4)},
        lambda orig_input_shape, input_grad: _avg_grad(input_grad, exclusive=False, ceil_mode=True),
        AVG | {"exclusive": False, "ceil_mode": True},
        outputs=("out_grad",),
        name="inclusive_ceil",
    ),
    OpCase(
        "AvgPoolV2Grad",
        lambda m: {"orig_input_shape": SHAPE, "input_grad": m(2, 3, 3, 4)},
        lambda orig_input_shape, input_grad: _avg_grad(input_grad, pad=(0, 0), divisor=5),
        AVG | {"padding_mode": "VALID", "divisor_override": 5},
        outputs=("out_grad",),
        name="valid_divisor",
    ),
    OpCase(
        "AvgPoolV2Grad",
        lambda m: {"orig_input_shape": SHAPE, "input_grad": m(2, 3, 1, 1)},
        lambda orig_input_shape, input_grad: gradient_of(lambda x: x.mean((-2, -1), keepdim=True), input_grad, POINT),
        AVG | {"global_pooling": True},
        outputs=("out_grad",),
        name="global",
    ),
    OpCase(
        "MaxPoolGradWithArgmaxV1",
        lambda m: {"x": m(2, 3, 4, 6), "grad": m(2, 3, 2, 3), "argmax": _places_of_largest(m(2, 3, 4, 6))},
        lambda x, grad, argmax: (
            torch.zeros_like(x).flatten(2).scatter(2, argmax.flatten(2).long(), grad.flatten(2)).view_as(x)
        ),
        {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "pads": [1, 0, 0, 1]},
    ),
    OpCase(
        "ResizeNearestNeighborV2Grad",
        lambda m: {"grads": m(2, 3, 9, 3), "size": torch.tensor([7, 5], dtype=torch.int32)},
        lambda grads, size: gradient_of(lambda x: nearest(x, [9, 3]), grads, POINT),
    ),
    OpCase(
        "ResizeNearestNeighborV2Grad",
        lambda m: {"grads": m(2, 3, 9, 3), "size": torch.tensor([7, 5], dtype=torch.int32)},
        lambda grads, size: gradient_of(lambda x: nearest(x, [9, 3], True), grads, POINT),
        {"half_pixel_centers": True},
        name="half_pixel",
    ),
]
