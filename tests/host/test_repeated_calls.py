"""Eager calls of one operator behind the first, which go to the engine directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from npu_fused_graph.host import native, one_operator
from npu_fused_graph.testing import assert_close
from tests.host.stand_ins import PYTHONPATH
from tests.processes import run_python
from tests.scripts import script

pytestmark = [pytest.mark.xdist_group("repeated_calls"), pytest.mark.slow]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path: Path = tmp_path_factory.mktemp("repeated_calls") / "found.pt"
    done = run_python(script("repeated_calls.py"), str(path), env={"PYTHONPATH": PYTHONPATH})
    assert done.returncode == 0, done.stderr
    return dict(torch.load(path))


def all_equal(values: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))


def test_one_tensor_twice_says_nothing_of_two(found: dict[str, Any]) -> None:
    x, y = found["given"]
    assert all_equal(found["one tensor, then two"], [x + x, x + y, y + (x + 1), x + x])


def test_strided_tensors(found: dict[str, Any]) -> None:
    even, odd = found["wide"][:, ::2], found["wide"][:, 1::2]
    assert all_equal(found["strided"], [even + even, odd + (odd + 1), even + (even + 2)])


@pytest.mark.parametrize("name", ["caches", "strided caches"])
def test_every_call_writes_its_own_cache(found: dict[str, Any], name: str) -> None:
    for i, cache in enumerate(found[name]):
        expected = torch.zeros(4, 8)
        expected[2], expected[0] = i * found["updates"]
        assert torch.equal(cache, expected)
        assert found[f"{name}, result {i}"]


def test_every_call_writes_both_of_its_addends(found: dict[str, Any]) -> None:
    """npu_add_rms_norm_v2: the norm becomes x1, the sum x2."""
    for (a, b), (norm, total) in zip(found["addends"], found["written addends"], strict=True):
        wide = (a + b).double()
        assert_close(norm, wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt())
        assert torch.equal(total, a + b)


def test_rows_of_the_memory_that_is_written_are_read_first(found: dict[str, Any]) -> None:
    for cache, before in zip(found["overlapping"], found["before"], strict=True):
        expected = before.clone()
        expected[2], expected[0] = before[1], before[2]
        assert torch.equal(cache, expected)


def test_after_an_error_a_call_runs_and_an_error_is_told_again(found: dict[str, Any]) -> None:
    assert torch.equal(found["attempt 1"], torch.tensor([1.0, 0, 1, 0])[:, None].expand(4, 5))
    for attempt in (0, 2):
        assert found[f"attempt {attempt}"].startswith("[run] npu_scatter_nd_update_: expected arguments")


def test_nothing_is_left_out_of_a_call_that_is_no_single_run_of_the_engine() -> None:
    """On a device the engine runs nothing."""
    x, y = torch.ones(2), torch.zeros(2)
    run = native.Run(executable=None, inputs=[x], assigned=[], results=[y])  # type: ignore[arg-type]
    assert one_operator._direct([run], [x], [y]) is not None
    for runs, tensors, results in (
        ([], [x], [y]), ([run, run], [x], [y]), ([run], [x.clone()], [y]), ([run], [x], [y.clone()])
    ):  # fmt: skip
        assert one_operator._direct(runs, tensors, results) is None
