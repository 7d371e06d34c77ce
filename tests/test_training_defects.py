"""TorchAir's defects in training graphs, T21 to T25 of docs/torchair_defects.md; the others: test_defects.py."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.engine import registry
from npu_fused_graph.ops import observers
from npu_fused_graph.testing import assert_close
from tests.converters.recorder import recording
from tests.ranks import run_ranks, values
from tests.test_defects import ours, random, stock_with

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    nfg.get_npu_backend()  # registers our converters
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(function: Any, *inputs: Tensor) -> list[Tensor]:
    """The gradients of the sum of ``function`` compiled by our backend, where no warning may escape."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.compile(function, backend=nfg.get_npu_backend(), dynamic=False)(*leaves).sum().backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


# -- T21: the gradient of gelu ---------------------------------------------------------------------------------

LINE = torch.linspace(-4, 4, 101)


def both_slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    ones = torch.ones_like(x)
    return aten.gelu_backward.default(ones, x), aten.gelu_backward.default(ones, x, approximate="tanh")


def test_t21_stock_torchair_drops_approximate() -> None:
    exact, tanh = stock_with(aten.gelu_backward.default, "gelu_backward", both_slopes, LINE)
    assert torch.equal(exact, tanh)
    exact, tanh = both_slopes(LINE)
    assert (exact - tanh).abs().max() > 1e-4


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_t21_our_converter_keeps_approximate(approximate: str) -> None:
    wide = LINE.double().requires_grad_()
    inner = wide / 2**0.5 if approximate == "none" else (2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)
    (wanted,) = torch.autograd.grad(
        (wide / 2 * (1 + (inner.erf() if approximate == "none" else inner.tanh()))).sum(), [wide]
    )
    (slope,) = step(lambda x: F.gelu(x, approximate=approximate), LINE)
    assert_close(slope, wanted)


# -- T22: the gradient of a row --------------------------------------------------------------------------------


def spread(grad: Tensor) -> Tensor:
    return aten.select_backward.default(grad, [3, 4], 0, -2)


def test_t22_stock_torchair_scatters_into_memory_without_values() -> None:
    with recording() as emitted:
        stock_with(aten.select_backward.default, "select_backward", spread, torch.ones(4))
    assert {"Empty", "ScatterElements"} <= emitted.types
    assert not emitted.types & {"Fill", "ZerosLike"}


def test_t22_our_converter_fills_the_other_rows() -> None:
    with recording() as emitted:
        result = ours(spread, torch.ones(4))
    assert "Empty" not in emitted.types
    assert torch.equal(result, torch.tensor([[0.0], [1.0], [0.0]]).expand(3, 4))


# -- T23: the gradient of batch norm ---------------------------------------------------------------------------


def slope_of_batch_norm(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    mean, rstd = x.mean(0), (x.var(0, correction=0) + 1e-5).rsqrt()
    results = aten.native_batch_norm_backward.default(
        grad, x, weight, None, None, mean, rstd, True, 1e-5, [True, True, True]
    )
    return results[0]


def exact_slope(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    leaf = x.double().requires_grad_()
    centred = leaf - leaf.mean(0)
    y = centred / ((centred**2).mean(0) + 1e-5).sqrt() * weight.double()
    return torch.autograd.grad(y, [leaf], grad.double())[0]


BATCH = (random(6, 3), random(6, 3).flip(0) * 4 + 2, random(3))


def test_t23_stock_torchair_takes_the_reciprocal_deviation_for_the_variance() -> None:
    wrong = stock_with(
        aten.native_batch_norm_backward.default, "native_batch_norm_backward", slope_of_batch_norm, *BATCH
    )
    assert (wrong - exact_slope(*BATCH)).abs().max() > 0.01


def test_t23_our_converter_reads_the_reciprocal_deviation() -> None:
    assert_close(ours(slope_of_batch_norm, *BATCH), exact_slope(*BATCH), scale=8)


def test_t23_batch_norm_trains() -> None:
    grads = step(
        lambda x, w, b: F.batch_norm(x, torch.zeros(3), torch.ones(3), w, b, training=True) ** 3, *BATCH[1:], BATCH[2]
    )
    leaves = [x.double().requires_grad_() for x in (*BATCH[1:], BATCH[2])]
    wanted = torch.autograd.grad((F.batch_norm(leaves[0], None, None, *leaves[1:], training=True) ** 3).sum(), leaves)
    for grad, want in zip(grads, wanted, strict=True):
        assert_close(grad, want, scale=64)


# -- T25: the gradient of nearest resizing -----------------------------------------------------------------------


def resize_backward(grad: Tensor) -> Tensor:
    return aten.upsample_nearest2d_backward.default(grad, [6, 1], [1, 1, 4, 1], 1.7, 1.0)


# rows 0 .. 5 of the result came from rows 0 // 1.7, 1 // 1.7, ...
ORIGINS = torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]])
ROWS = torch.arange(1.0, 7)


