"""The first fusion: what is fused, into what, and what is refused for which reason."""

from __future__ import annotations

import re
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

from npu_fused_graph.aot.autograd import compile_with_aot
from npu_fused_graph.errors import InvalidArgumentError
from npu_fused_graph.passes import FusionOptions, fuse_all
from npu_fused_graph.passes.location import module_path, source_line
from npu_fused_graph.passes.verdicts import FusionSite, Numerics
from npu_fused_graph.testing import assert_close
from tests.passes import lockstep
from tests.passes.blocks import Block, all_reduce_in_place, llama_norm
from tests.passes.capture import capture, capture_with_arguments, fake_group
from tests.passes.foreign_ops import foreign_ops

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
    return gm, fuse_all(gm, FusionOptions(numerics=numerics, min_rows=0))


@pytest.mark.parametrize(
    ("linear", "reduce", "norm", "rank"),
    [
        ("linear", "in_place", "llama", 2),
        ("linear_bias", "functional", "torch", 3),
        ("matmul", "in_place", "torch", 3),
        ("mm", "functional", "llama", 3),
        ("addmm", "in_place", "llama", 2),
    ],
)
def test_the_fused_node_has_the_operands_as_they_are_stored(linear: str, reduce: str, norm: str, rank: int) -> None:
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

    gm, sites = run(Two(), torch.randn(2, 3, 32).half(), torch.randn(2, 3, 32).half())
    assert [s.is_fused for s in sites] == [True, True]
    assert [s.layer for s in sites] == ["first", "second"]
    assert [s.node for s in sites] == [node.name for node in fused_nodes(gm)]
    assert all(s.source.rpartition(":")[0].endswith("blocks.py") for s in sites)
    fused = fused_nodes(gm)
    assert [module_path(node) for node in fused] == ["first", "second"], "for who looks at the graph afterwards"
    assert [source_line(node) for node in fused] == [s.source for s in sites]
    assert all("blocks.py" in source_line(user) for node in fused for user in node.users)


def test_the_scales_of_an_operator_that_reduces_come_along() -> None:
    """npu_mm_all_reduce_base with a weight that is quantised in groups of 32 rows."""
    x, residual = torch.randn(2, 3, 64).half(), torch.randn(2, 3, 32).half()
    x2 = torch.randint(-9, 9, (64, 32), dtype=torch.int8)
    scale, offset, gamma = torch.rand(2, 32).half(), torch.ones(2, 32).half(), torch.ones(32).half()

    def model(x: Tensor, residual: Tensor, x2: Tensor, scale: Tensor, offset: Tensor) -> Any:
        reduced = torch.ops.npu.npu_mm_all_reduce_base(
            x, x2, "0", antiquant_scale=scale, antiquant_offset=offset, antiquant_group_size=32
        )
        return llama_norm(residual + reduced, gamma, 1e-6)

    with foreign_ops():
        gm, sites = run(model, x, residual, x2, scale, offset)
        assert [site.is_fused for site in sites] == [True], sites
        (node,) = fused_nodes(gm)
        assert node.kwargs["antiquant_group_size"] == 32
        for name, tensor in (("antiquant_scale", scale), ("antiquant_offset", offset)):
            assert node.kwargs[name].meta["val"].shape == tensor.shape
        assert node.kwargs["antiquant_scale"] is not node.kwargs["antiquant_offset"]


def test_views_inside_the_norm() -> None:
    """Before the cast back, between the cast and the weight, behind both."""

    def norm(x: Tensor, weight: Tensor, late: bool) -> Tensor:
        wide = x.float()
        wide = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).unsqueeze(0)
        if late:
            return (weight.float() * wide).view(-1, x.size(-1)).to(x.dtype).view(x.shape)
        return (weight * wide.to(x.dtype).view(-1, x.size(-1))).view(x.shape)

    class Model(Block):
        def forward(self, x: Tensor, residual: Tensor, late: bool) -> Any:
            total = residual + all_reduce_in_place(self.product(x))
            return norm(total, self.gamma, late), total

    for late in (False, True):
        model, args = Model(), inputs(3)
        gm, sites = run(model, *args, late)
        assert [site.is_fused for site in sites] == [True], sites
        assert "aten.rsqrt.default" not in targets(gm)


