"""The add and norm stage of MatmulAllReduceAddRmsNorm, on the simulator."""

from __future__ import annotations

import numpy
import pytest
import torch

from npu_fused_graph.sim.launch import USABLE_BYTES
from tests.kernels.norm_case import COLUMNS, MANY_ROWS, ONE_ROW, Case, check, check_figures, check_ties, run

DTYPES = [torch.float16, torch.bfloat16]

SHAPES = [
    # rows, n, cores, mode
    (1, 1, 1, MANY_ROWS),
    (1, 16, 1, MANY_ROWS),
    (5, 17, 2, MANY_ROWS),
    (7, 63, 3, MANY_ROWS),
    (300, 64, 4, MANY_ROWS),
    (600, 65, 2, MANY_ROWS),
    (9, 127, 9, MANY_ROWS),
    (40, 1000, 3, MANY_ROWS),
    (33, 2032, 4, MANY_ROWS),
    (9, 2033, 2, ONE_ROW),
    (3, 2048, 48, ONE_ROW),  # fewer rows than cores
    (12, 5000, 4, ONE_ROW),
    (7, 8192, 2, ONE_ROW),
    (2, 9984, 1, ONE_ROW),  # two slots
    (3, 12289, 2, COLUMNS),
    (35, 16400, 2, COLUMNS),  # three groups of rows, the last one short
    (2, 65552, 2, COLUMNS),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n", "cores", "mode"), SHAPES)
def test_shapes(rows: int, n: int, cores: int, mode: int, dtype: torch.dtype) -> None:
    case = Case(rows, n, dtype, cores)
    assert case.plan().mode == mode
    inputs = case.inputs(rows + n)
    for is_deferred in (False, True):
        y, norm, _ = run(case, *inputs, seed=n, is_deferred=is_deferred)
        check(case, *inputs, y, norm)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), [(9, 64), (3, 2048), (2, 16384)])  # a mode each
def test_what_lies_in_the_middle_goes_to_the_even_neighbour(rows: int, n: int, dtype: torch.dtype) -> None:
    check_ties(rows, n, dtype)


def random_case(seed: int, limit: int) -> Case:
    generator = numpy.random.default_rng(seed)
    n = int(numpy.exp(generator.uniform(0, numpy.log(limit))))
    rows = int(generator.integers(1, max(2, min(200, 200_000 // n))))
    local = int(generator.integers(40_000, USABLE_BYTES + 1)) if n < 20_000 else USABLE_BYTES
    return Case(
        rows, n, DTYPES[seed % 2], int(generator.integers(1, 9)), float(generator.choice([1e-6, 1e-5, 1e-3])), local
    )


def check_random(seed: int, limit: int) -> None:
    case = random_case(seed, limit)
    inputs = case.inputs(seed, 10.0 ** (seed % 3 - 1))
    y, norm, _ = run(case, *inputs, in_place=seed % 4 == 3, seed=seed, is_deferred=seed % 3 == 2)
    check(case, *inputs, y, norm)


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_random_shapes(first: int) -> None:
    for seed in range(first, first + 20):
        check_random(seed, 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1300, 50))
def test_many_random_shapes(first: int) -> None:
    for seed in range(first, first + 50):
        check_random(seed, 65_552)


@pytest.mark.parametrize("mode", [MANY_ROWS, ONE_ROW, COLUMNS])
def test_y_may_be_the_residual(mode: int) -> None:
    case = Case(20, [100, 3000, 13000][mode], torch.float16, 2)
    assert case.plan().mode == mode
    inputs = case.inputs()
    y, norm, _ = run(case, *inputs, in_place=True)
    check(case, *inputs, y, norm)


def test_what_is_no_number_stays_in_its_row() -> None:
    case = Case(6, 300, torch.float16, 2)
    mm, residual, gamma = case.inputs()
    mm[1, 5] = float("nan")
    mm[3, 7] = float("inf")
    mm[4] = 60000
    residual[4] = 60000
    y, norm, _ = run(case, mm, residual, gamma)
    assert y[1, 5].isnan() and y[3, 7].isinf() and y[4].isinf().all()
    assert norm[1].isnan().all() and norm[3, 7].isnan() and norm[4].isnan().all()
    assert not (norm[[0, 2, 5]].isnan().any() or y[[0, 2, 5]].isnan().any())
    assert (norm[3, :7] == 0).all()


def test_no_rows() -> None:
    case = Case(0, 64, torch.bfloat16, 2)
    y, norm, _ = run(case, *case.inputs())
    assert y.shape == norm.shape == (0, 64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [64, 1000, 3000, 8192, 20_000])
def test_figures(n: int, dtype: torch.dtype) -> None:
    """Bytes, local memory, and a bounding pipe that is busy."""
    case = Case(70, n, dtype, 4)
    _, _, figures = run(case, *case.inputs())
    check_figures(case, figures)


@pytest.mark.parametrize("mode", [MANY_ROWS, ONE_ROW, COLUMNS])
def test_offsets_have_64_bits(mode: int) -> None:
    """Rows that lie 2^33 elements and more behind where their tensors begin."""
    case = Case(20, [1024, 8192, 13000][mode], torch.bfloat16, 3)
    assert case.plan().mode == mode
    inputs = case.inputs()
    y, norm, _ = run(case, *inputs, function="add_rms_norm_far")
    check(case, *inputs, y, norm)
