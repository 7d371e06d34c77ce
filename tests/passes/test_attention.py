"""Attention before autograd: every spelling gets its verdict and keeps its numbers; every reason is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from npu_fused_graph.passes import FusionOptions, FusionSite, fuse_before_autograd
from npu_fused_graph.passes.flash_attention_score import rules
from npu_fused_graph.passes.refusals import Soc
from tests.passes.attention_spellings import Case, D, slope_of, table

ROWS = [row for row in table() if row[2] != "-"]
ANY_SIZE = FusionOptions(min_rows=0)


def fused(
    model: Callable[..., Any],
    *inputs: Any,
    options: FusionOptions = ANY_SIZE,
    grad: bool = False,
    dynamic: bool = False,
) -> tuple[Any, list[FusionSite], GraphModule]:
    """(result, records, graph) of ``model``, compiled with nothing but this pass."""
    found: list[FusionSite] = []
    graphs: list[GraphModule] = []

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        dead = unread(gm)
        found.extend(fuse_before_autograd(gm, options))
        graphs.append(gm)
        assert unread(gm) <= dead, "what only the site read is gone"
        return gm

    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        result = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)(*inputs)
    torch._dynamo.reset()
    return result, found, graphs[0]


def unread(gm: GraphModule) -> set[Any]:
    return {n for n in gm.graph.nodes if n.op not in ("output", "placeholder") and not n.users}


def verdicts(found: Sequence[FusionSite]) -> list[str]:
    return [site.reason or "fused" for site in found]


def operators(gm: GraphModule) -> list[Any]:
    op = torch.ops.npu_fused_graph.flash_attention_score.default
    return gm.graph.find_nodes(op="call_function", target=op)


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


LAYOUTS = ("bnsd", "bsh", "sbh", "bsnd")


@pytest.mark.parametrize(
    ("spelling", "mask", "verdict", "layout"),
    [
        pytest.param(
            *row, layout, id="-".join((*row[:2], layout)),
            marks=() if (i + 3 * j) % 12 == 0 else pytest.mark.slow,
        )
        for i, row in enumerate(ROWS)
        for j, layout in enumerate(LAYOUTS)
        if (i + j) % 2 == 0
    ],
)  # fmt: skip
def test_table(spelling: str, mask: str, verdict: str, layout: str) -> None:
    """Verdict as the table says it; numbers at least as near to exact ones as the model's own."""
    case = Case(spelling, mask, layout)
    got, found, gm = fused(case, *case.inputs)
    assert verdicts(found) == [verdict]
    assert len(operators(gm)) == (verdict == "fused")
    if verdict != "fused":
        return
    with torch.no_grad():
        own = case(*case.inputs)
        wide = Case(spelling, mask, layout, dtype=torch.float32)
        wanted = wide(*(x.float() if x.is_floating_point() else x for x in case.inputs)).double()
    assert got.shape == own.shape
    assert got.stride() == own.stride()
    assert error(got, wanted) < 1.2 * error(own, wanted) + 3e-4


def test_the_table_holds_every_spelling_and_mask() -> None:
    from tests.passes.attention_spellings import CALLED, SPELLINGS, WRITTEN

    assert {s for s, _, _ in table()} == set(SPELLINGS)
    assert {m for _, m, _ in table()} == {*CALLED, *WRITTEN}
    for spelling, mask, verdict in table():
        assert (verdict == "-") == (mask not in (CALLED if spelling.startswith("call") else WRITTEN))


# -- causal masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "mask", "ahead"),
    [
        ("call", "is_causal", 0), ("call", "bool", 0), ("call", "float", 0), ("multiplied", "add min", 0),
        ("batched", "fill -inf", 0), ("call", "bool window", 2**31 - 1), ("call", "bool input", 2**31 - 1),
    ],
)  # fmt: skip
def test_what_is_exactly_causal_is_said_by_a_limit(spelling: str, mask: str, ahead: int) -> None:
    case = Case(spelling, mask)
    _, _, gm = fused(case, *case.inputs)
    (node,) = operators(gm)
    assert node.kwargs["next_tockens"] == ahead
    assert node.kwargs["scale_value"] == pytest.approx(1 / math.sqrt(D))


def test_layers_share_the_causal_mask() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for _ in range(3):
            q = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return q

    _, found, gm = fused(model, *Case("call").inputs)
    assert verdicts(found) == ["fused"] * 3
    assert len({node.args[5] for node in operators(gm)}) == 1


