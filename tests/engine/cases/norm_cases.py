"""Samples for engine/kernels/norm.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.engine.op_case import Make, OpCase


def _stats(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    mean = x.sum(dims, keepdim=True) / x[(0,) * x.dim()].new_tensor([x.shape[d] for d in dims]).prod()
    centred = x - mean
    return mean, (centred * centred).mean(dims, keepdim=True)


def _layer_norm(x: Tensor, axis: int, gamma: Any, beta: Any, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, variance = _stats(x, list(range(axis, x.dim())))
    rstd = 1 / (variance + eps).sqrt()
    y = (x - mean) * rstd
    y = y if gamma is None else y * gamma
    return (y if beta is None else y + beta), mean, rstd, variance


def _v4(x: Tensor, normalized_shape: Tensor, gamma: Any = None, beta: Any = None, eps: float = 1e-5) -> Any:
    return _layer_norm(x, x.dim() - normalized_shape.numel(), gamma, beta, eps)[:3]


def _group_norm(x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float) -> tuple[Tensor, ...]:
    grouped = x.reshape(x.shape[0], groups, -1)
    mean, variance = _stats(grouped, [2])
    shape = [1, -1] + [1] * (x.dim() - 2)
    y = ((grouped - mean) / (variance + eps).sqrt()).reshape(x.shape) * gamma.view(shape) + beta.view(shape)
    return y, mean[..., 0], (1 / (variance + eps).sqrt())[..., 0], variance[..., 0]


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    shape = [1, -1] + [1] * (x.dim() - 2)
    factor = weight / (var + eps).sqrt()
    return x * factor.view(shape) + (bias - mean * factor).view(shape)


def _trained(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, eps: float, momentum: float
) -> list[Tensor]:
    columns = x.transpose(0, 1).flatten(1)
    mean, var, count = columns.mean(1), columns.var(1, correction=0), columns.shape[1]
    return [
        _batch_norm(x, weight, bias, mean, var, eps),
        running_mean * (1 - momentum) + mean * momentum,
        running_var * (1 - momentum) + var * count / (count - 1) * momentum,
        mean,
        1 / (var + eps).sqrt(),
    ]


def _quantised(norm: Tensor, total: Tensor, first: Any, second: Any) -> list[Tensor]:
    """Largest element of each row at 127; a result that is left out is [0]."""
    results, scales = [], []
    for smooth in (first, second):
        if smooth is None:
            results.append(torch.zeros(1))
            scales.append(torch.zeros(1))
        else:
            largest = (norm * smooth).abs().max(-1, keepdim=True)[0]
            results.append((norm * smooth / largest * 127).round())
            scales.append(largest[..., 0] / 127)
    return [*results, total, *scales]


def _rms(x: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dims = list(range(x.dim() - gamma.dim(), x.dim()))
    rstd = 1 / ((x * x).mean(dims, keepdim=True) + eps).sqrt()
    return x * rstd * gamma, rstd


def _bn_inputs(m: Make, *shape: int) -> dict[str, Tensor]:
    c = shape[1]
    return {
        "x": m(*shape),
        "weight": m(c).float(),
        "bias": m(c).float(),
        "running_mean": m(c).float(),
        "running_var": m(c, low=0.5, high=2.0).float(),
    }


def _as_bn_infer(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(("x", "scale", "offset", "mean", "variance"), inputs.values(), strict=True))


THREE = ("y", "mean", "rstd")
FIVE = ("y", "running_mean", "running_var", "save_mean", "save_rstd")

CASES = [
    OpCase(
        "LayerNormV4",
        lambda m: {"x": m(3, 7), "normalized_shape": torch.tensor([7]), "gamma": m(7), "beta": m(7)},
        _v4,
        outputs=THREE,
        const=("normalized_shape",),
    ),
    OpCase(
        "LayerNormV4",
        lambda m: {"x": m(2, 3, 5), "normalized_shape": torch.tensor([3, 5]), "gamma": None, "beta": None},
        lambda **inputs: _v4(**inputs, eps=0.5),
        {"epsilon": 0.5},
        outputs=THREE,
        name="bare",
    ),
    OpCase(
        "LayerNormV4",
        lambda m: {
            "x": m(3, 7),
            "normalized_shape": torch.tensor([7], dtype=torch.int32),
            "gamma": m(7).float(),
            "beta": m(7).float(),
        },
        _v4,
        outputs=THREE,
        name="float_params",
    ),
    OpCase(
        "LayerNorm",
        lambda m: {"x": m(2, 3, 5), "gamma": m(3, 5), "beta": m(3, 5)},
        lambda x, gamma, beta: [_layer_norm(x, 1, gamma, beta, 0.1)[i] for i in (0, 1, 3)],
        {"begin_norm_axis": 1, "begin_params_axis": 1, "epsilon": 0.1},
        outputs=("y", "mean", "variance"),
    ),
    OpCase(
        "LayerNormV3",
        lambda m: {"x": m(2, 3, 5), "gamma": m(5), "beta": m(5)},
        lambda x, gamma, beta: _layer_norm(x, 2, gamma, beta, 1e-5)[:3],
        {"begin_norm_axis": -1, "begin_params_axis": -1},
        outputs=THREE,
    ),
    OpCase(
        "LayerNormV3",
        lambda m: {"x": m(2, 3, 5), "gamma": m(5), "beta": m(5)},
        lambda x, gamma, beta: _layer_norm(x, 1, gamma, beta, 0.1)[:3],
        {"begin_norm_axis": 1, "begin_params_axis": 2, "epsilon": 0.1},
        outputs=THREE,
        name="params_of_fewer_axes",
    ),
    OpCase(
        "GroupNorm",
        lambda m: {"x": m(2, 6, 3, 5), "gamma": m(6), "beta": m(6)},
        lambda x, gamma, beta: [_group_norm(x, gamma, beta, 3, 0.1)[i] for i in (0, 1, 3)],
        {"num_groups": 3, "eps": 0.1, "data_format": "NHWC", "is_training": True},
        outputs=("y", "mean", "variance"),
    ),
    OpCase(
        "GroupNormV2",
        lambda m: {"x": m(2, 6, 3, 5), "gamma": m(6), "beta": m(6)},
        lambda x, gamma, beta: _group_norm(x, gamma, beta, 2, 0.1)[:3],
        {"num_groups": 2, "eps": 0.1},
        outputs=THREE,
    ),
    OpCase(
        "GroupNormV2",
        lambda m: {"x": m(2, 6), "gamma": m(6), "beta": m(6)},
        lambda x, gamma, beta: _group_norm(x, gamma, beta, 2, 1e-5)[:3],
        {"num_groups": 2},
        outputs=THREE,
        name="no_area",
    ),
    OpCase(
        "BNInfer",
        lambda m: _as_bn_infer(_bn_inputs(m, 2, 3, 4, 5)),
        lambda x, scale, offset, mean, variance: _batch_norm(x, scale, offset, mean, variance, 0.5),
        {"epsilon": 0.5},
    ),
    OpCase(
        "BNInfer",
        lambda m: _as_bn_infer({k: v.to(m.dtype) for k, v in _bn_inputs(m, 2, 3).items()}),
        lambda x, scale, offset, mean, variance: _batch_norm(x, scale, offset, mean, variance, 1e-5),
        {"epsilon": 1e-5},
        name="one_dtype",
    ),
    OpCase(
        "BatchNormV3",
        lambda m: _bn_inputs(m, 2, 3, 4, 5),
        lambda **inputs: _trained(**inputs, eps=1e-5, momentum=0.3),
        {"momentum": 0.3},
        outputs=FIVE,
    ),
    OpCase(
        "BNInfer",
        lambda m: _as_bn_infer(_bn_inputs(m, 2, 3, 4)) | {"scale": m(3), "offset": m(3)},
        lambda x, scale, offset, mean, variance: _batch_norm(x, scale, offset, mean, variance, 1e-5),
        {"epsilon": 1e-5},
        name="float_statistics",
    ),
    OpCase(
        "BatchNormV3",
        lambda m: _bn_inputs(m, 2, 3, 4, 5) | {"weight": m(3), "bias": m(3)},
        lambda **inputs: _trained(**inputs, eps=1e-5, momentum=0.1),
        outputs=FIVE,
        name="half_params",
    ),
    OpCase(
        "BatchNormV3",
        lambda m: _bn_inputs(m, 2, 3, 4),
        lambda x, weight, bias, running_mean, running_var: [
            _batch_norm(x, weight, bias, running_mean, running_var, 0.5),
            running_mean,
            running_var,
            torch.empty(0),
            torch.empty(0),
        ],
        {"epsilon": 0.5, "is_training": False},
        outputs=FIVE,
        name="inference",
    ),
    OpCase(
        "RmsNorm", lambda m: {"x": m(3, 7), "gamma": m(7)}, lambda x, gamma: _rms(x, gamma, 1e-6), outputs=("y", "rstd")
    ),
    OpCase(
        "RmsNorm",
        lambda m: {"x": m(2, 3, 5), "gamma": m(3, 5).float()},
        lambda x, gamma: _rms(x, gamma, 0.5),
        {"epsilon": 0.5},
        outputs=("y", "rstd"),
        name="two_axes",
    ),
    OpCase(
        "RmsNorm",
        lambda m: {"x": m(0, 7), "gamma": m(7)},
        lambda x, gamma: _rms(x, gamma, 0.5),
        outputs=("y", "rstd"),
        name="no_rows",
    ),
    OpCase(
        "AddRmsNorm",
        lambda m: {"x1": m(3, 7), "x2": m(3, 7), "gamma": m(7)},
        # the sum is rounded first, as the third result shows it
        lambda x1, x2, gamma: [*_rms((x1 + x2).double(), gamma.double(), 0.5), x1 + x2],
        {"epsilon": 0.5},
        outputs=("y", "rstd", "x"),
        widen=False,
    ),
    OpCase(
        "AddRmsNormCast",
        lambda m: {"x1": m(3, 7), "x2": m(3, 7), "gamma": m(7)},
        lambda x1, x2, gamma: [*(_rms(x1 + x2, gamma, 0.5)[i] for i in (0, 0, 1)), x1 + x2],
        {"epsilon": 0.5},
        outputs=("y1", "y2", "rstd", "x"),
        dtypes=("bfloat16",),
    ),
    OpCase(
        "AddRmsNormDynamicQuant",
        lambda m: {
            "x1": m(3, 7),
            "x2": m(3, 7),
            "gamma": m(7),
            "smooth_scale1": m(7),
            "smooth_scale2": m(7),
            "beta": m(7),
        },
        lambda x1, x2, gamma, smooth_scale1, smooth_scale2, beta: _quantised(
            _rms(x1 + x2, gamma, 0.5)[0] + beta, x1 + x2, smooth_scale1, smooth_scale2
        ),
        {"epsilon": 0.5, "output_mask": [], "dst_type": 2},
        outputs=("y1", "y2", "x", "scale1", "scale2"),
        dtypes=("float16", "bfloat16"),
    ),
    OpCase(
        "AddRmsNormDynamicQuant",
        lambda m: {"x1": m(2, 3, 8), "x2": m(2, 3, 8), "gamma": m(8)},
        lambda x1, x2, gamma: _quantised(_rms(x1 + x2, gamma, 1e-6)[0], x1 + x2, 1, None),
        {"output_mask": [True, False]},
        outputs=("y1", "y2", "x", "scale1", "scale2"),
        dtypes=("float16", "bfloat16"),
        name="one",
    ),
    OpCase(
        "AddRmsNormDynamicQuant",
        lambda m: {"x1": torch.zeros(2, 4, dtype=m.dtype), "x2": torch.zeros(2, 4, dtype=m.dtype), "gamma": m(4)},
        lambda x1, x2, gamma: [torch.zeros(2, 4), torch.zeros(1), x1, torch.zeros(2), torch.zeros(1)],
        outputs=("y1", "y2", "x", "scale1", "scale2"),
        dtypes=("float16",),
        name="zeros",
    ),
]
