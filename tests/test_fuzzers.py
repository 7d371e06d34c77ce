"""A seeded sample of the fuzzers that ``make fuzz`` runs for longer; that of the pass: tests/passes/test_fuzz.py."""

from __future__ import annotations

import pytest

import npu_fused_graph as nfg
from npu_fused_graph.host import defects
from tests import lowering_fuzz, rank_fuzz


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_differ_are_told_in_that_step(ranks: int) -> None:
    assert rank_fuzz.check(range(20), ranks) == []


@pytest.fixture
def _guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchAir as ``npu-fused-graph run`` guards it, for this test alone."""
    nfg.load_torchair()
    from torchair import npu_fx_compiler as compiler

    nfg.get_npu_backend()
    monkeypatch.setattr(compiler, "_optimize_fx", compiler._optimize_fx)
    monkeypatch.setattr(compiler._NpuFxCompiler, "_gen_compiled_gm", compiler._NpuFxCompiler._gen_compiled_gm)
    monkeypatch.setattr(defects, "_repairs", False)
    defects.watch(lambda defect, graph: None, repairs=True)


@pytest.mark.slow
@pytest.mark.usefixtures("_guarded")
def test_views_come_out_right() -> None:
    found = [text for seed in range(100, 160) if (text := lowering_fuzz.check(seed))]
    assert not found, "\n".join(found)
