"""Every cell of the catalogue of spellings: front halves x norms, against the verdict that was written first."""

from __future__ import annotations

import csv
import sys
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from npu_fused_graph.passes import FusionOptions, fuse_all
from npu_fused_graph.passes.verdicts import NUMERICS
from tests.passes.capture import capture_as, fake_group
from tests.passes.foreign_ops import foreign_ops
from tests.passes.spellings import FRONTS, NORMS, Case

SLOW = (
    "dynamic_true", "mark_dynamic", "dynamic_specialize_float", "in_place_2d", "in_place_bias", "linear_2d_bias",
    "linear_2d_functional", "linear_3d_bias", "weight_transposed", "weight_permuted", "aten_matmul_kept", "bmm_batch_1",
    "dtensor_rowwise_bias", "npu_quant_matmul_bfloat16", "npu_weight_quant_per_group", "legacy_c10d_functional",
    "addmm", "einsum", "in_place_3d", "dropout_casts_views",
)  # fmt: skip
"""Rows that take long, or differ little from another one."""
DATA = Path(__file__).with_name("data")
FRONT = "front half \\ norm"
"""Name of the column that names the rows."""


def table() -> dict[str, dict[str, str]]:
    """Verdict by front half and norm, from verdicts.csv."""
    with (DATA / "verdicts.csv").open(newline="") as file:
        return {row.pop(FRONT): row for row in csv.DictReader(file)}


class Row(nn.Module):
    """One front half with many norms: independent sites, one after the other."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.cases = nn.ModuleList(cases)

    def forward(self, *inputs: Tensor) -> Any:
        return [case(*inputs[2 * i : 2 * i + 2]) for i, case in enumerate(self.cases)]


def vllm_state() -> types.ModuleType:
    """vLLM's table of groups, with the one that is used here."""
    module = types.ModuleType("vllm.distributed.parallel_state")
    module._groups = {"tp:0": lambda: types.SimpleNamespace(device_group=torch.distributed.group.WORLD)}  # type: ignore[attr-defined]
    return module


@pytest.fixture(autouse=True, scope="module")
def _operators() -> Iterator[None]:
    with foreign_ops():
        yield


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.distributed.parallel_state", vllm_state())


def test_cells_are_spread_over_dtypes_and_orders() -> None:
    with fake_group(2):
        cases = [case_of("linear_3d_functional", norm) for norm in NORMS]
    assert len({(case.T, case.residual_first) for case in cases}) == 4


def test_the_table_names_every_spelling() -> None:
    assert table().keys() == FRONTS.keys()
    assert all(row.keys() == NORMS.keys() for row in table().values())


def case_of(front: str, norm: str) -> Case:
    """Order of the add, dtype and seed come from the norm's name: its neighbours in the table change nothing."""
    dice = zlib.crc32(norm.encode())
    return Case(
        front, norm, residual_first=dice & 1 == 0, dtype=(torch.float16, torch.bfloat16)[dice >> 1 & 1], seed=dice
    )


def decisions(front: str, ranks: int) -> dict[str, str]:
    """What became of each norm behind ``front``: class of a fused site, reason of a refused one."""
    wanted = table()[front]
    with fake_group(ranks):
        names = [norm for norm, verdict in wanted.items() if not verdict.startswith("cannot run: ")]
        cases = [case_of(front, norm) for norm in names]
        inputs = [tensor for case in cases for tensor in case.inputs]
        gm = capture_as(FRONTS[front].capture, Row(cases), *inputs)
        sites = fuse_all(gm, FusionOptions(numerics="any", min_rows=0))
        assert len(sites) == len(names)
        for site in sites:
            assert site.is_fused or (site.refusal and site.refusal.text and site.cure and site.refusal.node), site
        left = [str(n.target) for n in gm.graph.nodes if n.op == "call_function"]
        refused = [site for site in sites if not site.is_fused]
        marks = ("all_reduce.default", "all_reduce_.default", "reduce_scatter", "mm_all_reduce_base")
        assert len([t for t in left if any(m in t for m in marks) and "npu_fused_graph" not in t]) == len(refused), left
        return {n: site.numerics if site.is_fused else site.reason for n, site in zip(names, sites, strict=True)}  # type: ignore[misc]


# Dynamo instantiates an autograd.Function, which torch itself warns about
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("front", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FRONTS])
def test_row(front: str) -> None:
    wanted = {n: v for n, v in table()[front].items() if not v.startswith("cannot run: ")}
    assert decisions(front, 2) == wanted
    assert any(v in NUMERICS for v in wanted.values()) or front in ("training_graph", "sequence_parallel")


@pytest.mark.parametrize(
    ("front", "ranks"),
    [
        ("bias_after_reduce", 8),
        *(
            pytest.param(front, ranks, marks=pytest.mark.slow)
            for front in ("in_place_bias", "npu_weight_quant_per_group")
            for ranks in (4, 8)
        ),
    ],
)
def test_any_number_of_ranks_decides_the_same(front: str, ranks: int) -> None:
    assert decisions(front, ranks) == table()[front]
