"""ascend_flash_attention (requirement 003): both call forms, three layouts, every mask, forward and backward."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npu_fused_graph import ascend_flash_attention
from npu_fused_graph.errors import InvalidArgumentError, _said
from tests.ops.attention_oracle import LIMITS, exact, heads_first, laid_out, relative_error

S, N, D = 256, 2, 16
LAYOUTS = ("BNSD", "BSH", "SBH")


@pytest.fixture(autouse=True)
def _every_warning_anew() -> None:
    _said.clear()


def example_mask(length: int, next_tokens: int = 1, pre_tokens: int = 65536) -> Tensor:
    """As the requirement makes it."""
    mask = np.tri(length, k=-next_tokens) + np.tri(length, k=-pre_tokens).transpose()
    return torch.from_numpy(mask).half()


def some(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0, by: float = 5.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return ((torch.rand(shape, generator=generator) - 0.5) * by).to(dtype)


def three(*shape: int, dtype: torch.dtype = torch.float16) -> list[Tensor]:
    return [some(*shape, dtype=dtype, seed=seed) for seed in (1, 2, 3)]


def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **attrs: Any) -> tuple[Tensor, Tensor]:
    """The operator's two results. mask: by query."""
    op = torch.ops.npu_fused_graph.flash_attention_score
    attrs = {"head_num": q.shape[1], "io_layout": "BNSD", **attrs}
    result: tuple[Tensor, Tensor] = op(q, k, v, None, None, mask, None, **attrs)
    return result


# -- closed forms -------------------------------------------------------------------------------------------------


def test_v1_constant_values() -> None:
    q, k, _ = three(1, N, S, D)
    out = ascend_flash_attention(q, k, torch.full_like(q, 3.0), head_num=N)
    assert torch.equal(out, torch.full_like(q, 3.0))


def test_v2_no_scores() -> None:
    _, k, v = three(1, N, S, D)
    zeros = torch.zeros_like(k)
    out, lse = kernel(zeros, k, v)
    wanted = v.double().mean(2, keepdim=True).expand_as(v)
    assert torch.allclose(out.double(), wanted, atol=1e-3)
    assert torch.allclose(lse, torch.full_like(lse, math.log(S)), atol=1e-4)


def test_v3_the_masks_rows_are_keys() -> None:
    _, k, v = three(1, N, S, D)
    zeros, mask = torch.zeros_like(k), example_mask(S)
    out = ascend_flash_attention(zeros, k, v, mask, head_num=N, pre_tokens=65536)
    assert torch.equal(out[:, :, 0], v[:, :, 0])
    assert torch.allclose(out[:, :, -1].double(), v.double().mean(2), atol=1e-3)
    _, lse = kernel(zeros, k, v, mask.t())
    assert torch.allclose(lse[0, 0], torch.arange(1.0, S + 1).log(), atol=1e-4)
    by_query = {"mask_layout": "qk", "head_num": N}
    out = ascend_flash_attention(zeros, k, v, mask, **by_query, pre_tokens=S + 1, next_tokens=S + 1)
    assert torch.allclose(out[:, :, 0].double(), v.double().mean(2), atol=1e-3)
    assert torch.equal(out[:, :, -1], v[:, :, -1])
    assert torch.equal(ascend_flash_attention(zeros, k, v, mask, **by_query), v), "only the diagonal is left"


def test_v4_a_band_of_one() -> None:
    _, k, v = three(1, N, S, D)
    mask = torch.from_numpy(np.tri(S, k=-1) + np.tri(S, k=-1).T).half()
    out = ascend_flash_attention(k, k, v, mask, head_num=N, pre_tokens=1, next_tokens=1)
    assert torch.equal(out, v)


@pytest.mark.parametrize("has_limits_in_mask", [True, False])
def test_v5_a_window(has_limits_in_mask: bool) -> None:
    _, k, v = three(1, N, S, D)
    mask = example_mask(S, 3, 2) if has_limits_in_mask else torch.zeros(S, S).half()
    out = ascend_flash_attention(torch.zeros_like(k), k, v, mask, head_num=N, pre_tokens=2, next_tokens=3)
    wanted = torch.stack([v[:, :, max(0, i - 1) : i + 3].double().mean(2) for i in range(S)], 2)
    assert torch.allclose(out.double(), wanted, atol=2e-3)


