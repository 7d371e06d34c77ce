"""CANN's products with a collective, on two ranks, against whole numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from npu_fused_graph.engine import compile_graph
from npu_fused_graph.errors import UnsupportedOpError
from tests.engine.graphs import graph_of, node
from tests.ranks import run_ranks, values

pytestmark = pytest.mark.xdist_group("matmul_collective")

M, K, N = 4, 3, 5


def numbers(rank: int, salt: int, *shape: int) -> Tensor:
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(10 * salt + rank))


X = [numbers(rank, 1, M, K) for rank in range(2)]
W = [numbers(rank, 2, K, N) for rank in range(2)]
BIAS = [numbers(rank, 3, N) for rank in range(2)]
X3 = [numbers(rank, 4, M, N) for rank in range(2)]
TOKENS = torch.tensor([1.0, 2.0, 4.0, 0.5])


def summed(of_rank: Callable[[int], Tensor]) -> Tensor:
    return of_rank(0) + of_rank(1)


def words(scale: float) -> Tensor:
    return torch.full((N,), scale).view(torch.int32).long() | (1 << 46)


def int8(rank: int) -> dict[str, Tensor]:
    return {"x1": X[rank].to(torch.int8), "x2": W[rank].to(torch.int8)}


Build = Callable[[int], dict[str, Tensor]]
CASES: dict[str, tuple[str, Build, dict[str, Any], Callable[[int], list[Tensor]]]] = {
    "all-reduce": (
        "MatmulAllReduce",
        lambda r: {"x1": X[r].half(), "x2": W[r].half(), "bias": BIAS[r].half(), "x3": X3[r].half()},
        {},
        lambda r: [summed(lambda q: X[q] @ W[q] + BIAS[q] + X3[q])],
    ),
    "all-reduce, both transposed": (
        "MatmulAllReduce",
        lambda r: {"x1": X[r].t().contiguous().bfloat16(), "x2": W[r].t().contiguous().bfloat16()},
        {"is_trans_a": True, "is_trans_b": True},
        lambda r: [summed(lambda q: X[q] @ W[q])],
    ),
    "all-reduce, 3-D": (
        "MatmulAllReduce",
        lambda r: {"x1": X[r].view(2, 2, K).half(), "x2": W[r].half()},
        {"reduce_op": "sum"},
        lambda r: [summed(lambda q: (X[q] @ W[q]).view(2, 2, N))],
    ),
    "all-reduce of int8": (
        "MatmulAllReduce",
        lambda r: int8(r) | {"bias": BIAS[r].int(), "dequant_scale": words(0.5)},
        {"y_dtype": 1},
        lambda r: [summed(lambda q: (X[q] @ W[q] + BIAS[q]) * 0.5)],
    ),
    "all-reduce of int8, scales per token": (
        "MatmulAllReduce",
        lambda r: int8(r) | {"dequant_scale": torch.full((N,), 2.0).bfloat16(), "pertoken_scale": TOKENS},
        {},
        lambda r: [summed(lambda q: (X[q] @ W[q]) * 2 * TOKENS[:, None])],
    ),
    "all-reduce of an int8 weight": (
        "MatmulAllReduce",
        lambda r: {"x1": X[r].half(), "x2": W[r].to(torch.int8), "antiquant_scale": torch.full((N,), 0.25).half(),
                   "antiquant_offset": torch.full((N,), 2.0).half()},
        {},
        lambda r: [summed(lambda q: X[q] @ (W[q] + 2)) * 0.25],
    ),
    "reduce-scatter": (
        "MatmulReduceScatter",
        lambda r: {"x1": X[r].half(), "x2": W[r].half(), "bias": BIAS[r].half()},
        {"rank_size": 2},
        lambda r: [summed(lambda q: X[q] @ W[q] + BIAS[q])[2 * r : 2 * r + 2]],
    ),
    "reduce-scatter, second version": (
        "MatmulReduceScatterV2",
        lambda r: {"x1": X[r].half(), "x2": W[r].t().contiguous().half(), "bias": BIAS[r].half()},
        {"rank_size": 2, "is_trans_b": True, "y_dtype": 1, "comm_mode": "aiv"},
        lambda r: [summed(lambda q: X[q] @ W[q] + BIAS[q])[2 * r : 2 * r + 2], torch.zeros(0)],
    ),
    "reduce-scatter of int8, scales per token": (
        "MatmulReduceScatterV2",
        lambda r: int8(r) | {"x1_scale": TOKENS.view(M, 1), "x2_scale": torch.full((1, N), 2.0)},
        {"y_dtype": 1},
        lambda r: [summed(lambda q: (X[q] @ W[q]) * 2 * TOKENS[:, None])[2 * r : 2 * r + 2], torch.zeros(0)],
    ),
    "reduce-scatter of int8, packed scales": (
        "MatmulReduceScatterV2",
        lambda r: int8(r) | {"x2_scale": words(0.5).view(1, N)},
        {"comm_mode": "aiv"},
        lambda r: [summed(lambda q: (X[q] @ W[q]) * 0.5)[2 * r : 2 * r + 2], torch.zeros(0)],
    ),
    "all-gather": (
        "AllGatherMatmul",
        lambda r: {"x1": X[r].bfloat16(), "x2": W[r].t().contiguous().bfloat16()},
        {"rank_size": 2, "is_trans_b": True},
        lambda r: [torch.cat(X) @ W[r], torch.cat(X)],
    ),
    "all-gather without its rows": (
        "AllGatherMatmul",
        lambda r: {"x1": X[r].half(), "x2": W[r].half()},
        {"is_gather_out": False},
        lambda r: [torch.cat(X) @ W[r], torch.zeros(0)],
    ),
}  # fmt: skip


def _results(rank: int) -> dict[str, list[Any]]:
    found = {}
    for name, (ge_type, build, attrs, expected) in CASES.items():
        inputs = build(rank)
        outputs = ["y", "amax_out" if ge_type == "MatmulReduceScatterV2" else "gather_out"][: len(expected(rank))]
        item = node("op", ge_type, {key: key for key in inputs}, outputs, group="0", **attrs)
        executable = compile_graph(graph_of(inputs, [item], [f"op:{i}" for i in range(len(outputs))]))
        for _ in range(2):
            results = executable.run(list(inputs.values()))
        found[name] = [(str(y.dtype), y.double().tolist()) for y in results]
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, list[Any]]]:
    return values(run_ranks(_results, 2))


@pytest.mark.parametrize("name", CASES)
def test_values(name: str, ranks: list[dict[str, list[Any]]]) -> None:
    _, build, _, expected = CASES[name]
    floats = [x.dtype for x in build(0).values() if x.dtype in (torch.float16, torch.bfloat16)]
    for rank, results in enumerate(ranks):
        dtype = floats[0] if floats else torch.float16
        wanted = [(str(dtype), y.double().tolist()) for y in expected(rank)]
        if CASES[name][0] == "MatmulReduceScatterV2":
            wanted[1] = ("torch.float32", [])
        assert results[name] == wanted


@pytest.mark.parametrize(
    ("ge_type", "change", "text"),
    [
        ("MatmulAllReduce", {"comm_quant_mode": 1}, "MatmulAllReduce.comm_quant_mode: expected 0, got 1."),
        ("MatmulAllReduce", {"comm_mode": "ccu"}, "MatmulAllReduce.comm_mode: expected 'ai_cpu', got 'ccu'."),
        ("MatmulAllReduce", {"group_size": 32}, "MatmulAllReduce.group_size: expected 0, got 32."),
        (
            "MatmulReduceScatterV2",
            {"is_amax_out": True},
            "MatmulReduceScatterV2.is_amax_out: expected False, got True.",
        ),
        ("AllGatherMatmul", {"gather_index": 1}, "AllGatherMatmul.gather_index: expected 0, got 1."),
    ],
)
def test_what_these_chips_do_not_have_is_refused(ge_type: str, change: dict[str, Any], text: str) -> None:
    inputs = {"x1": X[0].half(), "x2": W[0].half()}
    item = node("op", ge_type, {key: key for key in inputs}, group="0", **change)
    with pytest.raises(UnsupportedOpError, match=text.replace(".", r"\.")):
        compile_graph(graph_of(inputs, [item], ["op"]))
