"""AddRmsNorm and AddRmsNormCast bit by bit against models in numpy, in each variant of CANN's kernels on A2 and A3."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from npu_fused_graph.engine import compile_graph
from tests.engine.graphs import graph_of, node

Array = np.ndarray


def rounded(x: Array, dtype: torch.dtype) -> Array:
    """float32 numbers rounded to nearest even in a 16-bit type."""
    if dtype is torch.float16:
        return x.astype(np.float16).astype(np.float32)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def samples(rows: int, n: int) -> dict[str, Array]:
    """Addends are eighths, so that sums of squares are exact in float32 and do not depend on their order."""
    random = np.random.default_rng(n + rows)
    x1, x2 = (random.integers(-24, 25, (rows, n)) / np.float32(8) for _ in range(2))
    large = random.integers(0, n, 12)
    x1[:, large], x2[:, large] = 31.875, 15.75  # 47.625: between two bfloat16 numbers
    gamma = 1 + random.integers(-31, 32, n) / np.float32(128)
    return {"x1": x1.astype(np.float32), "x2": x2.astype(np.float32), "gamma": gamma.astype(np.float32)}


def model(x1: Array, x2: Array, gamma: Array, dtype: torch.dtype, variant: str) -> tuple[Array, Array]:
    """(norm, sum)."""
    exact = x1 + x2
    total = rounded(exact, dtype)
    statistics_of, norm_of = {
        "rounded": (total, total), "NORMAL": (exact, exact), "SPLIT_D": (exact, total)
    }[variant]  # fmt: skip
    mean = (statistics_of * statistics_of).sum(-1, keepdims=True, dtype=np.float32) / np.float32(x1.shape[-1])
    rstd = np.float32(1) / np.sqrt(mean + np.float32(1e-5))
    return rounded(rounded(norm_of * rstd, dtype) * gamma, dtype), total


@pytest.mark.parametrize(
    ("dtype", "rows", "n", "variant"),
    [
        (torch.float16, 50, 4096, "rounded"),
        (torch.bfloat16, 50, 2000, "rounded"),
        (torch.bfloat16, 41, 2001, "NORMAL"),
        (torch.bfloat16, 40, 2001, "rounded"),
        (torch.bfloat16, 41, 12288, "NORMAL"),
        (torch.bfloat16, 2, 12289, "SPLIT_D"),
        (torch.bfloat16, 41, 12289, "SPLIT_D"),
    ],
)
def test_roundings(dtype: torch.dtype, rows: int, n: int, variant: str) -> None:
    values = samples(rows, n)
    tensors = {name: torch.from_numpy(x).to(dtype) for name, x in values.items()}
    item = node("norm", "AddRmsNorm", {name: name for name in values}, ("y", "rstd", "x"), epsilon=1e-5)
    y, _, x = compile_graph(graph_of(tensors, [item], ["norm:0", "norm:1", "norm:2"])).run(list(tensors.values()))
    wanted, total = model(*values.values(), dtype, variant)
    assert torch.equal(x.float(), torch.from_numpy(total))
    assert torch.equal(y.float(), torch.from_numpy(wanted))
    others = {name for name in ("rounded", "NORMAL", "SPLIT_D") if name != variant}
    told_apart = [name for name in others if not np.array_equal(model(*values.values(), dtype, name)[0], wanted)]
    assert dtype is torch.float16 or set(told_apart) == others


def cast_model(x1: Array, x2: Array, gamma: Array, dtype: torch.dtype, variant: str) -> list[Array]:
    """(norm in float32, norm, sum)."""
    exact = x1 + x2
    total = rounded(exact, dtype)
    statistics_of = total if variant == "float16" else exact
    mean = (statistics_of * statistics_of).sum(-1, keepdims=True, dtype=np.float32) / np.float32(x1.shape[-1])
    rstd = np.float32(1) / np.sqrt(mean + np.float32(1e-5))
    normalised = {"float16": total, "SPLIT_D": total}.get(variant, exact) * rstd
    if variant == "float16":
        normalised = rounded(normalised, dtype)
    wide = normalised * gamma
    return [wide if variant == "SINGLE_N" else rounded(wide, dtype), rounded(wide, dtype), total]


@pytest.mark.parametrize(
    ("dtype", "rows", "n", "variant"),
    [
        (torch.float16, 3, 4096, "float16"),
        (torch.float16, 41, 8720, "float16"),
        (torch.bfloat16, 40, 8704, "SINGLE_N"),
        (torch.bfloat16, 41, 8704, "NORMAL"),
        (torch.bfloat16, 2, 8705, "SPLIT_D"),
        (torch.bfloat16, 41, 8705, "SPLIT_D"),
    ],
)
def test_cast_roundings(dtype: torch.dtype, rows: int, n: int, variant: str) -> None:
    values = samples(rows, n)
    tensors = {name: torch.from_numpy(x).to(dtype) for name, x in values.items()}
    item = node("norm", "AddRmsNormCast", {name: name for name in values}, ("y1", "y2", "rstd", "x"), epsilon=1e-5)
    graph = graph_of(tensors, [item], ["norm:0", "norm:1", "norm:3"])
    results = compile_graph(graph).run(list(tensors.values()))
    wanted = cast_model(*values.values(), dtype, variant)
    for result, want in zip(results, wanted, strict=True):
        assert torch.equal(result.float(), torch.from_numpy(want))
    for other in {"SINGLE_N", "NORMAL", "SPLIT_D", "float16"} - {variant}:
        others = cast_model(*values.values(), dtype, other)
        assert not all(map(np.array_equal, others, wanted)), f"{other} cannot be told from {variant}"
