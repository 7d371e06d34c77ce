"""Operators of torch_npu that write their arguments, and products of two dtypes: under ``run``, in every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npu_fused_graph.testing import assert_close
from tests.host.stand_ins import PYTHONPATH
from tests.processes import run_python
from tests.scripts import script

pytestmark = [pytest.mark.xdist_group("in_place_operators"), pytest.mark.slow]

WAYS = ("eager", "max-autotune", "npugraph_ex")
GE = ("eager", "max-autotune")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path: Path = tmp_path_factory.mktemp("in_place") / "found.pt"
    done = run_python(script("in_place_operators.py"), str(path), env={"PYTHONPATH": PYTHONPATH})
    assert done.returncode == 0, done.stderr
    return dict(torch.load(path))


VIEWS: dict[str, tuple[tuple[int, ...], Any]] = {
    "whole": ((5, 2), np.s_[:]),
    "reshaped": ((6, 2), np.s_[:]),  # [2, 3, 2] in memory
    "selected": ((2, 4, 2), np.s_[1]),
    "strided": ((4, 2, 2), np.s_[:, 1]),
    "rows": ((7, 2), np.s_[3:]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", list(VIEWS))
def test_the_callers_memory_is_written_through_views(found: dict[str, Any], name: str, way: str) -> None:
    shape, place = VIEWS[name]
    expected = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    expected[place][[2, 0]] = [[-1, -2], [-3, -4]]
    result, total, cache = found["views"][name, way]
    assert np.array_equal(cache.numpy().reshape(shape), expected)
    assert np.array_equal(result.numpy(), expected[place])
    assert total.item() == expected.sum()
    assert np.array_equal(found["views"][f"{name} outside", way].numpy().reshape(shape), expected)


@pytest.mark.parametrize("way", GE)
@pytest.mark.parametrize("name", ["whole", "reshaped", "selected", "rows"])
def test_what_is_written_does_not_grow_with_the_cache(found: dict[str, Any], name: str, way: str) -> None:
    """Elements: two rows of eight and some indices, whether the cache has 1,024 rows or 32,768."""
    short, long = (found["written"][name, way, length] for length in (1024, 32768))
    assert 16 <= short == long < 64


def test_the_argument_itself_is_returned(found: dict[str, Any]) -> None:
    assert found["identity"] is True


def test_two_arguments_side_by_side_in_one_memory(found: dict[str, Any]) -> None:
    keys, values, pages = found["pages"]
    wanted = torch.zeros(2, 2, 4, 1, 32, dtype=torch.float16)
    for row, (page, place) in enumerate(((0, 0), (1, 1), (0, 2))):
        wanted[page, 0, place], wanted[page, 1, place] = keys[row], values[row]
    assert torch.equal(pages, wanted)


GONE = ". On a device the node writes a copy of it, and the cache stays as it is. "
LOST = {
    "max-autotune": f" of KvRmsNormRopeCache: expected contiguous memory of an argument, got a view with gaps{GONE}",
    "npugraph_ex": f" of npu_kv_rmsnorm_rope_cache: expected a parameter or buffer, got an argument{GONE}",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["whole", "layer", "halves", "buffers"])
def test_what_the_schema_does_not_say_is_written(found: dict[str, Any], name: str, way: str) -> None:
    """But for what TorchAir copies: views with gaps in GE graphs, and arguments in captured ones. They say so."""
    kv, gain, slots = (x.double().numpy() for x in found["untold"]["inputs"])
    k_cache, ckv_cache, texts = found["untold"][name, way]
    is_lost = (
        name in {"eager": (), "max-autotune": ("layer", "halves"), "npugraph_ex": ("whole", "layer", "halves")}[way]
    )
    norms = kv[..., :512] / np.sqrt((kv[..., :512] ** 2).mean(-1, keepdims=True) + 1e-5) * gain
    turned = np.concatenate((kv[..., 512::2], kv[..., 513::2]), -1)
    for cache, rows in ((k_cache, turned), (ckv_cache, norms)):
        wanted = np.zeros((64, rows.shape[-1]))
        if not is_lost:
            wanted[slots.astype(int)] = rows.reshape(3, -1)
        np.testing.assert_allclose(cache.reshape(wanted.shape).double().numpy(), wanted, rtol=2e-3)
    told = [text.partition(LOST.get(way, ""))[0] for text in texts]
    assert told == (["[backend] k_cache", "[backend] ckv_cache"] if is_lost else [])


def test_caches_that_are_written_are_returned(found: dict[str, Any]) -> None:
    assert found["untold"]["identity"] == [True, True]


def test_where_the_returned_caches_are_read_nothing_is_lost(found: dict[str, Any]) -> None:
    assert found["untold"]["read"] == []


def test_a_row_taken_inside_a_graph_is_told(found: dict[str, Any]) -> None:
    """Of the second cache a reshape of the row."""
    for name, text in zip(("k_cache", "ckv_cache"), found["untold"]["inside"], strict=True):
        wanted = f"{name} of KvRmsNormRopeCache: expected contiguous memory of an argument, got the result of GatherV2"
        assert text.startswith(f"[backend] {wanted}{GONE}")


def test_updates_that_are_rows_of_what_is_written(found: dict[str, Any]) -> None:
    """They are read before anything is written."""
    for place, result in zip((2, 1, 2), found["shifted"], strict=True):
        wanted = np.arange(12.0).reshape(4, 3)
        wanted[:2] = wanted[place : place + 2].copy()
        assert np.array_equal(result.numpy(), wanted)


@pytest.mark.parametrize("way", WAYS)
def test_two_arguments_written_and_a_new_result(found: dict[str, Any], way: str) -> None:
    """x1 becomes the norm, x2 the sum; 1 / rms is new."""
    rstd, (norm, total, _) = found["results"]["add_rms_norm_v2", way]
    x, other, gamma = (t.double() for t in found["inputs"])
    assert_close(total, x + other)
    total = total.double()  # float16 sums are rounded before the statistics
    wanted = 1 / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert_close(rstd, wanted)
    assert_close(norm, total * wanted * gamma)


@pytest.mark.parametrize("way", WAYS)
def test_index_copy_takes_an_index_of_int32(found: dict[str, Any], way: str) -> None:
    new, sums, x = found["int32 index"][way]
    rows = torch.tensor([[1.0], [0], [1]]).expand(3, 2)
    assert torch.equal(x, rows)
    assert torch.equal(sums, rows + 1)
    assert torch.equal(new, 2 * rows)
    assert found["int32 index"]["out"].tolist() == [[0, 0], [1, 1], [0, 0]]


def test_d8_stock_takes_the_first_row_of_a_single_result() -> None:
    path = script("single_result.py")
    for options, rows, said in (
        ([], 3, "guarded: TorchAir's defect D8"),
        (["--stock"], 1, "spoiled: TorchAir's defect D8"),
    ):
        done = run_python("-m", "npu_fused_graph.commands.cli", "run", *options, path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == str([rows, 1][: 2 if rows > 1 else 1])
        assert said in done.stdout + done.stderr


@pytest.mark.parametrize("way", GE)
def test_scatter_update(found: dict[str, Any], way: str) -> None:
    wanted = np.zeros((2, 3, 8, 4))
    wanted[0, :, 1] = wanted[1, :, 2] = 1
    result, (cache, *_) = found["results"]["scatter_update", way]
    assert np.array_equal(cache.numpy(), wanted)
    assert np.array_equal(result.numpy(), wanted)


def test_operators_that_are_a_copy(found: dict[str, Any]) -> None:
    _, other, _ = found["inputs"]
    assert torch.equal(found["results"]["one", "eager"][1][0], torch.ones(2, 8, dtype=torch.float16))
    for name in ("copy_memory", "dtype_cast"):
        result, (written, _) = found["results"][name, "eager"]
        assert written.dtype is result.dtype is torch.float16
        assert torch.equal(written, other), name
        assert torch.equal(result, other), name


def test_one_without_functional_form_is_refused_by_name(found: dict[str, Any]) -> None:
    kind, text = found["refused"]
    assert kind == "UnsupportedOpError"
    assert text.startswith("[run] npu_attn_softmax_: expected an operator that writes its arguments and has a function")


def test_float64_keeps_its_digits_and_results_their_dtype(found: dict[str, Any]) -> None:
    assert abs(found["wide"] - 1e-12) < 1e-15
    assert "Expected out tensor to have dtype torch.bfloat16, but got torch.int32" in found["other out"][1]


@pytest.mark.parametrize("way", WAYS)
def test_products_of_two_dtypes(found: dict[str, Any], way: str) -> None:
    left, right, bias = (t.double() for t in found["operands"])

    def check(result: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
        assert result.dtype is dtype
        assert_close(result, wanted)

    check(found["mixed"]["mm", way], left @ right, torch.bfloat16)
    check(found["mixed"]["linear", way][0], left @ right, torch.bfloat16)
    check(found["mixed"]["addmm", way], left @ right + bias, torch.float32)
