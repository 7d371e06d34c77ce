"""aten ops whose converter in TorchAir works but means something else (docs/torchair_defects.md, T7 and T8)."""

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


CONVERTERS = {
    aten._embedding_bag.default: embedding_bag,
    aten._embedding_bag_forward_only.default: embedding_bag,
    aten.multinomial.default: multinomial,
}
