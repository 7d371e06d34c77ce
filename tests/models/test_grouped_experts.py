"""Experts that are reduced one by one, on real ranks: collectives before and after grouping, and the same numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn

import npu_fused_graph as nfg
from npu_fused_graph.testing import assert_close
from tests.ranks import run_ranks, values

HIDDEN, INNER, EXPERTS, TOKENS = 32, 64, 4, 12
COUNTS = (5, 1, 3, 3)
"""Tokens of each expert where they are sorted by expert, as with a capacity per expert."""


class Experts(nn.Module):
    """A tensor-parallel layer: each rank has a slice of every expert, weights stored as (k, n).

    Dense: every expert sees every token and its result is weighted. Sorted: each expert has its own rows.
    """

    def __init__(self, rank: int, ranks: int, *, is_sorted: bool) -> None:
        super().__init__()
        self.is_sorted = is_sorted
        own = slice(rank * INNER // ranks, (rank + 1) * INNER // ranks)
        whole = weights()
        self.up = nn.ParameterList(nn.Parameter(w[:, own].contiguous()) for w in whole["up"])
        self.down = nn.ParameterList(nn.Parameter(w[own].contiguous()) for w in whole["down"])

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        if self.is_sorted:
            parts = zip(x.split(COUNTS), self.up, self.down, strict=True)
            return torch.cat([self._reduced(F.silu(t @ up), down) for t, up, down in parts]) * scores[:, :1]
        total = torch.zeros_like(x)
        for i, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            total = total + self._reduced(F.silu(x @ up), down) * scores[:, i : i + 1]
        return total

    def _reduced(self, h: Tensor, down: Tensor) -> Tensor:
        return funcol.all_reduce(h @ down, "sum", dist.group.WORLD)


def weights() -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def rand(k: int, n: int) -> Tensor:
        return (torch.randn(k, n, generator=generator) * k**-0.5).bfloat16()

    up = [rand(HIDDEN, INNER) for _ in range(EXPERTS)]
    return {"up": up, "down": [rand(INNER, HIDDEN) for _ in range(EXPERTS)]}


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, HIDDEN, generator=generator).bfloat16()
    return x, torch.rand(TOKENS, EXPERTS, generator=generator).bfloat16()


def exact(*, is_sorted: bool) -> Tensor:
    """The whole layer in float64, without shards."""
    x, scores = (t.double() for t in inputs())
    up, down = ([w.double() for w in weights()[name]] for name in ("up", "down"))
    if is_sorted:
        rows = [F.silu(t @ up[i]) @ down[i] for i, t in enumerate(x.split(COUNTS))]
        return torch.cat(rows) * scores[:, :1]
    return sum((F.silu(x @ up[i]) @ down[i] * scores[:, i : i + 1] for i in range(EXPERTS)), torch.zeros_like(x))


def _rank(rank: int, ranks: int) -> list[Any]:
    from npu_fused_graph.host import native

    found = []
    for is_sorted in (False, True):
        model = Experts(rank, ranks, is_sorted=is_sorted)
        with torch.no_grad():
            outcome: dict[str, Any] = {"eager": model(*inputs()).double().numpy()}
            for grouped in (False, True):
                graphs: list[Any] = []
                sites: list[nfg.FusionSite] = []
                native.graph_listeners.append(graphs.append)
                torch._dynamo.reset()
                backend = nfg.get_npu_backend(grouped=grouped, compare_ranks=True, on_sites=sites.extend)
                result = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(*inputs())
                native.graph_listeners.remove(graphs.append)
                (executable,) = graphs
                types = Counter(node.type for node in executable.graph.nodes.values())
                records = [
                    (s.is_fused, s.reason, s.facts["matmuls"], s.facts["collectives"])
                    for s in sites
                    if s.op.startswith("grouped")
                ]
                outcome[f"grouped={grouped}"] = result.double().numpy(), types, records
        found.append(outcome)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_collectives_before_and_after(ranks: int) -> None:
    outcomes = values(run_ranks(_rank, ranks, ranks, limit=180, timeout=60))
    for layer, is_sorted in enumerate((False, True)):
        wanted = exact(is_sorted=is_sorted)
        for outcome in (rank[layer] for rank in outcomes):
            separate, types, records = outcome["grouped=False"]
            assert (types["HcomAllReduce"], types["GroupedMatMulAllReduce"]) == (EXPERTS, 0)
            assert records == [(False, "deprecated", EXPERTS, EXPERTS)]
            grouped, types, records = outcome["grouped=True"]
            assert (types["HcomAllReduce"], types["GroupedMatMulAllReduce"]) == (0, 1)
            assert types["MatMul"] + types["MatMulV2"] == EXPERTS, "the up projections stay"
            assert records == [(True, "", EXPERTS, EXPERTS)]
            for result in (separate, grouped, outcome["eager"]):
                assert_close(torch.from_numpy(result).bfloat16(), wanted, scale=2 * ranks)
            assert np.array_equal(grouped, outcomes[0][layer]["grouped=True"][0]), "every rank has the same"