# -- memory -------------------------------------------------------------------------------------------------------


def viewed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's kernel lays out its result as the query lies, so that this needs no copy."""
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
    return out.transpose(1, 2).view(2, 256, 32)


def direct(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(2, 1))


@pytest.mark.parametrize(("model", "shape"), [(viewed, (2, 256, 2, 16)), (direct, (2, 256, 2, 16))])
def test_results_lie_in_memory_as_torchs(model: Callable[..., Any], shape: tuple[int, ...]) -> None:
    inputs = qkv(*shape)
    got, found, gm = fused(model, *inputs)
    assert verdicts(found) == ["fused"]
    wanted = model(*inputs)
    assert got.stride() == wanted.stride()
    assert error(got, model(*(x.float() for x in inputs)).double()) < 1e-3
    if model is direct:
        names = [str(n.target) for n in gm.graph.nodes if n.op == "call_method"]
        assert names.count("transpose") == 1, "those of the inputs are gone"


def mask_written_through_a_view(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.zeros(256, 256, dtype=q.dtype)
    mask[:, 100:][:, :50].fill_(-math.inf)
    return torch.softmax(q @ k.mT * 0.1 + mask, -1) @ v


def mask_written_afterwards(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(256, 256, dtype=q.dtype)
    mask[100:] = -1.0
    out = torch.softmax(q @ k.mT * 0.1 + mask, -1) @ v
    mask.fill_(7)
    return out, mask


@pytest.mark.parametrize("model", [mask_written_through_a_view, mask_written_afterwards])
def test_masks_that_are_written_are_no_constants(model: Callable[..., Any]) -> None:
    inputs = qkv(2, 2, 256, 16)
    got, found, _ = fused(model, *inputs)
    assert verdicts(found) == ["fused"]
    first, exact = (x[0] if isinstance(x, tuple) else x for x in (got, model(*(x.float() for x in inputs))))
    assert error(first, exact.double()) < 1e-3


# -- refusals -----------------------------------------------------------------------------------------------------


def qkv(*sizes: int, dtype: torch.dtype = torch.float16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*sizes, generator=generator).to(dtype) for _ in range(3)]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * 0.1, -1) @ v


def with_weights(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(q @ k.mT * 0.1, -1)
    return p @ v, p


def with_scores(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    scores = q @ k.mT * 0.1
    return torch.softmax(scores, -1) @ v, scores.amax(-1)


def with_changed_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = torch.softmax(q @ k.mT * 0.1, -1)
    return (p * 0.5) @ v


def with_head_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = torch.softmax(q @ k.mT * 0.1, -1)
    return (p * v[:, :, :1, :1]) @ v


def softcapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(torch.tanh(q @ k.mT * 0.1) * 30, -1) @ v


def along_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT, -2) @ v


def learnt_temperature(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * v.sum().reshape(1, 1), -1) @ v


def written_between(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = torch.softmax(q @ k.mT * 0.1, -1)
    k.mul_(2)
    return p @ v


def scores_written_aside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores.mul_(0.1)
    return torch.softmax(scores, -1) @ v


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)


def dropped_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.dropout(torch.softmax(q @ k.mT, -1), 0.1) @ v


def wide_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.mT).float() + torch.arange(k.shape[-2]) * -0.3
    return torch.softmax(scores, -1).to(q.dtype) @ v


def decoded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[:, :, -1:], k, v)


def crossed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return plain(q[:, :, :256], k, v)


def mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT, -1, dtype=torch.float32) @ v.float()


def wider_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, torch.cat([v, v], -1))


