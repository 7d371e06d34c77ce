"""Gradients of activations, slices, normalisations and resizing. Of losses: aten_loss.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import (
    HALF_AND_FLOAT,
    by_decomposition,
    computed_in,
    ge,
    ints,
    lower,
    reshape,
    sizes,
    stock,
    to,
    torch_dtype,
    typed,
    unsupported,
)

aten = torch.ops.aten


def silu_backward(grad: Any, x: Any) -> Any:
    """SwishGrad reads silu(x) too, which autograd does not save."""
    if torch_dtype(x) is torch.float64:
        return by_decomposition(aten.silu_backward.default)(grad, x)
    y = typed(ge.Swish(x, scale=1.0), torch_dtype(x))
    return ge.SwishGrad(grad, x, y, scale=1.0)


def gelu_backward(grad: Any, x: Any, *, approximate: str = "none") -> Any:
    """TorchAir's own converter loses ``approximate`` (defect T21)."""
    return ge.GeluGradV2(grad, x, approximate=approximate)


def softplus_backward(grad: Any, x: Any, beta: float, threshold: float) -> Any:
    op = aten.softplus_backward.default
    if torch_dtype(x) is torch.float64:
        return by_decomposition(op)(grad, x, beta, threshold)
    return _of_floats(op, "SoftplusV2Grad", grad, x, beta=float(beta), threshold=float(threshold))


def mish_backward(grad: Any, x: Any) -> Any:
    op = aten.mish_backward.default
    if torch_dtype(x) is torch.float64:
        return by_decomposition(op)(grad, x)
    return _of_floats(op, "MishGrad", grad, x, None)


def _of_floats(op: Any, ge_type: str, grad: Any, x: Any, *unfed: None, **attrs: Any) -> Any:
    """A gradient GE computes in half or single precision only."""
    dtype = torch_dtype(x)
    work = computed_in(dtype, HALF_AND_FLOAT, op.overloadpacket.__name__)
    return to(typed(getattr(ge, ge_type)(to(grad, work), to(x, work), *unfed, **attrs), work), dtype)


def select_backward(grad: torch.Tensor, input_sizes: Sequence[int], dim: int, index: int) -> torch.Tensor:
    """TorchAir's own scatters into memory nobody filled (defect T22)."""
    dim %= len(input_sizes)
    index = index + input_sizes[dim] if index < 0 else index
    before, after = list(input_sizes), list(input_sizes)
    before[dim], after[dim] = index, input_sizes[dim] - index - 1
    return torch.cat([grad.new_zeros(before), grad.unsqueeze(dim), grad.new_zeros(after)], dim)


def slice_backward(
    grad: Any, input_sizes: Any, dim: int, start: Any, end: Any, step: Any, meta_outputs: Any = None
) -> Any:
    """TorchAir's own takes a start before the first element for one counted from the end."""
    if isinstance(input_sizes, list) and all(isinstance(n, int) for n in (*input_sizes, start, end)):
        dim %= len(input_sizes)
        start, end, _ = slice(start, end).indices(input_sizes[dim])
        end = max(start, end)
        if step == 1 and end - start == input_sizes[dim]:
            return grad
    return stock(aten.slice_backward.default, grad, input_sizes, dim, start, end, step, meta_outputs=meta_outputs)


