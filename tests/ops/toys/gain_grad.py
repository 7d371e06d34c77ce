"""The gradient of toy_gain: dx = dy * factor, and a count of its uses."""

from torch import Tensor

from npu_fused_graph.spec import AttrSpec, DTypeRow, OpSpec, TensorSpec

SPEC = OpSpec(
    stem="toy_gain_grad", ge_type="ToyGainGrad", torch_name="toy_gain_grad", signature=("dy", "*", "factor"),
    inputs=(TensorSpec("dy", ("m n",)),), outputs=(TensorSpec("dx", like="dy"),),
    attrs=(AttrSpec("factor", "Float", 2.0),),
    rows=(DTypeRow("any", {"dy": "float32", "dx": "float32"}),), doc="Its gradient.", source="this test",
)  # fmt: skip

uses: list[float] = []


def reference(dy: Tensor, factor: float) -> Tensor:
    uses.append(factor)
    return dy * factor
