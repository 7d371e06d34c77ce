"""Samples for engine/kernels/index.py."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.engine.cases.shape_cases import both, moved, s, t
from tests.engine.op_case import ANY, OpCase


def taken(axis: int) -> Any:
    return lambda x, indices, **_: torch.from_numpy(np.asarray(np.take(x.numpy(), indices.numpy(), axis)))


def batched(x: Tensor, indices: Tensor, **_: Tensor) -> Tensor:
    """Gather with one batch dim along the dim after it."""
    return torch.stack([row[index] for row, index in zip(x, indices, strict=True)])


def by_mask(*items: Any) -> Any:
    """x indexed with the tensors of ``indices`` where items hold a number, else with the item itself."""

    def expected(x: Tensor, indices: list[Tensor], **_: Tensor) -> Tensor:
        key = tuple(indices[i].numpy() if isinstance(i, int) else i for i in items)
        return torch.from_numpy(np.asarray(x.numpy()[key]))

    return expected


def bags(kind: str, bounds: list[int], *, skip: int | None = None, weighted: bool = False) -> Any:
    """y: bags of consecutive indices between ``bounds``. The other outputs have no meaning but torch's own."""

    def expected(weight: Tensor, indices: Tensor, per_sample_weights: Tensor | None = None, **_: Any) -> list[Tensor]:
        number = ("sum", "mean", "max").index(kind)
        offsets = torch.tensor(bounds[:-1])
        weights = None if per_sample_weights is None else per_sample_weights.float()
        others = torch._embedding_bag(
            weight.float(),  # what torch returns besides y depends on the dtype, and float64 is not under test
            indices.flatten(),
            offsets.to(indices),
            mode=number,
            per_sample_weights=weights,
            padding_idx=-1 if skip is None else skip,
        )
        rows = []
        flat = indices.flatten().tolist()
        for first, stop in pairwise(bounds):
            kept = [i for i in range(first, stop) if flat[i] != skip]
            if not kept:
                rows.append(torch.zeros(weight.shape[1], dtype=weight.dtype))
                continue
            picked = torch.stack([weight[flat[i]] for i in kept])
            if weighted and per_sample_weights is not None:
                picked = picked * per_sample_weights.flatten()[kept][:, None]
            rows.append({"sum": picked.sum(0), "mean": picked.mean(0), "max": picked.amax(0)}[kind])
        return [torch.stack(rows), *others[1:]]

    return expected


def bag(name: str, inputs: Any, y: Any, **attrs: Any) -> OpCase:
    return OpCase("EmbeddingBag", inputs, y, attrs=attrs, outputs=BAG_OUTPUTS, name=name)


BAG_OUTPUTS = ("y", "offset2bag", "bag_size", "max_indices")
GATHER_V2 = ("axis",)
INDEX = torch.tensor([[0, 2, 1], [2, 2, 0]])

