"""Samples for engine/kernels/reduce.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.engine.cases.math_cases import UNSIGNED, special
from tests.engine.op_case import ANY, FLOATS, Make, OpCase, dtype_value

Oracle = Callable[[np.ndarray, tuple[int, ...], bool], np.ndarray]


def on_numpy(function: Oracle, x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.from_numpy(np.asarray(function(x.numpy(), tuple(axes), keep)))


def log_sum_exp(x: np.ndarray, axes: tuple[int, ...], keep: bool) -> np.ndarray:
    return np.asarray(np.log(np.sum(np.exp(x), axis=axes, keepdims=keep)))


def root_of_squares(x: np.ndarray, axes: tuple[int, ...], keep: bool) -> np.ndarray:
    return np.asarray(np.sqrt(np.sum(x.astype(np.float64) ** 2, axis=axes, keepdims=keep)), x.dtype)


def mean(x: np.ndarray, axes: tuple[int, ...], keep: bool) -> np.ndarray:
    result = np.asarray(np.mean(x, axis=axes, keepdims=keep))
    return np.trunc(result).astype(x.dtype) if x.dtype.kind in "iu" else result


SUM: Oracle = lambda x, a, k: np.sum(x, axis=a, keepdims=k)  # noqa: E731
PROD: Oracle = lambda x, a, k: np.prod(x, axis=a, keepdims=k)  # noqa: E731
MAX: Oracle = lambda x, a, k: np.max(x, axis=a, keepdims=k)  # noqa: E731
MIN: Oracle = lambda x, a, k: np.min(x, axis=a, keepdims=k)  # noqa: E731
ANY_OF: Oracle = lambda x, a, k: np.any(x, axis=a, keepdims=k)  # noqa: E731
ALL_OF: Oracle = lambda x, a, k: np.all(x, axis=a, keepdims=k)  # noqa: E731
LOG_SUM: Oracle = lambda x, a, k: np.log(np.sum(x, axis=a, keepdims=k))  # noqa: E731


def values(m: Make, *shape: int, low: float = -2.0) -> Tensor:
    return m(*shape, low=low, high=2.0)


def reduction(
    ge_type: str, function: Oracle, dtypes: tuple[str, ...], *, with_d: bool = True, low: float = -2.0
) -> list[OpCase]:
    """Axes by input (data and constant) and by attribute, several, negative, none, of a 0-d and an empty tensor."""
    cases = []
    for name, shape, axes, keep in (
        ("one", (2, 3, 4), [1], False),
        ("keep", (2, 3, 4), [-1], True),
        ("two", (2, 3, 4), [0, -1], False),
        ("two_keep", (2, 3, 4), [2, 0], True),
        ("all", (2, 3), [0, 1], False),
        ("all_keep", (2, 3), [0, 1], True),
        ("none", (2, 3), [], False),
        ("0d", (), [], False),
        ("empty", (2, 0, 3), [0], False),
    ):
        attrs = {"keep_dims": keep} if keep else {}

        def expected(
            x: Tensor,
            axes: Tensor | None = None,
            _axes: list[int] = axes,
            _keep: bool = keep,
        ) -> Tensor:
            return on_numpy(function, x, _axes, _keep) if _axes else x

        def by_input(m: Make, _shape: tuple[int, ...] = shape, _axes: list[int] = axes) -> dict[str, Tensor]:
            return {"x": values(m, *_shape, low=low), "axes": torch.tensor(_axes, dtype=torch.int64)}

        def by_attribute(m: Make, _shape: tuple[int, ...] = shape) -> dict[str, Tensor]:
            return {"x": values(m, *_shape, low=low)}

        cases.append(OpCase(ge_type, by_input, expected, attrs, dtypes=dtypes, const=("axes",), name=name))
        if name == "two":
            cases.append(OpCase(ge_type, by_input, expected, attrs, dtypes=dtypes, name="data_axes"))
        if with_d and (axes or ge_type != "ReduceMean"):  # ReduceMeanD over no axes is over all of them
            d_attrs = {"axes": axes, **attrs}
            cases.append(OpCase(f"{ge_type}D", by_attribute, expected, d_attrs, dtypes=dtypes, name=name))
    return cases


REDUCTIONS = [
    *reduction("ReduceSum", SUM, ANY),
    *reduction("ReduceProd", PROD, ANY),
    *reduction("ReduceMax", MAX, ANY),
    *reduction("ReduceMin", MIN, ANY),
    *reduction("ReduceAny", ANY_OF, ("bool",)),
    *reduction("ReduceAll", ALL_OF, ("bool",)),
    *reduction("ReduceLogSumExp", log_sum_exp, FLOATS, with_d=False),
    *reduction("ReduceLogSum", LOG_SUM, FLOATS, with_d=False, low=0.5),
    *reduction("EuclideanNorm", root_of_squares, (*FLOATS, "int32"), with_d=False),
    *reduction("ReduceMean", mean, (*FLOATS, "int32")),
    *[
        OpCase(
            ge_type,
            lambda m: {"x": m.ints(3, 4, low=1, high=5, dtype=m.dtype), "axes": torch.tensor([0])},
            lambda x, axes, f=function: torch.from_numpy(f(x.numpy(), (0,), False)).to(x.dtype),
            dtypes=UNSIGNED,
            const=("axes",),
            exact=True,
            name="unsigned",
        )
        for ge_type, function in (("ReduceSum", SUM), ("ReduceMax", MAX), ("ReduceMin", MIN), ("ReduceProd", PROD))
    ],
    OpCase(
        "ReduceMax",
        lambda m: {"x": special(m), "axes": torch.tensor([0], dtype=torch.int32)},
        lambda x, axes: torch.tensor(math.nan),
        name="nan",
    ),
    OpCase(
        "ReduceSum",
        lambda m: {"x": m(3, 4, 50), "axes": torch.tensor([0, 1, 2])},
        lambda x, axes: x.sum(),
        const=("axes",),
        widen=False,
        exact=True,
        name="eager",
    ),
    OpCase(
        "ReduceMean",
        lambda m: {"x": m(3, 50), "axes": torch.tensor([-1])},
        lambda x, axes: x.mean(-1, keepdim=True),
        {"keep_dims": True},
        const=("axes",),
        widen=False,
        exact=True,
        name="eager",
    ),
]


def whole_mean(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return torch.from_numpy(np.asarray(np.mean(x.numpy())))


def without_axes(m: Make) -> dict[str, Tensor]:
    return {"x": m(2, 3), "axes": torch.zeros(0, dtype=torch.int64)}


MEANS = [
    OpCase("ReduceMean", without_axes, whole_mean, {"noop_with_empty_axes": False}, name="all_by_no_axes"),
    OpCase(
        "ReduceMeanD",
        lambda m: {"x": m(2, 3)},
        whole_mean,
        {"axes": [], "noop_with_empty_axes": False},
        name="all_by_no_axes",
    ),
    OpCase("ReduceMeanWithCast", without_axes, whole_mean, {"noop_with_empty_axes": False}, name="all_by_no_axes"),
    OpCase("ReduceMeanWithCast", without_axes, lambda x, axes: x, name="no_axes"),
    *[
        OpCase(
            "ReduceMeanWithCast",
            lambda m: {"x": m(2, 3, 4), "axes": torch.tensor([0, -1])},
            lambda x, axes, keep=keep: torch.from_numpy(np.mean(x.double().numpy(), axis=(0, 2), keepdims=keep)),
            {"keep_dims": keep, "dtype": dtype},
            dtypes=(*FLOATS, "int32"),
            const=("axes",),
            name=f"{dtype}_{keep}",
        )
        for keep in (False, True)
        for dtype in (0, dtype_value("float64"))
    ],
    OpCase(
        "ReduceMeanWithCast",
        lambda m: {"x": m(2, 3), "axes": torch.tensor([1])},
        lambda x, axes: torch.from_numpy(np.mean(x.numpy(), axis=1)),
        name="own_dtype",
    ),
]


def std(
    x: Tensor, dim: list[int], correction: int = 1, keep: bool = False, *, invert: bool = False, epsilon: float = 0.001
) -> Tensor:
    a = x.numpy()
    variance = np.var(a, axis=tuple(dim) or None, ddof=correction, keepdims=keep)
    return torch.from_numpy(np.asarray(1 / np.sqrt(variance + epsilon) if invert else np.sqrt(variance)))


def mean_of(x: Tensor, dim: list[int], keep: bool = False) -> Tensor:
    return torch.from_numpy(np.asarray(np.mean(x.numpy(), axis=tuple(dim) or None, keepdims=keep)))


def data(m: Make) -> dict[str, Tensor]:
    return {"x": m(3, 4, 5)}


def with_mean(dim: list[int]) -> Callable[[Make], dict[str, Tensor]]:
    def inputs(m: Make) -> dict[str, Tensor]:
        x = m(3, 4, 5)
        wide = np.mean(x.double().numpy(), tuple(dim) or None, keepdims=True)
        return {"x": x, "mean": torch.from_numpy(wide).expand(3, 4, 5).to(x.dtype)}

    return inputs


DEVIATIONS = [
    *[
        OpCase(
            "ReduceStdV2",
            data,
            lambda x, d=dim, c=correction, k=keep: (std(x, d, c, k), mean_of(x, d, k)),
            {"dim": dim, "correction": correction, "keepdim": keep},
            outputs=("std", "mean"),
            name=f"{dim}_{correction}_{keep}",
        )
        for dim, correction, keep in (([], 1, False), ([1], 1, False), ([0, -1], 0, True), ([-1], 2, False))
    ],
    OpCase(
        "ReduceStdV2",
        data,
        lambda x: (std(x, [1]), torch.empty(0)),
        {"dim": [1], "is_mean_out": False},
        outputs=("std", "mean"),
        name="without_mean",
    ),
    OpCase("ReduceStd", data, lambda x: (std(x, []), mean_of(x, [])), outputs=("y1", "y2")),
    OpCase(
        "ReduceStd",
        data,
        lambda x: (std(x, [1], 0, True), mean_of(x, [1], True)),
        {"dim": [1], "unbiased": False, "keepdim": True},
        outputs=("y1", "y2"),
        name="attrs",
    ),
    *[
        OpCase(
            "ReduceStdWithMean",
            with_mean(dim),
            lambda x, mean, d=dim, c=expected, k=keep: std(x, d, c, k),
            {"dim": dim, "keepdim": keep, "correction": correction, "unbiased": unbiased},
            name=f"{dim}_{correction}_{unbiased}",
        )
        for dim, keep, correction, unbiased, expected in (
            ([1], False, 1, True, 1),
            ([], False, 1, True, 1),
            ([0, 2], True, 0, True, 0),
            ([-1], False, 1, False, 0),
            ([-1], False, 2, True, 2),
        )
    ],
    OpCase(
        "ReduceStdWithMean",
        with_mean([1]),
        lambda x, mean: std(x, [1], invert=True),
        {"dim": [1], "invert": True},
        name="invert",
    ),
    OpCase(
        "ReduceStdWithMean",
        with_mean([1]),
        lambda x, mean: std(x, [1], 0, True, invert=True, epsilon=0.5),
        {"dim": [1], "invert": True, "epsilon": 0.5, "correction": 0, "keepdim": True},
        name="invert_attrs",
    ),
    OpCase(
        "ReduceStdWithMean",
        with_mean([1]),
        lambda x, mean: x.std(1),
        {"dim": [1]},
        widen=False,
        exact=True,
        name="eager",
    ),
]


def norm(x: Tensor, p: float, axes: list[int], keep: bool = False) -> Tensor:
    a = np.abs(x.numpy())
    axis = tuple(axes) or None
    if math.isinf(p):
        return torch.from_numpy(np.asarray((np.max if p > 0 else np.min)(a, axis=axis, keepdims=keep)))
    if p == 0:
        return torch.from_numpy(np.asarray(np.sum(a != 0, axis=axis, keepdims=keep).astype(np.float64)))
    return torch.from_numpy(np.asarray(np.sum(a**p, axis=axis, keepdims=keep) ** (1 / p)))


NORMS = [
    *[
        OpCase(
            ge_type,
            data,
            lambda x, p=order, a=axes, k=keep: norm(x, p, a, k),
            {"p": p, "axes": axes, "keepdim": keep, "epsilon": 0.0},
            name=f"{p}_{axes}_{keep}",
        )
        for ge_type, p, order, axes, keep in (
            ("LpNormV2", 2.0, 2, [], False),
            ("LpNormV2", 1.0, 1, [1], True),
            ("LpNormV2", 2.5, 2.5, [0, -1], False),
            ("LpNormV2", 0.0, 0, [2], False),
            ("LpNormV2", float(np.float32(2**31 - 1)), math.inf, [1], False),
            ("LpNormV2", float(-(2**31)), -math.inf, [1], False),
            ("LpNorm", 2, 2, [], False),
            ("LpNorm", 3, 3, [1], True),
            ("LpNorm", 2**31 - 1, math.inf, [0, 1], False),
        )
    ],
    *[
        OpCase(
            ge_type,
            lambda m: {"x": torch.tensor([[0.01, 0.01], [3.0, 4.0]], dtype=m.dtype)},
            lambda x: torch.tensor([0.5, 5.0]),
            {"axes": [1], "epsilon": 0.5},
            name="at_least_epsilon",
        )
        for ge_type in ("LpNormV2", "LpNorm")
    ],
    OpCase("LpNormV2", data, lambda x: norm(x, 2, []), name="default"),
]

LOSSES = [
    OpCase("MseLoss", lambda m: {"predict": m(3, 4), "label": m(3, 4)}, expected, attrs, name=name)
    for name, attrs, expected in (
        ("mean", {}, lambda predict, label: ((predict - label) ** 2).sum() / 12),
        ("sum", {"reduction": "sum"}, lambda predict, label: ((predict - label) ** 2).sum()),
        ("none", {"reduction": "none"}, lambda predict, label: (predict - label) ** 2),
    )
]


CASES = [*REDUCTIONS, *MEANS, *DEVIATIONS, *NORMS, *LOSSES]
