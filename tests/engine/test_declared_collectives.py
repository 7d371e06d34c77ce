"""Which GE types are collectives of their group is declared, type by type."""

from __future__ import annotations

import pytest
from torch import Tensor

from npu_fused_graph.engine import register_kernel, registered_types, registry

COLLECTIVE = {
    "HcomAllReduce", "HcomAllGather", "HcomAllGatherV", "HcomReduceScatter", "HcomReduceScatterV", "HcomBroadcast",
    "HcomAllToAll", "HcomAllToAllV", "MatmulAllReduce", "MatmulReduceScatter", "MatmulReduceScatterV2",
    "AllGatherMatmul", "MatmulAllReduceAddRmsNorm", "InplaceMatmulAllReduceAddRmsNorm", "GroupedMatMulAllReduce",
    "MoeDistributeDispatch", "MoeDistributeDispatchV2", "MoeDistributeCombine", "MoeDistributeCombineV2",
}  # fmt: skip
BETWEEN_TWO = {"HcomSend", "HcomReceive"}
ON_ITS_OWN = {"DistributeBarrier"}
"""Its kernel asks the other ranks itself."""
ONE_SIDED = {"AttentionToFFN", "FFNToAttention"}
"""Works on windows of ranks that take no part."""


def test_every_type_with_a_group_is_declared() -> None:
    kernels = registered_types()
    assert {name for name, kernel in kernels.items() if kernel.is_collective} == COLLECTIVE
    names = {"group", "group_ep"}
    with_group = {name for name, kernel in kernels.items() if names & {a.name for a in kernel.attrs}}
    assert with_group == COLLECTIVE | BETWEEN_TWO | ON_ITS_OWN | ONE_SIDED
    assert {name for name, kernel in kernels.items() if kernel.is_one_sided} == ONE_SIDED


@pytest.mark.parametrize(("ge_type", "replace"), [("HcomAllReduce", True), ("OwnReduce", False)])
def test_a_kernel_of_the_users(ge_type: str, replace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fn(x: Tensor, *, group: str, reduction: str = "sum") -> Tensor:
        return x

    monkeypatch.setattr(registry, "_KERNELS", registered_types())
    register_kernel(ge_type, fn, replace=replace, is_collective=not replace)
    assert registered_types()[ge_type].is_collective
    register_kernel("OwnSend", fn)
    assert not registered_types()["OwnSend"].is_collective
