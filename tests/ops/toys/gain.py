"""A gradient: y = x * factor, whose gradient another operator computes."""

from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.spec import AttrSpec, DTypeRow, OpSpec, TensorSpec

SPEC = OpSpec(
    stem="toy_gain", ge_type="ToyGain", torch_name="toy_gain", signature=("x", "*", "factor"),
    inputs=(TensorSpec("x", ("m n",)),), outputs=(TensorSpec("y", like="x"),),
    attrs=(AttrSpec("factor", "Float", 2.0),),
    rows=(DTypeRow("any", {"x": "float32", "y": "float32"}),), doc="Amplifies.", source="this test",
    backward="toy_gain_grad",
)  # fmt: skip


def reference(x: Tensor, factor: float) -> Tensor:
    return x * factor


def setup_context(ctx: Any, inputs: tuple[Tensor], keyword_only_inputs: dict[str, float], output: Tensor) -> None:
    ctx.factor = keyword_only_inputs["factor"]


def backward(ctx: Any, dy: Tensor) -> Tensor:
    gradient: Tensor = torch.ops.npu_fused_graph.toy_gain_grad(dy.contiguous(), factor=ctx.factor)
    return gradient