@pytest.mark.parametrize(
    "mask",
    [
        example_mask(S) * 2, example_mask(S) * 0.5, example_mask(S).bool(), (example_mask(S) * 255).to(torch.uint8),
        example_mask(S).bfloat16(), example_mask(S).float() * -1e-20, example_mask(S)[None, None],
    ],
    ids=["2", "half", "bool", "255", "bfloat16", "tiny", "4-D"],
)  # fmt: skip
def test_v6_whatever_is_not_0_hides(mask: Tensor) -> None:
    q, k, v = three(1, N, S, D)
    wanted = ascend_flash_attention(q, k, v, example_mask(S), head_num=N)
    assert torch.equal(ascend_flash_attention(q, k, v, mask, head_num=N), wanted)


def gradients(out: Tensor, dy: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, leaves, dy)


def leaves_of(*tensors: Tensor) -> list[Tensor]:
    return [x.clone().requires_grad_() for x in tensors]


@pytest.mark.parametrize(
    ("shape", "head_dim"), [((1, 2, 512), 128), pytest.param((1, 32, 2048), 128, marks=pytest.mark.slow)]
)
def test_v7_the_requirements_example(shape: tuple[int, int, int], head_dim: int) -> None:
    """Its arguments in both forms, against float64 head by head."""
    heads, length = shape[1:]
    q, k, v = leaves_of(*three(*shape, head_dim))
    mask, dy = example_mask(length), some(*shape, head_dim, seed=4, by=1.0)
    out = ascend_flash_attention(q, k, v, mask, None, None, 0.088, heads, 0, 1.0, 65536, 1, 0, -1)
    named = ascend_flash_attention(q, k, v, mask, None, 0.088, 1.0, heads, "BNSD", 1.0, 65536, 1, 0)
    assert torch.equal(out, named)
    got = [out, *gradients(out, dy, q, k, v)]
    errors = []
    for n in range(heads):
        wide = leaves_of(*(x.detach()[:, n : n + 1].double() for x in (q, k, v)))
        wanted = exact(*wide, 0.088, mask=mask, pre=65536).out
        pairs = zip(got, [wanted, *gradients(wanted, dy[:, n : n + 1].double(), *wide)], strict=True)
        errors += [relative_error(x[:, n : n + 1], y.detach()) for x, y in pairs]
    assert max(errors) < LIMITS[torch.float16]


def test_v8_layouts_are_one_calculation() -> None:
    q, k, v = three(2, 3, S, 48)
    dy, mask = some(2, 3, S, 48, seed=4), example_mask(S)
    results = {}
    for number, layout in enumerate(LAYOUTS):
        inputs = leaves_of(*(laid_out(x, layout) for x in (q, k, v)))
        out = ascend_flash_attention(*inputs, mask, None, 0.1, 1.0, 3, layout)
        numbered = ascend_flash_attention(*inputs, mask, None, None, 0.1, 3, number, 1.0, 2**31 - 1, 1)
        assert torch.equal(out, numbered)
        assert torch.equal(out, ascend_flash_attention(*inputs, mask, None, 0.1, 1.0, 3, layout.lower()))
        assert out.is_contiguous()
        found = [out, *gradients(out, laid_out(dy, layout), *inputs)]
        assert all(x.is_contiguous() for x in found)
        results[layout] = [heads_first(x, layout, 3) for x in found]
    for layout in LAYOUTS[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results["BNSD"], results[layout], strict=True)), layout


@pytest.mark.parametrize("form", ["row", "3-D", "expanded", "one head"])
def test_v9_alibi_is_added_and_not_scaled(form: str) -> None:
    _, k, v = three(1, N, S, D)
    row = torch.arange(1.0, S + 1).log().half()
    alibi = {
        "row": row.expand(1, N, 1, S), "3-D": row.expand(1, N, S), "expanded": row.expand(1, N, S, S),
        "one head": row.expand(1, 1, 1, S),
    }[form]  # fmt: skip
    weights = torch.softmax(row.double(), 0)
    wanted = (weights @ v.double()).unsqueeze(2).expand_as(v)
    for scale in (1.0, 0.1):
        out = ascend_flash_attention(torch.zeros_like(k), k, v, None, alibi, scale, 1.0, N)
        assert torch.allclose(out.double(), wanted, atol=1e-3)