def native_batch_norm_backward(
    grad: Any,
    x: Any,
    weight: Any,
    running_mean: Any,
    running_var: Any,
    save_mean: Any,
    save_invstd: Any,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> Any:
    """TorchAir's own hands the reciprocal standard deviation to an op that wants the variance (defect T23)."""
    if not train:
        results = lower(_inference_backward, (grad, x, weight, running_mean, running_var, eps), {})
        return tuple(part if wanted else None for part, wanted in zip(results, output_mask, strict=True))
    from torchair._ge_concrete_graph.utils import specific_op_input_layout, specific_op_output_layout

    dtype, dims = torch_dtype(x), sizes(x)
    rank = max(4, min(len(dims), 5))
    if rank != len(dims):
        folded = [*dims, 1, 1][:4] if rank == 4 else [*dims[:4], -1]
        grad, x = (typed(reshape(part, folded), dtype) for part in (grad, x))
    if weight is None:
        weight = typed(ge.Fill(ints([dims[1]]), to(1.0, dtype)), dtype)
    running_mean = save_mean if running_mean is None else running_mean  # not read in training, but they must be there
    running_var = save_invstd if running_var is None else running_var
    results = ge.BatchNormGradV3(
        grad, x, weight, running_mean, running_var, save_mean, save_invstd, is_training=True, epsilon=eps
    )
    layout = "NCHW" if rank == 4 else "NCDHW"
    specific_op_input_layout(results[0], indices=[0, 1], layout=layout)
    specific_op_output_layout(results[0], indices=0, layout=layout)
    dx = results[0] if rank == len(dims) else reshape(typed(results[0], dtype), dims)
    return tuple(part if wanted else None for part, wanted in zip((dx, *results[1:]), output_mask, strict=True))


def native_group_norm_backward(
    grad: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    n: Any,
    channels: Any,
    places: Any,
    group: int,
    output_mask: Sequence[bool],
    meta_outputs: Any = None,
) -> Any:
    """TorchAir's own computes with numbers in single precision whatever the tensors are."""
    op, args = aten.native_group_norm_backward.default, (grad, x, mean, rstd, weight, n, channels, places, group)
    if torch_dtype(x) is torch.float32:
        return stock(op, *args, output_mask, meta_outputs=meta_outputs)
    if torch_dtype(x) is torch.float64:
        return by_decomposition(op)(*args, output_mask)
    return lower(_group_norm_backward_in_float32, (*args, output_mask), {})


def _group_norm_backward_in_float32(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    *sizes_and_mask: Any,
) -> tuple[Any, ...]:
    dtypes = (x.dtype, *[x.dtype if weight is None else weight.dtype] * 2)
    wide = [part if part is None else part.float() for part in (grad, x, mean, rstd, weight)]
    results = aten.native_group_norm_backward.default(*wide, *sizes_and_mask)
    return tuple(part if part is None else part.to(dtype) for part, dtype in zip(results, dtypes, strict=True))


def _inference_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = [1, -1, *[1] * (x.dim() - 2)]
    axes = [axis for axis in range(x.dim()) if axis != 1]
    dtype = running_mean.dtype if weight is None else weight.dtype
    wide = torch.promote_types(torch.promote_types(x.dtype, running_mean.dtype), torch.float32)
    rstd = torch.rsqrt(running_var.to(wide) + eps).reshape(shape)
    scale = rstd if weight is None else rstd * weight.to(wide).reshape(shape)
    normal = (x.to(wide) - running_mean.to(wide).reshape(shape)) * rstd
    incoming = grad.to(wide)
    dweight, dbias = (incoming * normal).sum(axes), incoming.sum(axes)
    return (incoming * scale).to(x.dtype), dweight.to(dtype), dbias.to(dtype)


def upsample_nearest2d_backward(
    grad: Any,
    output_size: Any,
    input_size: Any,
    scales_h: float | None = None,
    scales_w: float | None = None,
    meta_outputs: Any = None,
) -> Any:
    """TorchAir's own drops the scales, which need not be the quotients of the sizes (defect T25)."""
    if all(isinstance(n, int) for n in (*output_size, *input_size)):
        scales = [
            out / size if scale is None else scale
            for out, size, scale in zip(output_size, input_size[2:], (scales_h, scales_w), strict=True)
        ]
        if any(scale * size != out for scale, size, out in zip(scales, input_size[2:], output_size, strict=True)):
            return lower(_resize_backward, (grad, list(input_size), scales), {})
    elif scales_h is not None or scales_w is not None:
        raise unsupported(
            "upsample_nearest2d_backward", "input_size", "numbers known while compiling, with scales", input_size,
            "Compile with dynamic=False, or give the size instead of the scale.",
        )  # fmt: skip
    op = aten.upsample_nearest2d_backward.default
    return stock(op, grad, output_size, input_size, scales_h, scales_w, meta_outputs=meta_outputs)


def _resize_backward(grad: torch.Tensor, input_size: list[int], scales: list[float]) -> torch.Tensor:
    """Every element goes back to where it came from: place // scale, computed in single precision as eager does."""
    wide = grad if grad.dtype is torch.float64 else grad.float()
    for dim, scale in zip((2, 3), scales, strict=True):
        place = torch.arange(grad.shape[dim], dtype=torch.float32) * (1 / scale)
        origin = place.floor().clamp(max=input_size[dim] - 1).to(torch.int64)
        shape = [*wide.shape[:dim], input_size[dim], *wide.shape[dim + 1 :]]
        wide = wide.new_zeros(shape).index_add(dim, origin, wide)
    return wide.to(grad.dtype)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.silu_backward.default: silu_backward,
    aten.softplus_backward.default: softplus_backward,
    aten.mish_backward.default: mish_backward,
    aten.logit_backward.default: by_decomposition(aten.logit_backward.default),
    aten.diagonal_backward.default: by_decomposition(aten.diagonal_backward.default),
    aten.unfold_backward.default: by_decomposition(aten.unfold_backward.default),
}
