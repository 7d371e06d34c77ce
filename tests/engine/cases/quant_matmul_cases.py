"""Samples for engine/kernels/quant_matmul.py."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph import pack_int4
from tests.engine.cases.quant_cases import packed
from tests.engine.op_case import FLOATS, Make, OpCase, dtype_value

ONE = ("float32",)


def _int8(m: Make, *shape: int) -> Tensor:
    return m.ints(*shape, low=-128, high=128, dtype=torch.int8)


def _int4(m: Make, *shape: int) -> Tensor:
    """As the engine holds them."""
    return m.ints(*shape, low=-8, high=8, dtype=torch.int8)


def _saturated(value: Tensor) -> Tensor:
    return value.round().clamp(-128, 127).to(torch.int8)


def _product(x1: Tensor, x2: Tensor) -> Tensor:
    return torch.einsum("...mk,...kn->...mn", x1.double(), x2.double())


def _elements(words: Tensor) -> Tensor:
    """The int4 elements of int32 words, lowest bits first, word by word."""
    values = [(word >> shift) % 16 for word in words.flatten().tolist() for shift in range(0, 32, 4)]
    signed = torch.tensor([v - 16 if v > 7 else v for v in values])
    return signed.reshape(*words.shape[:-1], -1)


def _perms(x1: list[int], x2: list[int]) -> dict[str, list[int]]:
    return {"perm_x1": x1, "perm_x2": x2, "perm_y": [1, 0, 2]}


CASES = [
    OpCase(
        "QuantBatchMatmulV3",
        lambda m: {"x1": _int8(m, 3, 5), "x2": _int8(m, 5, 7), "scale": m(7, low=1e-3, high=2e-3).float()},
        lambda x1, x2, scale: _product(x1, x2) * scale,
        {"dtype": 1},
        dtypes=ONE,
    ),
    OpCase(
        "QuantBatchMatmulV3",
        lambda m: {
            "x1": _int8(m, 2, 5, 3),
            "x2": _int8(m, 2, 7, 5),
            "scale": m(1, low=1e-3, high=2e-3).to(torch.bfloat16),
            "bias": m.ints(7, low=-99, high=99, dtype=torch.int32),
            "pertoken_scale": m(3, low=0.5, high=2).float(),
        },
        lambda x1, x2, scale, bias, pertoken_scale: (
            (_product(x1.mT, x2.mT) + bias) * scale * pertoken_scale.unsqueeze(-1)
        ),
        {"dtype": dtype_value("bfloat16"), "transpose_x1": True, "transpose_x2": True},
        dtypes=ONE,
        name="pertoken_transposes",
    ),
    OpCase(
        "QuantBatchMatmulV3",
        lambda m: {
            "x1": _int8(m, 3, 5),
            "x2": _int8(m, 5, 7),
            "scale": m(7, low=1e-3, high=2e-3).float(),
            "bias": m(7).float(),
        },
        lambda x1, x2, scale, bias: _product(x1, x2) * scale + bias,
        {"dtype": 27},
        dtypes=ONE,
        name="float_bias",
    ),
    OpCase(
        "QuantBatchMatmulV3",
        lambda m: {
            "x1": _int8(m, 3, 5),
            "x2": _int8(m, 5, 2),
            "scale": torch.tensor([packed(0.125), packed(0.0625)]),
            "offset": torch.tensor([3.0]),
        },
        lambda x1, x2, scale, offset: _saturated(_product(x1, x2) * torch.tensor([0.125, 0.0625]) + offset),
        {"dtype": 2},
        dtypes=ONE,
        name="int8_result",
    ),
    OpCase(
        "QuantBatchMatmulV3",
        lambda m: {
            "x1": _int8(m, 3, 5),
            "x2": _int8(m, 5, 2),
            "scale": torch.tensor([packed(0.0078125, -9), packed(0.0078125, 200)]).to(torch.uint64),
        },
        lambda x1, x2, scale: _saturated(_product(x1, x2) * 0.0078125 + torch.tensor([-9, 200])),
        {"dtype": 2},
        dtypes=ONE,
        name="packed_offset",
    ),
    OpCase(
        "QuantBatchMatmulV3",
        lambda m: {
            "x1": _int8(m, 3, 5),
            "x2": _int8(m, 5, 7),
            "scale": m(7, low=1e-3, high=2e-3).float(),
            "bias": m.ints(7, low=-99, high=99, dtype=torch.int32),
        },
        lambda x1, x2, scale, bias: (_product(x1, x2) + bias).to(torch.int32),
        {"dtype": dtype_value("int32")},
        dtypes=ONE,
        name="int32_result",
    ),
    OpCase(
        "QuantBatchMatmulV3",
        lambda m: {
            "x1": _int4(m, 2, 3, 8),
            "x2": _int4(m, 8, 16),
            "scale": m(16, low=1e-3, high=2e-3).float(),
            "bias": m.ints(2, 1, 16, low=-99, high=99, dtype=torch.int32),
            "pertoken_scale": m(3, low=0.5, high=2).float(),
        },
        lambda x1, x2, scale, bias, pertoken_scale: (_product(x1, x2) + bias) * scale * pertoken_scale.unsqueeze(-1),
        {"dtype": 1},
        dtypes=ONE,
        name="int4",
    ),
    OpCase(
        "QuantBatchMatmulV4",
        lambda m: {
            "x1": _int8(m, 3, 5),
            "x2": _int8(m, 7, 5),
            "bias": m(7).float(),
            "x1_scale": m(3, low=0.5, high=2).float(),
            "x2_scale": m(7, low=1e-3, high=2e-3).float(),
        },
        lambda x1, x2, bias, x1_scale, x2_scale: _product(x1, x2.mT) * x2_scale * x1_scale[:, None] + bias,
        {"dtype": 1, "transpose_x2": True, "group_size": 0, "compute_type": -1},
        dtypes=ONE,
    ),
    OpCase(
        "QuantBatchMatmulV4",
        lambda m: {
            "x1": _int8(m, 5, 3),
            "x2": _int8(m, 5, 2),
            "x2_scale": torch.tensor([packed(0.125), packed(0.0625)]),
            "x2_offset": torch.tensor([3.0]),
        },
        lambda x1, x2, x2_scale, x2_offset: _saturated(_product(x1.mT, x2) * torch.tensor([0.125, 0.0625]) + x2_offset),
        {"dtype": 2, "transpose_x1": True},
        dtypes=ONE,
        name="int8_result",
    ),
    OpCase(
        "TransposeBatchMatMul",
        lambda m: {"x1": m(4, 3, 5), "x2": m(4, 5, 6)},
        lambda x1, x2: torch.einsum("bmk,bkn->mbn", x1, x2),
        _perms([0, 1, 2], [0, 1, 2]) | {"enable_hf32": False, "batch_split_factor": 1},
        dtypes=FLOATS,
    ),
    OpCase(
        "TransposeBatchMatMul",
        lambda m: {"x1": m(3, 4, 5), "x2": m(4, 6, 5)},
        lambda x1, x2: torch.einsum("mbk,bnk->mbn", x1, x2),
        _perms([1, 0, 2], [0, 2, 1]),
        dtypes=FLOATS,
        name="both_transposed",
    ),
    OpCase(
        "TransposeBatchMatMul",
        lambda m: {"x1": m(3, 4, 5), "x2": m(4, 5, 6)},
        lambda x1, x2: torch.stack(
            [torch.einsum("mbk,bkn->mbn", x1[:, b : b + 2], x2[b : b + 2]).reshape(3, 12) for b in (0, 2)]
        ),
        _perms([1, 0, 2], [0, 1, 2]) | {"batch_split_factor": 2},
        dtypes=FLOATS,
        name="split",
    ),
    OpCase(
        "TransposeBatchMatMul",
        lambda m: {
            "x1": m(2, 3, 5),
            "x2": m(2, 5, 1),
            "scale": torch.tensor([packed(8.0), packed(4.0, -3)]),
        },
        lambda x1, x2, scale: _saturated(
            torch.einsum("bmk,bkn->mbn", x1, x2).reshape(3, 1, 2) * torch.tensor([8.0, 4.0]) + torch.tensor([0, -3])
        ),
        _perms([0, 1, 2], [0, 1, 2]),
        dtypes=("float16",),
        name="int8_result",
    ),
    *(
        OpCase(
            "WeightQuantBatchMatmulV2",
            lambda m, shape=shape: {
                "x": m(3, 8),
                "weight": _int8(m, 8, 6),
                "antiquant_scale": m(*shape, low=0.01, high=0.02),
                "antiquant_offset": m(*shape),
                "bias": m(6).to(torch.float16 if m.dtype is torch.float16 else torch.float32),
            },
            lambda x, weight, antiquant_scale, antiquant_offset, bias: (
                _product(x, (weight + antiquant_offset) * antiquant_scale) + bias
            ),
            {"antiquant_group_size": 0, "inner_precise": 0, "dtype": -1},
            dtypes=("float16", "bfloat16"),
            name=name,
        )
        for name, shape in (("per_tensor", (1,)), ("per_channel", (1, 6)), ("per_channel_vector", (6,)))
    ),
    OpCase(
        "WeightQuantBatchMatmulV2",
        lambda m: {
            "x": m(8, 3),
            "weight": _int8(m, 6, 8),
            "antiquant_scale": m(4, 6, low=0.01, high=0.02),
        },
        lambda x, weight, antiquant_scale: _product(x.mT, weight.mT * antiquant_scale.repeat_interleave(2, 0)),
        {"antiquant_group_size": 2, "transpose_x": True, "transpose_weight": True, "inner_precise": 1},
        dtypes=("float16", "bfloat16"),
        name="groups_transposed",
    ),
    *(
        OpCase(
            "WeightQuantBatchMatmulV2",
            lambda m, axis=axis: {
                "x": m(3, 8),
                "weight": pack_int4(_int4(m, 16, 8)).T if axis == 0 else pack_int4(_int4(m, 8, 16)),
                "antiquant_scale": m(1, 16, low=0.01, high=0.02),
            },
            lambda x, weight, antiquant_scale, axis=axis: _product(
                x, (_elements(weight.T).T if axis == 0 else _elements(weight)) * antiquant_scale
            ),
            dtypes=("float16", "bfloat16"),
            name=f"int4_along_{axis}",
        )
        for axis in (0, 1)
    ),
    OpCase(
        "WeightQuantBatchMatmulV2",
        lambda m: {
            "x": m(3, 8),
            "weight": _int8(m, 8, 2),
            "antiquant_scale": torch.tensor([[packed(0.25), packed(0.125)]]),
            "antiquant_offset": torch.tensor([[3, -2]], dtype=torch.int32),
            "bias": m(2),
        },
        lambda x, weight, antiquant_scale, antiquant_offset, bias: (
            _product(x, (weight + antiquant_offset) * torch.tensor([0.25, 0.125])) + bias
        ),
        dtypes=("float16",),
        name="packed_antiquant_scale",
    ),
    OpCase(
        "WeightQuantBatchMatmulV2",
        lambda m: {
            "x": m(3, 8),
            "weight": _int8(m, 8, 2),
            "antiquant_scale": torch.full((1,), 0.5, dtype=m.dtype),
            "quant_scale": torch.tensor([packed(0.25, 7), packed(0.125)]).to(torch.uint64),
        },
        lambda x, weight, antiquant_scale, quant_scale: _saturated(
            _product(x, weight * antiquant_scale) * torch.tensor([0.25, 0.125]) + torch.tensor([7, 0])
        ),
        dtypes=("float16", "bfloat16"),
        name="int8_result_packed",
    ),
    OpCase(
        "WeightQuantBatchMatmulV2",
        lambda m: {
            "x": m(3, 8),
            "weight": _int8(m, 8, 2),
            "antiquant_scale": torch.full((1,), 0.5, dtype=m.dtype),
            "quant_scale": torch.tensor([[0.25, 0.125]]),
            "quant_offset": torch.tensor([[7.0, 0.0]]),
            "bias": m(1, 2),
        },
        lambda x, weight, antiquant_scale, quant_scale, quant_offset, bias: _saturated(
            (_product(x, weight * antiquant_scale) + bias) * quant_scale + quant_offset
        ),
        dtypes=("float16",),
        name="int8_result",
    ),
    OpCase(
        "DequantBias",
        lambda m: {
            "x": m.ints(3, 5, low=-999, high=999, dtype=torch.int32),
            "weight_scale": m(5, low=1e-3, high=2e-3).float(),
            "activate_scale": m(3, 1, low=0.5, high=2).float(),
            "bias": m.ints(5, low=-99, high=99, dtype=torch.int32),
        },
        lambda x, weight_scale, activate_scale, bias: (x + bias) * weight_scale * activate_scale,
        {"output_dtype": 1},
        dtypes=ONE,
    ),
    OpCase(
        "DequantBias",
        lambda m: {
            "x": m.ints(3, 5, low=-999, high=999, dtype=torch.int32),
            "weight_scale": m(5, low=1e-3, high=2e-3).to(torch.bfloat16),
            "bias": m(5).float(),
        },
        lambda x, weight_scale, bias: x * weight_scale + bias,
        {"output_dtype": dtype_value("bfloat16")},
        dtypes=ONE,
        name="float_bias",
    ),
]
