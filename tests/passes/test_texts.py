"""What verdicts say beside their reason: by which name and line of the model, and with a cure that can be followed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch.aot_autograd import make_boxed_func
from torch.fx import GraphModule

from npu_fused_graph import explain
from npu_fused_graph.aot.autograd import compile_with_aot
from npu_fused_graph.passes import FusionOptions, fuse_all
from npu_fused_graph.passes.verdicts import FusionSite
from tests.passes.blocks import Block, llama_norm
from tests.passes.capture import capture, fake_group
from tests.passes.test_location import line_of

INPUTS = torch.zeros(2, 4, 16).half(), torch.zeros(2, 4, 32).half()
WEIGHT, OTHER, GAMMA = torch.ones(32, 16).half(), torch.ones(32, 16).half(), torch.ones(32).half()
NORM = f"{inspect.getsourcefile(llama_norm)}:{line_of(llama_norm, 'rsqrt')}"

EPSILON = f"epsilon of the norm rsqrt ({NORM}) is "


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    with fake_group(2):
        yield


def the_site(model: Callable[..., Any], *inputs: Any, **options: Any) -> FusionSite:
    (site,) = explain(model, *(inputs or INPUTS), **{"min_rows": 0, **options}).sites
    return site


def text_of(model: Callable[..., Any], *inputs: Any, **options: Any) -> tuple[str, str]:
    site = the_site(model, *inputs, **options)
    assert site.refusal is not None, site
    return site.refusal.text, site.cure


def reduced(x: Tensor) -> Tensor:
    return all_reduce(F.linear(x, WEIGHT))


def all_reduce(x: Tensor) -> Tensor:
    return funcol.all_reduce(x, "sum", dist.group.WORLD)


def at(function: Callable[..., Any], text: str) -> str:
    return f"{__file__}:{line_of(function, text)}"


# -- epsilon --------------------------------------------------------------------------------------------------


class Norm(nn.Module):
    """Its epsilon is whatever ``epsilon`` is."""

    def __init__(self, epsilon: Any) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return llama_norm(x, GAMMA, self.epsilon)


class Model(nn.Module):
    def __init__(self, epsilon: Any) -> None:
        super().__init__()
        self.norms = nn.ModuleList([Norm(epsilon)])

    def forward(self, x: Tensor, residual: Tensor) -> Any:
        return self.norms[0](residual + reduced(x))


@pytest.mark.parametrize(
    ("epsilon", "kind"),
    [(nn.Buffer(torch.tensor(1e-6)), "buffer"), (nn.Parameter(torch.full((1,), 1e-6)), "parameter")],
    ids=["buffer", "parameter"],
)
def test_epsilon_of_a_module_is_called_by_its_name(epsilon: Any, kind: str) -> None:
    text, cure = text_of(Model(epsilon))
    assert text == EPSILON + f"the {kind} norms.0.epsilon, a tensor"
    assert cure == f"Keep it as a Python number instead of a {kind}."


def test_epsilon_that_is_an_argument_or_computed() -> None:
    def argument(x: Tensor, residual: Tensor, eps: Tensor) -> Any:
        return llama_norm(residual + reduced(x), GAMMA, eps)  # type: ignore[arg-type]

    def computed(x: Tensor, residual: Tensor) -> Any:
        eps = residual.float().abs().mean()
        return llama_norm(residual + reduced(x), GAMMA, eps)  # type: ignore[arg-type]

    text, cure = text_of(argument, *INPUTS, torch.tensor(1e-6))
    assert text == EPSILON + "the input inputs[2], a tensor"
    assert cure.startswith("Keep it as a Python number, ")
    text, cure = text_of(computed)
    assert text == EPSILON + f"computed: mean ({at(computed, '.mean()')})"
    assert cure == "Keep it as a Python number."


def test_epsilon_that_dynamic_shapes_make_an_input() -> None:
    sites: list[FusionSite] = []

    def keep(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        sites.extend(fuse_all(gm, FusionOptions(min_rows=0)))
        return make_boxed_func(gm)  # type: ignore[no-any-return]

    torch._dynamo.reset()
    with torch.no_grad():
        backend = functools.partial(compile_with_aot, compile_graph=keep, decompositions={})
        torch.compile(Model(1e-6), backend=backend, dynamic=True)(*INPUTS)
    (site,) = sites
    assert site.refusal is not None
    assert site.refusal.text == EPSILON + "the number norms.0.epsilon, an input of this graph"
    assert site.cure == "Compile with dynamic=False, or set torch._dynamo.config.specialize_float = True."


# -- readers and norms ----------------------------------------------------------------------------------------


def test_readers_are_named_with_their_lines() -> None:
    def two(x: Tensor, residual: Tensor) -> Any:
        y = reduced(x)
        out = llama_norm(residual + y, GAMMA, 1e-6)
        return out, y * 2

    def partial(x: Tensor, residual: Tensor) -> Any:
        part = F.linear(x, WEIGHT)
        out = llama_norm(residual + all_reduce(part), GAMMA, 1e-6)
        return out, part * 2

    def inside(x: Tensor, residual: Tensor) -> Any:
        wide = (residual + reduced(x)).float()
        rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return GAMMA * (wide * rstd).half(), rstd * 2

    text, _ = text_of(two)
    places = f"add ({at(two, 'residual + y')}), mul_2 ({at(two, 'y * 2')})"
    assert text == f"the reduced result goes not to one add alone: it is read by {places}"
    text, _ = text_of(partial)
    linear = at(partial, "F.linear")
    assert text == f"the partial sum _unsafe_view ({linear}) is also read by mul_2 ({at(partial, 'part * 2')})"
    text, _ = text_of(inside)
    assert text == f"rsqrt ({at(inside, 'rsqrt')}), inside the norm, is also read by mul_2 ({at(inside, 'rstd * 2')})"


def test_the_norm_is_named_with_its_line() -> None:
    def post_norm(x: Tensor, residual: Tensor) -> Any:
        return residual + llama_norm(reduced(x), GAMMA, 1e-6)

    def with_beta(x: Tensor, residual: Tensor) -> Any:
        total = residual + reduced(x)
        return F.layer_norm(total, (32,), GAMMA, GAMMA)

    assert text_of(post_norm)[0] == f"the reduced result is normalised first: rsqrt ({NORM})"
    site = the_site(with_beta)
    assert f": the sum is normalised by LayerNorm ({at(with_beta, 'F.layer_norm')}) [layer_norm] " in str(site)
    assert str(the_site(post_norm)).count(NORM) == 1, "a line that the text has is not said again"


def test_a_dropout_is_named() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.1)

        def forward(self, x: Tensor, residual: Tensor) -> Any:
            y = self.dropout(reduced(x))
            return llama_norm(residual + y, GAMMA, 1e-6)

    model = Dropped()
    where = at(Dropped.forward, "self.dropout(")
    assert text_of(model) == (
        f"a dropout stands before the add: native_dropout ({where})",
        "Call model.eval() before it is compiled.",
    )
    assert the_site(model.eval()).is_fused, "the cure"


# -- rows -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_symbolic_rows_are_called_that_and_marked_ones_are_fused() -> None:
    def site(**bounds: int) -> FusionSite:
        x, residual = torch.zeros(1, 2048, 16).half(), torch.zeros(1, 2048, 32).half()
        for tensor in (x, residual):
            torch._dynamo.mark_dynamic(tensor, 1, **bounds)
        (found,) = fuse_all(capture(Block(), x, residual, dynamic=None))
        return found

    free = site()
    assert free.reason == "symbolic_rows" and free.is_legal and free.facts["rows"] is None
    text = free.refusal.text  # type: ignore[union-attr]
    assert text.startswith("the number of rows is symbolic (s") and text.endswith(") and may be 2, fewer than 2048")
    assert "mark its rows as at least 2048" in free.cure
    assert site(min=2047, max=4096).reason == "symbolic_rows"
    assert site(min=2048, max=4096).is_fused


# -- what is reduced ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scatter", "gather"), [(1, 1), (2, 2), (1, 0), (0, 2)])
def test_the_dim_of_a_scatter_and_gather_is_named(scatter: int, gather: int) -> None:
    def model(x: Tensor) -> Any:
        part = funcol.reduce_scatter_tensor(F.linear(x, WEIGHT), "sum", scatter, dist.group.WORLD)
        return funcol.all_gather_tensor(part, gather, dist.group.WORLD)

    text, _ = text_of(model, INPUTS[0])
    assert text == f"the sum is scattered along dim {scatter} and gathered along dim {gather}"


def test_the_dim_of_a_scatter_alone_is_named() -> None:
    def model(x: Tensor) -> Any:
        return funcol.reduce_scatter_tensor(F.linear(x, WEIGHT), "sum", 1, dist.group.WORLD) * 2

    assert text_of(model, INPUTS[0])[0] == "the sum is scattered along dim 1 over group '0' and stays so"


def test_the_cure_of_a_sum_of_matmuls_can_be_followed() -> None:
    def experts(x: Tensor, residual: Tensor) -> Any:
        score = residual[..., :2]
        y = F.linear(x, WEIGHT) * score[..., :1]
        y = y + F.linear(x, OTHER) * score[..., 1:]
        return llama_norm(residual + all_reduce(y), GAMMA, 1e-6)

    def joined(x: Tensor, residual: Tensor) -> Any:
        score = residual[..., :2]
        inputs = torch.cat([x * score[..., :1], x * score[..., 1:]], -1)
        y = F.linear(inputs, torch.cat([WEIGHT, OTHER], 1))
        return llama_norm(residual + all_reduce(y), GAMMA, 1e-6)

    text, cure = text_of(experts)
    first, second = at(experts, "F.linear(x, WEIGHT)"), at(experts, "F.linear(x, OTHER)")
    assert text == f"what is reduced is a sum of 2 matmuls: mm ({first}), mm_1 ({second})"
    assert cure == "Make them one: join their inputs, each with its factor, along k, and their weights, too."
    assert the_site(joined).is_fused, "the cure"


def test_what_is_no_matmul_has_the_cure_of_its_kind() -> None:
    table = torch.zeros(9, 32).half()

    def embedding(x: Tensor, residual: Tensor) -> Any:
        y = F.embedding(torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]), table)
        y[:, 0] = 0
        return llama_norm(residual + all_reduce(y), GAMMA, 1e-6)

    def joined(x: Tensor, residual: Tensor) -> Any:
        rows = F.linear(x, WEIGHT).view(8, 32)
        y = torch.zeros(8, 32).half().index_add(0, torch.arange(8), rows)
        return llama_norm(residual + all_reduce(y.view(2, 4, 32)), GAMMA, 1e-6)

    def batched(x: Tensor, residual: Tensor) -> Any:
        y = torch.bmm(x, torch.stack([WEIGHT.t(), OTHER.t()]))
        return llama_norm(residual + all_reduce(y), GAMMA, 1e-6)

    def activated(x: Tensor, residual: Tensor) -> Any:
        y = F.silu(torch.addmm(GAMMA, x.view(8, 16), WEIGHT.t(), alpha=2))
        return llama_norm(residual + all_reduce(y.view(2, 4, 32)), GAMMA, 1e-6)

    assert text_of(batched)[1] == "Give the linear a contiguous activation and a 2-D weight."
    assert "no matmul" not in text_of(activated)[0]
    text, cure = text_of(embedding)
    assert "with no matmul near: " in text and cure == "Nothing to fuse here."
    text, cure = text_of(joined)
    assert text == f"what is reduced joins rows of matmuls: index_add ({at(joined, 'index_add')})"
    assert cure.startswith("Nothing to change here: ")


def test_a_sum_into_which_another_result_goes_before_the_norm() -> None:
    def model(x: Tensor, residual: Tensor) -> Any:
        total = (residual + reduced(x)).view(8, 32) + all_reduce(F.linear(x.view(8, 16), OTHER))
        return llama_norm(total, GAMMA, 1e-6)

    first, _ = explain(model, *INPUTS, min_rows=0).sites
    assert first.refusal is not None and first.reason == "sum_of_reduces"
    assert first.refusal.text == f"add_1 ({at(model, 'total = ')}) adds another reduced result"


def test_a_float32_sum_that_no_norm_reads_is_refused_for_its_dtype() -> None:
    def model(x: Tensor, residual: Tensor) -> Any:
        return residual + all_reduce(F.linear(x, WEIGHT.float()))

    assert text_of(model, *(x.float() for x in INPUTS))[0] == "the reduced result is float32"


def test_parts_that_are_added_were_gathered_along_no_other_dim() -> None:
    def model(x: Tensor, residual: Tensor) -> Any:
        y = funcol.reduce_scatter_tensor(F.linear(x, WEIGHT).view(8, 32), "sum", 0, dist.group.WORLD)
        first, second = funcol.all_gather_tensor(y, 0, dist.group.WORLD).split(4)
        return llama_norm(residual[0] + (first + second), GAMMA, 1e-6)

    assert the_site(model).reason == "no_residual_add"


def test_a_matmul_100_nodes_behind_is_not_near() -> None:
    def behind(steps: int) -> Callable[..., Any]:
        def model(x: Tensor, residual: Tensor) -> Any:
            y = F.linear(x, WEIGHT)
            for _ in range(steps):
                y = y.sin()
            return llama_norm(residual + all_reduce(y), GAMMA, 1e-6)

        return model

    assert "not from a plain matmul: " in text_of(behind(20))[0]
    assert "with no matmul near: " in text_of(behind(120))[0]


def test_experts_whose_rows_a_router_sorts_have_nothing_to_cure() -> None:
    def experts(x: Tensor, residual: Tensor, weights: Tensor, ends: Tensor) -> Any:
        y = torch.ops.aten._grouped_mm(x.view(-1, 16), weights, ends) * weights[0, :8, :1]
        return llama_norm(residual + all_reduce(y.view(residual.shape)), GAMMA, 1e-6)

    x, residual = (tensor.bfloat16() for tensor in INPUTS)
    gm = capture(experts, x, residual, torch.zeros(2, 16, 32).bfloat16(), torch.tensor([3, 8], dtype=torch.int32))
    (site,) = fuse_all(gm, FusionOptions(min_rows=0))
    assert site.refusal is not None and site.reason == "no_matmul"
    where = at(experts, "_grouped_mm")
    assert site.refusal.text == f"what is reduced is put together from the rows of experts: _grouped_mm ({where})"
    assert site.cure.startswith("Nothing to change here: ")
