"""No outputs, and Atlas A3 only: remembers what it is given."""

from torch import Tensor

from npu_fused_graph.spec import DTypeRow, OpSpec, TensorSpec

SPEC = OpSpec(
    stem="toy_note", ge_type="ToyNote", torch_name="toy_note", signature=("x",),
    inputs=(TensorSpec("x", ("m n",)),), outputs=(), attrs=(),
    rows=(DTypeRow("any", {"x": "float16"}),), doc="Notes.", source="this test", chips=("Ascend910_93",),
)  # fmt: skip

noted: list[float] = []


def reference(x: Tensor) -> None:
    noted.append(float(x.sum()))
