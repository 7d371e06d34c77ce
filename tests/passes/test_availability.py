"""Sites that are legal as such, on a machine or beside other operators that leave no room for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor, nn

import npu_fused_graph as nfg
from npu_fused_graph.passes import CATALOGUE, FusionOptions, fuse_all
from npu_fused_graph.passes.spellings.reduces import _BEYOND, _SCALES
from tests.passes.blocks import Block, llama_norm
from tests.passes.capture import capture, fake_group
from tests.passes.foreign_ops import foreign_ops


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    with fake_group(2):
        yield


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 32).half(), torch.randn(2, 3, 32).half()


class Chain(nn.Module):
    """Blocks one after the other, each on its own group."""

    def __init__(self, *groups: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(k=32, seed=i) for i in range(len(groups)))
        self.groups = groups
        self.epsilon = [1e-6] * len(groups)

    def forward(self, x: Tensor, r: Tensor) -> Any:
        for block, group, epsilon in zip(self.blocks, self.groups, self.epsilon, strict=True):
            r = r + funcol.all_reduce(block.product(x), "sum", group)
            x = llama_norm(r, block.gamma, epsilon)
        return x, r


def test_a_functional_collective_that_is_waited_for_by_hand_as_well() -> None:
    block = Block(k=32)

    def model(x: Tensor, r: Tensor) -> Any:
        reduced = funcol.wait_tensor(funcol.all_reduce(block.product(x), "sum", dist.group.WORLD))
        return llama_norm(r + reduced, block.gamma, 1e-6)

    gm = capture(model, *inputs())
    (site,) = fuse_all(gm, FusionOptions(min_rows=0))
    assert site.is_fused, site
    assert not [n for n in gm.graph.nodes if "_c10d" in str(n.target)], "no collective is left behind"


def test_a_second_group_is_refused() -> None:
    """A41: Atlas A2 has one communication domain for fused operators; the first fused site's group is it."""
    world, other = dist.group.WORLD, dist.new_group([0, 1])
    gm = capture(Chain(world, other, world), *inputs())
    sites = fuse_all(gm, FusionOptions(min_rows=0))
    assert [s.reason for s in sites] == ["", "second_group", ""]
    assert other.group_name in sites[1].refusal.text  # type: ignore[union-attr]
    assert sites[1].cure
    chain = Chain(world, other, world)

    def behind_a_refused_one(x: Tensor, r: Tensor) -> Any:
        return chain(funcol.all_reduce(x, "sum", world), r)

    sites = fuse_all(capture(behind_a_refused_one, *inputs()), FusionOptions(min_rows=0))
    assert [s.reason for s in sites] == ["no_matmul", "", "second_group", ""]


def test_what_the_half_fused_operator_has_beyond_ours_is_known() -> None:
    ours = {"x1", "x2", "hcom", "reduce_op", "bias", "comm_turn", *_SCALES}
    with foreign_ops():
        schema = torch.ops.npu.npu_mm_all_reduce_base.default._schema
        assert {a.name for a in schema.arguments} - ours - {"comm_mode"} == set(_BEYOND)


def test_a_site_that_is_refused_claims_no_group() -> None:
    world, other = dist.group.WORLD, dist.new_group([0, 1])
    chain = Chain(world, other)
    chain.epsilon[0] = 1.5
    sites = fuse_all(capture(chain, *inputs()), FusionOptions(min_rows=0))
    assert [s.reason for s in sites] == ["epsilon_range", ""]


def test_what_the_machine_lacks_is_refused_with_its_reason() -> None:
    gm = capture(Block(k=32), *inputs())
    before = gm.code
    refusal = CATALOGUE["ge_type_not_registered"]("CANN does not know it", "Update CANN.")
    (site,) = fuse_all(gm, FusionOptions(min_rows=0, unavailable={"matmul_all_reduce_add_rms_norm": refusal}))
    assert (site.reason, site.cure) == (refusal.reason, refusal.cure)
    assert gm.code == before
    assert fuse_all(gm, FusionOptions(min_rows=0, unavailable={"another": refusal}))[0].is_fused


@pytest.mark.parametrize("in_place", [False, True])
def test_another_fused_operator_in_between_is_a_collective(in_place: bool) -> None:
    """Functionalisation wraps the mutating form: still its collective must not change places with the site's."""
    block = Block(k=32)

    def model(x: Tensor, r: Tensor) -> Any:
        reduced = funcol.all_reduce(block.product(x), "sum", dist.group.WORLD)
        if in_place:
            other = nfg.npu_mm_all_reduce_add_rms_norm_(x, block.weight.t(), r * 1, block.gamma, "0")[1]
        else:
            other = nfg.npu_mm_all_reduce_add_rms_norm(x, block.weight.t(), r, block.gamma, "0")[1]
        return llama_norm(r + reduced, block.gamma, 1e-6), other

    (site,) = fuse_all(capture(model, *inputs()), FusionOptions(min_rows=0))
    assert site.reason == "collective_in_between"
