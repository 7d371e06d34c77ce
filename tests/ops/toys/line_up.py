"""Communicates without a reduce, in groups of any of many sizes: the ranks' rows, own ones first."""

from torch import Tensor, cat

from npu_fused_graph.comm import Rank
from npu_fused_graph.spec import AttrSpec, DTypeRow, OpSpec, TensorSpec

SPEC = OpSpec(
    stem="toy_line_up", ge_type="ToyLineUp", torch_name="toy_line_up", signature=("x", "group"),
    inputs=(TensorSpec("x", ("m n",)),), outputs=(TensorSpec("y"),), attrs=(AttrSpec("group", "String"),),
    rows=(DTypeRow("any", {"x": "float16", "y": "float16"}),), doc="Lines up.", source="this test",
    group_sizes=range(1, 769),
)  # fmt: skip


def fake(x: Tensor) -> Tensor:
    return x.new_empty(2 * x.size(0), x.size(1))


def reference(x: Tensor, rank: Rank) -> Tensor:
    parts = [part for (part,) in rank.gather([x])]
    return cat([parts[(rank.rank + i) % rank.size] for i in range(2)])
