"""Collectives of hccl groups in eager code: what HCCL refuses is refused, and ranks that differ are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import free_port, run_python
from tests.scripts import script

pytestmark = pytest.mark.xdist_group("hccl_collectives")

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("collectives")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Found]:
    """For each rank: what the strided, the different and the right calls gave."""
    command = ("torchrun", "--nproc-per-node=2", f"--master-port={free_port()}", script("collectives.py"), str(folder))
    result = run_python("-m", "npu_fused_graph.commands.cli", "run", *command, env={"NFG_TIMEOUT": "20"})
    assert result.returncode == 0, result.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    "name",
    ["all_reduce", "reduce", "broadcast", "scatter", "gather", "all_gather", "all_gather_into_tensor",
     "reduce_scatter_tensor", "all_to_all_single"],
)  # fmt: skip
def test_tensors_must_be_contiguous(name: str, ranks: list[Found]) -> None:
    for strided, _, _ in ranks:
        assert strided[name].startswith(
            "RuntimeError: Tensors must be contiguous: got shape [4, 1] with strides [2, 1]"
        )


def test_a_strided_tensor_of_one_rank_is_told_to_the_other(ranks: list[Found]) -> None:
    assert ranks[0][0]["on one rank"].startswith("RuntimeError: Tensors must be contiguous")
    told = "rank 0: allreduce float32[4] sum of a tensor that is not contiguous | rank 1: allreduce float32[4] sum."
    assert told in ranks[1][0]["on one rank"]


DIFFERENT = {
    "dtype": "rank 0: allreduce int32[2] sum | rank 1: allreduce float32[2] sum.",
    "size": "rank 0: allreduce float32[2] sum | rank 1: allreduce float32[3] sum.",
    "idle": "rank 0: allreduce float32[0] sum | rank 1: allreduce float32[5] sum.",
    "reduction": "rank 0: allreduce float32[2] sum | rank 1: allreduce float32[2] max.",
    "operation": "rank 0: barrier | rank 1: allreduce float32[2] sum.",
    "root": "rank 0: broadcast float32[2] root 0 | rank 1: broadcast float32[2] root 1.",
    "functional": "rank 0: allreduce float32[2] sum | rank 1: allreduce float32[3] sum.",
    "asynchronous": "rank 0: allreduce float32[2] sum | rank 1: allreduce float32[3] sum.",
    "all_gather": "rank 0: allgather float32[2] float32[2] float32[2] | rank 1: allgather float32[3]",
    "reduce_scatter": "rank 0: reduce_scatter_base float32[1] float32[2] sum | rank 1: reduce_scatter_base float32[2]",
    "backward": "rank 0: allreduce float32[2] sum | rank 1: allreduce float32[9] sum.",
    "counts": "rank 0: alltoall_base float32 float32, sends [1, 2], expects [1, 2] | "
    "rank 1: alltoall_base float32 float32, sends [2, 3], expects [3, 3].",
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_ranks_that_differ_are_told(name: str, ranks: list[Found]) -> None:
    for _, different, _ in ranks:
        expected = "CommunicationError: [run] collective: expected all ranks to call the same, got: "
        assert expected + DIFFERENT[name] in different[name], different[name]


def test_what_is_right_stays_right(ranks: list[Found]) -> None:
    for rank, (_, _, right) in enumerate(ranks):
        assert "RuntimeError" in right.pop("too small")
        assert right == {
            "all_reduce": [3.0, 3.0],
            "transposed in memory order": [[[[2.0, 2.0], [2.0, 2.0]]] * 3],
            "asynchronous": [[3.0, 3.0, 3.0], [1.0]],
            "many pending": True,
            "future": [2.0, 2.0],
            "inference mode": [[1.0, 2.0], True],
            "uneven": [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0, 1.0]][rank],
            "objects": [{"rank": 0}, {"rank": 1}],
            "functional": [2.0, 2.0],
            "gathered": [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]] * 4,
            "scattered": [[[0.0, 2.0, 4.0, 6.0], [8.0, 10.0, 12.0, 14.0]][rank]] * 4,
            "gathered by memory": [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0] * 2,
            "nothing on all": [],
            "data parallel": [[1.5, 1.5]],
            "destroyed": [3.0],
            "gloo beside it": None,
        }


def test_a_rank_that_ends_first_takes_nothing_along(folder: Path, ranks: list[Found]) -> None:
    assert json.loads((folder / "last.json").read_text()) == [3.0]


def test_who_comes_after_another_gave_up_gets_no_number(ranks: list[Found]) -> None:
    (first, second), (late, last) = (different["late"] for _, different, _ in ranks)
    assert "expected every rank of the group within 1 s, got none from rank 1" in first
    assert "expected a working group, got one that gave up" in second
    assert "rank 0: allreduce float32[1] sum, which gave up | rank 1: allreduce float32[1] sum." in late
    assert "CommunicationError" in last
