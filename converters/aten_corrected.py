"""aten ops whose converter in TorchAir works but means something else (docs/torchair_defects.md: T7, T8, T12)."""

from __future__ import annotations

from typing import Any

import torch

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


CONVERTERS = {
    aten._native_batch_norm_legit_functional.default: batch_norm_functional,
    aten._embedding_bag.default: embedding_bag,
    aten._embedding_bag_forward_only.default: embedding_bag,
    aten.multinomial.default: multinomial,
}
