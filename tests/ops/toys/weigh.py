"""List attributes: y = x * sum(weights * steps)."""

from collections.abc import Sequence

from torch import Tensor

from npu_fused_graph.spec import AttrSpec, DTypeRow, OpSpec, TensorSpec

SPEC = OpSpec(
    stem="toy_weigh", ge_type="ToyWeigh", torch_name="toy_weigh", signature=("x", "weights", "*", "steps"),
    inputs=(TensorSpec("x", ("m n",)),), outputs=(TensorSpec("y", like="x"),),
    attrs=(AttrSpec("weights", "ListFloat"), AttrSpec("steps", "ListInt", (1, 2))),
    rows=(DTypeRow("any", {"x": "float16", "y": "float16"}),), doc="Weighs.", source="this test",
)  # fmt: skip


def reference(x: Tensor, weights: Sequence[float], steps: Sequence[int]) -> Tensor:
    return x * sum(weight * step for weight, step in zip(weights, steps, strict=True))