def shared_gamma(x: Tensor, w: Tensor, v: Tensor, r: Tensor, s: Tensor, gamma: Tensor) -> Any:
    """Both norms read what is computed, in several steps, behind both sums."""
    first = funcol.all_reduce(x @ w, "sum", dist.group.WORLD) + r
    second = funcol.all_reduce(x @ v, "sum", dist.group.WORLD) + s
    one, two = gamma * 2, gamma - 3
    weight = (one + 1) * (two * 5) + (one - two)
    return llama_norm(first, weight, 1e-6), llama_norm(second, weight, 1e-6)


def crossed_adds(x: Tensor, w: Tensor, v: Tensor, r: Tensor, s: Tensor, gamma: Tensor) -> Any:
    """The first collective's sum comes behind the second's, and what both norms read between the two."""
    a = funcol.all_reduce(x @ w, "sum", dist.group.WORLD)
    second = s + funcol.all_reduce(x @ v, "sum", dist.group.WORLD)
    weight = (gamma * 2 + 1) * (gamma - 3)
    first = a + r
    return llama_norm(first, weight, 1e-6), llama_norm(second, weight, 1e-6)


@pytest.mark.parametrize(("model", "fused"), [(shared_gamma, [True, True]), (crossed_adds, [False, True])])
def test_sites_that_share_what_has_to_move(model: Callable[..., Any], fused: list[bool]) -> None:
    x, r = inputs(3)
    weight = torch.randn(16, 32).half()
    arguments = x, weight, weight + 1, r, r + 1, torch.randn(32).half()
    gm, given = capture_with_arguments(model, *arguments)
    wanted = lockstep.run(gm, [given] * 2)
    sites = fuse_all(gm, FusionOptions(numerics="any", min_rows=0))
    assert [site.is_fused for site in sites] == fused, sites
    for results, expected in zip(lockstep.run(gm, [given] * 2), wanted, strict=True):
        for result, want in zip(results, expected, strict=True):
            assert_close(result, want, scale=8)


def test_a_pass_that_breaks_the_order_of_a_graph_is_noticed() -> None:
    def breaks(gm: GraphModule, options: FusionOptions) -> list[FusionSite]:
        first, second = (n for n in gm.graph.nodes if n.op == "call_function")
        second.append(first)
        return []

    gm = capture(lambda x: (x * 2) + 1, torch.ones(2))
    with pytest.raises(RuntimeError, match="used before it has been defined"):
        fuse_all(gm, passes=[breaks])


def test_idempotent() -> None:
    gm, _ = run(Block(), *inputs(3))
    text = gm.code
    assert fuse_all(gm, FusionOptions(min_rows=0)) == []
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


@pytest.mark.parametrize(("rows", "min_rows"), [(1, 1), (6, 6), pytest.param(2048, None, id="two tiles of 64 KiB")])
def test_just_enough_rows(rows: int, min_rows: int | None) -> None:
    gm = capture(Block(), torch.randn(rows, 16).half(), torch.randn(rows, 32).half())
    assert [site.reason for site in fuse_all(gm, FusionOptions(min_rows=min_rows))] == [""]


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
        sites.extend(fuse_all(gm, FusionOptions(min_rows=0)))
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


def residual_of_higher_rank(weight: Tensor, gamma: Tensor, x: Tensor, r: Tensor) -> Any:
    y = all_reduce_in_place(F.linear(x, weight)) + r.unsqueeze(0)
    return llama_norm(y, gamma, 1e-6), y


@pytest.mark.parametrize(
    "block", [residual_of_higher_rank, add_in_place, norm_of_flat_sum, dropout_in_eval, stored_as_transpose]
)
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


