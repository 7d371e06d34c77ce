"""The modelled gain, against numbers worked out by hand from the cost formulas of CANN's tiling."""

from __future__ import annotations

import pytest

from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.costs import Cost, cost, least_rows


@pytest.mark.parametrize(
    ("m", "n", "k", "serial", "fused"),
    [
        pytest.param(512, 8192, 1024, 262, 262, id="Llama-70B o_proj TP8, 512 rows"),
        pytest.param(1024, 8192, 1024, 455, 388, id="1024 rows"),
        pytest.param(4096, 8192, 1024, 1607, 1138, id="4096 rows"),
        pytest.param(1024, 8192, 3584, 622, 434, id="Llama-70B down TP8, 1024 rows"),
        pytest.param(4096, 8192, 3584, 2276, 1184, id="down, 4096 rows"),
        pytest.param(4096, 5120, 2048, 1198, 746, id="Qwen3-32B o_proj TP4"),
        pytest.param(4096, 5120, 6400, 1909, 1179, id="Qwen3-32B down TP4"),
    ],
)
def test_sites_of_well_known_models(m: int, n: int, k: int, serial: int, fused: int) -> None:
    """In whole microseconds."""
    found = cost(m, n, k)
    assert (found.serial, found.fused) == (pytest.approx(serial, abs=0.51), pytest.approx(fused, abs=0.51))
    assert found.gain == pytest.approx(serial / fused, abs=0.005)


@pytest.mark.parametrize(
    ("m", "n", "k", "serial"),
    [
        pytest.param(4096, 8192, 9088, 4031.759, id="operands of over 128 MiB"),
        pytest.param(4096, 8192, 13184, 5846.369, id="over 192 MiB"),
        pytest.param(4096, 8192, 1000, 1712.501, id="k no multiple of 128"),
        pytest.param(128, 256, 1024, 26.191, id="one block, at most 1/16 MiB to send"),
        pytest.param(256, 128, 1024, 23.577, id="two blocks"),
        pytest.param(256, 256, 1024, 26.610, id="1/8 MiB to send"),
        pytest.param(64, 64, 64, 21.060, id="less than a block"),
        pytest.param(1, 1, 1, 21.027, id="one element"),
    ],
)
def test_matmul_reduce_and_norm_one_after_the_other(m: int, n: int, k: int, serial: float) -> None:
    assert cost(m, n, k).serial == pytest.approx(serial, abs=1e-3)


@pytest.mark.parametrize(
    ("m", "n", "k", "fused"),
    [
        pytest.param(768, 8192, 3584, 371.215, id="384 rows"),
        pytest.param(1050, 8192, 1000, 409.32, id="by the elements of the weight"),
        pytest.param(1366, 1024, 8192, 142.313, id="by what is read for a row"),
        pytest.param(2048, 32, 262144, 896.176, id="64 KiB to send"),
    ],
)
def test_two_tiles_overlap_and_one_does_not(m: int, n: int, k: int, fused: float) -> None:
    """Named by what makes the tile as long as it is: each of the four is the largest once."""
    assert cost(m, n, k).fused == pytest.approx(fused, abs=1e-3)
    less = cost(m - 1, n, k)
    assert less.fused == less.serial


@pytest.mark.parametrize("sizes", [(0, 8, 8), (8, 0, 8), (8, 8, 0)])
def test_nothing_costs_nothing_more(sizes: tuple[int, int, int]) -> None:
    assert cost(*sizes) == Cost(1.0, 1.0)


@pytest.mark.parametrize(("n", "rows"), [(8192, 768), (86, 768), (85, 772), (64, 1024), (1, 65536), (0, 65536)])
def test_rows_that_make_two_tiles_whatever_k_is(n: int, rows: int) -> None:
    assert least_rows(n) == rows
