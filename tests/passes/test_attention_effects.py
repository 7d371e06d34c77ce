"""Attention among writes, detached values and transforms: what a model does besides attending stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import config

from tests.passes.test_attention import error, fused, qkv, verdicts

HALF = torch.float16
SHAPE = (1, 2, 256, 16)


def attend(x: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(x, -1) @ v


def zero() -> Tensor:
    return torch.zeros((), dtype=HALF)


def least() -> Tensor:
    return torch.tensor(-math.inf, dtype=HALF)


# -- writes -------------------------------------------------------------------------------------------------------


def condition_turned(q: Tensor, k: Tensor, v: Tensor, c: Tensor) -> Tensor:
    mask = torch.where(c, zero(), -math.inf)
    out = attend(q @ k.mT * 0.25 + mask, v)
    c.logical_not_()
    return out + attend(q @ k.mT * 0.25 + mask, v)


def condition_lost(q: Tensor, k: Tensor, v: Tensor, c: Tensor) -> Tensor:
    mask = torch.where(c, zero(), -math.inf)
    c.fill_(True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def added_to_a_mask(q: Tensor, k: Tensor, v: Tensor, c: Tensor, m: Tensor) -> Tensor:
    m += q @ k.mT
    return attend(m, v)


def added_into_a_mask(q: Tensor, k: Tensor, v: Tensor, c: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    scores = m.add_(q @ k.mT)
    return attend(scores, v), m * 2


def result_told_where(q: Tensor, k: Tensor, v: Tensor, c: Tensor, m: Tensor, o: Tensor) -> Tensor:
    torch.matmul(torch.softmax(q @ k.mT * 0.25, -1), v, out=o)
    return o * 1


def scores_told_where(q: Tensor, k: Tensor, v: Tensor, c: Tensor, m: Tensor) -> Tensor:
    return attend(torch.mul(torch.matmul(q, k.mT, out=m), 0.25), v)


def scaled_told_where(q: Tensor, k: Tensor, v: Tensor, c: Tensor, m: Tensor) -> Tensor:
    return attend(torch.mul(q @ k.mT, 0.25, out=m), v)


def mask_told_where(q: Tensor, k: Tensor, v: Tensor, c: Tensor, m: Tensor) -> Tensor:
    return attend(q @ k.mT * 0.25 + torch.where(c, zero(), least(), out=m[0, 0]), v)


def relu_by_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT * 0.25
    F.relu(k, True)
    return attend(scores, v)


def constant_written_by_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.full((256, 256), -60000.0, dtype=HALF).triu(1)
    F.relu6(mask, True)
    return attend(q @ k.mT * 0.25 + mask, v)


def cache_written_between(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = torch.softmax(q @ k.mT, -1)
    v.index_copy_(2, torch.arange(4), v[:, :, 4:8] * 2)
    return p @ v


WRITES = [
    condition_turned, condition_lost, added_to_a_mask, added_into_a_mask, result_told_where, scores_told_where,
    scaled_told_where, mask_told_where, relu_by_place, constant_written_by_place, cache_written_between,
]  # fmt: skip


def some_inputs(dtype: torch.dtype = HALF) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    c = (torch.rand(256, 256, generator=generator) > 0.5) | torch.eye(256, dtype=torch.bool)
    m = torch.randn(1, 2, 256, 256, generator=generator)
    return [*qkv(*SHAPE, dtype=dtype), c, m.to(dtype), torch.zeros(SHAPE, dtype=dtype)]


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("model", WRITES, ids=lambda f: f.__name__)
def test_what_is_written_is_written(model: Callable[..., Any]) -> None:
    count = model.__code__.co_argcount
    eager, compiled = ([x.clone() for x in some_inputs()[:count]] for _ in range(2))
    wanted = model(*eager)
    got, found, _ = fused(model, *compiled)
    assert found
    results = [x if isinstance(x, tuple) else (x,) for x in (got, wanted)]
    for one, other in zip((*results[0], *compiled), (*results[1], *eager), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=2e-2, rtol=1e-2)


# -- gradients ----------------------------------------------------------------------------------------------------


def detached_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q @ k.mT * 0.25).detach(), v)


def detached_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * 0.25, -1).detach() @ v


def key_without_gradient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        swapped = k.transpose(-1, -2)
    return attend(q @ swapped * 0.25, v)


def added_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = attend(q @ k.mT * 0.25, v)
    out += v
    return out


def added_through_a_view(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = attend(q @ k.mT * 0.25, v)
    out.transpose(1, 2).add_(1.0)
    return out * 2


@pytest.mark.parametrize(
    "model", [detached_scores, detached_weights, key_without_gradient, added_in_place, added_through_a_view]
)
def test_gradients_go_where_eager_sends_them(model: Callable[..., Tensor]) -> None:
    results = []
    for dtype, run in ((HALF, lambda *x: fused(model, *x, grad=True)[0]), (torch.float32, model)):
        inputs = [x.to(dtype).detach().requires_grad_() for x in qkv(*SHAPE)]
        out = run(*inputs)
        out.backward(torch.ones_like(out))
        results.append([out.detach(), *(x.grad for x in inputs)])
    for got, wanted in zip(*results, strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            assert (got.float() - wanted).abs().max() < 2e-2


# -- casts and shapes ---------------------------------------------------------------------------------------------


def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q @ k.mT).to(torch.int32).to(q.dtype), v)


def chosen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * 20, -1).to(torch.bool).to(q.dtype) @ v


def quantised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend((q @ k.mT * 0.25).to(torch.float8_e4m3fn).to(q.dtype), v)


def values_of_another_batch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q[:1] @ k[:1].mT, v.transpose(0, 1))


def weights_reshaped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT, -1).reshape(1, 1, 512, 256) @ v[:, :1]


def infinite_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q @ k.mT * float("inf"), v)


def one_key_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q @ k[:, :1].mT, v[:, :1])


def mapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    result: Tensor = torch.vmap(lambda a, b, c: attend(a @ b.mT * 0.25, c))(q, k, v)
    return result


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (counted, "score_function"), (chosen, "attention_weights_used"), (quantised, "score_function"),
        (values_of_another_batch, "attention_shape"), (weights_reshaped, "attention_shape"),
        (infinite_scale, "score_function"), (one_key_head, "attention_shape"), (mapped, "in_a_transform"),
    ],
)  # fmt: skip
def test_what_is_nearly_attention_is_refused(model: Callable[..., Tensor], reason: str) -> None:
    inputs = qkv(*SHAPE)
    got, found, _ = fused(model, *inputs)
    assert verdicts(found) == [reason]
    wanted = model(*inputs)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert got.isnan().all() or error(got, wanted.double()) < 2e-2


def whole_numbers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i = torch.arange(256)
    near = (i[:, None] - i).abs() < 32
    return attend(q @ k.mT * 0.25 + (near.long() - 1) * 10000, v)


def mask_of_many_sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.zeros(256, 256, dtype=q.dtype)
    for _ in range(40):
        mask = mask + mask * 0.5
    return attend(mask + q @ k.mT * 0.25, v)


@pytest.mark.parametrize("model", [whole_numbers, mask_of_many_sums])
def test_masks_of_other_kinds_are_fused(model: Callable[..., Tensor]) -> None:
    """The second looked at twice as many paths with every sum."""
    inputs = qkv(*SHAPE)
    got, found, _ = fused(model, *inputs)
    assert verdicts(found) == ["fused"]
    assert error(got, model(*(x.float() for x in inputs)).double()) < 2e-3


# -- numbers that only a run tells --------------------------------------------------------------------------------


def read_as_alpha(q: Tensor, k: Tensor, v: Tensor, m: Tensor, s: Tensor) -> Tensor:
    return attend(torch.add(q @ k.mT * 0.25, m, alpha=s.item()), v)


def read_as_scale(q: Tensor, k: Tensor, v: Tensor, m: Tensor, s: Tensor) -> Tensor:
    return attend(q @ k.mT * s.item() + m, v)


def read_and_added(q: Tensor, k: Tensor, v: Tensor, m: Tensor, s: Tensor) -> Tensor:
    return attend(q @ k.mT * 0.25 + s.item() + m, v)


def read_as_p(q: Tensor, k: Tensor, v: Tensor, m: Tensor, s: Tensor) -> Tensor:
    return F.dropout(torch.softmax(q @ k.mT * 0.25 + m, -1), s.item() * 0) @ v


def read_as_p_of_a_call(q: Tensor, k: Tensor, v: Tensor, m: Tensor, s: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=m, dropout_p=s.item() * 0)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (read_as_alpha, "score_function"), (read_as_scale, "score_function"), (read_and_added, "score_function"),
        (read_as_p, "attention_dropout"), (read_as_p_of_a_call, "attention_dropout"),
    ],
)  # fmt: skip
def test_a_number_that_only_a_run_tells_is_refused(model: Callable[..., Tensor], reason: str) -> None:
    inputs = [*qkv(*SHAPE), some_inputs()[4], torch.tensor(3.0)]
    with config.patch(capture_scalar_outputs=True):
        got, found, _ = fused(model, *inputs)
    assert verdicts(found) == [reason]
    assert error(got, model(*inputs).double()) < 2e-3