CASES = [
    *both(moved("GatherV2", lambda m: {"x": m(4, 3), "indices": t(3, 0, 3), "axis": t(0)}, taken(0), const=("axis",))),
    moved(
        "GatherV2",
        lambda m: {"x": m(4, 3), "indices": t(3, 0), "axis": s(0)},
        taken(0),
        const=("axis", "indices"),
        name="const",
    ),
    *both(
        moved(
            "GatherV2",
            lambda m: {"x": m(2, 4, 3), "indices": torch.tensor([[1, 3], [0, 0]], dtype=torch.int32), "axis": s(-2)},
            taken(1),
            const=GATHER_V2,
            name="middle",
        )
    ),
    moved(
        "GatherV2",
        lambda m: {"x": m(4, 3), "indices": INDEX, "axis": t(0)},
        taken(0),
        const=GATHER_V2,
        name="embedding",
    ),
    moved("GatherV2", lambda m: {"x": m(4), "indices": INDEX, "axis": t(0)}, taken(0), const=GATHER_V2, name="vector"),
    moved("GatherV2", lambda m: {"x": m(4, 3), "indices": s(2), "axis": t(1)}, taken(1), const=GATHER_V2, name="0-d"),
    moved(
        "GatherV2",
        lambda m: {"x": m(4, 3), "indices": s(2), "axis": t(1)},
        taken(1),
        const=("axis", "indices"),
        name="0-d-const",
    ),
    moved(
        "GatherV2",
        lambda m: {"x": m(4, 3), "indices": t(1, 0)[:0], "axis": t(1)},
        taken(1),
        const=GATHER_V2,
        name="empty",
    ),
    *both(
        moved(
            "GatherV2",
            lambda m: {"x": m(4, 3), "indices": s(-1), "axis": t(-1)},
            taken(1),
            attrs={"negative_index_support": True},
            const=("axis", "indices"),
            name="negative-0-d",
        )
    ),
    *both(
        moved(
            "GatherV2",
            lambda m: {"x": m(4, 3), "indices": torch.tensor([[-4, 3], [-1, 0]]), "axis": t(0)},
            taken(0),
            attrs={"negative_index_support": True},
            const=GATHER_V2,
            name="negative",
        )
    ),
    *both(
        moved(
            "GatherV2",
            lambda m: {"x": m(2, 4, 3), "indices": INDEX, "axis": s(1)},
            batched,
            attrs={"batch_dims": 1},
            const=GATHER_V2,
            name="batch",
        )
    ),
    moved(
        "GatherV2",
        lambda m: {"x": m(2, 3, 4), "indices": INDEX - 3, "axis": s(-1)},
        lambda x, indices, axis: torch.stack([row[:, index] for row, index in zip(x, indices, strict=True)]),
        attrs={"batch_dims": -1, "negative_index_support": True},
        name="batch-negative",
    ),
    *both(moved("Gather", lambda m: {"x": m(4, 3), "indices": t(3, 1)}, taken(0), const=("indices",))),
    moved("Gather", lambda m: {"x": m(4), "indices": s(2)}, taken(0), const=("indices",), name="0-d"),
    moved("Gather", lambda m: {"x": m(4), "indices": s(2, torch.int32)}, taken(0), name="0-d-data"),
    moved(
        "Gather",
        lambda m: {"x": m(4), "indices": s(-1)},
        taken(0),
        attrs={"negative_index_support": True, "validate_indices": False},
        const=("indices",),
        name="negative",
    ),
    moved("Gather", lambda m: {"x": m(2, 4), "indices": INDEX}, batched, attrs={"batch_dims": 1}, name="batch"),
    *both(
        moved(
            "GatherElements",
            lambda m: {"x": m(2, 4), "index": INDEX},
            lambda x, index: torch.from_numpy(np.take_along_axis(x.numpy(), index.numpy(), 1)),
            attrs={"dim": -1},
            const=("index",),
        )
    ),
    moved(
        "GatherElements",
        lambda m: {"x": m(3, 4), "index": torch.tensor([[2, 0]], dtype=torch.int32)},
        lambda x, index: torch.stack([x[2, 0], x[0, 1]])[None],
        name="smaller",
    ),
    *both(
        moved(
            "GatherNd",
            lambda m: {"x": m(3, 4, 2), "indices": torch.tensor([[0, 3], [2, 0], [0, 3]])},
            lambda x, indices: torch.stack([x[0, 3], x[2, 0], x[0, 3]]),
            const=("indices",),
        )
    ),
    moved(
        "GatherNd",
        lambda m: {"x": m(3, 2), "indices": torch.tensor([[[1], [2]]])},
        lambda x, indices: x[None, 1:],
        name="rows",
    ),
    moved(
        "GatherNd",
        lambda m: {"x": m(3, 2), "indices": torch.empty(2, 0, dtype=torch.int64)},
        lambda x, indices: torch.stack([x, x]),
        name="whole",
    ),
    moved(
        "GatherNd",
        lambda m: {"x": m(3, 2), "indices": torch.tensor([[-1, 0]])},
        lambda x, indices: x[2:, 0],
        attrs={"negative_index_support": True},
        name="negative",
    ),
    # advanced indexing
    *both(
        moved(
            "IndexByTensor",
            lambda m: {"x": m(4, 3), "indices": [t(3, -1, 0)]},
            by_mask(0),
            attrs={"indices_mask": [1]},
            const=("indices",),
        )
    ),
    moved(
        "IndexByTensor",
        lambda m: {"x": m(4, 3), "indices": [t(3, 0), t(2, -3)]},
        by_mask(0, 1),
        attrs={"indices_mask": [1, 1]},
        name="two",
    ),
    moved("IndexByTensor", lambda m: {"x": m(4, 3), "indices": [t(3, 0), t(2, 1)]}, by_mask(0, 1), name="no-mask"),
    moved(
        "IndexByTensor",
        lambda m: {"x": m(2, 4, 3), "indices": [torch.tensor([[3], [0]]), t(2, 1)]},
        by_mask(slice(None), 0, 1),
        attrs={"indices_mask": [0, 1, 1]},
        name="after-a-gap",
    ),
    *both(
        moved(
            "IndexByTensor",
            lambda m: {"x": m(2, 4, 3), "indices": [t(1, 0), t(2, 1)]},
            by_mask(0, slice(None), 1),
            attrs={"indices_mask": [1, 0, 1]},
            const=("indices",),
            name="around-a-gap",
        )
    ),
    moved(
        "IndexByTensor",
        lambda m: {"x": m(2, 4, 3), "indices": [s(1), t(2, 1)]},
        by_mask(0, slice(None), 1),
        attrs={"indices_mask": [1, 0, 1]},
        name="0-d-around-a-gap",
    ),
    moved(
        "IndexByTensor",
        lambda m: {"x": m(4, 3), "indices": [s(-1)]},
        by_mask(slice(None), 0),
        attrs={"indices_mask": [0, 1]},
        name="0-d",
    ),
    moved(
        "IndexByTensor",
        lambda m: {"x": m(4, 3), "indices": [torch.tensor([True, False, True, True])]},
        by_mask(0),
        attrs={"indices_mask": [1]},
        name="mask",
    ),
    *both(
        moved(
            "Index",
            lambda m: {
                "x": m(2, 4, 3),
                "indexed_sizes": t(0, 1, 1),
                "indexed_strides": t(12, 3, 1),
                "indices": [t(3, 0), t(2, -1)],
            },
            by_mask(slice(None), 0, 1),
            const=("indexed_sizes", "indexed_strides"),
        )
    ),
    # masks
    *both(
        moved(
            "SelectV2",
            lambda m: {"condition": torch.tensor([[True], [False]]), "then": m(2, 3), "else": m(3)},
            lambda **k: torch.stack([k["then"][0], k["else"]]),
            const=("condition",),
        )
    ),
    *both(
        moved(
            "Select",
            lambda m: {"condition": torch.tensor([True, False]), "x1": m(2, 3), "x2": m(2, 3)},
            lambda condition, x1, x2: torch.stack([x1[0], x2[1]]),
            const=("condition",),
        )
    ),
    moved(
        "Select",
        lambda m: {"condition": torch.tensor([[True, False]]), "x1": m(1, 2), "x2": m(1, 2)},
        lambda condition, x1, x2: torch.stack([x1[0, 0], x2[0, 1]])[None],
        name="elementwise",
    ),
    moved(
        "Select",
        lambda m: {"condition": torch.tensor(False), "x1": m(2), "x2": m(2)},
        lambda condition, x1, x2: x2,
        name="0-d",
    ),
    *both(
        moved(
            "MaskedFill",
            lambda m: {"x": m(2, 3), "mask": torch.tensor([True, False, True]), "value": m()},
            lambda x, mask, value: torch.stack([torch.stack([value, row[1], value]) for row in x]),
            const=("value",),
        )
    ),
    moved(
        "MaskedFill",
        lambda m: {"x": m(2), "mask": torch.tensor([True, False]), "value": m(1)},
        lambda x, mask, value: torch.cat([value, x[1:]]),
        name="vector",
    ),
    OpCase(
        "MaskedFill",
        lambda m: {"x": m(2, 1), "mask": torch.tensor([[True, False]]), "value": torch.tensor(-torch.inf)},
        lambda x, mask, value: torch.cat([torch.full_like(x, -torch.inf), x], 1),
        const=("value",),
        name="infinity",
    ),
    *both(
        moved(
            "MaskedScatter",
            lambda m: {"x": m(2, 2), "mask": torch.tensor([[True, False], [False, True]]), "updates": m(3)},
            lambda x, mask, updates: torch.stack([updates[0], x[0, 1], x[1, 0], updates[1]]).reshape(2, 2),
            const=("mask",),
        )
    ),
    *both(
        moved(
            "MaskedSelect",
            lambda m: {"x": m(2, 2), "mask": torch.tensor([True, False])},
            lambda x, mask: x[:, 0],
            const=("mask",),
        )
    ),
    OpCase(
        "NonZero",
        lambda m: {"x": torch.tensor([[0, 2], [3, 0]]).to(m.dtype)},
        lambda x: torch.tensor([[0, 1], [1, 0]]),
        dtypes=(*ANY, "bool"),
    ),
    OpCase(
        "NonZero",
        lambda m: {"x": torch.tensor([[0, 2, 1], [0, 0, 0]]).to(m.dtype)},
        lambda x: torch.tensor([[0, 0], [1, 2]]),
        attrs={"transpose": True, "dtype": 3},
        name="transposed",
    ),
    OpCase("NonZero", lambda m: {"x": m(3) * 0}, lambda x: torch.empty(0, 1), name="none"),
    OpCase(
        "Where",
        lambda m: {"x": torch.tensor([0, 2, 3]).to(m.dtype)},
        lambda x: torch.tensor([[1], [2]]),
        dtypes=(*ANY, "bool"),
    ),
    # searches and bags
    *both(
        OpCase(
            "SearchSorted",
            lambda m: {
                "sorted_sequence": torch.tensor([1, 3, 3, 5]).to(m.dtype),
                "values": torch.tensor([[3, 0], [6, 4]]).to(m.dtype),
                "sorter": None,
            },
            lambda **_: torch.tensor([[1, 0], [4, 3]]),
            dtypes=("float32", "float16", "int32", "int64"),
            const=("sorted_sequence",),
        )
    ),
    OpCase(
        "SearchSorted",
        lambda m: {
            "sorted_sequence": torch.tensor([[5, 1, 3], [2, 4, 0]]).to(m.dtype),
            "values": torch.tensor([[3], [0]]).to(m.dtype),
            "sorter": torch.tensor([[1, 2, 0], [2, 0, 1]]),
        },
        lambda **_: torch.tensor([[2], [1]]),
        attrs={"right": True, "dtype": 3},
        dtypes=("float32", "float16", "int32"),
        name="sorter",
    ),
    *both(
        moved(
            "RepeatInterleave",
            lambda m: {"x": m(3, 2), "repeats": t(1, 0, 2)},
            lambda x, repeats: torch.stack([x[0], x[2], x[2]]),
            attrs={"axis": -2},
            const=("repeats",),
        )
    ),
    moved(
        "RepeatInterleave",
        lambda m: {"x": m(2, 2), "repeats": s(2, torch.int32)},
        lambda x, repeats: torch.stack([x.flatten()] * 2, 1).flatten(),
        name="flat",
    ),
]

