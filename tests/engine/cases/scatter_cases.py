"""Samples for engine/kernels/scatter.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.engine.cases.shape_cases import both, moved, s, t
from tests.engine.op_case import ANY, FLOATS, OpCase


def written(name: str, *items: tuple[Any, Any]) -> Any:
    """The input ``name`` after x[key] = value(inputs) for each pair."""

    def expected(**inputs: Any) -> Tensor:
        result: Tensor = inputs[name].clone()
        for key, value in items:
            result[key] = value(inputs)
        return result

    return expected


def row(name: str, *key: Any) -> Any:
    return lambda inputs: inputs[name][key]


def _quantised(inputs: dict[str, Tensor], zero: bool) -> Tensor:
    """In float32, as the kernel: the oracle is the order of operations, not its precision."""
    wide = inputs["updates"].float() / inputs["quant_scales"].float()
    if zero:
        wide = wide + inputs["quant_zero_points"].float()
    return wide.round().clamp(-128, 127).to(torch.int8)


def _paged(cache: Tensor, tokens: Tensor, slots: Tensor, nz: bool) -> Tensor:
    result = cache.clone()
    block = cache.shape[2] if nz else cache.shape[1]
    for token, slot in zip(tokens, slots.flatten().tolist(), strict=True):
        if slot < 0:
            continue
        if nz:
            result[slot // block, :, slot % block, :] = token.reshape(cache.shape[1], cache.shape[3])
        else:
            result[slot // block, slot % block] = token
    return result


def _paged_both(nz: bool) -> Any:
    return lambda key, key_cache, slot_mapping, value, value_cache, **_: [
        _paged(key_cache, key, slot_mapping, nz),
        _paged(value_cache, value, slot_mapping, nz),
    ]


def _gathered(places: list[tuple[int, int]]) -> Any:
    """Token i of block, place = places[i]; the rest of key and value stays."""

    def expected(key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, **_: Any) -> list[Tensor]:
        results = []
        for cache, out in ((key_cache, key.clone()), (value_cache, value.clone())):
            for i, (block, place) in enumerate(places):
                token = cache[block, place] if out.dim() == 3 else cache[block, :, place]
                out[i] = token.reshape(out.shape[1:])
            results.append(out)
        return results

    return expected


VIEW = ("dst_size", "dst_stride", "dst_storage_offset", "src_size", "src_stride", "src_storage_offset")
VAR = ("var",)

CASES = [
    moved("Assign", lambda m: {"ref": m(2, 3), "value": m(2, 3)}, lambda ref, value: value, outputs=("ref",)),
    moved(
        "Assign",
        lambda m: {"ref": m(), "value": m()},
        lambda ref, value: value,
        outputs=("ref",),
        attrs={"validate_shape": False, "use_locking": True},
        const=("value",),
        name="0-d",
    ),
    *both(
        moved(
            "AsStrided",
            lambda m: {"x": m(4, 6), "size": t(2, 3), "stride": t(6, 2), "storage_offset": s(7)},
            lambda x, **_: x[1:3, 1::2],
            const=("size", "stride", "storage_offset"),
        )
    ),
    moved(
        "AsStrided",
        lambda m: {"x": m(5), "size": t(3, 3), "stride": t(1, 1), "storage_offset": t(0)},
        lambda x, **_: torch.stack([x[:3], x[1:4], x[2:]]),
        const=("size", "stride"),
        name="overlapping",
    ),
    moved(
        "AsStrided",
        lambda m: {"x": m(0), "size": t(2, 0), "stride": t(5, 1), "storage_offset": s(0)},
        lambda x, **_: x.reshape(2, 0),
        name="empty",
    ),
    *both(
        moved(
            "ViewCopy",
            lambda m: {
                "dst": m(4, 6),
                "dst_size": t(2, 3),
                "dst_stride": t(6, 2),
                "dst_storage_offset": s(7),
                "src": m(3, 4),
                "src_size": t(2, 3),
                "src_stride": t(1, 4),
                "src_storage_offset": t(2),
            },
            written("dst", (((slice(1, 3), slice(1, None, 2))), lambda i: i["src"][:, 2:4].T)),
            outputs=("dst",),
            const=VIEW,
        )
    ),
    # rows
    *both(
        moved(
            "ScatterUpdate",
            lambda m: {"var": m(4, 3), "indices": t(3, 0), "updates": m(2, 3)},
            written("var", (3, row("updates", 0)), (0, row("updates", 1))),
            outputs=VAR,
            const=("indices",),
        )
    ),
    moved(
        "ScatterUpdate",
        lambda m: {"var": m(4), "indices": torch.tensor([[3, 0]], dtype=torch.int32), "updates": m(1, 2)},
        written("var", (3, row("updates", 0, 0)), (0, row("updates", 0, 1))),
        outputs=VAR,
        attrs={"use_locking": True},
        name="matrix",
    ),
    moved(
        "ScatterUpdate",
        lambda m: {"var": m(4, 3), "indices": s(1), "updates": m(3)},
        written("var", (1, row("updates"))),
        outputs=VAR,
        name="0-d",
    ),
    *both(
        OpCase(
            "ScatterAdd",
            lambda m: {"var": m(4, 3), "indices": t(1, 3, 1, dtype=torch.int32), "updates": m(3, 3)},
            lambda var, indices, updates: torch.stack(
                [var[0], var[1] + updates[0] + updates[2], var[2], var[3] + updates[1]]
            ),
            outputs=VAR,
            dtypes=(*FLOATS, "int32"),
            const=("indices",),
        )
    ),
    OpCase(
        "ScatterAdd",
        lambda m: {"var": m(4), "indices": torch.tensor([[1], [3]]), "updates": m(2, 1)},
        lambda var, indices, updates: torch.stack([var[0], var[1] + updates[0, 0], var[2], var[3] + updates[1, 0]]),
        outputs=VAR,
        attrs={"use_locking": True},
        name="matrix",
    ),
    *both(
        moved(
            "InplaceUpdate",
            lambda m: {"x": m(4, 3), "indices": t(3, 0, dtype=torch.int32), "v": m(2, 3)},
            written("x", (3, row("v", 0)), (0, row("v", 1))),
            const=("indices",),
        )
    ),
    *both(
        moved(
            "ScatterNdUpdate",
            lambda m: {"var": m(4, 3), "indices": torch.tensor([[3], [0]]), "updates": m(2, 3)},
            written("var", (3, row("updates", 0)), (0, row("updates", 1))),
            outputs=VAR,
            const=("indices",),
        )
    ),
    moved(
        "ScatterNdUpdate",
        lambda m: {
            "var": m(4, 3, 2),
            "indices": torch.tensor([[[3, 2], [0, 1]]], dtype=torch.int32),
            "updates": m(1, 2, 2),
        },
        written("var", ((3, 2), row("updates", 0, 0)), ((0, 1), row("updates", 0, 1))),
        outputs=VAR,
        attrs={"use_locking": True},
        name="deep",
    ),
    moved(
        "ScatterNdUpdate",
        lambda m: {"var": m(4, 3), "indices": torch.empty(0, 2, dtype=torch.int64), "updates": m(0)},
        lambda var, **_: var,
        outputs=VAR,
        name="empty",
    ),
    *both(
        OpCase(
            "InplaceIndexAdd",
            lambda m: {
                "var": m(2, 4),
                "indices": t(1, 3, 1, dtype=torch.int32),
                "updates": m(2, 3),
                "alpha": torch.tensor(2, dtype=m.dtype),
            },
            lambda var, indices, updates, alpha: torch.stack(
                [var[:, 0], var[:, 1] + 2 * (updates[:, 0] + updates[:, 2]), var[:, 2], var[:, 3] + 2 * updates[:, 1]],
                1,
            ),
            outputs=VAR,
            attrs={"axis": 1},
            dtypes=ANY,
            const=("indices", "alpha"),
        )
    ),
    OpCase(
        "InplaceIndexAdd",
        lambda m: {"var": m(2, 4), "indices": t(1), "updates": m(1, 4), "alpha": None},
        lambda var, updates, **_: torch.stack([var[0], var[1] + updates[0]]),
        outputs=VAR,
        attrs={"axis": 0},
        dtypes=ANY,
        name="no-alpha",
    ),
    # advanced indexing
    *both(
        moved(
            "IndexPutV2",
            lambda m: {
                "x": m(2, 4, 3),
                "value": m(2, 2),
                "indexed_sizes": t(0, 1, 1),
                "indexed_strides": t(12, 3, 1),
                "indices": [t(3, 0), t(2, -1)],
            },
            written(
                "x",
                ((slice(None), 3, 2), row("value", slice(None), 0)),
                ((slice(None), 0, 2), row("value", slice(None), 1)),
            ),
            outputs=("x",),
            const=("indexed_sizes", "indexed_strides", "indices"),
        )
    ),
    OpCase(
        "IndexPutV2",
        lambda m: {"x": m(4), "value": m(3), "indexed_sizes": t(1), "indexed_strides": t(1), "indices": [t(1, 1, -4)]},
        lambda x, value, **_: torch.stack([x[0] + value[2], x[1] + value[0] + value[1], x[2], x[3]]),
        outputs=("x",),
        attrs={"accumulate": True},
        dtypes=ANY,
        name="accumulate",
    ),
    *both(
        moved(
            "ScatterElements",
            lambda m: {"data": m(3, 3), "indices": torch.tensor([[1, 0], [2, 1]]), "updates": m(2, 2)},
            written(
                "data",
                ((0, 1), row("updates", 0, 0)),
                ((0, 0), row("updates", 0, 1)),
                ((1, 2), row("updates", 1, 0)),
                ((1, 1), row("updates", 1, 1)),
            ),
            attrs={"axis": 1},
            const=("indices",),
        )
    ),
    moved(
        "ScatterElements",
        lambda m: {"data": m(3, 2), "indices": torch.tensor([[-1, 0]], dtype=torch.int32), "updates": m(1, 2)},
        written("data", ((2, 0), row("updates", 0, 0)), ((0, 1), row("updates", 0, 1))),
        name="negative",
    ),
    OpCase(
        "ScatterElements",
        lambda m: {"data": m(3), "indices": t(1, 1, 2), "updates": m(3)},
        lambda data, indices, updates: torch.stack([data[0], data[1] + updates[0] + updates[1], data[2] + updates[2]]),
        attrs={"reduction": "add"},
        dtypes=ANY,
        name="add",
    ),
    OpCase(
        "ScatterElements",
        lambda m: {"data": m(3), "indices": t(1, 1, -1), "updates": m(3)},
        lambda data, indices, updates: torch.stack([data[0], data[1] * updates[0] * updates[1], data[2] * updates[2]]),
        attrs={"reduction": "mul"},
        dtypes=ANY,
        name="mul",
    ),
    # caches
    *both(
        moved(
            "Scatter",
            lambda m: {"var": m(2, 3, 5, 2), "indices": t(4, 1), "updates": m(2, 3, 1, 2)},
            written(
                "var",
                ((0, slice(None), 4), row("updates", 0, slice(None), 0)),
                ((1, slice(None), 1), row("updates", 1, slice(None), 0)),
            ),
            outputs=VAR,
            attrs={"reduce": "update", "axis": -2},
            const=("indices",),
        )
    ),
    moved(
        "Scatter",
        lambda m: {
            "var": m(3, 5, 2),
            "indices": torch.tensor([[2, 1], [0, 3]], dtype=torch.int32),
            "updates": m(2, 2, 2),
        },
        written("var", ((2, slice(1, 3)), row("updates", 0)), ((0, slice(3, 5)), row("updates", 1))),
        outputs=VAR,
        attrs={"reduce": "update", "axis": 1},
        name="pairs",
    ),
    *both(
        moved(
            "ScatterList",
            lambda m: {"var": [m(3, 5, 2), m(3, 4, 2)], "indice": t(4, 1), "updates": m(2, 3, 1, 2), "mask": None},
            lambda var, indice, updates, mask: [
                written("v", ((slice(None), 4), lambda i: updates[0, :, 0]))(v=var[0]),
                written("v", ((slice(None), 1), lambda i: updates[1, :, 0]))(v=var[1]),
            ],
            outputs=("var0", "var1"),
            const=("indice",),
        )
    ),
    moved(
        "ScatterList",
        lambda m: {
            "var": [m(5, 2), m(5, 2)],
            "indice": t(0, 1, dtype=torch.int32),
            "updates": m(2, 5, 1),
            "mask": t(0, 1, dtype=torch.uint8),
        },
        lambda var, indice, updates, mask: [var[0], torch.cat([var[1][:, :1], updates[1]], 1)],
        outputs=("var0", "var1"),
        attrs={"axis": -1, "reduce": "update"},
        name="mask",
    ),
    *both(
        OpCase(
            "QuantUpdateScatter",
            lambda m: {
                "var": m.ints(2, 4, 3, low=-9, high=9, dtype=torch.int8),
                "indices": t(3, 0, dtype=torch.int32),
                "updates": m(2, 1, 3, low=-300, high=300),
                "quant_scales": torch.tensor([2.0, 0.5, 8.0]),
                "quant_zero_points": t(1, -2, 3, dtype=torch.int32),
            },
            lambda **i: written(
                "var", ((0, 3), lambda _: _quantised(i, True)[0, 0]), ((1, 0), lambda _: _quantised(i, True)[1, 0])
            )(**i),
            outputs=VAR,
            attrs={"reduce": "update"},
            const=("quant_scales", "quant_zero_points"),
            widen=False,
        )
    ),
    OpCase(
        "QuantUpdateScatter",
        lambda m: {
            "var": m.ints(2, 2, 5, low=-9, high=9, dtype=torch.int8),
            "indices": t(3, 0),
            "updates": m(2, 2, 1),
            "quant_scales": torch.tensor([[[0.5], [0.25]]]),
        },
        lambda **i: written(
            "var",
            ((0, slice(None), 3), lambda _: _quantised(i, False)[0, :, 0]),
            ((1, slice(None), 0), lambda _: _quantised(i, False)[1, :, 0]),
        )(**i),
        outputs=VAR,
        attrs={"reduce": "update", "axis": 2, "quant_axis": 1, "round_mode": "rint"},
        widen=False,
        name="other-axes",
    ),
    OpCase(
        "QuantUpdateScatter",
        lambda m: {
            "var": torch.ones(1, 3, 2).to(torch.float8_e4m3fn),
            "indices": t(1),
            "updates": torch.tensor([[[3.3, 4000]]]).to(m.dtype),
            "quant_scales": torch.tensor([1.0, 2]),
        },
        lambda var, **_: torch.tensor([[[1, 1], [3.25, 448], [1, 1]]]),
        outputs=VAR,
        attrs={"reduce": "update"},
        widen=False,
        exact=True,
        name="float8",
    ),
    *both(
        moved(
            "ScatterPaKvCache",
            lambda m: {
                "key": m(3, 2, 4),
                "key_cache": m(2, 4, 2, 4),
                "slot_mapping": t(5, 0, 3, dtype=torch.int32),
                "value": m(3, 2, 3),
                "value_cache": m(2, 4, 2, 3),
            },
            _paged_both(False),
            outputs=("key_cache", "value_cache"),
            const=("slot_mapping",),
        )
    ),
    moved(
        "ScatterPaKvCache",
        lambda m: {
            "key": m(3, 2, 8),
            "key_cache": m(2, 4, 5, 4),
            "slot_mapping": t(9, 0, 3),
            "value": m(3, 2, 4),
            "value_cache": m(2, 2, 5, 4),
            "compress_lens": None,
            "compress_seq_offset": None,
            "seq_lens": None,
        },
        _paged_both(True),
        outputs=("key_cache", "value_cache"),
        attrs={"cache_mode": "PA_NZ", "scatter_mode": "None", "strides": [1, 1], "offsets": [0, 0]},
        name="nz",
    ),
    moved(
        "ScatterPaKvCache",
        lambda m: {
            "key": m(3, 2, 8),
            "key_cache": m(2, 4, 5, 4),
            "slot_mapping": t(9, -1, 3),
            "value": m(0),
            "value_cache": m(0),
        },
        lambda key, key_cache, slot_mapping, value, value_cache: [
            _paged(key_cache, key, slot_mapping, True),
            value_cache,
        ],
        outputs=("key_cache", "value_cache"),
        attrs={"cache_mode": "PA_NZ"},
        name="nz-a_token_nowhere-no_values",
    ),
    moved(
        "GatherPaKvCache",
        lambda m: {
            "key_cache": m(4, 2, 2, 3),
            "value_cache": m(4, 2, 2, 5),
            "block_tables": t([3, 0, 0], [1, 2, 3], [0, 0, 0], dtype=torch.int32),
            "seq_lens": t(1, 5, 0, dtype=torch.int32),
            "key": m(8, 2, 3),
            "value": m(8, 2, 5),
            "seq_offset": None,
        },
        _gathered([(3, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]),
        outputs=("key", "value"),
        attrs={"is_seq_lens_cumsum": False},
        name="lengths",
    ),
    moved(
        "GatherPaKvCache",
        lambda m: {
            "key_cache": m(4, 2, 3, 4),
            "value_cache": m(4, 1, 3, 4),
            "block_tables": t([3, 0], [1, 2]),
            "seq_lens": t(0, 2, 5),
            "key": m(5, 8),
            "value": m(5, 4),
            "seq_offset": t(3, 0),
        },
        _gathered([(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]),
        outputs=("key", "value"),
        attrs={"cache_mode": "PA_NZ"},
        name="nz-ends-offset",
    ),
]
