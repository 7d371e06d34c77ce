"""Samples for engine/kernels/grouped.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.engine.op_case import Make, OpCase

EMPTY = torch.empty(0)
UNUSED = {
    "scale": [torch.empty(0, dtype=torch.uint64)],
    "offset": [EMPTY],
    "antiquant_scale": [EMPTY.half()],
    "antiquant_offset": [EMPTY.half()],
}
"""What TorchAir feeds for lists that are not used."""


def _rows(x: Tensor, weights: list[Tensor], ends: list[int], biases: list[Tensor] | None = None) -> Tensor:
    """Row by row: the weight of the first group whose end lies behind the row; zeros behind the last one."""
    result = torch.zeros(x.shape[0], weights[0].shape[1], dtype=x.dtype)
    for r in range(x.shape[0]):
        group = next((g for g, end in enumerate(ends) if r < end), None)
        if group is not None:
            result[r] = (x[r].unsqueeze(-1) * weights[group]).sum(0)
            if biases is not None:
                result[r] += biases[group]
    return result


def _ends(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _int8(m: Make, *shape: int) -> Tensor:
    return m.ints(*shape, low=-128, high=128, dtype=torch.int8)


def _quantised(m: Make, *, bias: torch.dtype | None, per_token: bool) -> dict[str, Any]:
    inputs: dict[str, Any] = {"x": [_int8(m, 6, 4)], "weight": [_int8(m, 3, 4, 5)]}
    if bias is torch.int32:
        inputs["bias"] = [m.ints(3, 5, low=-50, high=50, dtype=torch.int32)]
    elif bias is not None:
        inputs["bias"] = [m(3, 5).to(bias)]
    inputs["scale"] = [m(3, 5, low=0.001, high=0.002).float()]
    inputs["group_list"] = _ends(2, 2, 6)
    if per_token:
        inputs["per_token_scale"] = m(6, low=0.5, high=2.0).float()
    return inputs


def _dequantised(
    x: Any, weight: Any, scale: Any, group_list: Any, bias: Any = None, per_token_scale: Any = None
) -> Any:
    product = _rows(x[0].double(), list(weight[0].double()), group_list.tolist())
    group = torch.tensor([0, 0, 2, 2, 2, 2])
    y = product
    if bias is not None and bias[0].dtype is torch.int32:
        y = y + bias[0][group]
    y = y * scale[0][group]
    if per_token_scale is not None:
        y = y * per_token_scale[:, None]
    if bias is not None and bias[0].dtype is not torch.int32:
        y = y + bias[0][group]
    return y


def eight_by_four(m: Make, *, blocks: int, shift: bool = False) -> dict[str, Any]:
    """Five int8 rows for three experts with an int4 weight, scales as 64-bit words; the bias is 0.5 too large."""
    inputs: dict[str, Any] = {"x": _int8(m, 5, 8), "w": m.ints(3, 8, 6, low=-8, high=8, dtype=torch.int8)}
    steps = m.ints(3, blocks, 6, low=1, high=8).float() / 1024  # a few bits: kept whole
    inputs["scale"] = steps.view(torch.int32).to(torch.int64)
    scales = steps.repeat_interleave(8 // blocks, 1)
    inputs["bias"] = (8 * inputs["w"] * scales).sum(1) + 0.5
    if shift:
        inputs["offset"] = m(3, 1, 6, low=-0.01, high=0.01).float()
    return inputs


def _lists(m: Make, given: dict[str, Any]) -> dict[str, Any]:
    """As GroupedMatmul takes them."""
    names = {"x": "x", "weight": "w", "bias": "bias", "scale": "scale", "offset": "offset"}
    return {
        **{name: [given[key]] for name, key in names.items() if key in given},
        "group_list": _ends(2, 0, 3),
        "per_token_scale": m(5, low=0.5, high=2.0).float(),
    }


def _blocked(x: Tensor, weight: Tensor, steps: Tensor, group: list[int]) -> Tensor:
    """Row by row, the weight times the step of its block of K."""
    plain = weight.double() * steps.double().repeat_interleave(weight.shape[1] // steps.shape[1], 1)
    return torch.stack([(x[r].double()[:, None] * plain[g]).sum(0) for r, g in enumerate(group)])


def _float_bits(words: Tensor) -> Tensor:
    return words.to(torch.int32).view(torch.float32)


def _to_int8(value: Tensor) -> Tensor:
    return value.round().clamp(-128, 127).to(torch.int8)


TWO = ("y0", "y1")
ONE = ("y0",)
BY_ROWS = {"split_item": 3, "group_type": 0}

CASES = [
    OpCase(
        "GroupedMatmul",
        lambda m: {"x": [m(3, 4), m(2, 5)], "weight": [m(4, 6), m(5, 7)], "bias": [m(6), m(7)]} | UNUSED,
        lambda x, weight, bias, **rest: [_rows(x[i], [weight[i]], [x[i].shape[0]], [bias[i]]) for i in range(2)],
        {"split_item": 0, "group_type": -1, "tuning_config": [3], "dtype": -1},
        outputs=TWO,
        name="no_groups",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {"x": [m(7, 4)], "weight": [m(3, 4, 6)], "group_list": _ends(2, 2, 6)},
        lambda x, weight, group_list: _rows(x[0], list(weight[0]), group_list.tolist()),
        BY_ROWS,
        outputs=ONE,
        name="one_weight_ends",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {"x": [m(7, 4)], "weight": [m(3, 4, 6)], "group_list": _ends(0, 0, 7)},
        lambda x, weight, group_list: _rows(x[0], list(weight[0]), group_list.tolist()),
        BY_ROWS,
        outputs=ONE,
        const=("group_list",),
        name="const_groups",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {"x": [m(0, 4)], "weight": [m(3, 4, 6)], "group_list": _ends(0, 0, 0)},
        lambda x, weight, group_list: x[0].new_zeros(0, 6),
        BY_ROWS,
        outputs=ONE,
        name="no_rows",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {
            "x": [m(7, 4)],
            "weight": [m(4, 6), m(4, 6), m(4, 6)],
            "bias": [m(6), m(6), m(6)],
            "group_list": _ends(2, 0, 4),
        },
        lambda x, weight, bias, group_list: _rows(x[0], weight, [2, 2, 6], bias),
        BY_ROWS | {"group_list_type": 1},
        outputs=ONE,
        name="sizes_bias",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {"x": [m(6, 4)], "weight": [m(3, 6, 4)], "group_list": torch.tensor([[2, 4], [0, 1], [1, 0]])},
        lambda x, weight, group_list: _rows(x[0], [weight[0][2].T, weight[0][0].T], [4, 5]),
        {"split_item": 2, "group_type": 0, "group_list_type": 2, "transpose_weight": True},
        outputs=ONE,
        name="pairs_transposed_weight",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {"x": [m(5, 4)], "weight": [m(4, 6), m(4, 6)], "group_list": _ends(2, 5)},
        lambda x, weight, group_list: [_rows(x[0][:2], weight[:1], [2]), _rows(x[0][2:], weight[1:], [3])],
        {"split_item": 1, "group_type": 0},
        outputs=TWO,
        name="split_result",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {"x": [m(3, 4), m(2, 4)], "weight": [m(4, 6), m(4, 6)]},
        lambda x, weight: torch.cat([_rows(x[0], weight[:1], [3]), _rows(x[1], weight[1:], [2])]),
        {"split_item": 2, "group_type": 0},
        outputs=ONE,
        name="several_x_one_result",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {"x": [m(3, 7)], "weight": [m(7, 5)], "group_list": _ends(2, 2, 6)},
        lambda x, weight, group_list: torch.stack(
            [torch.einsum("mk,kn->mn", x[0][:, a:b], weight[0][a:b]) for a, b in ((0, 2), (2, 2), (2, 6))]
        ),
        {"split_item": 3, "group_type": 2},
        outputs=ONE,
        name="columns",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {"x": [m(7, 3)], "weight": [m(2, 5), m(5, 5)]},
        lambda x, weight: [
            torch.einsum("km,kn->mn", x[0][:2], weight[0]),
            torch.einsum("km,kn->mn", x[0][2:], weight[1]),
        ],
        {"split_item": 0, "group_type": 2, "transpose_x": True},
        outputs=TWO,
        name="columns_several_weights",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {
            "x": [m(5, 4)],
            "weight": [_int8(m, 2, 4, 6)],
            "antiquant_scale": [m(2, 6, low=0.01, high=0.02)],
            "antiquant_offset": [m(2, 6)],
            "group_list": _ends(2, 5),
        },
        lambda x, weight, antiquant_scale, antiquant_offset, group_list: _rows(
            x[0],
            list((weight[0] + antiquant_offset[0][:, None]) * antiquant_scale[0][:, None]),
            group_list.tolist(),
        ),
        BY_ROWS,
        outputs=ONE,
        dtypes=("bfloat16",),
        name="int8_weight",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: _quantised(m, bias=torch.int32, per_token=True),
        _dequantised,
        BY_ROWS | {"dtype": 0},
        outputs=ONE,
        dtypes=("float16",),
        name="quantised_per_token",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: _quantised(m, bias=torch.bfloat16, per_token=False),
        _dequantised,
        BY_ROWS | {"dtype": 1},
        outputs=ONE,
        dtypes=("bfloat16",),
        name="quantised_float_bias",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: _quantised(m, bias=None, per_token=False),
        lambda **inputs: _to_int8(_dequantised(**inputs)),
        BY_ROWS | {"dtype": -1},
        outputs=ONE,
        dtypes=("float32",),
        name="quantised_int8",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {"x": [_int8(m, 6, 4)], "weight": [_int8(m, 2, 4, 5)], "group_list": _ends(2, 6)},
        lambda x, weight, group_list: _rows(x[0].long(), list(weight[0].long()), group_list.tolist()),
        BY_ROWS | {"dtype": 2},
        outputs=ONE,
        dtypes=("float32",),
        name="quantised_int32",
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {
            "x": [m(5, 8)],
            "weight": [m.ints(2, 8, 6, low=-8, high=8, dtype=torch.int8)],
            "antiquant_scale": [m(2, 4, 6, low=0.01, high=0.02)],
            "antiquant_offset": [m(2, 4, 6)],
            "group_list": _ends(2, 5),
        },
        lambda x, weight, antiquant_scale, antiquant_offset, group_list: _rows(
            x[0],
            [
                (w + o.repeat_interleave(2, 0)) * s.repeat_interleave(2, 0)
                for w, o, s in zip(weight[0], antiquant_offset[0], antiquant_scale[0], strict=True)
            ],
            group_list.tolist(),
        ),
        BY_ROWS,
        outputs=ONE,
        dtypes=("bfloat16",),
        name="int4_weight_blocks",
    ),
    *(
        OpCase(
            "GroupedMatmul",
            lambda m: _quantised(m, bias=torch.int32, per_token=True),
            lambda activation=activation, **inputs: activation(_dequantised(**inputs)),
            BY_ROWS | {"dtype": 1, "act_type": act_type},
            outputs=ONE,
            dtypes=("bfloat16",),
            name=f"activation_{act_type}",
        )
        for act_type, activation in (
            (1, lambda y: y.clamp(min=0)),
            (2, lambda y: y / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))),
            (4, lambda y: y / (1 + torch.exp(-1.702 * y.abs())) * torch.exp(0.851 * (y - y.abs()))),
            (5, lambda y: y / (1 + torch.exp(-y))),
        )
    ),
    *(
        OpCase(
            "GroupedMatmul",
            lambda m, blocks=blocks, shift=shift: _lists(m, eight_by_four(m, blocks=blocks, shift=shift)),
            lambda x, weight, bias, scale, group_list, per_token_scale, offset=None: (
                (
                    _blocked(x[0], weight[0], _float_bits(scale[0]), [0, 0, 2, 2, 2])
                    + 0.5
                    + (0 if offset is None else x[0].double().sum(1, keepdim=True) * offset[0][[0, 0, 2, 2, 2], 0])
                )
                * per_token_scale[:, None]
            ),
            BY_ROWS | {"dtype": 0, "group_list_type": 1},
            outputs=ONE,
            dtypes=("float16",),
            name=f"int8_by_int4_{blocks}_{shift}",
        )
        for blocks, shift in ((1, False), (1, True), (4, False))
    ),
    OpCase(
        "GroupedMatmul",
        lambda m: {
            "x": [m.ints(5, 8, low=-8, high=8, dtype=torch.int8)],
            "weight": [m.ints(3, 8, 6, low=-8, high=8, dtype=torch.int8)],
            "scale": [eight_by_four(m, blocks=2)["scale"].to(torch.uint64)],
            "group_list": _ends(2, 2, 5),
            "per_token_scale": m(5, low=0.5, high=2.0).float(),
        },
        lambda x, weight, scale, group_list, per_token_scale: (
            _blocked(x[0], weight[0], _float_bits(scale[0].to(torch.int64)), [0, 0, 2, 2, 2]) * per_token_scale[:, None]
        ),
        BY_ROWS | {"dtype": 1},
        outputs=ONE,
        dtypes=("bfloat16",),
        name="int4_by_int4_blocks",
    ),
]
