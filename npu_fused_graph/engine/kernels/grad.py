"""Gradients, as converters of aten ``*_backward`` emit them. Of convolutions: conv.py, of losses: loss.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.aten import aten_op, aten_tuple_op
from npu_fused_graph.engine.kernels.nn import AVG_POOL, has_symmetric_pads, one_axis
from npu_fused_graph.engine.kernels.pointwise import HALF
from npu_fused_graph.engine.registry import Ints, KernelFn, kernel, unsupported

_ADAPTIVE_AVG_POOL2D_BACKWARD = aten_op("_adaptive_avg_pool2d_backward")
_LOG_SOFTMAX_BACKWARD_DATA = aten_op("_log_softmax_backward_data")
_PRELU_KERNEL_BACKWARD = aten_tuple_op("_prelu_kernel_backward")
_SOFTMAX_BACKWARD_DATA = aten_op("_softmax_backward_data")
_UPSAMPLE_NEAREST_EXACT2D_BACKWARD = aten_op("_upsample_nearest_exact2d_backward")
_AVG_POOL2D_BACKWARD = aten_op("avg_pool2d_backward")
_ELU_BACKWARD = aten_op("elu_backward")
_EMBEDDING_DENSE_BACKWARD = aten_op("embedding_dense_backward")
_GELU_BACKWARD = aten_op("gelu_backward")
_GLU_BACKWARD = aten_op("glu_backward")
_HARDSIGMOID_BACKWARD = aten_op("hardsigmoid_backward")
_HARDSWISH_BACKWARD = aten_op("hardswish_backward")
_HARDTANH_BACKWARD = aten_op("hardtanh_backward")
_LEAKY_RELU_BACKWARD = aten_op("leaky_relu_backward")
_MISH_BACKWARD = aten_op("mish_backward")
_MAX_POOL2D_BACKWARD = aten_op("max_pool2d_with_indices_backward")
_NATIVE_BATCH_NORM_BACKWARD = aten_tuple_op("native_batch_norm_backward")
_NATIVE_LAYER_NORM_BACKWARD = aten_tuple_op("native_layer_norm_backward")
_SIGMOID_BACKWARD = aten_op("sigmoid_backward")
_SOFTPLUS_BACKWARD = aten_op("softplus_backward")
_TANH_BACKWARD = aten_op("tanh_backward")
_THRESHOLD_BACKWARD = aten_op("threshold_backward")
_UPSAMPLE_NEAREST2D_BACKWARD = aten_op("upsample_nearest2d_backward")


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF else x


# -- elementwise -----------------------------------------------------------------------------------------


@kernel("ReluGrad", same_dtype=("gradients", "features"))
def relu_grad(gradients: Tensor, features: Tensor) -> Tensor:
    return _THRESHOLD_BACKWARD(gradients, features, 0)


@kernel("ThresholdGradV2D", same_dtype=("gradients", "features"))
def threshold_grad_v2d(gradients: Tensor, features: Tensor, *, threshold: float) -> Tensor:
    return _THRESHOLD_BACKWARD(gradients, features, threshold)


@kernel("TanhGrad", same_dtype=("y", "dy"), allowed={"complex_conj": (False,)})
def tanh_grad(y: Tensor, dy: Tensor, *, complex_conj: bool = False) -> Tensor:
    return _TANH_BACKWARD(dy, y)


@kernel("SigmoidGrad", same_dtype=("y", "dy"), allowed={"complex_conj": (False,)})
def sigmoid_grad(y: Tensor, dy: Tensor, *, complex_conj: bool = False) -> Tensor:
    return _SIGMOID_BACKWARD(dy, y)


@kernel("GeluGrad", same_dtype=("dy", "x"))
def gelu_grad(dy: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The erf form; y is not read (TorchAir feeds anything there)."""
    return _GELU_BACKWARD(dy, x)