def test_v10_q_scale_multiplies() -> None:
    q, k, v = three(1, N, S, D)
    wanted = ascend_flash_attention(q, k, v, None, None, 1.0, 1.0, N)
    assert torch.equal(ascend_flash_attention(q, k, v, None, None, 0.5, 2.0, N), wanted)


def test_v11_without_a_mask_all_is_seen() -> None:
    q, k, v = three(1, N, S, D)
    wanted = exact(q, k, v, 0.3).out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = ascend_flash_attention(q, k, v, None, None, 0.3, 1.0, N)
    assert relative_error(out, wanted) < LIMITS[torch.float16]
    with pytest.warns(UserWarning, match=r"pre_tokens, next_tokens: expected an atten_mask beside them, got none"):
        assert torch.equal(ascend_flash_attention(q, k, v, None, None, 0.3, 1.0, N, next_tokens=1), out)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert torch.equal(ascend_flash_attention(q, k, v, None, None, None, 0.3, N, 0, 1.0, 5, 1), out)


@pytest.mark.parametrize("has_alibi", [False, True])
def test_v12_a_query_that_sees_nothing(has_alibi: bool) -> None:
    r = 7
    mask = example_mask(S)
    mask[:, r] = 1
    q, k, v = leaves_of(*three(1, N, S, D))
    alibi = some(1, N, 1, S, seed=5) if has_alibi else None
    out = ascend_flash_attention(q, k, v, mask, alibi, 0.3, 1.0, N)
    found = gradients(out, some(1, N, S, D, seed=4), q, k, v)
    assert not out[:, :, r].any()
    assert not found[0][:, :, r].any()
    assert all(torch.isfinite(x).all() for x in (out, *found))
    wide = leaves_of(*(x.detach().double() for x in (q, k, v)))
    wanted = exact(*wide, 0.3, mask=mask, alibi=alibi).out
    for got, want in zip(
        (out, *found), (wanted, *gradients(wanted, some(1, N, S, D, seed=4).double(), *wide)), strict=True
    ):
        assert relative_error(got, want.detach()) < LIMITS[torch.float16]
    _, lse = kernel(q.detach(), k.detach(), v.detach(), mask.t())
    assert (lse[:, :, r] == -torch.inf).all()


def test_v13_gradients_in_closed_form() -> None:
    v, dy = some(1, N, S, D), some(1, N, S, D, seed=4)
    zeros = torch.zeros_like(v)
    q, k, v = leaves_of(zeros, zeros, v)
    out = ascend_flash_attention(q, k, v, example_mask(S), head_num=N)
    dq, dk, dv = gradients(out, dy, q, k, v)
    shares = dy.double() / torch.arange(1.0, S + 1).double()[:, None]
    wanted = shares.flip(2).cumsum(2).flip(2)
    assert torch.allclose(dv.double(), wanted, rtol=2e-3, atol=2e-3)
    assert not dq.any()
    assert not dk.any()


# -- dropout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_v14_given_bits(layout: str) -> None:
    """Forward and backward drop the pairs that the bits name, in every layout in one order."""
    b, probability = 2, 0.5
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 256, (b * N * S * S // 8 + 32,), generator=generator).to(torch.uint8)
    kept = np.unpackbits(bits.numpy(), bitorder="little")[: b * N * S * S]
    keep = torch.from_numpy(kept).view(b, N, S, S).double()
    q, k, v = three(b, N, S, D)
    dy, mask = some(b, N, S, D, seed=4), example_mask(S)
    inputs = leaves_of(*(laid_out(x, layout) for x in (q, k, v)))
    number = LAYOUTS.index(layout)
    out = ascend_flash_attention(*inputs, mask, None, bits, 0.3, N, number, probability, 2**31 - 1, 1)
    found = [heads_first(x, layout, N) for x in (out, *gradients(out, laid_out(dy, layout), *inputs))]
    wide = leaves_of(*(x.double() for x in (q, k, v)))
    wanted = exact(*wide, 0.3, mask=mask, keep=keep, keep_prob=probability).out
    for got, want in zip(found, (wanted, *gradients(wanted, dy.double(), *wide)), strict=True):
        assert relative_error(got, want.detach()) < LIMITS[torch.float16]


def test_v14_bits_of_torchs_generator() -> None:
    q, k, _ = three(1, N, S, D)
    identity = torch.eye(S).half()[None, None].expand(1, N, S, S)[..., :128].contiguous()  # out = the dropped weights
    q, k = (torch.nn.functional.pad(x, (0, 128 - D)) for x in (q, k))

    def weights(seed: int, keep_prob: float = 0.8) -> Tensor:
        torch.manual_seed(seed)
        return ascend_flash_attention(q, k, identity, scale_value=0.01, head_num=N, keep_prob=keep_prob)

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))
    plain = weights(0, 1.0)
    share = float((first != 0).double().mean())
    assert abs(share - 0.8) < 0.01
    assert not torch.equal(first[:, 0] != 0, first[:, 1] != 0), "heads have nothing in common"
    assert torch.allclose(first[first != 0].double(), plain[first != 0].double() / 0.8, rtol=5e-3)
    mean = sum(weights(seed).double() for seed in range(30)) / 30
    assert abs(float((mean - plain.double()).mean() / plain.double().mean())) < 0.01


