"""npu_trans_quant_param: the 64-bit words, bit by bit."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
import torch

import npu_fused_graph as nfg
from npu_fused_graph.errors import InvalidArgumentError
from npu_fused_graph.ops import trans_quant_param_v2 as op


def word(scale: float, offset: int = 0, *, rounds: bool = False) -> int:
    """The word of one scale, with struct and exact rationals instead of bit tricks on tensors."""
    (bits,) = struct.unpack("<I", struct.pack("<f", scale))
    if rounds and scale and math.isfinite(scale):
        mantissa, exponent = math.frexp(struct.unpack("<f", struct.pack("<f", scale))[0])
        scale = math.ldexp(round(mantissa * 2**11), exponent - 11)  # Python rounds halves to even
        (bits,) = struct.unpack("<I", struct.pack("<f", scale))
    return (bits >> 13 << 13) | (1 << 46) | ((offset & 0x1FF) << 37)


def test_examples() -> None:
    """1.0 -> 0x40003F800000, 0.5 -> 0x40003F000000."""
    assert nfg.npu_trans_quant_param(torch.tensor([1.0, 0.5])).tolist() == [0x40003F800000, 0x40003F000000]


@pytest.mark.parametrize("round_mode", [0, 1])
def test_words(round_mode: int) -> None:
    scales = torch.rand(500, generator=torch.Generator().manual_seed(1)) * 0.1
    scales[:6] = torch.tensor([0.0, -2.7, 3.0, 1 + 2**-11, 1 + 3 * 2**-11, 2 - 2**-20])
    got = nfg.npu_trans_quant_param(scales, None, round_mode)
    assert got.tolist() == [word(s, rounds=round_mode == 1) for s in scales.tolist()]
    assert torch.equal(got, op.decompose(scales, None, round_mode))
    error = (nfg.unpack_quant_param(got)[0] / scales - 1)[1:].abs().max()
    assert error < (2**-10 if round_mode == 0 else 2**-11 * 1.001)


def test_rounding_at_the_ends_of_the_range() -> None:
    """As CANN's kernel does: a carry may reach infinity, NaN stays NaN, subnormal numbers become zero."""
    scales = torch.tensor([torch.finfo(torch.float32).max, float("inf"), float("nan"), 1e-40, -1e-40])
    unpacked = nfg.unpack_quant_param(nfg.npu_trans_quant_param(scales, None, 1))[0]
    assert unpacked[:2].tolist() == [float("inf")] * 2
    assert unpacked[2].isnan()
    assert unpacked[3:].tolist() == [0.0, -0.0]
    assert torch.signbit(unpacked).tolist()[3:] == [False, True]
    widest = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)  # NaN with every bit set
    assert nfg.unpack_quant_param(nfg.npu_trans_quant_param(widest, None, 1))[0].isnan().all()


def test_offsets_are_rounded_and_clamped() -> None:
    offsets = torch.tensor([0.0, 1.4, -5.6, 254.6, 300.0, -256.0, -999.0, 2.5])
    got = nfg.npu_trans_quant_param(torch.full((8,), 0.5), offsets)
    wanted = [0, 1, -6, 255, 255, -256, -256, 2]
    assert got.tolist() == [word(0.5, offset) for offset in wanted]
    # a scale that needs every bit next to the offset: no float32 holds such a word
    assert op.decompose(torch.full((8,), 0.3), offsets).tolist() == [word(0.3, offset) for offset in wanted]
    scale, offset = nfg.unpack_quant_param(got.view(torch.uint64))
    assert scale.tolist() == [0.5] * 8
    assert offset.tolist() == wanted


def test_one_scale_for_many_offsets_and_the_other_way_round() -> None:
    assert nfg.npu_trans_quant_param(torch.ones(1), torch.arange(3.0)).tolist() == [word(1.0, i) for i in range(3)]
    assert nfg.npu_trans_quant_param(torch.ones(2), torch.ones(1)).tolist() == [word(1.0, 1)] * 2


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"scale": torch.ones(2).half()}, "scale: expected float32, got float16"),
    "offset dtype": ({"offset": torch.ones(2, dtype=torch.int32)}, "offset: expected float32, got int32"),
    "rows": ({"scale": torch.ones(2, 2)}, "scale: expected shape (1, n), got shape [2, 2]"),
    "3-d": ({"scale": torch.ones(1, 1, 2)}, "scale: expected shape (t) or (1, n), got shape [1, 1, 2]"),
    "list": ({"scale": [1.0]}, "scale: expected a tensor, got list"),
    "round_mode type": ({"round_mode": "rint"}, "round_mode: expected an int, got 'rint'"),
    "offset shape": ({"offset": torch.ones(3)}, "offset: expected shape [2], like scale"),
    "offset rank": ({"offset": torch.ones(1, 2)}, "offset: expected shape [2], like scale"),
    "round_mode": ({"round_mode": 2}, "round_mode: expected 0 (truncate) or 1 (round to nearest even), got 2"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_arguments(name: str) -> None:
    change, text = BAD[name]
    with pytest.raises(InvalidArgumentError) as caught:
        nfg.npu_trans_quant_param(**{"scale": torch.ones(2)} | change)
    assert text in str(caught.value)


def test_unpack_takes_words_only() -> None:
    for wrong in (torch.ones(2), None, [1]):
        with pytest.raises(InvalidArgumentError, match="words: expected a tensor of int64 or uint64"):
            nfg.unpack_quant_param(wrong)


@pytest.mark.parametrize("sample", list(op.samples()), ids=str)
def test_samples(sample: dict[str, Any]) -> None:
    assert torch.equal(nfg.npu_trans_quant_param(**sample), op.decompose(**sample))
    overload = torch.ops.npu_fused_graph.npu_trans_quant_param.default
    torch.library.opcheck(overload, (), sample, test_utils=("test_schema", "test_faketensor"))
