"""The class of numerics of every norm, measured on the engine against its own unfused graph."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.host.stand_ins import PYTHONPATH
from tests.passes.spellings import NORMS
from tests.processes import run_python
from tests.scripts import script

ROOT = Path(__file__).parents[2]
VERDICTS = ROOT / "tests" / "passes" / "data" / "verdicts.csv"
NOT_LOWERED = {
    "vllm_ir",
    "ascend_add_rms_norm_bias",
    "ascend_with_beta",
    "dynamic_quant_tail",
    "npu_add_rms_norm_quant",
}
"""Without a converter or a kernel; the fuzzer compares them with their formulas."""
IN_THE_LAST_PLACE = {"divided", "one_over_root"}
"""Of float32: 1 / sqrt(x) is not always rsqrt(x), and a few of these differences reach the result's last place."""


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[str, float, int]]:
    """norm -> (verdict, share of elements that differ, largest difference in units in the last place)."""
    found = run_python(script("norm_classes.py"), env={"PYTHONPATH": f"{PYTHONPATH}:{ROOT}"})
    assert found.returncode == 0, found.stderr
    results: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return {norm: (verdict, share, worst) for norm, (verdict, share, worst) in results.items()}


@pytest.mark.slow
def test_classes(measured: dict[str, tuple[str, float, int]]) -> None:
    with VERDICTS.open(newline="") as file:
        wanted = next(row for row in csv.DictReader(file) if "linear_3d_functional" in row.values())
    assert measured.keys() == NORMS.keys() - NOT_LOWERED
    for norm, (verdict, share, worst) in measured.items():
        assert verdict == wanted[norm], norm
        if norm in IN_THE_LAST_PLACE:
            assert 0 < share < 1e-3 and worst == 1, (norm, share, worst)
            continue
        differences = {"same_rounding": {0}, "one_ulp": {1}, "any": {2}}.get(verdict, {0})
        assert worst in differences, (norm, verdict, share, worst)
        assert (share > 0.1) == (worst > 0), (norm, share)