def test_v14_backward_draws_the_same_pairs() -> None:
    q, k, v = leaves_of(*three(1, N, 512, D))
    torch.manual_seed(3)
    out = ascend_flash_attention(q, k, v, example_mask(512), head_num=N, keep_prob=0.7, scale_value=0.3)
    dv = gradients(out, torch.ones_like(out), q, k, v)[2]
    # the operator is linear in v: out . dy = v . dv
    total, by_gradient = out.detach().double(), v.detach().double() * dv.double()
    assert abs(float(total.sum() - by_gradient.sum())) < 1e-3 * float(total.abs().sum())


# -- shapes and numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("length", "head_dim"),
    [(256, 16), (512, 48), (256, 64), (256, 80), (512, 128), pytest.param(4096, 64, marks=pytest.mark.slow)],
)
def test_v15_shapes(length: int, head_dim: int, dtype: torch.dtype) -> None:
    b = 2 if length < 4096 else 1
    q, k, v = three(b, N, length, head_dim, dtype=dtype)
    dy, mask = some(b, N, length, head_dim, seed=4, dtype=dtype), example_mask(length)
    inputs = leaves_of(q.mT.contiguous().mT, k.transpose(1, 2).contiguous().transpose(1, 2), v)
    out = ascend_flash_attention(*inputs, mask, head_num=N, scale_value=0.1)
    found = [out, *gradients(out, dy, *inputs)]
    wide = leaves_of(*(x.double() for x in (q, k, v)))
    wanted = exact(*wide, 0.1, mask=mask).out
    for got, want in zip(found, (wanted, *gradients(wanted, dy.double(), *wide)), strict=True):
        assert got.dtype is dtype
        assert got.is_contiguous()
        assert relative_error(got, want.detach()) < LIMITS[dtype]


def test_no_batch_is_no_attention() -> None:
    empty = torch.empty(0, N, S, D, dtype=torch.float16, requires_grad=True)
    out = ascend_flash_attention(empty, empty, empty, example_mask(S), head_num=N)
    assert out.shape == (0, N, S, D)
    assert gradients(out, torch.empty_like(out), empty)[0].shape == (0, N, S, D)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_v17_large_scores(dtype: torch.dtype) -> None:
    q, k, v = three(1, N, S, D, dtype=dtype)
    out = ascend_flash_attention(q * 40, k * 40, v, example_mask(S), head_num=N)
    assert torch.isfinite(out).all()
    best = exact(q * 40, k * 40, v, 1.0, mask=example_mask(S)).weights.argmax(-1)
    wanted = torch.gather(v, 2, best[..., None].expand(-1, -1, -1, D))
    assert float(((out - wanted).abs() < 1e-2).double().mean()) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("by", "limit"), [(1e-4, 1e-3), (1.0, 1e-3)])
def test_small_gradients_of_long_flat_attention_keep_their_digits(by: float, limit: float) -> None:
    """float16 weights of about 1 / 4096 times such gradients lie below its smallest numbers."""
    length, d = 4096, 64
    q, k, v = leaves_of(*(x * 0.1 for x in three(1, 1, length, d)))
    dy = some(1, 1, length, d, seed=4, by=2 * by)
    out = ascend_flash_attention(q, k, v, scale_value=0.125)
    found = gradients(out, dy, q, k, v)
    wide = leaves_of(*(x.detach().double() for x in (q, k, v)))
    wanted = exact(*wide, 0.125).out
    exact_gradients = gradients(wanted, dy.double(), *wide)
    # what float16 can hold of them at all
    for got, want in zip(found, exact_gradients, strict=True):
        floor = relative_error(want.to(torch.float16), want)
        assert relative_error(got, want) < max(limit, 1.5 * floor)


