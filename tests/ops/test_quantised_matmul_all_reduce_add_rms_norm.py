"""Full and weight-only quantisation: where the formulas are easy to get wrong, and vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.errors import InvalidArgumentError
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as op
from npu_fused_graph.ops.int4 import unpacked_int4
from npu_fused_graph.testing import assert_close
from tests.ops.exact import exact, nibbles
from tests.ops.gathering import Gathering

pytestmark = pytest.mark.usefixtures("one_rank")

OP = nfg.npu_mm_all_reduce_add_rms_norm


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ints(*shape: int, limit: int = 128, dtype: torch.dtype = torch.int8, seed: int = 0) -> Tensor:
    return torch.randint(-limit, limit, shape, generator=random(seed)).to(dtype)


def floats(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=random(seed)).to(dtype)


def call(dtype: torch.dtype, n: int, **arguments: Any) -> tuple[dict[str, Any], Tensor, Tensor]:
    """(arguments, y, norm_out) with a residual and gamma to them."""
    rows = arguments["x1"].numel() // arguments["x1"].size(-1)
    arguments |= {"residual": floats(1, rows, n, dtype=dtype, seed=7), "gamma": floats(n, dtype=dtype, seed=8)}
    arguments.setdefault("epsilon", 1e-6)
    y, norm_out = OP(**arguments, hcom="0")
    return arguments, y, norm_out


def check(arguments: dict[str, Any], y: Tensor, norm_out: Tensor, scale: float) -> None:
    want_y, want_norm = exact([arguments], arguments["residual"], arguments["gamma"], arguments["epsilon"])
    assert_close(y, want_y, scale=scale)
    assert_close(norm_out, want_norm, scale=scale)


# -- weight-only ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_offset_is_added_before_the_scale(dtype: torch.dtype) -> None:
    """(w + offset) * scale, as kernel and op-plugin have it; CANN's README prints w * scale + offset."""
    x1, x2 = floats(4, 64, dtype=dtype), ints(64, 16)
    scale, offset = torch.full((16,), 0.02).to(dtype), torch.full((16,), 5.0).to(dtype)
    arguments, y, norm_out = call(dtype, 16, x1=x1, x2=x2, antiquant_scale=scale, antiquant_offset=offset)
    check(arguments, y, norm_out, scale=8)
    other = arguments | {"x2": x2.double() * scale.double() + offset.double(), "antiquant_scale": None}
    wrong_y, _ = exact([other], arguments["residual"], arguments["gamma"], 1e-6)
    with pytest.raises(AssertionError):
        assert_close(y, wrong_y, scale=8)


def test_each_group_of_rows_has_its_own_scale() -> None:
    """k = 80 and groups of 32: the third group is short."""
    scale = torch.tensor([[0.5], [2.0], [8.0]]).half().expand(3, 16).contiguous()
    offset = torch.tensor([[1.0], [2.0], [3.0]]).half().expand(3, 16).contiguous()
    x2 = torch.zeros(80, 16, dtype=torch.int8)
    weight = op.antiquantised(x2, scale, offset, 32)
    wanted = torch.tensor([0.5] * 32 + [4.0] * 32 + [24.0] * 16)
    assert torch.equal(weight, wanted.half().unsqueeze(1).expand(80, 16))


def test_float16_weights_are_rounded_after_each_step() -> None:
    """127 + 0.03 is 127.0 in float16, not 127.03; bfloat16 computes in float32."""
    x2 = torch.full((1, 1), 127, dtype=torch.int8)
    half = op.antiquantised(x2, torch.tensor([0.1]).half(), torch.tensor([0.03]).half(), 0)
    assert half.item() == np.float16(np.float16(127) * np.float16(0.1))
    brain = op.antiquantised(x2, torch.tensor([0.25]).bfloat16(), torch.tensor([0.75]).bfloat16(), 0)
    assert brain.item() == torch.tensor(127.75 * 0.25).bfloat16().item()


@pytest.mark.parametrize("is_transposed", [False, True])
def test_int4_weights_are_unpacked_low_bits_first(is_transposed: bool) -> None:
    packed = ints(5, 3, limit=2**31, dtype=torch.int32)
    got = unpacked_int4(packed.t() if is_transposed else packed, 0 if is_transposed else 1)
    assert got.dtype is torch.int8
    wanted = nibbles(packed.numpy())
    assert np.array_equal(got.numpy(), wanted.T if is_transposed else wanted)


