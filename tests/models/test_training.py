"""Training through the backend: loss and gradients of every parameter against eager, steps of optimisers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import npu_fused_graph as nfg
from npu_fused_graph.engine import Executable
from npu_fused_graph.host import native
from tests.models.trainable import ACTIVATIONS, LOSSES, RMS, VOCABULARY, Decoder, Loss, batch
from tests.models.zoo import build

LIMIT = 3e-6
"""Largest |compiled - eager| / max |eager| of a float32 gradient."""

SLACK = {torch.float32: 1e-6, torch.float16: 4 * 2.0**-11, torch.bfloat16: 4 * 2.0**-8}
"""How much further from float64 than eager, relative to the largest element: some roundings at other places."""

HALF = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class WithLoss(nn.Module):
    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.model(tokens), targets)


def compiled(model: Callable[..., Any]) -> Any:
    return torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)


def one_step(model: nn.Module, run: Any, *inputs: Any) -> dict[str, Tensor]:
    """The loss and the gradient of every parameter, in float64."""
    model.zero_grad(set_to_none=True)
    loss = run(*inputs)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    return {"loss": loss.detach().double(), **{name: g.double() for name, g in grads.items() if g is not None}}


def error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    assert found.keys() == exact.keys()
    return {
        name: float((found[name] - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
        for name, wanted in exact.items()
    }


def check(model: nn.Module, *inputs: Any) -> None:
    """One step, twice: as near to eager float64 as eager is in the model's dtype."""
    slack = SLACK[next(model.parameters()).dtype]
    wide = copy.deepcopy(model).double()
    exact = one_step(wide, wide, *inputs)
    eager = error(one_step(model, model, *inputs), exact)
    run = compiled(model)
    for _ in range(2):
        ours = error(one_step(model, run, *inputs), exact)
        far = {name: (ours[name], eager[name]) for name in exact if not ours[name] <= 1.5 * eager[name] + slack}
        assert not far, far


def decoder(norm: str, activation: str, loss: str, dtype: torch.dtype = torch.float32, **options: Any) -> WithLoss:
    torch.manual_seed(0)
    return WithLoss(Decoder(norm, activation, **options), LOSSES[loss]).to(dtype)


MODELS = [
    ("rms float32", "swiglu", False),
    ("F.rms_norm", "silu", True),
    ("layer norm", "gelu tanh", True),
    ("rms rsqrt", "gelu", False),
    ("rms sqrt", "tanh", True),
    ("layer norm, no bias", "relu", False),
]


def fast(cases: Sequence[Any], chosen: Sequence[Any]) -> list[Any]:
    """Parameters; all but the chosen are slow."""
    return [
        pytest.param(*case, marks=[] if case in chosen else [pytest.mark.slow], id="-".join(map(str, case)))
        for case in cases
    ]


def test_the_decoders_cover_every_part() -> None:
    assert {norm for norm, _, _ in MODELS} == {*RMS, "layer norm", "layer norm, no bias"}
    assert {activation for _, activation, _ in MODELS} == {*ACTIVATIONS, "swiglu"}


@pytest.mark.parametrize(("norm", "activation", "is_tied"), fast(MODELS, [MODELS[0], MODELS[2]]))
def test_decoders_in_float32(norm: str, activation: str, is_tied: bool) -> None:
    check(decoder(norm, activation, "cross_entropy", is_tied=is_tied), *batch())


@pytest.mark.parametrize(
    ("dtype", "norm", "activation", "is_tied"),
    fast(
        [(dtype, *model) for dtype in HALF for model in MODELS],
        [(torch.float16, *MODELS[0])],
    ),
)
def test_decoders_in_half_precision(dtype: torch.dtype, norm: str, activation: str, is_tied: bool) -> None:
    check(decoder(norm, activation, "cross_entropy", dtype, is_tied=is_tied), *batch())


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_decoders_with_every_loss(loss: str, dtype: torch.dtype) -> None:
    check(decoder("rms rsqrt", "silu", loss, dtype, attends=False), *batch())