@pytest.mark.parametrize("linear", ["linear_bias", "matmul"])
def test_a_plain_fx_graph_needs_no_torchair(linear: str) -> None:
    """torch.export's graph, which keeps linear, matmul and rms_norm: fused, it computes what eager does."""
    block = Block(linear, "functional", "torch", n=32)
    x, r = inputs(3)
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    inner = torch.export.export(block, (x, r)).graph_module
    (site,) = fuse_all(inner, FusionOptions(numerics="one_ulp", min_rows=0))
    assert site.is_fused, site
    names = [node.target for node in inner.graph.find_nodes(op="placeholder")]
    parameters = [getattr(block, name.removeprefix("p_")) for name in names if name.startswith("p_")]
    with torch.no_grad():
        for got, want in zip(inner(*parameters, x, r), block(x, r), strict=True):
            assert_close(got, want.double(), scale=4)


WRONG: dict[str, Any] = {
    "no graph": (lambda: 3, "gm: expected a torch.fx.GraphModule, got int"),
    "symbolic_trace": (lambda: torch.fx.symbolic_trace(Method()), "gm: expected aten operators with fake tensors"),
}


class Method(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add(1)


@pytest.mark.parametrize("name", WRONG)
def test_another_kind_of_graph_is_refused(name: str) -> None:
    make, text = WRONG[name]
    with pytest.raises(InvalidArgumentError, match=re.escape(text)):
        fuse_all(make())


def test_a_norm_that_is_one_operator_of_aten() -> None:
    class Model(Block):
        def forward(self, x: Tensor, residual: Tensor) -> Any:
            total = residual + self.reduce(self.product(x))
            return torch.ops.aten._fused_rms_norm(total, [32], self.gamma, 1e-6)[0], total

    model, (x, r) = Model("mm", "functional"), inputs(2)
    gm = torch.export.export(model, (x, r)).graph_module
    _same_numbers_fused(gm, [model.weight.detach(), model.gamma.detach(), x, r], numerics="one_ulp")


class Snapshots(nn.Module):
    """Multiplies by copies of tensors that are written before the matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gamma = nn.Buffer(torch.randn(32, 16).half()), nn.Buffer(torch.randn(32).half())

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        weight, activation = self.weight.clone().t(), x.flatten(0, 1).clone()
        self.weight.mul_(2)
        x.mul_(3)
        reduced = funcol.all_reduce(activation @ weight, "sum", "0")
        return llama_norm(residual + reduced, self.gamma, 1e-6)


def test_a_copy_is_not_what_it_was_copied_from() -> None:
    model, (x, r) = Snapshots(), (torch.randn(2, 3, 16).half(), torch.randn(6, 32).half())
    gm = torch.export.export(model, (x.clone(), r)).graph_module
    _same_numbers_fused(gm, [model.weight, model.gamma, x, r])


def test_what_the_op_does_not_read_may_be_written_inside() -> None:
    class Model(Block):
        def forward(self, x: Tensor, residual: Tensor, calls: Tensor) -> Any:
            reduced = self.reduce(self.product(x))
            calls.add_(1)
            return llama_norm(residual + reduced, self.gamma, 1e-6), calls * 2

    model, (x, r) = Model("mm", "functional"), inputs(2)
    gm = torch.export.export(model, (x, r, torch.zeros(4))).graph_module
    _same_numbers_fused(gm, [model.weight.detach(), model.gamma.detach(), x, r, torch.zeros(4)])


def _same_numbers_fused(gm: GraphModule, arguments: list[Any], numerics: Numerics = "same_rounding") -> None:
    before = lockstep.run(gm, [arguments] * 2)
    assert [site.is_fused for site in fuse_all(gm, FusionOptions(numerics=numerics, min_rows=0))] == [True]
    after = lockstep.run(gm, [arguments] * 2)
    for want, got in zip(before[0], after[0], strict=True):
        assert_close(got, want.double(), scale=4)
