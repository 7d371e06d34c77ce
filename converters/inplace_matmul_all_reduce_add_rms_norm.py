"""npu_mm_all_reduce_add_rms_norm_ -> InplaceMatmulAllReduceAddRmsNorm.

In a graph the mutation is already functionalised: what arrives is the functional overload, and a copy_ of its first
result into the argument. A TensorMove keeps the node's write away from the old value, which others may still read; our
pass calls the consuming overloads where nobody does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.matmul_all_reduce_add_rms_norm import converter
from npu_fused_graph.ops.inplace_matmul_all_reduce_add_rms_norm import SPEC


def register() -> None:
    import torchair

    overloads = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm_in_place
    torchair.register_fx_node_ge_converter(overloads.functional)(_converter())
    torchair.register_fx_node_ge_converter(overloads.consuming)(converter(SPEC))
    stored = converter(SPEC, is_stored_transposed=True)
    torchair.register_fx_node_ge_converter(overloads.consuming_transposed_x2)(stored)


def _converter() -> Callable[..., Any]:
    from torchair._ge_concrete_graph import ge_apis as ge

    convert = converter(SPEC)

    def convert_copy(x1: Any, x2: Any, residual: Any, *args: Any, **kwargs: Any) -> Any:
        own = ge.TensorMove(residual)
        own.set_meta(residual.meta)
        return convert(x1, x2, own, *args, **kwargs)

    return convert_copy
