"""The first fusion: what is fused, into what, and what is refused for which reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch.fx import GraphModule, Node

from npu_fused_graph.backend import compile_with_aot
from npu_fused_graph.host import load_torchair
from npu_fused_graph.passes import FusionOptions, fuse_all
from npu_fused_graph.passes.records import FusionSite, Numerics
from npu_fused_graph.testing import assert_close
from tests.passes.blocks import LINEARS, NORMS, REDUCES, Block, all_reduce_functional, all_reduce_in_place, llama_norm
from tests.passes.capture import capture, fake_group

FUSED_OPS = (
    "npu_fused_graph.npu_mm_all_reduce_add_rms_norm.default",
    "npu_fused_graph.npu_mm_all_reduce_add_rms_norm.transposed_x2",
)


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    with fake_group(2):
        yield


def shapes(rank: int, k: int = 16, n: int = 32) -> tuple[tuple[int, ...], tuple[int, ...]]:
    lead = {2: (6,), 3: (2, 3), 4: (2, 3, 2)}[rank]
    return (*lead, k), (*lead, n)


def inputs(rank: int, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    x, r = shapes(rank)
    return torch.randn(x).to(dtype), torch.randn(r).to(dtype)


def targets(gm: GraphModule) -> list[str]:
    return [str(n.target) for n in gm.graph.nodes if n.op == "call_function"]


def fused_nodes(gm: GraphModule) -> list[Node]:
    return [n for n in gm.graph.nodes if n.op == "call_function" and str(n.target) in FUSED_OPS]


def run(
    model: Callable[..., Any], *args: Any, numerics: Numerics = "any", **kwargs: Any
) -> tuple[GraphModule, list[FusionSite]]:
    gm = capture(model, *args, **kwargs)
    return gm, fuse_all(gm, FusionOptions(numerics=numerics))


@pytest.mark.parametrize(("linear", "reduce", "norm"), list(itertools.product(LINEARS, REDUCES, NORMS)))
@pytest.mark.parametrize("rank", [2, 3])
def test_every_spelling_is_fused(linear: str, reduce: str, norm: str, rank: int) -> None:
    block = Block(linear, reduce, norm, residual_first=rank == 2, returns_sum=linear != "matmul")
    gm, sites = run(block, *inputs(rank))
    assert [s.is_fused for s in sites] == [True], sites
    assert sites[0].numerics == {"llama": "same_rounding", "torch": "one_ulp"}[norm]
    assert len(fused_nodes(gm)) == 1
    left = [t for t in targets(gm) if t not in FUSED_OPS]
    assert not [
        t for t in left if "all_reduce" in t or "wait" in t or "mm.default" in t or "rsqrt" in t or "aten.t." in t
    ]
    node = fused_nodes(gm)[0]
    x1, x2, residual, gamma, hcom = node.args
    assert hcom == "0"
    assert residual.meta["val"].dim() == 3
    stored = (32, 16) if linear.startswith("linear") else (16, 32)
    assert x2.meta["val"].shape == stored
    assert str(node.target) == FUSED_OPS[linear.startswith("linear")]
    assert node.kwargs["epsilon"] == pytest.approx(1e-6, rel=1e-6)
    assert ("bias" in node.kwargs) == (block.bias is not None)
    assert gamma.meta["val"].shape == (32,)
    if rank == 3 and linear != "mm" and linear != "addmm":
        assert x1.meta["val"].dim() == 3


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 3e-3, 0.5])
def test_epsilon_is_taken_from_the_graph(eps: float) -> None:
    gm, sites = run(Block(eps=eps), *inputs(3))
    assert sites[0].is_fused
    assert fused_nodes(gm)[0].kwargs["epsilon"] == eps


def test_rank_4_activations_are_flattened() -> None:
    gm, sites = run(Block(), *inputs(4))
    assert sites[0].is_fused
    assert fused_nodes(gm)[0].args[2].meta["val"].shape == (1, 12, 32)


def test_sum_may_be_used_any_number_of_times() -> None:
    class Model(Block):
        def forward(self, x: Tensor, residual: Tensor) -> Any:
            total = residual + all_reduce_in_place(self.product(x))
            return llama_norm(total, self.gamma, 1e-6), total * 2, total.sum()

    gm, sites = run(Model(), *inputs(3))
    assert sites[0].is_fused
    assert "aten.mul.Tensor" in targets(gm)


def test_sites_chain_and_carry_source_and_layer() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(k=32), Block(k=32)

        def forward(self, x: Tensor, r: Tensor) -> Any:
            x, r = self.first(x, r)
            return self.second(x, r)

    _, sites = run(Two(), torch.randn(2, 3, 32).half(), torch.randn(2, 3, 32).half())
    assert [s.is_fused for s in sites] == [True, True]
    assert [s.layer for s in sites] == ["first", "second"]
    assert all(s.source.rpartition(":")[0].endswith("blocks.py") for s in sites)


def test_idempotent() -> None:
    gm, _ = run(Block(), *inputs(3))
    text = gm.code
    assert fuse_all(gm) == []
    assert gm.code == text


def test_other_group_is_kept() -> None:
    other = dist.new_group([0, 1])

    class Model(Block):
        def forward(self, x: Tensor, residual: Tensor) -> Any:
            reduced = funcol.all_reduce(self.product(x), "sum", other)
            return llama_norm(residual + reduced, self.gamma, 1e-6)

    gm, sites = run(Model(), *inputs(3))
    assert sites[0].is_fused
    assert fused_nodes(gm)[0].args[4] == other.group_name != "0"


def test_bfloat16() -> None:
    _, sites = run(Block(dtype=torch.bfloat16), *inputs(3, torch.bfloat16))
    assert sites[0].is_fused


def test_dynamic_rows() -> None:
    gm, sites = run(Block(), *inputs(2), dynamic=True)
    # dynamic=True turns the Python float epsilon into a graph input
    assert [s.reason for s in sites] == ["epsilon_is_a_tensor"] or sites[0].is_fused
    torch._dynamo.mark_dynamic(x := inputs(2)[0], 0)
    torch._dynamo.mark_dynamic(r := inputs(2)[1], 0)
    gm, sites = run(Block(), x, r, dynamic=None)
    assert sites[0].is_fused, sites
    assert len(fused_nodes(gm)) == 1


# -- spellings around the core --------------------------------------------------------------------------------


def compare_with_eager(function: Callable[..., Any], *args: Tensor) -> tuple[GraphModule, list[FusionSite]]:
    """Fuse, and run on one real rank: the numbers of eager mode, in the same layout."""
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    graphs: list[GraphModule] = []
    sites: list[FusionSite] = []

    def compile_graph(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(gm)
        sites.extend(fuse_all(gm))
        return make_boxed_func(gm.forward)

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_with_aot(gm, example_inputs, compile_graph, {})

    with torch.no_grad():
        wanted = function(*args)
        got = torch.compile(function, backend=backend, dynamic=False, fullgraph=True)(*args)
    for x, y in zip(wanted, got, strict=True):
        assert x.stride() == y.stride()
        assert_close(y, x.double(), scale=4)
    return graphs[0], sites


def add_in_place(weight: Tensor, gamma: Tensor, x: Tensor, r: Tensor) -> Any:
    y = all_reduce_in_place(F.linear(x, weight))
    y += r
    return llama_norm(y, gamma, 1e-6), y


def norm_of_flat_sum(weight: Tensor, gamma: Tensor, x: Tensor, r: Tensor) -> Any:
    y = r + all_reduce_in_place(F.linear(x, weight))
    return llama_norm(y.view(-1, 32), gamma, 1e-6), y


def dropout_in_eval(weight: Tensor, gamma: Tensor, x: Tensor, r: Tensor) -> Any:
    y = r + F.dropout(all_reduce_in_place(F.linear(x, weight)), 0.1, training=False)
    return llama_norm(y, gamma, 1e-6), y


def stored_as_transpose(weight: Tensor, gamma: Tensor, x: Tensor, r: Tensor) -> Any:
    y = r + all_reduce_in_place(x @ weight)
    return llama_norm(y, gamma, 1e-6), y


@pytest.mark.parametrize("block", [add_in_place, norm_of_flat_sum, dropout_in_eval, stored_as_transpose])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_also_fused(block: Callable[..., Any], rank: int) -> None:
    weight = torch.randn(32, 16).half()
    if block is stored_as_transpose:
        weight = weight.t()
    gm, sites = compare_with_eager(block, weight, torch.randn(32).half(), *inputs(rank))
    assert [s.is_fused for s in sites] == [True], sites
    assert not [t for t in targets(gm) if "clone" in t or "all_reduce.default" in t or "mm.default" in t]


def test_rank_4_with_dynamic_rows_is_refused() -> None:
    x, r = inputs(4)
    for tensor in (x, r):
        torch._dynamo.mark_dynamic(tensor, 1)
    _, sites = run(Block(), x, r, dynamic=None)
    assert sites[0].reason == "dynamic_shape"


def test_data_dependent_rows() -> None:
    def forward(x: Tensor, residual: Tensor, weight: Tensor, gamma: Tensor, mask: Tensor) -> Any:
        rows = mask.nonzero().squeeze(-1)
        return llama_norm(residual[rows] + all_reduce_in_place(F.linear(x[rows], weight)), gamma, 1e-6)

    weight, gamma = torch.randn(32, 16).half(), torch.randn(32).half()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        _, sites = run(forward, *inputs(2), weight, gamma, torch.tensor([1, 0, 1, 1, 0, 1]))
        assert sites[0].is_fused, sites


# -- refusals -------------------------------------------------------------------------------------------------


class Variant(Block):
    """A block with one thing changed."""

    def __init__(self, change: Callable[[Variant, Tensor, Tensor], Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.change = change

    def forward(self, x: Tensor, residual: Tensor) -> Any:
        return self.change(self, x, residual)


def avg(b: Variant, x: Tensor, r: Tensor) -> Any:
    return llama_norm(r + funcol.all_reduce(b.product(x), "avg", dist.group.WORLD), b.gamma, 1e-6)


def maximum(b: Variant, x: Tensor, r: Tensor) -> Any:
    return llama_norm(r + funcol.all_reduce(b.product(x), "max", dist.group.WORLD), b.gamma, 1e-6)


def partial_used(b: Variant, x: Tensor, r: Tensor) -> Any:
    p = b.product(x)
    return llama_norm(r + funcol.all_reduce(p, "sum", dist.group.WORLD), b.gamma, 1e-6), p * 2


def reduced_used(b: Variant, x: Tensor, r: Tensor) -> Any:
    y = all_reduce_in_place(b.product(x))
    return llama_norm(r + y, b.gamma, 1e-6), y


def no_matmul(b: Variant, x: Tensor, r: Tensor) -> Any:
    return llama_norm(r + all_reduce_in_place(r * 2), b.gamma, 1e-6)


def activation_between(b: Variant, x: Tensor, r: Tensor) -> Any:
    return llama_norm(r + all_reduce_in_place(F.silu(b.product(x))), b.gamma, 1e-6)


def scaled(b: Variant, x: Tensor, r: Tensor) -> Any:
    return llama_norm(r + all_reduce_in_place(b.product(x)) * 0.22, b.gamma, 1e-6)


def alpha(b: Variant, x: Tensor, r: Tensor) -> Any:
    return llama_norm(torch.add(r, all_reduce_in_place(b.product(x)), alpha=2), b.gamma, 1e-6)


def post_norm(b: Variant, x: Tensor, r: Tensor) -> Any:
    return r + llama_norm(all_reduce_in_place(b.product(x)), b.gamma, 1e-6)


def layer_norm(b: Variant, x: Tensor, r: Tensor) -> Any:
    return F.layer_norm(r + all_reduce_in_place(b.product(x)), (32,), b.gamma)


def no_norm(b: Variant, x: Tensor, r: Tensor) -> Any:
    return r + all_reduce_in_place(b.product(x))


def output_only(b: Variant, x: Tensor, r: Tensor) -> Any:
    return all_reduce_in_place(b.product(x))


def bias_after(b: Variant, x: Tensor, r: Tensor) -> Any:
    return llama_norm(r + (all_reduce_in_place(b.product(x)) + b.gamma), b.gamma, 1e-6)


def broadcast_residual(b: Variant, x: Tensor, r: Tensor) -> Any:
    return llama_norm(r[:1] + all_reduce_in_place(b.product(x)), b.gamma, 1e-6)


def self_residual(b: Variant, x: Tensor, r: Tensor) -> Any:
    y = all_reduce_in_place(b.product(x))
    return llama_norm(y + y, b.gamma, 1e-6)


def strided_residual(b: Variant, x: Tensor, r: Tensor) -> Any:
    return llama_norm(r.transpose(0, 1).contiguous().transpose(0, 1) + all_reduce_in_place(b.product(x)), b.gamma, 1e-6)


def wide_residual(b: Variant, x: Tensor, r: Tensor) -> Any:
    return llama_norm(r.float() + all_reduce_in_place(b.product(x)), b.gamma, 1e-6)


def big_epsilon(b: Variant, x: Tensor, r: Tensor) -> Any:
    return llama_norm(r + all_reduce_in_place(b.product(x)), b.gamma, 1.5)


def collective_between(b: Variant, x: Tensor, r: Tensor) -> Any:
    y = all_reduce_in_place(b.product(x))
    z = all_reduce_in_place(r * 2)
    return llama_norm(r + y, b.gamma, 1e-6), z


def overlapped(b: Variant, x: Tensor, r: Tensor) -> Any:
    p = b.product(x)
    work = torch.ops._c10d_functional.all_reduce(p, "sum", "0")
    other = x @ b.weight.t() if b.weight.shape[0] == 32 else x @ b.weight
    y = torch.ops._c10d_functional.wait_tensor(work)
    return llama_norm(r + y, b.gamma, 1e-6), other


def one_plus_gamma(b: Variant, x: Tensor, r: Tensor) -> Any:
    total = r + all_reduce_in_place(b.product(x))
    wide = total.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (wide * (1.0 + b.gamma.float())).to(total.dtype)


def mean_over_two_dims(b: Variant, x: Tensor, r: Tensor) -> Any:
    total = r + all_reduce_in_place(b.product(x))
    wide = total.float()
    return b.gamma * (wide * torch.rsqrt(wide.pow(2).mean((-2, -1), keepdim=True) + 1e-6)).to(total.dtype)


def cubed(b: Variant, x: Tensor, r: Tensor) -> Any:
    total = r + all_reduce_in_place(b.product(x))
    wide = total.float()
    return b.gamma * (wide * torch.rsqrt(wide.abs().pow(3).mean(-1, keepdim=True) + 1e-6)).to(total.dtype)


def epsilon_times_alpha(b: Variant, x: Tensor, r: Tensor) -> Any:
    total = r + all_reduce_in_place(b.product(x))
    wide = total.float()
    biased = torch.add(wide.pow(2).mean(-1, keepdim=True), 0.2, alpha=4)
    return b.gamma * (wide * torch.rsqrt(biased)).to(total.dtype)


def half_statistics(b: Variant, x: Tensor, r: Tensor) -> Any:
    total = r + all_reduce_in_place(b.product(x))
    wide = total.float()
    mean = torch.mean(wide.pow(2), -1, keepdim=True, dtype=torch.float16)
    return b.gamma * (wide * torch.rsqrt(mean + 1e-6)).to(total.dtype)


def strided_bias(b: Variant, x: Tensor, r: Tensor) -> Any:
    wide = torch.stack([b.gamma, b.gamma], 1).flatten()
    product = torch.addmm(wide[::2], x.reshape(-1, x.size(-1)), b.weight.t()).view(r.shape)
    return llama_norm(r + all_reduce_in_place(product), b.gamma, 1e-6)


def scaled_addmm(b: Variant, x: Tensor, r: Tensor) -> Any:
    product = torch.addmm(b.gamma, x.reshape(-1, x.size(-1)), b.weight.t(), alpha=2).view(r.shape)
    return llama_norm(r + all_reduce_in_place(product), b.gamma, 1e-6)


def norm_of_half_rows(b: Variant, x: Tensor, r: Tensor) -> Any:
    return llama_norm((r + all_reduce_in_place(b.product(x))).view(-1, 16), b.gamma[:16], 1e-6)


def fused_op_between(b: Variant, x: Tensor, r: Tensor) -> Any:
    y = all_reduce_functional(b.product(x))
    z = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm(x, b.weight.t(), r, b.gamma, "0")[1]
    return llama_norm(r + y, b.gamma, 1e-6), z


def strided_sum(b: Variant, x: Tensor, r: Tensor) -> Any:
    y = all_reduce_in_place(b.product(x))[:, :, None].clone(memory_format=torch.channels_last)
    return llama_norm(y + r[:, :, None], b.gamma, 1e-6)


def other_stream(b: Variant, x: Tensor, r: Tensor) -> Any:
    import torchair

    with torchair.scope.npu_stream_switch("side"):
        y = all_reduce_in_place(b.product(x))
    return llama_norm(r + y, b.gamma, 1e-6)


REFUSALS: list[tuple[Callable[[Variant, Tensor, Tensor], Any], str]] = [
    (avg, "reduce_op"),
    (maximum, "reduce_op"),
    (partial_used, "matmul_result_used_elsewhere"),
    (reduced_used, "result_used_elsewhere"),
    (no_matmul, "no_matmul"),
    (activation_between, "no_matmul"),
    (scaled, "scaled_before_add"),
    (alpha, "scaled_before_add"),
    (post_norm, "norm_before_add"),
    (layer_norm, "layer_norm"),
    (no_norm, "no_rms_norm"),
    (output_only, "no_residual_add"),
    (bias_after, "bias_after_reduce"),
    (broadcast_residual, "residual_broadcast"),
    (self_residual, "residual_is_the_result"),
    (strided_residual, "not_contiguous"),
    (wide_residual, "mixed_dtypes"),
    (big_epsilon, "epsilon_range"),
    (collective_between, "collective_in_between"),
    (overlapped, "overlapped"),
    (one_plus_gamma, "gamma_dtype"),
    (mean_over_two_dims, "no_rms_norm"),
    (cubed, "no_rms_norm"),
    (epsilon_times_alpha, "no_rms_norm"),
    (half_statistics, "no_rms_norm"),
    (strided_bias, "not_contiguous"),
    (scaled_addmm, "no_matmul"),
    (norm_of_half_rows, "last_dim_split"),
    (fused_op_between, "collective_in_between"),
    (strided_sum, "not_contiguous"),
    (other_stream, "other_stream"),
]


@pytest.mark.parametrize(("change", "reason"), [pytest.param(c, r, id=c.__name__) for c, r in REFUSALS])
def test_refused_with_reason_and_cure(change: Callable[[Variant, Tensor, Tensor], Any], reason: str) -> None:
    if change is other_stream:
        load_torchair()
    gm, sites = run(Variant(change), *inputs(3))
    site = sites[0]
    assert site.reason == reason, site
    assert site.cure
    assert site.refusal is not None
    assert site.refusal.text
    assert site.source
    assert not fused_nodes(gm) or change in (collective_between, fused_op_between)


def test_float32_is_refused() -> None:
    _, sites = run(Block(dtype=torch.float32), *inputs(3, torch.float32))
    assert sites[0].reason == "dtype"


def test_numerics_class_is_a_limit() -> None:
    gm = capture(Block(norm="torch"), *inputs(3))
    sites = fuse_all(gm, FusionOptions(numerics="same_rounding"))
    assert sites[0].reason == "numerics"
    assert "one_ulp" in sites[0].cure
    assert fuse_all(gm, FusionOptions(numerics="one_ulp"))[0].is_fused


def test_min_rows() -> None:
    gm = capture(Block(), *inputs(3))
    assert fuse_all(gm, FusionOptions(min_rows=7))[0].reason == "min_rows"
    assert fuse_all(gm, FusionOptions(min_rows=6))[0].is_fused


def test_training_graph_is_refused() -> None:
    _, sites = run(Block(reduce="functional"), *inputs(3), grad=True)
    assert sites[0].reason == "norm_internals_used"


def test_deterministic_mode_is_refused() -> None:
    gm = capture(Block(), *inputs(3))
    torch.use_deterministic_algorithms(True)
    try:
        assert fuse_all(gm)[0].reason == "deterministic_mode"
    finally:
        torch.use_deterministic_algorithms(False)


def test_group_size() -> None:
    dist.destroy_process_group()
    with fake_group(3):
        _, sites = run(Block(), *inputs(3))
        assert sites[0].reason == "group_size"
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