def test_the_two_modes_are_alike_here() -> None:
    q, k, v = three(1, N, S, D)
    wanted = ascend_flash_attention(q, k, v, head_num=N)
    assert torch.equal(ascend_flash_attention(q, k, v, head_num=N, precise_mode=1), wanted)


# -- autograd -----------------------------------------------------------------------------------------------------


def test_what_backward_keeps() -> None:
    """Inputs, result, and one number for each query; no mask of its own, no weights."""
    q, k, v = leaves_of(*three(1, N, S, D))
    mask, saved = example_mask(S), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out = ascend_flash_attention(q, k, v, mask, head_num=N, keep_prob=0.5)
    storages = {x.untyped_storage().data_ptr() for x in (q, k, v, out, mask)}
    others = [x for x in saved if x.untyped_storage().data_ptr() not in storages]
    assert sorted(tuple(x.shape) for x in others) == [(1, N, S), (2,)]


def test_only_what_needs_a_gradient_gets_one() -> None:
    q, k, v = three(1, N, S, D)
    v.requires_grad_()
    out = ascend_flash_attention(q, k, v, example_mask(S), head_num=N)
    out.backward(torch.ones_like(out))
    assert v.grad is not None
    assert q.grad is None


def test_there_is_no_second_derivative() -> None:
    q, k, v = leaves_of(*three(1, N, S, D))
    out = ascend_flash_attention(q, k, v, head_num=N)
    with pytest.raises(InvalidArgumentError, match="a tensor that needs no gradient"):
        torch.autograd.grad(out, (q,), torch.ones_like(out), create_graph=True)


def test_e16_a_result_is_no_loss() -> None:
    q, k, v = leaves_of(*three(1, N, S, D))
    with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
        ascend_flash_attention(q, k, v, head_num=N).backward()


# -- wrong calls --------------------------------------------------------------------------------------------------