def test_packing_is_the_inverse() -> None:
    weight = torch.randint(-8, 8, (6, 24), generator=random())
    packed = nfg.pack_int4(weight)
    assert packed.dtype is torch.int32
    assert packed.shape == (6, 3)
    assert np.array_equal(nibbles(packed.numpy()), weight.numpy())
    assert torch.equal(unpacked_int4(packed, 1), weight.to(torch.int8))


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (torch.zeros(4, 8), "weight: expected integers (k, n) with n a multiple of 8, got torch.float32[4, 8]"),
        (torch.zeros(4, 9, dtype=torch.int8), "weight: expected integers (k, n) with n a multiple of 8"),
        (torch.full((2, 8), 8), "weight: expected values in [-8, 7], got values from 8 to 8"),
        ([1], "weight: expected integers (k, n) with n a multiple of 8, got list"),
    ],
)
def test_packing_refuses(weight: Any, text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        nfg.pack_int4(weight)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("k", "n", "is_transposed"),
    [(8, 16, True), (16, 1, True), (1, 8, False), (16, 8, False), (8, 1, True), (8, 0, True)],
)
def test_int4_with_one_word_on_an_axis(k: int, n: int, is_transposed: bool) -> None:
    """The strides do not tell which axis is packed; x1's k does."""
    weight = torch.randint(-8, 8, (k, n), generator=random())
    if is_transposed:
        packed = nfg.pack_int4(weight.t()).t() if n else torch.zeros(0, k // 8, dtype=torch.int32).t()
    else:
        packed = nfg.pack_int4(weight)
    scale = torch.full((1,), 0.125).half()
    x1 = floats(3, k, dtype=torch.float16)
    arguments, y, norm_out = call(torch.float16, n, x1=x1, x2=packed, antiquant_scale=scale)
    plain = arguments | {"x2": weight.to(torch.int8)}
    check(plain, y, norm_out, scale=4)
    other = op.decompose(**arguments, rank=Gathering())
    assert torch.equal(other[0], y)


# -- full quantisation ---------------------------------------------------------------------------------------


def test_products_of_a_long_k_are_exact() -> None:
    """Sums of 32767 products need 29 bits on the way to a small result: float32 would lose it."""
    half = torch.randint(64, 128, (32767, 8), generator=random()).to(torch.int8)
    tail = torch.arange(8, dtype=torch.int8).view(1, 8)
    x2 = torch.cat([half, -half.flip(0), tail])
    assert x2.size(0) == 65535
    x1 = torch.full((4, 65535), 127, dtype=torch.int8)
    arguments, y, norm_out = call(torch.bfloat16, 8, x1=x1, x2=x2, dequant_scale=torch.tensor([1 / 128]).bfloat16())
    check(arguments, y, norm_out, scale=2)
    rounded = (x1.float() @ x2.float())[0]
    assert not torch.equal(rounded, 127.0 * tail[0]), "the example shows nothing on a machine where this is exact"


def test_decompose_splits_a_long_k() -> None:
    k = 2 * op.EXACT_K + 5
    arguments, y, _ = call(
        torch.bfloat16, 8, x1=ints(3, k), x2=ints(k, 8, seed=1), dequant_scale=torch.ones(8).bfloat16()
    )
    other, _ = op.decompose(**arguments, rank=Gathering())
    assert torch.equal(y, other)


def test_the_int32_bias_is_scaled_too() -> None:
    bias = torch.tensor([1000, -1000], dtype=torch.int32)
    scale = torch.tensor([0.5, 0.25]).bfloat16()
    zero = torch.zeros(1, 8, dtype=torch.int8)
    residual, gamma = torch.zeros(1, 1, 2).bfloat16(), torch.ones(2).bfloat16()
    y, _ = OP(zero, ints(8, 2), residual, gamma, "0", bias=bias, dequant_scale=scale)
    assert y.flatten().tolist() == [500.0, -250.0]


@pytest.mark.parametrize("shape", [(1,), (16,), (1, 16)])
@pytest.mark.parametrize("unsigned", [False, True])
def test_packed_scales(shape: tuple[int, ...], unsigned: bool) -> None:
    scale = torch.rand(shape, generator=random()) * 0.002
    words = nfg.npu_trans_quant_param(scale)
    words = words.view(torch.uint64) if unsigned else words
    arguments, y, norm_out = call(torch.float16, 16, x1=ints(6, 48), x2=ints(48, 16, seed=1), dequant_scale=words)
    check(arguments, y, norm_out, scale=2)


def test_low_bits_of_a_word_are_no_part_of_the_scale() -> None:
    """The fixpipe reads 19 bits: a raw float32 in the low half is not what it multiplies by."""
    clean, dirty = torch.tensor([0x3F800000 | 1 << 46]), torch.tensor([0x3F801FFF | 1 << 46])
    results = [
        OP(ints(2, 8), ints(8, 4), torch.zeros(1, 2, 4).half(), torch.ones(4).half(), "0", dequant_scale=words)
        for words in (clean, dirty)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_an_offset_in_the_words_has_no_effect_and_is_said() -> None:
    scale, offset = torch.rand(4, generator=random()) * 0.01, torch.ones(4)
    residual, gamma = torch.zeros(1, 2, 4).half(), floats(4, dtype=torch.float16)
    arguments = {"x1": ints(2, 8), "x2": ints(8, 4), "residual": residual, "gamma": gamma}
    plain = OP(**arguments, hcom="0", dequant_scale=nfg.npu_trans_quant_param(scale))
    with pytest.warns(UserWarning, match=r"dequant_scale: expected words without offset \(bits 37 to 45\)"):
        other = OP(**arguments, hcom="0", dequant_scale=nfg.npu_trans_quant_param(scale, offset))
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_float16_overflow_is_infinite_as_without_fusion() -> None:
    x1, x2 = torch.full((1, 1024), 127, dtype=torch.int8), torch.full((1024, 2), 127, dtype=torch.int8)
    words = nfg.npu_trans_quant_param(torch.ones(1))
    y, norm_out = OP(x1, x2, torch.zeros(1, 1, 2).half(), torch.ones(2).half(), "0", dequant_scale=words)
    assert torch.isposinf(y).all()
    assert norm_out.isnan().all()


def test_group_size_without_weight_only_quantisation_is_said_once() -> None:
    """A31: the reference's own tiling test passes 10 there."""
    with pytest.warns(UserWarning, match="antiquant_group_size: expected 0 with full quantisation, got 10"):
        call(
            torch.bfloat16, 4, x1=ints(2, 64), x2=ints(64, 4), dequant_scale=torch.ones(4).bfloat16(),
            antiquant_group_size=10,
        )  # fmt: skip


# -- vectors ------------------------------------------------------------------------------------------------

HALF, BRAIN = torch.float16, torch.bfloat16


def full(m: int, k: int, n: int, *, is_transposed: bool, group_size: int = 0) -> dict[str, Any]:
    x2 = ints(n, k, seed=1).t() if is_transposed else ints(k, n, seed=1)
    scale = (torch.rand(n, generator=random()) * 1e-4).bfloat16()
    return {
        "x1": ints(m, k), "x2": x2, "bias": ints(n, limit=4096, dtype=torch.int32), "dequant_scale": scale,
        "antiquant_group_size": group_size,
    }  # fmt: skip


def weight_only(
    m: int, k: int, n: int, dtype: torch.dtype, *, int4: bool, is_transposed: bool = False, group_size: int = 0
) -> dict[str, Any]:
    stored = (n, k) if is_transposed else (k, n)
    if int4:
        x2 = ints(stored[0], stored[1] // 8, limit=2**31, dtype=torch.int32, seed=1)
    else:
        x2 = ints(*stored, seed=1)
    shape = (-(-k // group_size), n) if group_size else (n,)
    return {
        "x1": floats(m, k, dtype=dtype), "x2": x2.t() if is_transposed else x2, "bias": floats(n, dtype=dtype),
        "antiquant_scale": (torch.rand(shape, generator=random()) * 0.02).to(dtype),
        "antiquant_offset": ints(*shape, limit=8, dtype=dtype), "antiquant_group_size": group_size,
    }  # fmt: skip


def plain(m: int, k: int, n: int, dtype: torch.dtype) -> dict[str, Any]:
    x2 = (floats(k, n, dtype=torch.float32, seed=1) * k**-0.5).to(dtype)
    return {"x1": floats(m, k, dtype=dtype), "x2": x2, "bias": floats(n, dtype=dtype)}


VECTORS: dict[str, Any] = {
    "a8w8 4096x688x4096": (BRAIN, lambda: full(4096, 688, 4096, is_transposed=False)),
    "a8w8 4x4096x11008 transposed": (BRAIN, lambda: full(4, 4096, 11008, is_transposed=True)),
    "a8w8 4x4096x11008 group 10": (BRAIN, lambda: full(4, 4096, 11008, is_transposed=False, group_size=10)),
    "a16w8 4096x688x4096": (HALF, lambda: weight_only(4096, 688, 4096, HALF, int4=False)),
    "a16w4 4x4096x11008 transposed": (
        HALF, lambda: weight_only(4, 4096, 11008, HALF, int4=True, is_transposed=True)
    ),
    "a16w4 4x4096x11008 group 32": (BRAIN, lambda: weight_only(4, 4096, 11008, BRAIN, int4=True, group_size=32)),
    "a16w16 4x4096x11008": (BRAIN, lambda: plain(4, 4096, 11008, BRAIN)),
    "a16w16 9471x18x379": (BRAIN, lambda: plain(9471, 18, 379, BRAIN)),
}  # fmt: skip
"""The reference's own tiling cases."""
QUICK = ("a8w8 4x4096x11008 transposed", "a16w16 9471x18x379")


@pytest.mark.filterwarnings("ignore:.*antiquant_group_size")
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in VECTORS])
def test_valid_vector(name: str) -> None:
    dtype, make = VECTORS[name]
    arguments = make()
    n = arguments["x2"].size(1) * (8 if arguments["x2"].dtype is torch.int32 and arguments["x2"].is_contiguous() else 1)
    arguments, y, norm_out = call(dtype, n, **arguments, epsilon=0.1)
    # a weight that is rounded element by element errs by about sqrt(k) of its own roundings: larger k, larger scale
    check(arguments, y, norm_out, scale=32 if "antiquant_scale" in arguments else 4)


@pytest.mark.parametrize(
    ("x1", "x2", "residual"),
    [((16, 32), (32, 16), (1, 16, 16)), ((0, 32), (32, 16), (1, 0, 16)), ((16, 32), (32, 0), (1, 16, 0))],
)
def test_aclnn_vector(x1: tuple[int, ...], x2: tuple[int, ...], residual: tuple[int, ...]) -> None:
    shapes = {"x1": x1, "x2": x2, "residual": residual, "gamma": x2[1:], "bias": x2[1:]}
    arguments = {name: floats(*shape, dtype=HALF) for name, shape in shapes.items()}
    y, norm_out = OP(**arguments, hcom="0")
    check(arguments | {"epsilon": 1e-6}, y, norm_out, scale=4)


SHAPES = [
    (8, 1, 1), (3, 16, 2000), (3, 16, 2001), (3, 16, 2048), (2, 16, 12288), (2, 16, 12289), (5, 24, 37),
    (767, 8, 16), (768, 8, 16), (769, 8, 16),
]  # fmt: skip
"""Edges of the reference kernel's vector modes and of its cut in m."""


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_edge_of_a_kernel_mode(m: int, k: int, n: int, dtype: torch.dtype) -> None:
    arguments, y, norm_out = call(dtype, n, **plain(m, k, n, dtype))
    check(arguments, y, norm_out, scale=4)


def test_transposed_int8_may_have_a_long_n() -> None:
    """Only the axis stored last is limited to 65535."""
    arguments, y, norm_out = call(
        BRAIN, 70000, x1=ints(1, 4), x2=ints(70000, 4, seed=1).t(), dequant_scale=torch.ones(1).bfloat16()
    )
    check(arguments, y, norm_out, scale=2)


def test_epsilon_matters_on_tiny_inputs() -> None:
    arguments = {"x1": torch.zeros(1, 2).half(), "x2": torch.zeros(2, 4).half(), "gamma": torch.ones(4).half()}
    residual = torch.full((1, 1, 4), 1e-3).half()
    norms = [OP(**arguments, residual=residual, hcom="0", epsilon=eps)[1] for eps in (1e-5, 1e-6)]
    for norm, eps in zip(norms, (1e-5, 1e-6), strict=True):
        value = float(residual[0, 0, 0])
        assert_close(norm, torch.full((1, 1, 4), value / (value**2 + eps) ** 0.5).double())
    assert not torch.equal(*norms)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_go_through(value: float) -> None:
    x1 = torch.zeros(2, 2).half()
    x1[0, 0] = value
    y, norm_out = OP(x1, torch.ones(2, 4).half(), torch.ones(1, 2, 4).half(), torch.ones(4).half(), "0")
    assert torch.equal(y[0, 0], torch.full((4,), value).half()) or (y[0, 0].isnan().all() and np.isnan(value))
    assert norm_out[0, 0].isnan().all()
    assert y[0, 1].isfinite().all()


def test_words_that_do_not_lie_side_by_side_unpack_the_same() -> None:
    words = ints(4, 6, limit=2**31 - 1, dtype=torch.int32)
    wide = torch.stack([words, words + 1], -1).flatten(1)[:, ::2]
    assert not wide.is_contiguous() and torch.equal(wide, words)
    assert torch.equal(unpacked_int4(wide, 1), unpacked_int4(words, 1))
    assert torch.equal(unpacked_int4(words.t(), 0), unpacked_int4(words, 1).t())
    assert torch.equal(unpacked_int4(wide.t(), 0), unpacked_int4(words, 1).t())