def called(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


GOOD = (2, 2, 256, 16)
REFUSED: dict[str, tuple[Callable[..., Any], list[Tensor], str]] = {
    "float32": (called, qkv(*GOOD, dtype=torch.float32), "dtype"),
    "head_dim 40": (called, qkv(2, 2, 256, 40), "head_dim"),
    "head_dim 144": (plain, qkv(2, 2, 256, 144), "head_dim"),
    "300 tokens": (called, qkv(2, 2, 300, 16), "sequence_length"),
    "weights returned": (with_weights, qkv(*GOOD), "attention_weights_used"),
    "scores read": (with_scores, qkv(*GOOD), "attention_weights_used"),
    "weights scaled": (with_changed_weights, qkv(*GOOD), "attention_weights_used"),
    "head mask": (with_head_mask, qkv(*GOOD), "attention_weights_used"),
    "softcap": (softcapped, qkv(*GOOD), "score_function"),
    "softmax over queries": (along_queries, qkv(*GOOD), "softmax_axis"),
    "learnt temperature": (learnt_temperature, qkv(*GOOD), "scale_is_a_tensor"),
    "written between": (written_between, qkv(*GOOD), "mutation_in_between"),
    "scores written aside": (scores_written_aside, qkv(*GOOD), "attention_weights_used"),
    "dropout": (dropped, qkv(*GOOD), "attention_dropout"),
    "dropped weights": (dropped_weights, qkv(*GOOD), "attention_dropout"),
    "float32 bias": (wide_bias, qkv(*GOOD), "bias_dtype"),
    "decoding": (decoded, qkv(*GOOD), "unequal_lengths"),
    "cross attention": (crossed, qkv(2, 2, 512, 16), "unequal_lengths"),
    "float32 values": (mixed, qkv(*GOOD), "mixed_dtypes"),
    "wider values": (wider_values, qkv(*GOOD), "attention_shape"),
    "two axes": (called, qkv(256, 16), "attention_shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(name: str) -> None:
    model, inputs, reason = REFUSED[name]
    _, found, gm = fused(model, *(x.clone() for x in inputs))
    assert verdicts(found) == [reason]
    assert not operators(gm)
    (site,) = found
    assert site.refusal is not None
    assert site.refusal.text
    assert site.refusal.cure
    assert site.source.startswith(__file__)


def test_a_bias_that_needs_a_gradient() -> None:
    model = Case("multiplied", "bias of heads")
    inputs = model.inputs
    inputs[-1].requires_grad_()
    _, found, _ = fused(model, *inputs, grad=True)
    assert verdicts(found) == ["bias_gradient"]
    _, found, _ = fused(model, *inputs)
    assert verdicts(found) == ["fused"]


def test_settings() -> None:
    inputs = qkv(1, 2, 256, 16)
    for options, expected in (
        (FusionOptions(), ["few_scores"] * 2), (FusionOptions(min_rows=512), ["fused"] * 2),
        (FusionOptions(min_rows=513), ["few_scores"] * 2), (FusionOptions(min_rows=0, attention="none"), []),
        (FusionOptions(min_rows=0, attention="calls"), ["fused", "not_a_call"]),
    ):  # fmt: skip
        _, found, _ = fused(lambda q, k, v: plain(called(q, k, v), k, v), *inputs, options=options)
        assert verdicts(found) == expected
        assert all(site.is_legal for site in found)
    _, found, _ = fused(called, *qkv(2, 6, 256, 16), options=FusionOptions())
    assert verdicts(found) == ["fused"], "2 x 6 x 256 queries give 24 cores a block of 128 each"


def test_a_machine_without_the_op() -> None:
    missing = FusionOptions(min_rows=0, unavailable={"flash_attention_score": Soc("not here")})
    _, found, _ = fused(called, *qkv(*GOOD), options=missing)
    assert verdicts(found) == ["soc"]


def test_symbolic_sizes() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return called(q, k, v)

    inputs = qkv(*GOOD)
    torch._dynamo.mark_dynamic(inputs[0], 2)
    torch._dynamo.mark_dynamic(inputs[1], 2)
    torch._dynamo.mark_dynamic(inputs[2], 2)
    _, found, _ = fused(model, *inputs, dynamic=None)  # type: ignore[arg-type]
    assert verdicts(found) == ["dynamic_shape"]


REACHED = {reason for _, _, reason in REFUSED.values()} | {verdict for *_, verdict in ROWS} - {"fused"} | {
    "bias_gradient", "few_scores", "not_a_call", "soc", "dynamic_shape", "in_a_transform",
}  # fmt: skip


def test_every_rule_has_a_case() -> None:
    for rule in (*rules.SHAPE_RULES, *rules.RULES):
        assert {r.reason for r in rule.reasons} & REACHED, rule.number


def window_and_padding(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Both masks may hide all keys of a query; then its weights go to those that only one of them hides."""
    i, least = torch.arange(256), torch.finfo(q.dtype).min
    window = torch.where((i[:, None] - i).abs() < 40, torch.zeros((), dtype=q.dtype), least)
    padding = torch.where(seen[:, None, None], torch.zeros((), dtype=q.dtype), least)
    return torch.softmax(q @ k.mT * 0.1 + window + padding, -1) @ v


def filled_and_padding(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    causal = torch.ones(256, 256, dtype=torch.bool).tril()
    return torch.softmax((q @ k.mT).masked_fill(~causal, torch.finfo(q.dtype).min) + bias, -1) @ v


def test_finite_masks_together() -> None:
    inputs = [*qkv(2, 2, 256, 16, dtype=torch.bfloat16), torch.arange(256) < torch.tensor([[250], [128]])]
    got, found, _ = fused(window_and_padding, *inputs)
    assert verdicts(found) == ["fused"]
    wide = [x.float() if x.is_floating_point() else x for x in inputs]
    assert error(got, window_and_padding(*wide).double()) < 1e-2
    inputs[3] = torch.randn(2, 1, 1, 256).bfloat16()
    _, found, _ = fused(filled_and_padding, *inputs)
    assert verdicts(found) == ["row_may_be_hidden"], "for all that is known the bias may be a mask, too"


# -- what is no attention -----------------------------------------------------------------------------------------


class Gate(nn.Module):
    """A router's softmax, and one over logits: products around them, but not of keys and values."""

    def forward(self, x: Tensor, weight: Tensor, experts: Tensor) -> Tensor:
        gates = torch.softmax(x @ weight, -1)
        return torch.einsum("se,edf,sd->sf", gates, experts, x)


def test_a_router_is_no_candidate() -> None:
    x, weight, experts = torch.randn(256, 16), torch.randn(16, 4), torch.randn(4, 16, 8)
    _, found, _ = fused(Gate(), x, weight, experts)
    assert found == []


def linear_of_softmax(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(torch.softmax(x, -1), weight)


def test_a_softmax_of_an_input_is_no_candidate() -> None:
    _, found, _ = fused(linear_of_softmax, torch.randn(4, 8), torch.randn(3, 8))
    assert found == []


# -- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "mask"), [("call", "is_causal"), ("repeated shared heads", "add min"), ("alibi of Bloom", "where min")]
)
def test_gradients_are_the_operators(spelling: str, mask: str) -> None:
    case = Case(spelling, mask, "bsh")
    results = []
    for compiled, dtype in ((True, torch.float16), (False, torch.float32)):
        inputs = [x.detach().clone().to(dtype).detach().requires_grad_() for x in case.inputs]
        module = case if dtype is torch.float16 else Case(spelling, mask, "bsh", dtype=dtype)
        out = fused(module, *inputs, grad=True)[0] if compiled else module(*inputs)
        out.backward(slope_of(out))
        results.append([x.grad for x in inputs])
    for got, wanted in zip(*results, strict=True):
        assert error(got, wanted.double()) < 2e-3


@pytest.mark.parametrize("name", ["call", "multiplied"])
def test_through_torchair(name: str) -> None:
    """The whole way: Dynamo, this pass, autograd, TorchAir, the engine; forward and backward."""
    from npu_fused_graph import get_npu_backend
    from npu_fused_graph.host import native

    case, sites, graphs = Case(name, "is_causal" if name == "call" else "add min", "bsh"), [], []
    backend = get_npu_backend(min_rows=0, on_sites=sites.extend)
    inputs = [x.clone().requires_grad_() for x in case.inputs]
    torch._dynamo.reset()
    native.graph_listeners.append(graphs.append)
    out = torch.compile(case, backend=backend, dynamic=False, fullgraph=True)(*inputs)
    out.backward(torch.ones_like(out))
    native.graph_listeners.remove(graphs.append)
    assert verdicts(sites) == ["fused"]
    types = [[n.type for n in e.graph.nodes.values() if n.type.startswith("FlashAttention")] for e in graphs]
    assert types == [["FlashAttentionScore"], ["FlashAttentionScoreGrad"]]
    wide = [x.detach().float().requires_grad_() for x in case.inputs]
    exact = Case(name, "is_causal" if name == "call" else "add min", "bsh", dtype=torch.float32)(*wide)
    exact.backward(torch.ones_like(exact))
    assert error(out.detach(), exact.detach().double()) < 1e-3
    for got, wanted in zip(inputs, wide, strict=True):
        assert error(got.grad, wanted.grad.double()) < 2e-3