class EveryLoss(nn.Module):
    """Losses of logits, each of which is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        tokens, _ = batch()
        self.logits = nn.ParameterDict({name: torch.randn(*tokens.shape, VOCABULARY) for name in LOSSES})

    def forward(self, targets: Tensor) -> Tensor:
        return torch.stack([LOSSES[name](logits, targets) for name, logits in self.logits.items()]).sum()


@pytest.mark.parametrize("dtype", fast([(dtype,) for dtype in (torch.float32, *HALF)], [(torch.float32,)]))
def test_losses(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check(EveryLoss().to(dtype), batch()[1])


def test_forward_and_backward_are_one_graph_each() -> None:
    graphs: list[Executable] = []
    native.graph_listeners.append(graphs.append)
    try:
        model = decoder("rms float32", "swiglu", "cross_entropy")
        run = compiled(model)
        for _ in range(2):
            one_step(model, run, *batch())
    finally:
        native.graph_listeners.remove(graphs.append)
    types = [{node.type for node in graph.graph.nodes.values()} for graph in graphs]
    assert len(types) == 2
    assert "NLLLoss" in types[0]
    assert {"NLLLossGrad", "LogSoftmaxGrad", "SoftmaxGrad", "SwishGrad", "EmbeddingDenseGrad"} <= types[1]


# -- steps of optimisers -----------------------------------------------------------------------------------------

OPTIMISERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, eps=1e-4, weight_decay=0.1),
}
"""eps: the bias of the keys has no gradient but for rounding, which AdamW would make a step of."""


@pytest.mark.parametrize("optimiser", fast([(name,) for name in OPTIMISERS], [("adamw",)]))
def test_ten_steps(optimiser: str) -> None:
    """Against eager steps of the same model in float32, and both against the loss at the beginning."""
    model = decoder("F.rms_norm", "swiglu", "cross_entropy", is_tied=True)
    other = copy.deepcopy(model)
    runs = ((model, compiled(model), []), (other, other, []))
    for module, run, losses in runs:
        optimise = OPTIMISERS[optimiser](module.parameters())
        for step in range(10):
            optimise.zero_grad()
            loss = run(*batch(seed=step % 3))
            loss.backward()
            optimise.step()
            losses.append(float(loss.detach()))
    ours, eager = runs[0][2], runs[1][2]
    assert ours == pytest.approx(eager, rel=1e-4)
    assert ours[9] < 0.9 * ours[0]
    for (name, parameter), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(parameter, expected, atol=2e-4), name


# -- what else a training script does -----------------------------------------------------------------------------


def test_dropout_drops_the_same_in_both_graphs() -> None:
    drop = compiled(nn.Dropout(0.25))
    x = torch.rand(3, 501) + 1
    x.requires_grad_()
    y = drop(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    kept = y != 0
    assert 0.68 < float(kept.double().mean()) < 0.82
    assert torch.allclose(y[kept], x[kept] / 0.75)
    assert torch.allclose(grad, kept / 0.75)
    assert not torch.equal(drop(x) != 0, kept), "drawn anew"


@pytest.mark.slow
def test_accumulated_gradients_clipped_and_a_frozen_embedding() -> None:
    model = decoder("layer norm", "gelu", "cross_entropy")
    model.model.embedding.weight.requires_grad_(False)
    other = copy.deepcopy(model)
    for module, run in ((model, compiled(model)), (other, other)):
        for seed in range(3):
            run(*batch(seed=seed)).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.1)
    assert model.model.embedding.weight.grad is None
    for (name, parameter), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        if expected.grad is not None:
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, expected.grad, atol=1e-6), name


@pytest.mark.slow
def test_recomputed_activations() -> None:
    """torch.utils.checkpoint: the backward graph computes the forward again."""
    model = decoder("rms sqrt", "swiglu", "cross_entropy")

    def forward(tokens: Tensor, targets: Tensor) -> Tensor:
        x = model.model.embedding(tokens)
        for layer in model.model.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return model.loss(model.model.head(model.model.norm(x)), targets)

    exact = one_step(model, forward, *batch())
    assert max(error(one_step(model, compiled(forward), *batch()), exact).values()) <= LIMIT


@pytest.mark.slow
def test_autocast() -> None:
    model = decoder("rms float32", "gelu tanh", "cross_entropy")

    def forward(tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(tokens, targets)

    exact = one_step(model, model, *batch())
    eager = error(one_step(model, forward, *batch()), exact)
    ours = error(one_step(model, compiled(forward), *batch()), exact)
    slack = SLACK[torch.bfloat16]
    far = {name: (ours[name], eager[name]) for name in exact if not ours[name] <= 1.5 * eager[name] + slack}
    assert not far, far


@pytest.mark.slow
def test_symbolic_sizes() -> None:
    model = decoder("F.rms_norm", "swiglu", "cross_entropy")
    run = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=True, fullgraph=True)
    for rows in (2, 3, 5):
        exact = one_step(model, model, *batch(rows))
        assert max(error(one_step(model, run, *batch(rows)), exact).values()) <= LIMIT


@pytest.mark.slow
def test_convolutions_batch_norm_and_pooling() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, bias=False)  # whose gradient would be 0 but for rounding
    model = nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    other, x = copy.deepcopy(model).double(), torch.randn(4, 3, 8, 8)
    run = compiled(model)
    for _ in range(2):
        found = one_step(model, lambda x: run(x).square().sum(), x)
        exact = one_step(other, lambda x: other(x.double()).square().sum(), x)
        assert max(error(found, exact).values()) <= LIMIT
    for (name, buffer), expected in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.allclose(buffer.double(), expected.double(), rtol=1e-5), name


# -- models of transformers ----------------------------------------------------------------------------------------

ZOO = ("llama", "qwen2", "gpt2", "bloom")


@pytest.mark.parametrize(
    ("name", "dtype"),
    fast([(name, dtype) for name in ZOO for dtype in (torch.float32, *HALF)], [("gpt2", torch.float32)]),
)
def test_transformers_models(name: str, dtype: torch.dtype) -> None:
    """With attention of matmuls and softmax."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own notes on tiny configurations
        model, inputs = build(name, dtype, "eager")
        model.train().loss_type = "ForCausalLM"  # GPT-2 does not say, and transformers would log in the traced loss
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        tokens = inputs["input_ids"]
        check(LossOf(model), tokens)


class LossOf(nn.Module):
    """The loss a model of transformers computes of its labels, here the tokens themselves."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        loss: Tensor = self.model(input_ids=tokens, labels=tokens).loss
        return loss