Q = some(1, N, S, D)
BSH = some(1, S, N * D)
M = example_mask(S)
WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "E1": ((Q.float(),) * 3, {}, "query: expected dtype float16 or bfloat16, got float32."),
    "E2": ((Q, Q.bfloat16(), Q), {}, "key: expected dtype float16, as query has, got bfloat16."),
    "E3 144": ((some(1, N, S, 144),) * 3, {}, "query: expected a head_dim of 16, 32, ... or 128, got 144."),
    "E3 40": ((some(1, N, S, 40),) * 3, {}, "query: expected a head_dim of 16, 32, ... or 128, got 40."),
    "E3 0": ((some(1, N, S, 0),) * 3, {}, "query: expected a head_dim of 16, 32, ... or 128, got 0."),
    "E4": ((some(1, N, 300, D),) * 3, {}, "a sequence length that is a positive multiple of 256, got 300."),
    "E4 0": ((some(1, N, 0, D),) * 3, {}, "a sequence length that is a positive multiple of 256, got 0."),
    "E5": ((Q, Q, Q), {"io_layout": "BSND"}, "io_layout: expected BNSD, BSH or SBH, got 'BSND'."),
    "E5 3": (
        (Q, Q, Q, None, None, None, 1.0, N, 3), {"head_num": None},
        "io_layout: expected 0, 1 or 2 (BNSD, BSH, SBH)",
    ),
    "E6": ((BSH,) * 3, {}, "query: expected 4 axes for io_layout BNSD, got 3."),
    "E6 4": ((Q,) * 3, {"io_layout": "BSH"}, "query: expected 3 axes for io_layout BSH, got 4."),
    "E7": ((Q,) * 3, {"head_num": 3}, "head_num: expected 2, the N axis of query, got 3."),
    "E7 BSH": ((BSH,) * 3, {"io_layout": "BSH", "head_num": 3}, "head_num: expected a divisor of H = 32, got 3."),
    "E7 0": ((Q,) * 3, {"head_num": 0}, "head_num: expected a positive number, got 0."),
    "E8": ((Q, Q[:, :1], Q), {}, "key: expected shape [1, 2, 256, 16], as query has, got shape [1, 1, 256, 16]."),
    "E9 shape": ((Q, Q, Q, torch.zeros(S, S + 1)), {}, "atten_mask: expected shape [256, 256]"),
    "E9 3-D": ((Q, Q, Q, M[None]), {}, "atten_mask: expected shape (S, S), got shape [1, 256, 256]."),
    "E9 batch": ((Q, Q, Q, M.expand(2, 1, S, S)), {}, "atten_mask: expected shape (S, S), got shape [2, 1, 256, 256]."),
    "E9 dtype": (
        (Q, Q, Q, M.long()), {},
        "atten_mask: expected dtype bool, uint8, float16, bfloat16 or float32, got int64.",
    ),
    "E10 shape": (
        (Q, Q, Q, M, Q.new_zeros(1, N, S, S - 1)), {},
        "alibi_mask: expected shape [1 or 1, 2 or 1, 256 or 1, 256]",
    ),
    "E10 dtype": (
        (Q, Q, Q, M, torch.zeros(1, N, S, S)), {},
        "alibi_mask: expected dtype float16, as query has, got float32.",
    ),
    "E11 0": ((Q, Q, Q), {"keep_prob": 0.0}, "keep_prob: expected a number in (0, 1], got 0.0."),
    "E11 -": ((Q, Q, Q), {"keep_prob": -0.1}, "keep_prob: expected a number in (0, 1], got -0.1."),
    "E11 1.5": ((Q, Q, Q), {"keep_prob": 1.5}, "keep_prob: expected a number in (0, 1], got 1.5."),
    "E11 nan": ((Q, Q, Q), {"keep_prob": math.nan}, "keep_prob: expected a number in (0, 1], got nan."),
    "E12 pre": ((Q, Q, Q, M), {"pre_tokens": 0}, "pre_tokens: expected at least 1: a query sees itself, got 0."),
    "E12 next": ((Q, Q, Q, M), {"next_tokens": -3}, "next_tokens: expected at least 1: a query sees itself, got -3."),
    "E12 float": ((Q, Q, Q, M), {"next_tokens": 1.5}, "next_tokens: expected an int, got 1.5."),
    "E13": ((Q, Q, Q), {"precise_mode": 2}, "precise_mode: expected 0 or 1, got 2."),
    "E13 groups": ((Q, Q, Q), {"groups": 4}, "groups: expected -1, got 4."),
    "E14 dtype": (
        (Q, Q, Q), {"drop_mask": torch.zeros(N * S * S // 8), "keep_prob": 0.5},
        "drop_mask: expected uint8 of shape [at least 16384], a bit for each score, got float32",
    ),
    "E14 short": (
        (Q, Q, Q), {"drop_mask": torch.zeros(N * S * S // 8 - 1, dtype=torch.uint8), "keep_prob": 0.5},
        "drop_mask: expected uint8 of shape [at least 16384]",
    ),
    "E15": ((Q, Q.to("meta"), Q), {}, "key: expected a tensor on cpu, as query is, got meta."),
    "E17 name": (
        (Q, Q, Q, M, None, None, 1.0, N, "BNSD"), {"head_num": None},
        "in the call with 14 arguments, got 'BNSD'.",
    ),
    "E17 number": (
        (Q, Q, Q, M, None, 1.0, 1.0, N, 0), {"head_num": None},
        "io_layout: expected BNSD, BSH or SBH, got 0. The call",
    ),
    "scale": ((Q, Q, Q), {"scale_value": math.inf}, "scale_value: expected a finite number, got inf."),
    "q_scale": ((Q, Q, Q), {"q_scale": math.nan}, "q_scale: expected a finite number, got nan."),
    "q_scale kind": ((Q, Q, Q), {"q_scale": "1"}, "q_scale: expected a number, got '1'."),
    "many": ((Q, Q, Q, *[None] * 12), {"head_num": None}, "arguments: expected at most 14, got 15."),
    "twice": ((Q, Q, Q, M), {"atten_mask": M}, "atten_mask: expected only once, got a keyword argument."),
    "unknown": ((Q, Q, Q), {"causal": True}, "causal: expected none, or one of atten_mask"),
    "mask_layout": ((Q, Q, Q, M), {"mask_layout": "bhqk"}, "mask_layout: expected 'kq' or 'qk', got 'bhqk'."),
    "no tensor": ((Q, None, Q), {}, "key: expected a tensor, got NoneType."),
    "mask kind": ((Q, Q, Q, [1]), {}, "atten_mask: expected a tensor, got list."),
    "head_num kind": ((Q, Q, Q), {"head_num": 2.0}, "head_num: expected an int, got 2.0."),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_calls(name: str) -> None:
    arguments, keywords, text = WRONG[name]
    keywords = {"head_num": N, **keywords}
    if keywords["head_num"] is None:
        del keywords["head_num"]
    with pytest.raises(InvalidArgumentError) as caught:
        ascend_flash_attention(*arguments, **keywords)
    assert str(caught.value).startswith("[flash_attention_score] ")
    assert text in str(caught.value)


@pytest.mark.parametrize("name", [n for n in WRONG if n not in ("E15", "no tensor", "mask kind")])
def test_the_same_text_while_a_graph_is_traced(name: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    arguments, keywords, text = WRONG[name]
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in arguments]
        named = {k: mode.from_tensor(x) if isinstance(x, Tensor) else x for k, x in keywords.items()}
        named = {k: x for k, x in {"head_num": N, **named}.items() if x is not None}
        with pytest.raises(InvalidArgumentError) as caught:
            ascend_flash_attention(*fakes, **named)
    assert text in str(caught.value)


def test_e10_alibi_gets_no_gradient() -> None:
    alibi = some(1, N, 1, S).requires_grad_()
    with pytest.raises(InvalidArgumentError, match=r"alibi_mask: expected a tensor that needs no gradient"):
        ascend_flash_attention(Q, Q, Q, M, alibi, head_num=N)
    with torch.no_grad():
        ascend_flash_attention(Q, Q, Q, M, alibi, head_num=N)


def test_e14_a_mask_of_no_dropout_is_ignored_aloud() -> None:
    bits = torch.zeros(N * S * S // 8, dtype=torch.uint8)
    with pytest.warns(UserWarning, match=r"drop_mask: expected none with keep_prob 1, got one\. It is ignored"):
        out = ascend_flash_attention(Q, Q, Q, drop_mask=bits, head_num=N)
    assert torch.equal(out, ascend_flash_attention(Q, Q, Q, head_num=N))


# -- what torch demands of an operator ----------------------------------------------------------------------------

SEED = torch.tensor([3, 5])
PACKED = torch.full((N * S * S // 8,), 0b10110101, dtype=torch.uint8)
CHECKED: dict[str, tuple[str, list[Tensor | None], dict[str, Any]]] = {
    "plain": ("BNSD", [None, None, None, None], {}),
    "mask by query": ("BSH", [None, None, M.t(), None], {"next_tockens": 0}),
    "everything": ("SBH", [some(1, N, 1, S, seed=5), PACKED, M.bool(), None], {"keep_prob": 0.6, "pre_tockens": 9}),
    "drawn": ("BNSD", [None, None, M[None, None], SEED], {"keep_prob": 0.6}),
}  # fmt: skip


EVERY_CHECK = [n if n in ("everything", "drawn") else pytest.param(n, marks=pytest.mark.slow) for n in CHECKED]


@pytest.mark.parametrize("name", EVERY_CHECK)
def test_opcheck(name: str) -> None:
    layout, masks, attrs = CHECKED[name]
    inputs = [laid_out(x, layout).requires_grad_() for x in three(1, N, S, D)]
    attrs = {"head_num": N, "io_layout": layout, "scale_value": 0.3, **attrs}
    torch.library.opcheck(torch.ops.npu_fused_graph.flash_attention_score.default, (*inputs, *masks), attrs)


@pytest.mark.parametrize("name", EVERY_CHECK)
def test_opcheck_of_the_gradient(name: str) -> None:
    """It has none of its own."""
    layout, masks, attrs = CHECKED[name]
    inputs = [laid_out(x, layout) for x in (*three(1, N, S, D), some(1, N, S, D, seed=4))]
    attrs = {"head_num": N, "io_layout": layout, "scale_value": 0.3, **attrs}
    out, lse = torch.ops.npu_fused_graph.flash_attention_score(*inputs[:3], *masks, **attrs)
    op = torch.ops.npu_fused_graph.flash_attention_score_grad.default
    torch.library.opcheck(op, (*inputs, lse, out, *masks), attrs)