def test_t25_stock_torchair_drops_the_scales() -> None:
    op = aten.upsample_nearest2d_backward.default
    result = stock_with(op, "upsample_nearest2d_backward", resize_backward, ROWS.reshape(1, 1, 6, 1))
    assert not torch.equal(result.flatten(), ORIGINS @ ROWS)


def test_t25_our_converter_keeps_the_scales() -> None:
    assert torch.equal(ours(resize_backward, ROWS.reshape(1, 1, 6, 1)).flatten(), ORIGINS @ ROWS)
    forward = F.interpolate(torch.arange(4.0).reshape(1, 1, 4, 1), scale_factor=(1.7, 1), mode="nearest")
    assert torch.equal(forward.flatten(), torch.arange(4.0) @ ORIGINS), "the rows come from there"


# -- T24: shapes of backward graphs ----------------------------------------------------------------------------


dynamos_own = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
"""Dynamo makes an instance of every autograd.Function it traces, which torch deprecates."""


class Counted(torch.autograd.Function):
    """Its backward calls an operator with a GE type TorchAir does not know."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return torch.ops.training_defects.doubled(grads[0])


@pytest.fixture(scope="module")
def calls() -> Iterator[list[Tensor]]:
    """What the operator of ``Counted`` was really called with."""
    seen: list[Tensor] = []
    torchair = nfg.load_torchair()
    library = torch.library.Library("training_defects", "FRAGMENT")
    library.define("doubled(Tensor x) -> Tensor")

    def doubled(x: Tensor) -> Tensor:
        seen.append(x)
        return x * 2

    library.impl("doubled", doubled, "CPU")
    torch.library.register_fake("training_defects::doubled", torch.empty_like, lib=library)

    def in_engine(x: Tensor) -> Tensor:
        return x * 2

    nfg.register_kernel("DoubledInTrainingDefects", in_engine)

    @torchair.register_fx_node_ge_converter(torch.ops.training_defects.doubled.default)
    def convert(x: Any, meta_outputs: Any = None) -> Any:
        return torchair.ge.custom_op("DoubledInTrainingDefects", inputs={"x": x}, outputs=["y"])

    yield seen
    library._destroy()
    del registry._KERNELS["DoubledInTrainingDefects"]


@dynamos_own
def test_t24_stock_torchair_runs_operators_of_a_backward_graph(
    calls: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("torchair._ge_concrete_graph.infer_symbol_shape")
    monkeypatch.setattr(module, "infer_and_gen_sym_shape", module.infer_and_gen_sym_shape.__wrapped__)
    calls.clear()
    step(Counted.apply, random(3))
    assert len(calls) == 1
    assert type(calls[0]) is Tensor, "no fake tensor"


@dynamos_own
def test_t24_our_guard_keeps_them_from_running(calls: list[Tensor]) -> None:
    calls.clear()
    (grad,) = step(Counted.apply, random(3))
    assert calls == []
    assert torch.equal(grad, torch.full((3,), 2.0))


class ReducedBackward(torch.autograd.Function):
    """Its backward is a fused matmul + all-reduce + norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        total, _ = nfg.npu_mm_all_reduce_add_rms_norm(
            grads[0], weight, torch.zeros_like(grads[0]), weight.new_ones(weight.shape[1]), hcom="0"
        )
        return total, None


def _train_over_ranks(rank: int) -> tuple[list[float], list[str]]:
    nodes: list[str] = []
    observers.listeners.append(lambda call: nodes.append(call.node))
    x = torch.ones(2, 1, 16, dtype=torch.float16).requires_grad_()
    weight = torch.full((16, 16), rank + 1.0, dtype=torch.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch.compile(ReducedBackward.apply, backend=nfg.get_npu_backend(), dynamic=False)(x, weight).sum().backward()
    assert x.grad is not None
    return x.grad.unique().tolist(), nodes


def test_t24_a_collective_in_a_backward_graph_communicates_when_it_runs() -> None:
    for grad, nodes in values(run_ranks(_train_over_ranks, 2)):
        assert grad == [16.0 * (1 + 2)]
        assert len(nodes) == 1
        assert nodes[0] != "", "by the engine, not eagerly"
