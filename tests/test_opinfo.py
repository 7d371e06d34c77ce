"""torch's operator database: the judge itself, and a sample of the table ``make opinfo`` wrote (tests/opinfo)."""

from __future__ import annotations

import math
import random

import pytest
import torch

from tests.opinfo import table
from tests.opinfo.cases import SampleCall, classed
from tests.opinfo.judge import difference, widened
from tests.opinfo.running import run_units
from tests.opinfo.samples import Unit, reason_left_out

ROWS = table.read(table.TABLE.read_text(encoding="utf-8"))
PARTS, SIZE, SEED = 3, 20, 14


def test_the_table_has_nothing_wrong() -> None:
    assert [row for row in ROWS if row.result in ("wrong", "crash")] == []
    assert sorted(ROWS) == ROWS
    assert not [row for row in ROWS if reason_left_out(row.op)]
    assert all(row.cause or row.runs == row.samples for row in ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_sample_of_the_table(part: int) -> None:
    drawn = random.Random(SEED).sample(ROWS, PARTS * SIZE)[part::PARTS]
    cases = run_units([row.unit for row in drawn], jobs=1)
    found = {row.unit: row for row in table.rows(cases)}
    bad = [row for row in found.values() if row.result in ("wrong", "crash")]
    lost = [found.get(row.unit, row) for row in drawn if row.unit not in found or found[row.unit].runs < row.runs]
    assert (bad, lost) == ([], []), f"seed {SEED}; repair it, or make opinfo and explain the new table"


EXACT = torch.tensor([1.0, -2.0, 300.0], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_is_right_and_more_is_wrong(dtype: torch.dtype) -> None:
    eager = EXACT.to(dtype)
    eps = torch.finfo(dtype).eps
    assert difference((EXACT * (1 + eps)).to(dtype), eager, EXACT) is None
    text = difference((EXACT * (1 + 16 * eps)).to(dtype), eager, EXACT)
    assert text is not None
    assert "of 3 elements" in text


@pytest.mark.parametrize(
    ("result", "eager", "text"),
    [
        (torch.tensor([1, 3]), torch.tensor([1, 2]), "1 of 2 elements, first 3 instead of 2"),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, 2.0]), "1 of 2 elements, first nan instead of 2"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan]), "1 of 2 elements, first 2 instead of nan"),
        (torch.tensor([1]), torch.tensor([1.0]), "int64[1] instead of float32[1]"),
        (torch.tensor(1.0), torch.tensor([1.0]), "float32[] instead of float32[1]"),
        ((torch.ones(1),), (torch.ones(1), torch.ones(1)), "1 results instead of 2"),
    ],
)
def test_what_is_wrong_is_named(result: object, eager: object, text: str) -> None:
    assert difference(result, eager, widened(eager)) == text


def test_infinities_of_a_narrow_dtype_are_right() -> None:
    large = torch.tensor([1e6], dtype=torch.float64)
    assert difference(large.half(), large.half(), large) is None


def test_classes_of_errors() -> None:
    assert classed(NotImplementedError("torch.ops.aten.i0.default ge_converter is not implemented!")) == (
        "refused",
        "no converter for aten.i0.default",
    )
    assert classed(ZeroDivisionError("integer modulo by zero")).result == "crash"


@pytest.mark.slow
def test_a_dead_process_costs_its_case_only() -> None:
    cases = run_units([Unit("abs", "float32")], jobs=1, limit=0.0)
    assert {case.verdict for case in cases} == {("crash", "no answer within 0 s")}


def test_everything_but_tensors_is_constant() -> None:
    call = SampleCall(torch.add, (torch.ones(2), (3,), {"alpha": 2}))
    assert torch.equal(call(torch.zeros(2)), torch.full((2,), 6.0))
