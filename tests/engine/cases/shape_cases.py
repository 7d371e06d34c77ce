"""Samples for engine/kernels/shape.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.engine.op_case import FLOATS, OpCase, dtype_value

WIDE = (*FLOATS, "int64", "bool")


def both(case: OpCase) -> list[OpCase]:
    """``case`` with its const inputs as Const, and once more with everything as Data."""
    return [case, replace(case, const=(), name=f"{case.name}-data".lstrip("-"))]


def t(*values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
    """Vector of integers."""
    return torch.tensor(values, dtype=dtype)


def s(value: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """0-d integer."""
    return torch.tensor(value, dtype=dtype)


def moved(ge_type: str, inputs: Any, expected: Any, **more: Any) -> OpCase:
    """A case that only moves values: every dtype, bit for bit."""
    return OpCase(ge_type, inputs, expected, **{"dtypes": WIDE, "exact": True, **more})


CASES = [
    # reshape
    *both(
        moved(
            "Reshape",
            lambda m: {"x": m(2, 3, 4), "shape": t(-1, 6)},
            lambda x, shape: x.reshape(4, 6),
            const=("shape",),
        )
    ),
    *both(
        moved(
            "Reshape",
            lambda m: {"x": m(0, 3), "shape": t(3, 0, 2, dtype=torch.int32)},
            lambda x, shape: x.reshape(3, 0, 2),
            const=("shape",),
            name="empty",
        )
    ),
    moved(
        "Reshape", lambda m: {"x": m(), "shape": t(1, 1)}, lambda x, shape: x[None, None], const=("shape",), name="0-d"
    ),
    moved(
        "Reshape",
        lambda m: {"x": m(1), "shape": torch.empty(0, dtype=torch.int64)},
        lambda x, shape: x[0],
        const=("shape",),
        name="to-0-d",
    ),
    moved(
        "Reshape",
        lambda m: {"x": m(2, 3, 4, 5), "shape": t(-1)},
        lambda x, shape: x.flatten(1, 2),
        const=("shape",),
        attrs={"axis": 1, "num_axes": 2},
        name="some-axes",
    ),
    moved(
        "Reshape",
        lambda m: {"x": m(2, 3), "shape": t(1)},
        lambda x, shape: x[:, :, None],
        attrs={"axis": -1, "num_axes": 0},
        name="insert",
    ),
    moved("Unsqueeze", lambda m: {"x": m(2, 3)}, lambda x: x[:, None], attrs={"axes": [1]}),
    moved("Unsqueeze", lambda m: {"x": m(2, 3)}, lambda x: x[None, :, :, None], attrs={"axes": [-1, 0]}, name="two"),
    moved("Unsqueeze", lambda m: {"x": m()}, lambda x: x[None], attrs={"axes": [-1]}, name="0-d"),
    moved("Unsqueeze", lambda m: {"x": m(2)}, lambda x: x, name="none"),
    moved("UnsqueezeV2", lambda m: {"x": m(2, 3)}, lambda x: x[:, :, None], attrs={"axis": [-1]}),
    moved("UnsqueezeV2", lambda m: {"x": m(2)}, lambda x: x[None, :, None], attrs={"axis": [0, 2]}, name="two"),
    *both(
        moved(
            "UnsqueezeV3",
            lambda m: {"x": m(2, 3), "axes": t(1, 3)},
            lambda x, axes: x[:, None, :, None],
            const=("axes",),
        )
    ),
    *both(moved("ExpandDims", lambda m: {"x": m(2, 3), "axis": s(-2)}, lambda x, axis: x[:, None], const=("axis",))),
    moved("ExpandDims", lambda m: {"x": m(2), "axis": t(0, dtype=torch.int32)}, lambda x, axis: x[None], name="vector"),
    moved("Squeeze", lambda m: {"x": m(1, 2, 1, 3)}, lambda x: x[0, :, 0], attrs={"axis": [2, 0]}),
    moved("Squeeze", lambda m: {"x": m(2, 1)}, lambda x: x[:, 0], attrs={"axis": [-1]}, name="one"),
    moved("Squeeze", lambda m: {"x": m(1, 2, 1)}, lambda x: x[0, :, 0], name="all"),
    moved("SqueezeV2", lambda m: {"x": m(1, 0)}, lambda x: x[0], attrs={"axis": [0]}),
    *both(moved("SqueezeV3", lambda m: {"x": m(2, 1, 1), "axes": t(-1)}, lambda x, axes: x[..., 0], const=("axes",))),
    moved("SqueezeV3", lambda m: {"x": m(2, 1, 1), "axes": None}, lambda x, axes: x[:, 0, 0], name="all"),
    moved("Flatten", lambda m: {"x": m(2, 3, 4)}, lambda x: x.reshape(2, 12)),
    moved("Flatten", lambda m: {"x": m(2, 3, 4)}, lambda x: x.reshape(1, 24), attrs={"axis": 0}, name="all"),
    moved("Flatten", lambda m: {"x": m(2, 0, 4)}, lambda x: x.reshape(0, 4), attrs={"axis": -1}, name="negative"),
    moved("FlattenV2", lambda m: {"x": m(2, 3, 4, 5)}, lambda x: x.reshape(2, 60)),
    moved(
        "FlattenV2",
        lambda m: {"x": m(2, 3, 4, 5)},
        lambda x: x.reshape(6, 4, 5),
        attrs={"axis": 0, "end_axis": -3},
        name="some",
    ),
    # permute
    *both(
        moved(
            "Transpose",
            lambda m: {"x": m(2, 3, 4), "perm": t(2, 0, 1)},
            lambda x, perm: x.movedim(2, 0),
            const=("perm",),
        )
    ),
    moved("Transpose", lambda m: {"x": m(2, 0), "perm": t(-1, 0)}, lambda x, perm: x.T, name="negative"),
    moved("TransposeD", lambda m: {"x": m(2, 3, 4)}, lambda x: x.transpose(0, 2), attrs={"perm": [2, 1, 0]}),
    moved("Permute", lambda m: {"x": m(2, 3, 4)}, lambda x: x.movedim(0, 1), attrs={"order": [1, 0, 2]}),
    moved("Permute", lambda m: {"x": m(3)}, lambda x: x, name="default"),
    # queries
    OpCase("Shape", lambda m: {"x": m(2, 0, 3)}, lambda x: t(2, 0, 3), dtypes=WIDE),
    OpCase("Shape", lambda m: {"x": m(2, 3)}, lambda x: t(2, 3), attrs={"dtype": 9}, name="int64"),
    OpCase("Shape", lambda m: {"x": m()}, lambda x: torch.empty(0), attrs={"dtype": dtype_value("int64")}, name="0-d"),
    OpCase(
        "ShapeN", lambda m: {"x": [m(2), m(3, 4)]}, lambda x: [t(2), t(3, 4)], outputs=("y0", "y1"), attrs={"dtype": 9}
    ),
    OpCase("Size", lambda m: {"x": m(2, 3)}, lambda x: s(6), attrs={"dtype": 9}, dtypes=WIDE),
    OpCase("Size", lambda m: {"x": m()}, lambda x: s(1), name="0-d"),
    OpCase("Rank", lambda m: {"x": m(2, 3)}, lambda x: s(2), dtypes=WIDE),
    # join and split
    moved(
        "Pack",
        lambda m: {"x": [m(2, 3), m(2, 3)]},
        lambda x: torch.cat([i[None] for i in x]),
        attrs={"N": 2, "axis": 0},
    ),
    moved(
        "Pack",
        lambda m: {"x": [m(2), m(2), m(2)]},
        lambda x: torch.cat([i[:, None] for i in x], 1),
        attrs={"N": 3, "axis": -1},
        name="last",
    ),
    moved(
        "Pack", lambda m: {"x": [m(), m()]}, lambda x: torch.tensor([i.item() for i in x]), attrs={"N": 2}, name="0-d"
    ),
    *both(
        moved(
            "ConcatV2",
            lambda m: {"x": [m(2, 3), m(2, 0), m(2, 1)], "concat_dim": s(-1)},
            lambda x, concat_dim: torch.from_numpy(np.concatenate([i.numpy() for i in x], 1)),
            attrs={"N": 3},
            const=("concat_dim",),
        )
    ),
    *both(
        moved(
            "ConcatV2",
            lambda m: {"x": [m(), m(2), m()], "concat_dim": s(0, torch.int32)},
            lambda x, concat_dim: torch.tensor([x[0].item(), *x[1].tolist(), x[2].item()]),
            attrs={"N": 3},
            const=("concat_dim",),
            name="0-d",
        )
    ),
    *both(
        moved(
            "Concat",
            lambda m: {"concat_dim": s(0), "x": [m(1, 2), m(3, 2)]},
            lambda concat_dim, x: torch.from_numpy(np.concatenate([i.numpy() for i in x])),
            attrs={"N": 2},
            const=("concat_dim",),
        )
    ),
    moved(
        "ConcatD",
        lambda m: {"x": [m(2, 3), m(2, 1)]},
        lambda x: torch.from_numpy(np.concatenate([i.numpy() for i in x], 1)),
        attrs={"N": 2, "concat_dim": 1},
    ),
    *both(
        moved(
            "SplitV",
            lambda m: {"x": m(2, 6), "size_splits": t(1, 3, 2), "split_dim": s(-1, torch.int32)},
            lambda x, size_splits, split_dim: [x[:, :1], x[:, 1:4], x[:, 4:]],
            outputs=("y0", "y1", "y2"),
            attrs={"num_split": 3},
            const=("size_splits", "split_dim"),
        )
    ),
    *both(
        moved(
            "SplitV",
            lambda m: {"x": m(5, 2), "size_splits": t(2, -1, 0), "split_dim": s(0, torch.int32)},
            lambda x, size_splits, split_dim: [x[:2], x[2:], x[5:]],
            outputs=("y0", "y1", "y2"),
            attrs={"num_split": 3},
            const=("size_splits", "split_dim"),
            name="rest",
        )
    ),
    *both(
        moved(
            "Split",
            lambda m: {"split_dim": s(1, torch.int32), "x": m(2, 4)},
            lambda split_dim, x: [x[:, :2], x[:, 2:]],
            outputs=("y0", "y1"),
            attrs={"num_split": 2},
            const=("split_dim",),
        )
    ),
    moved(
        "SplitD",
        lambda m: {"x": m(6, 2)},
        lambda x: [x[:2], x[2:4], x[4:]],
        outputs=("y0", "y1", "y2"),
        attrs={"num_split": 3, "split_dim": -2},
    ),
    moved(
        "Unpack",
        lambda m: {"x": m(2, 3)},
        lambda x: [x[:, 0], x[:, 1], x[:, 2]],
        outputs=("y0", "y1", "y2"),
        attrs={"num": 3, "axis": -1},
    ),
    moved("Unpack", lambda m: {"x": m(2)}, lambda x: [x[0], x[1]], outputs=("y0", "y1"), attrs={"num": 2}, name="0-d"),
    # repeat
    *both(
        moved(
            "BroadcastTo",
            lambda m: {"x": m(2, 1), "shape": t(3, 2, 4)},
            lambda x, shape: torch.stack([x.repeat(1, 4)] * 3),
            const=("shape",),
        )
    ),
    moved(
        "BroadcastTo",
        lambda m: {"x": m(2, 1), "shape": t(-1, 5)},
        lambda x, shape: x.repeat(1, 5),
        const=("shape",),
        name="-1",
    ),
    moved("BroadcastTo", lambda m: {"x": m(), "shape": t(0, 2)}, lambda x, shape: x.repeat(0, 2), name="0-d"),
    *both(
        moved(
            "Expand",
            lambda m: {"x": m(2, 1), "shape": t(3, 1, 4)},
            lambda x, shape: torch.stack([x.repeat(1, 4)] * 3),
            const=("shape",),
        )
    ),
    moved(
        "Expand", lambda m: {"x": m(2, 1, 3), "shape": t(2, -1)}, lambda x, shape: torch.cat([x, x], 1), name="short"
    ),
    *both(
        moved(
            "Tile",
            lambda m: {"x": m(2, 3), "multiples": t(2, 3)},
            lambda x, multiples: torch.from_numpy(np.tile(x.numpy(), (2, 3))),
            const=("multiples",),
        )
    ),
    moved("Tile", lambda m: {"x": m(2), "multiples": t(0)}, lambda x, multiples: x[:0], name="none"),
]
