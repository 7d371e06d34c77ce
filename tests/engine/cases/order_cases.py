"""Samples for engine/kernels/reduce.py: extremes, order, scans and histograms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.engine.cases.math_cases import special
from tests.engine.cases.reduce_cases import values
from tests.engine.op_case import ANY, Make, OpCase, dtype_value


def spread(m: Make, *shape: int) -> Tensor:
    """Numbers all different in any dtype."""
    order = torch.randperm(math.prod(shape), generator=m.generator) - 5
    return order.reshape(shape).to(m.dtype)


def index(function: Callable[..., np.ndarray], x: Tensor, axis: int, keep: bool = False) -> Tensor:
    result = torch.from_numpy(np.asarray(function(x.numpy(), axis=axis)))
    return result.unsqueeze(axis) if keep else result


def top(x: Tensor, k: int, dim: int, largest: bool) -> tuple[Tensor, Tensor]:
    a = x.numpy()
    order = np.argsort(-a if largest else a, axis=dim, kind="stable")
    chosen = np.take(order, range(k), axis=dim)
    return torch.from_numpy(np.take_along_axis(a, chosen, dim)), torch.from_numpy(chosen)


ORDER = [
    *[
        OpCase(
            ge_type,
            lambda m, a=axis: {"x": spread(m, 3, 4), "dimension": torch.tensor(a)},  # type: ignore[misc]
            lambda x, dimension, f=function, a=axis: index(f, x, a),
            attrs,
            dtypes=ANY,
            const=const,
            name=f"{axis}_{bool(const)}",
        )
        for ge_type, function in (("ArgMaxV2", np.argmax), ("ArgMin", np.argmin))
        for axis, const, attrs in (
            (0, ("dimension",), {}),
            (-1, ("dimension",), {"dtype": dtype_value("int32")}),
            (1, (), {}),
        )
    ],
    OpCase(
        "ArgMaxV2",
        lambda m: {"x": special(m), "dimension": torch.tensor([0])},
        lambda x, dimension: torch.tensor(0),
        const=("dimension",),
        name="nan",
    ),
    OpCase(
        "ArgMaxD",
        lambda m: {"x": spread(m, 3, 4)},
        lambda x: index(np.argmax, x, 1),
        {"dimension": -1, "dtype": dtype_value("int32")},
        dtypes=ANY,
    ),
    *[
        OpCase(
            ge_type,
            lambda m: {"x": spread(m, 3, 4)},
            lambda x, f=find, v=value, a=axis, k=keep: (index(f, x, a, k), index(v, x, a, k)),
            {"dimension": axis, "keep_dims": keep},
            outputs=("indice", "values"),
            dtypes=ANY,
            name=f"{axis}_{keep}",
        )
        for ge_type, find, value in (
            ("ArgMaxWithValue", np.argmax, np.max),
            ("ArgMinWithValue", np.argmin, np.min),
        )
        for axis, keep in ((0, False), (-1, True))
    ],
    *[
        OpCase(
            "TopKV2",
            lambda m, k=count: {"x": spread(m, 3, 6), "k": torch.tensor(k, dtype=torch.int32)},  # type: ignore[misc]
            lambda x, k, d=dim, g=largest: top(x, int(k), d, g),
            {"dim": dim, "largest": largest, "sort_policy": 1},
            outputs=("values", "indices"),
            dtypes=ANY,
            const=const,
            name=f"{count}_{dim}_{largest}",
        )
        for count, dim, largest, const in (
            (2, -1, True, ("k",)),
            (2, 0, False, ("k",)),
            (6, 1, True, ()),
            (0, 1, True, ("k",)),
        )
    ],
    OpCase(
        "TopKV2",
        lambda m: {"x": spread(m, 1), "k": torch.tensor(1)},
        lambda x, k: (x, torch.tensor([0])),
        {"sorted": False},
        outputs=("values", "indices"),
        dtypes=ANY,
        name="unsorted",
    ),
    *[
        OpCase(
            "Sort",
            lambda m: {"x": spread(m, 3, 6)},
            lambda x, a=axis, d=descending: top(x, x.shape[a], a, d),
            {"axis": axis, "descending": descending, "stable": stable},
            outputs=("y1", "y2"),
            dtypes=ANY,
            name=f"{axis}_{descending}_{stable}",
        )
        for axis, descending, stable in ((-1, False, False), (0, True, False), (1, True, True))
    ],
    OpCase(
        "Sort",
        lambda m: {"x": torch.tensor([1, 0, 1, 0, 1, 0], dtype=m.dtype)},
        lambda x: (torch.tensor([1, 1, 1, 0, 0, 0]), torch.tensor([0, 2, 4, 1, 3, 5])),
        {"stable": True, "descending": True},
        outputs=("y1", "y2"),
        dtypes=ANY,
        name="ties",
    ),
]


def scanned(function: Callable[..., np.ndarray], neutral: float) -> Callable[..., Tensor]:
    """Written as the definition says: one reduction per element."""

    def expected(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
        a = np.moveaxis(x.numpy(), axis, 0)
        rows = []
        for i in range(a.shape[0]):
            lower, upper = (i + exclusive, None) if reverse else (0, i + 1 - exclusive)
            part = a[lower:upper]
            rows.append(function(part, 0) if part.shape[0] else np.full_like(a[i], neutral))
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.stack(rows), 0, axis).astype(a.dtype)))

    return expected


def log_sum(a: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(np.log(np.sum(np.exp(a), axis=axis)))


SCANS = [
    case
    for ge_type, oracle, dtypes, with_d in (
        ("Cumsum", scanned(np.sum, 0), ANY, True),
        ("Cumprod", scanned(np.prod, 1), ANY, True),
        ("CumulativeLogsumexp", scanned(log_sum, -math.inf), ("float32", "float64"), False),
    )
    for axis, exclusive, reverse in ((0, False, False), (-1, True, False), (1, False, True), (-2, True, True))
    for case in (
        OpCase(
            ge_type,
            lambda m, a=axis: {"x": values(m, 3, 4), "axis": torch.tensor(a)},  # type: ignore[misc]
            lambda x, axis, o=oracle, a=axis, e=exclusive, r=reverse: o(x, a, e, r),
            {"exclusive": exclusive, "reverse": reverse},
            dtypes=dtypes,
            const=("axis",) if axis >= 0 else (),
            name=f"{axis}_{exclusive}_{reverse}",
        ),
        OpCase(
            f"{ge_type}D",
            lambda m: {"x": values(m, 3, 4)},
            lambda x, o=oracle, a=axis, e=exclusive, r=reverse: o(x, a, e, r),
            {"axis": axis, "exclusive": exclusive, "reverse": reverse},
            dtypes=dtypes,
            name=f"{axis}_{exclusive}_{reverse}",
        ),
    )
    if with_d or not case.ge_type.endswith("D")
]
SCANS += [
    OpCase("Cumsum", lambda m: {"x": m(), "axis": torch.tensor(0)}, lambda x, axis: x, dtypes=ANY, name="0d"),
    OpCase(
        "Cumsum",
        lambda m: {"x": m(), "axis": torch.tensor(0)},
        lambda x, axis: x - x,
        {"exclusive": True, "reverse": True},
        dtypes=ANY,
        name="0d_exclusive",
    ),
    OpCase(
        "Cumsum",
        lambda m: {"x": m(2, 0), "axis": torch.tensor(1)},
        lambda x, axis: x,
        {"exclusive": True, "reverse": True},
        dtypes=ANY,
        name="empty",
    ),
    *[
        OpCase(
            ge_type,
            lambda m: {"x": torch.tensor([[1, 3, 2, 5], [4, 0, 6, 2]], dtype=m.dtype)},
            lambda x, r=result: (torch.tensor(r[0]), torch.tensor(r[1])),
            {attribute: axis},
            outputs=("y", "indices"),
            dtypes=ANY,
            name=f"{axis}",
        )
        for ge_type, attribute, axis, result in (
            ("Cummax", "dim", 1, ([[1, 3, 3, 5], [4, 4, 6, 6]], [[0, 1, 1, 3], [0, 0, 2, 2]])),
            ("Cummax", "dim", -2, ([[1, 3, 2, 5], [4, 3, 6, 5]], [[0, 0, 0, 0], [1, 0, 1, 0]])),
            ("Cummin", "axis", 1, ([[1, 1, 1, 1], [4, 0, 0, 0]], [[0, 0, 0, 0], [0, 1, 1, 1]])),
            ("Cummin", "axis", 0, ([[1, 3, 2, 5], [1, 0, 2, 2]], [[0, 0, 0, 0], [0, 1, 0, 1]])),
        )
    ],
]


def histogram(x: Tensor, bins: int, low: float, high: float) -> Tensor:
    a = x.double().numpy().ravel()
    counts, _ = np.histogram(a, bins=bins, range=None if low == high else (low, high))
    return torch.from_numpy(counts)


HISTOGRAMS = [
    OpCase("Histogram", lambda m: {"x": m(40)}, lambda x: histogram(x, 100, 0, 0).double(), dtypes=("float32",)),
    OpCase(
        "Histogram",
        lambda m: {"x": m(40)},
        lambda x: histogram(x, 4, -1, 2).double(),
        {"bins": 4, "min": -1.0, "max": 2.0},
        dtypes=("float32", "float16"),
        name="attrs",
    ),
    OpCase(
        "Histogram",
        lambda m: {"x": m.ints(40, low=0, high=9, dtype=m.dtype)},
        lambda x: histogram(x, 3, 1, 7),
        {"bins": 3, "min": 1.0, "max": 7.0},
        dtypes=("int32",),
        name="int",
    ),
]

CASES = [*ORDER, *SCANS, *HISTOGRAMS]
