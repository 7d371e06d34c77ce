"""Samples for engine/kernels/create.py."""

from __future__ import annotations

import numpy as np
import torch

from tests.engine.cases.shape_cases import WIDE, both, moved, s, t
from tests.engine.op_case import ANY, OpCase

CASES = [
    *both(
        moved(
            "Fill",
            lambda m: {"dims": t(2, 3), "value": m()},
            lambda dims, value: torch.stack([value] * 6).reshape(2, 3),
            const=("dims", "value"),
        )
    ),
    moved(
        "Fill",
        lambda m: {"dims": t(2), "value": m(1)},
        lambda dims, value: value.repeat(2),
        const=("dims",),
        name="vector",
    ),
    moved("Fill", lambda m: {"dims": s(3), "value": m()}, lambda dims, value: value.repeat(3), name="length"),
    moved("Fill", lambda m: {"dims": t(0, 2), "value": m()}, lambda dims, value: value.repeat(0, 2), name="empty"),
    *both(
        OpCase(
            "Empty",
            lambda m: {"shape": t(2, 3, dtype=torch.int32)},
            lambda shape: torch.tensor([[0.0] * 3] * 2),
            attrs={"dtype": 1, "init": True},
            const=("shape",),
            dtypes=("float32",),
        )
    ),
    OpCase(
        "Empty",
        lambda m: {"shape": t(0, dtype=torch.int32)},
        lambda shape: torch.tensor([]),
        dtypes=("int32",),
        name="empty",
    ),
    moved("ZerosLike", lambda m: {"x": m(2, 3)}, lambda x: x & False if x.dtype is torch.bool else x * 0),
    moved("ZerosLike", lambda m: {"x": m()}, lambda x: x & False if x.dtype is torch.bool else x * 0, name="0-d"),
    moved("OnesLike", lambda m: {"x": m(2, 3)}, lambda x: x | True if x.dtype is torch.bool else x * 0 + 1),
    *both(
        OpCase(
            "Range",
            lambda m: {
                "start": torch.tensor(2, dtype=m.dtype),
                "limit": torch.tensor(11, dtype=m.dtype),
                "delta": torch.tensor(3, dtype=m.dtype),
            },
            lambda start, limit, delta: torch.tensor([2, 5, 8]),
            dtypes=ANY,
            const=("start", "limit", "delta"),
        )
    ),
    OpCase(
        "Range",
        lambda m: {
            "start": torch.tensor(1, dtype=m.dtype),
            "limit": torch.tensor(-1, dtype=m.dtype),
            "delta": torch.tensor(-0.5, dtype=m.dtype),
        },
        lambda start, limit, delta: torch.tensor([1, 0.5, 0, -0.5]),
        name="down",
    ),
    OpCase(
        "Range",
        lambda m: {"start": s(0, torch.int32), "limit": torch.tensor(2.5), "delta": s(1, torch.int32)},
        lambda start, limit, delta: torch.tensor([0, 1, 2]),
        dtypes=("float32",),
        name="mixed",
    ),
    OpCase(
        "Range",
        lambda m: {"start": s(3), "limit": s(3), "delta": s(1)},
        lambda **_: torch.tensor([]),
        dtypes=("int64",),
        name="empty",
    ),
    *both(
        OpCase(
            "LinSpace",
            lambda m: {
                "start": torch.tensor(1.0, dtype=m.dtype),
                "stop": torch.tensor(-2.0, dtype=m.dtype),
                "num": s(5),
            },
            lambda start, stop, num: torch.from_numpy(np.linspace(1.0, -2.0, 5)),
            dtypes=("float32", "float64"),
            const=("start", "stop", "num"),
        )
    ),
    OpCase(
        "LinSpace",
        lambda m: {"start": s(0), "stop": s(1), "num": s(4)},
        lambda start, stop, num: torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64),
        dtypes=("float32",),
        name="integers",
    ),
    OpCase("Eye", lambda m: {}, lambda: torch.tensor([[1.0, 0], [0, 1]]), attrs={"num_rows": 2}, dtypes=("float32",)),
    OpCase(
        "Eye",
        lambda m: {},
        lambda: torch.tensor([[[1, 0, 0], [0, 1, 0]]] * 4),
        attrs={"num_rows": 2, "num_columns": 3, "batch_shape": [4], "dtype": 9},
        dtypes=("int64",),
        name="batch",
    ),
    *both(
        OpCase(
            "OneHot",
            lambda m: {"x": t(2, 0, 5, -1), "depth": s(3, torch.int32), "on_value": m(low=2), "off_value": m(high=1)},
            lambda x, depth, on_value, off_value: torch.stack(
                [torch.stack([on_value if i == j else off_value for j in range(3)]) for i in x.tolist()]
            ),
            dtypes=WIDE[:-1],
            const=("depth", "on_value", "off_value"),
        )
    ),
    OpCase(
        "OneHot",
        lambda m: {"x": torch.tensor([[1, 0], [1, 1]]), "depth": s(2), "on_value": m(low=2), "off_value": m(high=1)},
        lambda x, depth, on_value, off_value: torch.stack([torch.where(x == j, on_value, off_value) for j in range(2)]),
        attrs={"axis": 0},
        const=("depth",),
        name="first",
    ),
    OpCase(
        "OneHot",
        lambda m: {"x": s(1, torch.int32), "depth": s(2), "on_value": m(low=2), "off_value": m(high=1)},
        lambda x, depth, on_value, off_value: torch.stack([off_value, on_value]),
        name="0-d",
    ),
    moved("Tril", lambda m: {"x": m(2, 3, 4)}, lambda x: torch.from_numpy(np.tril(x.numpy()))),
    moved(
        "Tril",
        lambda m: {"x": m(3, 4)},
        lambda x: torch.from_numpy(np.tril(x.numpy(), -1)),
        attrs={"diagonal": -1},
        name="below",
    ),
    moved("Triu", lambda m: {"x": m(2, 3, 4)}, lambda x: torch.from_numpy(np.triu(x.numpy()))),
    moved(
        "Triu",
        lambda m: {"x": m(3, 4)},
        lambda x: torch.from_numpy(np.triu(x.numpy(), 2)),
        attrs={"diagonal": 2},
        name="above",
    ),
]
