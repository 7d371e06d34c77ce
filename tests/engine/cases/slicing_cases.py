"""Samples for engine/kernels/slicing.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.engine.cases.shape_cases import both, moved, s, t
from tests.engine.op_case import FLOATS, OpCase

INT64_MAX = 2**63 - 1
V2 = ("begin", "end", "axes", "strides")
TF = ("begin", "end", "strides")


def sliced(name: str, x: tuple[int, ...], items: tuple[list[int] | None, ...], key: Any, **attrs: int) -> list[OpCase]:
    """StridedSliceV2 with begin, end, axes and strides against ``x[key]``."""

    def inputs(m: Any) -> dict[str, Tensor | None]:
        rest = {n: None if v is None else t(*v) for n, v in zip(V2, items, strict=True)}
        return {"x": m(*x), **rest}

    return both(
        moved("StridedSliceV2", inputs, lambda x, **_: _by_numpy(x, key), attrs=dict(attrs), const=V2, name=name)
    )


def strided(name: str, x: tuple[int, ...], items: tuple[list[int], ...], key: Any, **attrs: int) -> list[OpCase]:
    """StridedSlice with begin, end and strides against ``x[key]``."""

    def inputs(m: Any) -> dict[str, Tensor]:
        return {"x": m(*x), **{n: t(*v, dtype=torch.int32) for n, v in zip(TF, items, strict=True)}}

    return both(moved("StridedSlice", inputs, lambda x, **_: _by_numpy(x, key), attrs=dict(attrs), const=TF, name=name))


def _by_numpy(x: Tensor, key: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.numpy()[key])).reshape(x.numpy()[key].shape)


def _pad(mode: Any, *pairs: tuple[int, int], **more: Any) -> Any:
    return lambda x, **_: torch.from_numpy(np.pad(x.numpy(), pairs, mode=mode, **more))


def _gradient(mode: Any, *pairs: tuple[int, int]) -> Any:
    """Adjoint of np.pad by summing, for every source position, the padded positions that show it."""

    def expected(x: Tensor, **_: Any) -> Tensor:
        shape = [n - before - after for n, (before, after) in zip(x.shape, pairs, strict=True)]
        numbers = np.arange(np.prod(shape)).reshape(shape)
        shown = torch.from_numpy(np.pad(numbers, pairs, mode=mode)).flatten()
        return torch.zeros(numbers.size, dtype=x.dtype).index_add(0, shown, x.flatten()).reshape(shape)

    return expected


CASES = [
    *sliced("one-axis", (3, 5), ([1], [4], [1], [1]), np.s_[:, 1:4]),
    *sliced("last-axis", (3, 5), ([1], [4], [-1], [2]), np.s_[..., 1:4:2]),
    *sliced("clamped", (3, 5), ([-9], [INT64_MAX], [0], [1]), np.s_[-9:INT64_MAX]),
    *sliced("negative", (3, 5), ([-3], [-1], [1], [1]), np.s_[:, -3:-1]),
    *sliced("empty", (3, 5), ([4], [2], [1], [1]), np.s_[:, 4:2]),
    *sliced("two-axes", (3, 4, 5), ([1, 0], [3, 4], [2, 0], [1, 2]), np.s_[0:4:2, :, 1:3]),
    *sliced("mixed-axes", (3, 4, 5), ([1, 0], [3, 4], [-1, 0], [1, 1]), np.s_[0:4, :, 1:3]),
    *sliced("no-axes", (3, 5), ([1, 2], [3, 5], None, None), np.s_[1:3, 2:5]),
    *sliced("no-strides", (3, 5), ([2], [5], [1], None), np.s_[:, 2:5]),
    *sliced("backwards", (3, 5), ([4], [0], [1], [-2]), np.s_[:, 4:0:-2]),
    *sliced("masks", (3, 5), ([1, 1], [2, 2], [0, 1], [1, 1]), np.s_[:2, 1:], begin_mask=1, end_mask=2),
    *sliced("shrink", (3, 5), ([-1], [0], [1], [1]), np.s_[:, -1], shrink_axis_mask=1),
    *sliced("new-axis", (3, 5), ([0, 1], [0, 3], None, [1, 1]), np.s_[None, 1:3], new_axis_mask=1),
    *sliced("ellipsis", (3, 4, 5), ([0, 1], [0, 3], None, [1, 1]), np.s_[..., 1:3], ellipsis_mask=1),
    moved(
        "StridedSliceV2",
        lambda m: {"x": m(3, 5), "begin": s(1), "end": s(3), "axes": s(1), "strides": s(1)},
        lambda x, **_: x[:, 1:3],
        const=V2,
        name="0-d-bounds",
    ),
    *strided("plain", (3, 5), ([0, 1], [2, 9], [1, 2]), np.s_[0:2, 1:9:2]),
    *strided("short", (3, 5), ([1], [3], [1]), np.s_[1:3]),
    *strided("masks", (3, 5), ([1, 1], [2, 2], [1, 1]), np.s_[:2, 1:], begin_mask=1, end_mask=2),
    *strided("shrink", (3, 4, 5), ([0, -1], [9, 0], [1, 1]), np.s_[0:9, -1], shrink_axis_mask=2),
    *strided("new-axis", (3, 4), ([0, 0, 1], [9, 0, 3], [1, 1, 1]), np.s_[0:9, None, 1:3], new_axis_mask=2),
    *strided("ellipsis", (3, 4, 5), ([1, 0, 2], [2, 0, 4], [1, 1, 1]), np.s_[1:2, ..., 2:4], ellipsis_mask=2),
    *strided(
        "backwards",
        (3, 4, 5),
        ([0, 0, 0, 4], [0, 0, 0, 0], [1, 1, 1, -1]),
        np.s_[0, None, ..., 4::-1],
        shrink_axis_mask=1,
        new_axis_mask=2,
        ellipsis_mask=4,
        end_mask=8,
    ),
    *strided("backwards-empty", (3, 5), ([0, 1], [3, 4], [1, -1]), np.s_[0:3, 1:4:-1]),
    *both(
        moved(
            "Slice",
            lambda m: {"x": m(4, 5), "offsets": t(1, 0), "size": t(2, -1)},
            lambda x, offsets, size: x[1:3],
            const=("offsets", "size"),
        )
    ),
    moved("Slice", lambda m: {"x": m(4), "offsets": t(4), "size": t(0)}, lambda x, offsets, size: x[4:], name="empty"),
    # pads
    *both(
        moved(
            "PadV3",
            lambda m: {"x": m(2, 3), "paddings": t(1, 0, 2, 1), "constant_values": torch.tensor(1, dtype=m.dtype)},
            _pad("constant", (1, 0), (2, 1), constant_values=1),
            const=("paddings", "constant_values"),
        )
    ),
    moved(
        "PadV3",
        lambda m: {"x": m(4, 3), "paddings": t(-1, -2, 0, 1), "constant_values": None},
        lambda x, **_: torch.from_numpy(np.pad(x.numpy()[1:2], ((0, 0), (0, 1)))),
        const=("paddings",),
        name="crop",
    ),
    moved(
        "PadV3",
        lambda m: {"x": m(2, 3), "paddings": t(1, 2, 0, 1), "constant_values": torch.tensor([0], dtype=m.dtype)},
        _pad("constant", (1, 0), (2, 1)),
        attrs={"paddings_contiguous": False},
        const=("paddings", "constant_values"),
        name="not-contiguous",
    ),
    *(
        case
        for mode, np_mode in (
            ("reflect", "reflect"),
            ("edge", "edge"),
            ("symmetric", "symmetric"),
            ("circular", "wrap"),
        )
        for case in both(
            moved(
                "PadV3",
                lambda m: {
                    "x": m(2, 4),
                    "paddings": t(0, 0, 2, 3),
                    "constant_values": torch.tensor([0], dtype=m.dtype),
                },
                _pad(np_mode, (0, 0), (2, 3)),
                attrs={"mode": mode},
                const=("paddings", "constant_values"),
                name=mode,
            )
        )
    ),
    *both(
        moved(
            "Pad",
            lambda m: {"x": m(2, 3), "paddings": torch.tensor([[0, 1], [2, 0]])},
            _pad("constant", (0, 1), (2, 0)),
            const=("paddings",),
        )
    ),
    *both(
        moved(
            "PadV2",
            lambda m: {
                "x": m(2, 3),
                "paddings": torch.tensor([[0, 1], [2, 0]]),
                "constant_values": torch.tensor(1, dtype=m.dtype),
            },
            _pad("constant", (0, 1), (2, 0), constant_values=1),
            const=("paddings", "constant_values"),
        )
    ),
    *both(
        moved(
            "MirrorPad",
            lambda m: {"x": m(3, 4), "paddings": torch.tensor([[2, 1], [3, 0]], dtype=torch.int32)},
            _pad("reflect", (2, 1), (3, 0)),
            attrs={"mode": "REFLECT"},
            const=("paddings",),
        )
    ),
    moved(
        "MirrorPad",
        lambda m: {"x": m(3, 4), "paddings": torch.tensor([[3, 1], [4, 0]])},
        _pad("symmetric", (3, 1), (4, 0)),
        attrs={"mode": "SYMMETRIC"},
        name="symmetric",
    ),
    *both(
        OpCase(
            "PadV3Grad",
            lambda m: {"x": m(5, 7), "paddings": t(1, 1, 2, 1)},
            _gradient("reflect", (1, 1), (2, 1)),
            const=("paddings",),
            dtypes=FLOATS,
        )
    ),
    OpCase(
        "PadV3Grad",
        lambda m: {"x": m(2, 7), "paddings": t(0, 2, 0, 1)},
        _gradient("edge", (0, 0), (2, 1)),
        attrs={"mode": "edge", "paddings_contiguous": False},
        const=("paddings",),
        name="edge",
    ),
    # whole rows
    *both(
        moved(
            "ReverseV2",
            lambda m: {"x": m(2, 3, 4), "axis": t(0, -1)},
            lambda x, axis: _by_numpy(x, np.s_[::-1, :, ::-1]),
            const=("axis",),
        )
    ),
    moved("ReverseV2", lambda m: {"x": m(2, 0), "axis": t(1)}, lambda x, axis: x, name="empty"),
    moved(
        "Roll",
        lambda m: {"x": m(3, 4)},
        lambda x: torch.from_numpy(np.roll(x.numpy(), (1, -2), (0, 1))),
        attrs={"shifts": [1, -2], "dims": [0, 1]},
    ),
    moved(
        "Roll",
        lambda m: {"x": m(3, 4)},
        lambda x: torch.from_numpy(np.roll(x.numpy(), 5)),
        attrs={"shifts": [5]},
        name="flat",
    ),
]