_IDS = t(0, 4, 4, 2, 1)
for _mode in ("sum", "mean", "max"):
    CASES += both(
        OpCase(
            "EmbeddingBag",
            lambda m: {"weight": m(5, 3), "indices": _IDS, "offsets": t(0, 2, 2), "per_sample_weights": None},
            bags(_mode, [0, 2, 2, 5]),
            attrs={"mode": _mode},
            outputs=BAG_OUTPUTS,
            const=("indices", "offsets"),
            name=_mode,
        )
    )
CASES += [
    bag("default", lambda m: {"weight": m(5, 3), "indices": _IDS, "offsets": t(0, 3)}, bags("mean", [0, 3, 5])),
    bag(
        "last-offset",
        lambda m: {"weight": m(5, 3), "indices": _IDS.int(), "offsets": t(0, 3, 5, dtype=torch.int32)},
        bags("mean", [0, 3, 5]),
        include_last_offset=True,
        scale_grad_by_freq=True,
        sparse=True,
    ),
    bag(
        "padding",
        lambda m: {"weight": m(5, 3), "indices": _IDS, "offsets": t(0, 3)},
        bags("sum", [0, 3, 5], skip=4),
        mode="sum",
        padding_idx=4,
    ),
    bag(
        "weighted",
        lambda m: {"weight": m(5, 3), "indices": _IDS, "offsets": t(0, 3), "per_sample_weights": m(5)},
        bags("sum", [0, 3, 5], weighted=True),
        mode="sum",
    ),
    bag("rows", lambda m: {"weight": m(5, 3), "indices": _IDS[:4].reshape(2, 2)}, bags("mean", [0, 2, 4])),
]
