"""All ranks decide the same; with compare_ranks they notice before the first run when they did not."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor, nn

import npu_fused_graph as nfg
from npu_fused_graph.passes import FusionOptions, fuse_all
from tests.passes.blocks import Block, llama_norm
from tests.passes.capture import capture, fake_group
from tests.processes import run_code
from tests.ranks import run_ranks, values

ROOT = Path(__file__).parents[2]


class Layers(nn.Module):
    """blocks one after the other; post_norm: the last one normalises before it adds."""

    def __init__(self, blocks: int, group: Any, *, bias: bool = False, post_norm: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block("linear_bias" if bias else "linear", k=32, seed=i) for i in range(blocks))
        self.post_norm, self.group = post_norm, group

    def forward(self, x: Tensor, r: Tensor) -> Any:
        for i, block in enumerate(self.blocks):
            reduced = funcol.all_reduce(block.product(x), "sum", self.group)
            if self.post_norm and i == len(self.blocks) - 1:
                x = r = r + llama_norm(reduced, block.gamma, 1e-6)
            else:
                r = r + reduced
                x = llama_norm(r, block.gamma, 1e-6)
        return x, r


def _compile(model: nn.Module, rows: int) -> list[bool]:
    """Compile with compare_ranks and run once; which sites were fused."""
    sites: list[nfg.FusionSite] = []
    backend = nfg.get_npu_backend(min_rows=0, compare_ranks=True, on_sites=sites.extend)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)
        compiled(torch.ones(1, rows, 32).half(), torch.ones(1, rows, 32).half())
    return [site.is_fused for site in sites]


@contextmanager
def _without_the_type(is_meant: bool) -> Iterator[None]:
    """A CANN without MatmulAllReduceAddRmsNorm."""
    nfg.load_torchair()
    module: Any = importlib.import_module("torchair.core._torchair")
    original = module.get_registered_ir_def
    missing = ("MatmulAllReduceAddRmsNorm",) if is_meant else ()
    module.get_registered_ir_def = lambda name: ("ERROR", [], [], []) if name in missing else original(name)
    try:
        yield
    finally:
        module.get_registered_ir_def = original


def _two_ranks(rank: int) -> dict[str, Any]:
    """What became of each kind of pair of ranks: the decisions, or the text of the error. Each has its own group."""
    odd = rank == 1
    lacking = {"both without the type": True, "one without the type": odd}
    kinds: dict[str, tuple[dict[str, Any], int]] = {
        "both without the type": ({"blocks": 2}, 4),
        "one without the type": ({"blocks": 2}, 4),
        "the same": ({"blocks": 2}, 4),
        "bias on rank 0": ({"blocks": 2, "bias": not odd}, 4),
        "another config": ({"blocks": 2, "post_norm": odd}, 4),
        "another number of layers": ({"blocks": 1 if odd else 2}, 4),
        "another batch": ({"blocks": 2}, 6 if odd else 4),
    }
    found: dict[str, Any] = {}
    for kind, (options, rows) in kinds.items():
        group = dist.new_group([0, 1])
        try:
            with _without_the_type(lacking.get(kind, False)):
                found[kind] = _compile(Layers(group=group, **options), rows)
        except Exception as error:
            found[kind] = str(error)
    return found


def _a_batch_per_replica(rank: int) -> list[bool]:
    """Ranks 0, 1 and ranks 2, 3 are two tensor-parallel groups with batches of their own."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    return _compile(Layers(2, groups[rank // 2]), 4 + 2 * (rank // 2))


def _rank_0_alone(rank: int) -> list[bool]:
    return _compile(Layers(2, dist.group.WORLD), 4) if rank == 0 else []


FUSED = "= fused into matmul_all_reduce_add_rms_norm float16"
DIFFERENT = {
    "one without the type": (
        "at collective 1 of 2",
        FUSED + "[1, 4, 32] | rank 1: ",
        "as MatmulAllReduce + AddRmsNorm float16[1, 4, 32]",
    ),
    "another config": ("at collective 2 of 2", FUSED + "[1, 4, 32] | rank 1: all_reduce_1 = left as it is"),
    "another number of layers": ("at collective 2 of 2", FUSED + "[1, 4, 32] | rank 1: nothing more"),
    "another batch": ("at collective 1 of 2", FUSED + "[1, 4, 32] | rank 1: ", FUSED + "[1, 6, 32]"),
}


def test_ranks_that_agree_run_and_a_difference_is_told_on_all_ranks() -> None:
    # ranks compile at their own pace: on a busy machine they are seconds apart
    for found in values(run_ranks(_two_ranks, 2, limit=200, timeout=60)):
        assert found["the same"] == [True, True], found
        assert found["both without the type"] == [True, True], found
        assert found["bias on rank 0"] == [True, True], found
        for kind, texts in DIFFERENT.items():
            assert "expected all ranks to run the same" in found[kind], kind
            for text in texts:
                assert text in found[kind]


def test_a_rank_that_compiles_nothing_is_named() -> None:
    outcome = run_ranks(_rank_0_alone, 2, timeout=2)[0]
    assert "rank 1" in outcome.error, outcome
    assert outcome.exit_code == 1


@pytest.mark.slow
def test_each_replica_has_its_own_batch() -> None:
    assert values(run_ranks(_a_batch_per_replica, 4, limit=200, timeout=60)) == [[True, True]] * 4


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_group_that_communicates_nothing_needs_no_other_rank(ranks: int) -> None:
    with fake_group(ranks):
        gm = capture(Layers(2, dist.group.WORLD), torch.zeros(1, 4, 32).half(), torch.zeros(1, 4, 32).half())
        assert [s.is_fused for s in fuse_all(gm, FusionOptions(min_rows=0, compare_ranks=True))] == [True, True]


DECIDE = """
import torch, torch.distributed as dist
from npu_fused_graph.passes import FusionOptions, fuse_all
from tests.passes.capture import capture, fake_group
from tests.passes.test_agreement import Layers
with fake_group(2):
    gm = capture(Layers(3, dist.group.WORLD, bias=True), torch.zeros(1, 4, 32).half(), torch.zeros(1, 4, 32).half())
    print(*fuse_all(gm, FusionOptions(min_rows=0)), gm.code, sep="\\n")
"""


@pytest.mark.slow
def test_processes_with_other_hash_seeds_decide_the_same() -> None:
    """As ranks of torchrun; those of the other tests are forked from one process."""
    first, second = (run_code(DECIDE, env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}) for seed in ("1", "2"))
    assert first.count("npu_mm_all_reduce_add_rms_norm") >= 3
    assert first == second
