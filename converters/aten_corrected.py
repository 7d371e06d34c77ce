"""aten ops whose converter in TorchAir works but means something else (docs/torchair_defects.md: T7, T8, T12 on)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters import aten_grad, aten_matmul, aten_pool
from npu_fused_graph.converters.aten_lowering import by_torch, ge, ge_dtype, stock, to, torch_dtype, typed, unsupported

aten = torch.ops.aten


def embedding_bag(
    weight: Any,
    indices: Any,
    offsets: Any,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> Any:
    """FX leaves out an argument that equals the schema's default: mode 0 (sum); TorchAir's converter takes 1 then."""
    from torchair._ge_concrete_graph import ge_apis as ge

    return ge.EmbeddingBag(
        weight,
        indices,
        offsets,
        per_sample_weights,
        mode=("sum", "mean", "max")[mode],
        scale_grad_by_freq=scale_grad_by_freq,
        sparse=sparse,
        include_last_offset=include_last_offset,
        padding_idx=padding_idx,
    )


def multinomial(x: Any, num_samples: int, replacement: bool = False, *, generator: Any = None) -> Any:
    """TorchAir's converter does not hand ``replacement`` on."""
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge._ge_graph import get_ge_rng_state

    seed, offset = get_ge_rng_state(philox_num=10, gen=generator)
    return ge.MultinomialWithReplacement(x, seed, offset, numsamples=num_samples, replacement=replacement)


def batch_norm_functional(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool, momentum: float, eps: float
) -> Any:
    """aten wants the batch's statistics before the running ones; TorchAir's converter returns them in GE's order."""
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair._ge_concrete_graph.utils import specific_op_input_layout, specific_op_output_layout

    shape = x.meta.shape
    ones, zeros = ([value] * shape[1] for value in (1.0, 0.0))
    weight = ge.Cast(ge.Const(ones), dst_type=x.dtype) if weight is None else weight
    bias = ge.Cast(ge.Const(zeros), dst_type=x.dtype) if bias is None else bias
    rank = max(4, min(len(shape), 5))
    folded = x if rank == len(shape) else ge.Reshape(x, ge.Const([*shape, 1, 1][:4] if rank == 4 else [*shape[:4], -1]))
    y, new_mean, new_var, mean, rstd = ge.BatchNormV3(
        folded, weight, bias, ge.TensorMove(running_mean), ge.TensorMove(running_var), epsilon=eps, momentum=momentum,
        is_training=training,
    )  # fmt: skip
    layout = "NCHW" if rank == 4 else "NCDHW"
    specific_op_input_layout(y, indices=0, layout=layout)
    specific_op_output_layout(y, indices=0, layout=layout)
    return y if folded is x else ge.Reshape(y, ge.Const(list(shape))), mean, rstd, new_mean, new_var


def safe_softmax(x: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Zeros where every element is -inf; TorchAir's converter emits an ordinary softmax, which gives nan."""
    x = x if dtype is None else x.to(dtype)
    x = x if x.is_floating_point() else x.to(torch.float32)
    if x.dim() == 0:
        return torch.where(x == -torch.inf, torch.zeros_like(x), torch.ones_like(x))
    hidden = (x == -torch.inf).all(dim, keepdim=True)
    return torch.where(hidden, torch.zeros_like(x), torch.softmax(x, dim))


def avg_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    meta_outputs: Any = None,
) -> Any:
    """TorchAir's converter never counts the padding of a float16 tensor; in float32 it does."""
    dtype = torch_dtype(x)
    if dtype is not torch.float16 or not count_include_pad or not any(padding):
        wide = x
    else:
        wide = to(x, torch.float32)
        wide.set_meta(x.meta.to(torch.float32))
    result = stock(
        aten.avg_pool2d.default,
        wide, list(kernel_size), list(stride), list(padding), ceil_mode, count_include_pad, divisor_override,
        meta_outputs=meta_outputs,
    )  # fmt: skip
    return result if wide is x else to(typed(result, torch.float32), dtype)


def index(x: Any, indices: Any) -> Any:
    """TorchAir's converter casts a mask to the indices 0 and 1."""
    places: list[Any] = []
    for item in indices:
        if item is None or torch_dtype(item) not in (torch.bool, torch.uint8):
            places.append(item)
            continue
        if item.rank == 0:
            raise unsupported("index", "indices", "a mask with at least one dim", "a scalar", "Unsqueeze it.")
        found = typed(ge.NonZero(to(item, torch.bool), transpose=True, dtype=ge_dtype(torch.int64)), torch.int64)
        places += [typed(ge.Gather(found, axis), torch.int64) for axis in range(item.rank)]
    return stock(aten.index.Tensor, x, places)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.index.Tensor: index,
    aten._safe_softmax.default: by_torch(safe_softmax),
    aten.avg_pool2d.default: avg_pool2d,
    aten.gelu_backward.default: aten_grad.gelu_backward,
    aten.select_backward.default: by_torch(aten_grad.select_backward),
    aten.upsample_nearest2d_backward.default: aten_grad.upsample_nearest2d_backward,
    aten.native_batch_norm_backward.default: aten_grad.native_batch_norm_backward,
    aten.mm.default: aten_matmul.mm,
    aten.matmul.default: aten_matmul.matmul,
    aten.baddbmm.default: by_torch(aten_matmul.baddbmm),
    aten.max_pool2d_with_indices.default: aten_pool.max_pool2d,
    aten._native_batch_norm_legit_functional.default: batch_norm_functional,
    aten._embedding_bag.default: embedding_bag,
    aten._embedding_bag_forward_only.default: embedding_bag,
    aten.multinomial.default: multinomial,
}
