"""The stand-in changes nothing of what TorchAir makes of a model: one golden text for both kinds of process."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu_fused_graph.host.paths import SITE
from npu_fused_graph.testing import assert_same_graph
from tests.processes import run_python
from tests.scripts import script

GOLDEN = Path(__file__).parent / "golden" / "same_graph.txt"


@pytest.mark.parametrize("env", [{}, {"PYTHONPATH": str(SITE)}], ids=["plain", "stand-in"])
def test_same_graph(env: dict[str, str]) -> None:
    found = run_python(script("same_graph.py"), env=env)
    assert found.returncode == 0, found.stderr
    assert_same_graph(found.stdout, GOLDEN)
    assert "MatmulAllReduceAddRmsNorm(" in found.stdout