@kernel("GeluGradV2", same_dtype=("dy", "x"), allowed={"approximate": ("none", "tanh")})
def gelu_grad_v2(dy: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    return _GELU_BACKWARD(dy, x, approximate=approximate)


@kernel("SwishGrad", same_dtype=("grad", "x", "y"))
def swish_grad(grad: Tensor, x: Tensor, y: Tensor, *, scale: float = 1.0) -> Tensor:
    """y is the Swish of x, which is read: d/dx x * s = s + scale * y * (1 - s) with s = sigmoid(scale * x)."""
    gate = torch.sigmoid(scale * _wide(x))
    return (_wide(grad) * (gate + scale * _wide(y) * (1 - gate))).to(grad.dtype)


@kernel("SoftplusV2Grad", same_dtype=("input_gradients", "input_features"))
def softplus_v2_grad(
    input_gradients: Tensor, input_features: Tensor, *, beta: float = 1.0, threshold: float = 20.0
) -> Tensor:
    return _SOFTPLUS_BACKWARD(input_gradients, input_features, beta, threshold)


@kernel("MishGrad", same_dtype=("grad", "x"), unfed=("tanhx",))
def mish_grad(grad: Tensor, x: Tensor, tanhx: Tensor | None = None) -> Tensor:
    return _MISH_BACKWARD(grad, x)


@kernel("LeakyReluGrad", same_dtype=("gradients", "features"))
def leaky_relu_grad(gradients: Tensor, features: Tensor, *, negative_slope: float = 0.0) -> Tensor:
    return _LEAKY_RELU_BACKWARD(gradients, features, negative_slope, False)


@kernel("HardtanhGrad", same_dtype=("result", "grad"))
def hardtanh_grad(result: Tensor, grad: Tensor, *, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return _HARDTANH_BACKWARD(grad, result, min_val, max_val)


@kernel("HardSwishGrad", same_dtype=("grad", "x"))
def hard_swish_grad(grad: Tensor, x: Tensor) -> Tensor:
    return _HARDSWISH_BACKWARD(grad, x)


def _check_hard_sigmoid(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    if abs(attrs["alpha"] - 1 / 6) > 1e-6 or attrs["beta"] != 0.5:
        raise unsupported("HardSigmoidGrad", "alpha, beta", "1/6, 0.5", (attrs["alpha"], attrs["beta"]))
    return None


@kernel("HardSigmoidGrad", same_dtype=("grads", "input_x"), specialise=_check_hard_sigmoid)
def hard_sigmoid_grad(grads: Tensor, input_x: Tensor, *, alpha: float = 0.16666666, beta: float = 0.5) -> Tensor:
    return _HARDSIGMOID_BACKWARD(grads, input_x)


@kernel("EluGradV2", same_dtype=("grads", "activations"))
def elu_grad_v2(
    grads: Tensor,
    activations: Tensor,
    *,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
    is_result: bool = False,
) -> Tensor:
    return _ELU_BACKWARD(grads, alpha, scale, input_scale, is_result, activations)


@kernel("LogSigmoidGrad", same_dtype=("grads", "features"))
def log_sigmoid_grad(grads: Tensor, features: Tensor) -> Tensor:
    return grads * torch.sigmoid(-features)


@kernel("PReluGrad", same_dtype=("grads", "features", "weights"))
def prelu_grad(grads: Tensor, features: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """da has the shape of the features, as _prelu_kernel_backward has it: its caller sums it."""
    return _PRELU_KERNEL_BACKWARD(grads, features, weights)


@kernel("GLUGrad", same_dtype=("y_grad", "x"))
def glu_grad(y_grad: Tensor, x: Tensor, *, dim: int = -1) -> Tensor:
    return _GLU_BACKWARD(y_grad, x, dim)


# -- softmax, embedding, normalisation -------------------------------------------------------------------


@kernel("SoftmaxGrad", same_dtype=("softmax", "grad_softmax"), specialise=one_axis("SoftmaxGrad"))
def softmax_grad(softmax: Tensor, grad_softmax: Tensor, *, axes: list[int] = [-1]) -> Tensor:  # noqa: B006
    return _SOFTMAX_BACKWARD_DATA(grad_softmax, softmax, axes[0], softmax.dtype)


@kernel("LogSoftmaxGrad", same_dtype=("grad", "x"), specialise=one_axis("LogSoftmaxGrad", "axis"))
def log_softmax_grad(grad: Tensor, x: Tensor, *, axis: list[int] = [-1]) -> Tensor:  # noqa: B006
    """x is the log-softmax itself."""
    return _LOG_SOFTMAX_BACKWARD_DATA(grad, x, axis[0], x.dtype)


@kernel("EmbeddingDenseGrad")
def embedding_dense_grad(
    grad: Tensor, indices: Tensor, *, num_weights: int, padding_idx: int = -1, scale_grad_by_freq: bool = False
) -> Tensor:
    return _EMBEDDING_DENSE_BACKWARD(grad, indices, num_weights, padding_idx, scale_grad_by_freq)


@kernel("LayerNormGradV3", same_dtype=("dy", "x"), dense=True)
def layer_norm_grad_v3(dy: Tensor, x: Tensor, rstd: Tensor, mean: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
    shape = gamma.shape
    return _NATIVE_LAYER_NORM_BACKWARD(dy, x, shape, mean, rstd, gamma, gamma, [True, True, True])


@kernel("BatchNormGradV3", same_dtype=("dy", "x"))
def batch_norm_grad_v3(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    save_mean: Tensor,
    save_rstd: Tensor,
    *,
    is_training: bool = True,
    epsilon: float = 1e-5,
) -> tuple[Tensor, ...]:
    """Training reads the batch's statistics, as BatchNormV3 saves them, inference the running ones."""
    dtype = save_mean.dtype
    dx, dweight, dbias = _NATIVE_BATCH_NORM_BACKWARD(
        dy, x, weight.to(dtype), running_mean.to(dtype), running_var.to(dtype), save_mean, save_rstd, is_training,
        epsilon, [True, True, True],
    )  # fmt: skip
    return dx, dweight.to(weight.dtype), dbias.to(weight.dtype)


def _per_channel(x: Tensor, rank: int) -> Tensor:
    return _wide(x).reshape(1, -1, *[1] * (rank - 2))


@kernel("BNTrainingUpdateGrad", same_dtype=("grads", "x"))
def bn_training_update_grad(
    grads: Tensor, x: Tensor, batch_mean: Tensor, batch_variance: Tensor, *, epsilon: float = 0.0001
) -> tuple[Tensor, Tensor]:
    """Gradients of scale and offset, at least in float32: sums over all axes but the channels'."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    mean, variance = _per_channel(batch_mean, x.dim()), _per_channel(batch_variance, x.dim())
    wide = _wide(grads)
    normal = (_wide(x) - mean) * torch.rsqrt(variance + epsilon)
    return (wide * normal).sum(axes), wide.sum(axes)


@kernel("BNTrainingReduceGrad", same_dtype=("grads", "x"))
def bn_training_reduce_grad(
    grads: Tensor,
    x: Tensor,
    diff_scale: Tensor,
    diff_offset: Tensor,
    scale: Tensor,
    batch_mean: Tensor,
    batch_variance: Tensor,
    *,
    epsilon: float = 0.0001,
) -> Tensor:
    """The gradient of x, from what BNTrainingUpdateGrad gives."""
    count = x.numel() // max(x.shape[1], 1)
    d_scale, d_offset, scale, mean, variance = (
        _per_channel(part, x.dim()) for part in (diff_scale, diff_offset, scale, batch_mean, batch_variance)
    )
    rstd = torch.rsqrt(variance + epsilon)
    normal = (_wide(x) - mean) * rstd
    return (scale * rstd * (_wide(grads) - (d_offset + normal * d_scale) / count)).to(grads.dtype)


# -- pooling and resizing --------------------------------------------------------------------------------


@kernel("AdaptiveAvgPool2dGrad")
def adaptive_avg_pool2d_grad(input_grad: Tensor, *, orig_input_shape: list[int]) -> Tensor:
    return _ADAPTIVE_AVG_POOL2D_BACKWARD(input_grad, input_grad.new_empty(orig_input_shape))


@kernel("AvgPoolV2Grad", allowed=AVG_POOL, specialise=has_symmetric_pads("AvgPoolV2Grad"))
def avg_pool_v2_grad(
    orig_input_shape: Ints,
    input_grad: Tensor,
    *,
    ksize: list[int],
    strides: list[int],
    padding_mode: str = "CALCULATED",
    pads: list[int] = [0, 0, 0, 0],  # noqa: B006
    data_format: str = "NCHW",
    global_pooling: bool = False,
    ceil_mode: bool = False,
    exclusive: bool = True,
    divisor_override: int = 0,
) -> Tensor:
    if global_pooling:
        area: int = orig_input_shape[-1] * orig_input_shape[-2]
        return input_grad.div(area).expand(orig_input_shape)
    padding = pads[::2] if padding_mode == "CALCULATED" else [0, 0]
    return _AVG_POOL2D_BACKWARD(
        input_grad,
        input_grad.new_empty(orig_input_shape),
        ksize[-2:],
        strides[-2:],
        padding,
        ceil_mode,
        not exclusive,
        divisor_override or None,
    )


@kernel("MaxPoolGradWithArgmaxV1", same_dtype=("x", "grad"), allowed={"dtype": (3,)})
def max_pool_grad_with_argmax_v1(
    x: Tensor,
    grad: Tensor,
    argmax: Tensor,
    *,
    ksize: list[int],
    strides: list[int],
    pads: list[int],
    dtype: int = 3,
    dilation: list[int] = [1, 1, 1, 1],  # noqa: B006
    ceil_mode: bool = False,
) -> Tensor:
    """The lists are [1, h, w, 1] although x is NCHW; argmax is what MaxPoolWithArgmaxV1 of this engine gives."""
    return _MAX_POOL2D_BACKWARD(
        grad, x, ksize[1:3], strides[1:3], pads[1:3], dilation[1:3], ceil_mode, argmax.to(torch.int64)
    )


@kernel("ResizeNearestNeighborV2Grad", allowed={"align_corners": (False,)})
def resize_nearest_neighbor_v2_grad(
    grads: Tensor, size: Ints, *, align_corners: bool = False, half_pixel_centers: bool = False
) -> Tensor:
    """size: height and width of what the gradient is for."""
    shape = [*grads.shape[:2], *size]
    if half_pixel_centers:
        return _UPSAMPLE_NEAREST_EXACT2D_BACKWARD(grads, grads.shape[2:], shape)
    return _UPSAMPLE_NEAREST2D_BACKWARD(grads, grads.shape[2:], shape)
