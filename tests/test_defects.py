"""TorchAir's defects (docs/torchair_defects.md): each is still there in stock TorchAir, none is left in our backend.

The tests named ``*_stock_*`` fail when upstream repairs a defect: the guard, and its tests here, can then go.
"""

from __future__ import annotations

import importlib
import inspect
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npu_fused_graph as nfg
from npu_fused_graph import comm
from npu_fused_graph.host.defects import guard_order_of_effects
from npu_fused_graph.ops.schedule_context import ScheduleContextHolder
from npu_fused_graph.testing import assert_close
from tests.passes.capture import fake_group
from tests.processes import run_code
from tests.ranks import run_ranks, values

Model = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """Our converters, and two operators of a user: one keeps strides, one is a GroupedMatmul with nothing optional."""
    from npu_fused_graph import converters

    nfg.load_torchair()
    converters.register_all()
    import torchair
    from torchair._ge_concrete_graph import ge_apis as ge

    library = torch.library.Library("defects", "FRAGMENT")
    library.define("rectify(Tensor x) -> Tensor")
    library.impl("rectify", torch.relu, "CPU")
    torch.library.register_fake("defects::rectify", torch.relu, lib=library)
    library.define("grouped(Tensor x, Tensor w, Tensor ends) -> Tensor")
    library.impl("grouped", lambda x, w, ends: x @ w[0], "CPU")
    torch.library.register_fake("defects::grouped", lambda x, w, ends: x.new_empty(x.shape[0], w.shape[2]), lib=library)

    @torchair.register_fx_node_ge_converter(torch.ops.defects.rectify.default)
    def rectify(x: Any, meta_outputs: Any = None) -> Any:
        return ge.Relu(x)

    @torchair.register_fx_node_ge_converter(torch.ops.defects.grouped.default)
    def grouped(x: Any, w: Any, ends: Any, meta_outputs: Any = None) -> Any:
        lists: list[list[Any]] = [[], [], [], [], []]
        return ge.GroupedMatmul([x], [w], *lists, ends, None, split_item=3, group_type=0, dtype=-1)[0]

    yield
    library._destroy()


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def stock(model: Model, *inputs: Any) -> Any:
    """``model(*inputs)`` compiled by TorchAir alone, on our engine."""
    torchair = nfg.load_torchair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchAir's own deprecations
        with torch.no_grad():
            return torch.compile(model, backend=torchair.get_npu_backend(), dynamic=False, fullgraph=True)(*inputs)


def ours(model: Model, *inputs: Any) -> Any:
    """The same through our backend, where no warning may escape."""
    with torch.no_grad():
        return torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)(*inputs)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)).to(dtype)


# -- T1: view optimisation ---------------------------------------------------------------------------------


def _tail(y: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(2, 3, -1) * 2


def _sdpa(x: Tensor) -> Tensor:
    q = x.transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(2, 3, -1)


def _where(x: Tensor) -> Tensor:
    y = x.transpose(1, 2)
    return _tail(torch.where(y > 0, y, -y))


MISCOMPILED: dict[str, Model] = {
    "add": lambda x: _tail(x.transpose(1, 2) + 1),
    "relu": lambda x: _tail(x.transpose(1, 2).relu()),
    "relu, permute": lambda x: x.permute(0, 2, 1, 3).relu().permute(0, 2, 1, 3).reshape(2, 3, -1) * 2,
    "where": _where,
    "zeros_like, add": lambda x: _tail(torch.zeros_like(x.transpose(1, 2)) + x.transpose(1, 2)),
    "sort": lambda x: _tail(x.transpose(1, 2).sort(-1).values),
    "custom op that keeps strides": lambda x: _tail(torch.ops.defects.rectify(x.transpose(1, 2))),
}
"""Producers whose result torch leaves non-contiguous."""

COMPILED_RIGHT: dict[str, Model] = {
    "softmax": lambda x: _tail(x.transpose(1, 2).softmax(-1)),
    "layer_norm": lambda x: _tail(F.layer_norm(x.transpose(1, 2), (4,))),
    "clone": lambda x: _tail(x.transpose(1, 2).clone(memory_format=torch.contiguous_format)),
    "matmul": lambda x: _tail(x.transpose(1, 2) @ torch.ones(4, 4)),
    "topk": lambda x: _tail(x.transpose(1, 2).topk(4, -1).values),
    "scaled_dot_product_attention": _sdpa,
    "index": lambda x: _tail(x.transpose(1, 2)[:, torch.tensor([4, 1, 0, 2, 3])]),
}
"""Producers whose result is contiguous: nothing to forget. And one that exists on a CPU only."""


@pytest.mark.parametrize("name", MISCOMPILED)
def test_t1_stock_torchair_forgets_the_permutation(name: str) -> None:
    x = random(2, 3, 5, 4)
    wanted = MISCOMPILED[name](x)
    result = stock(MISCOMPILED[name], x)
    assert result.shape == wanted.shape
    assert (result - wanted).abs().max() > 0.1


@pytest.mark.parametrize("name", COMPILED_RIGHT)
def test_t1_stock_torchair_is_right_behind_contiguous_results(name: str) -> None:
    x = random(2, 3, 5, 4)
    assert_close(stock(COMPILED_RIGHT[name], x), COMPILED_RIGHT[name](x))


@pytest.mark.parametrize("name", [*MISCOMPILED, *COMPILED_RIGHT])
def test_t1_our_backend_is_right(name: str) -> None:
    model = {**MISCOMPILED, **COMPILED_RIGHT}[name]
    x = random(2, 3, 5, 4)
    assert_close(ours(model, x), model(x))


def test_t1_enable_fusion_guards_an_existing_pipeline() -> None:
    torchair = nfg.load_torchair()
    x = random(2, 3, 5, 4)
    model = MISCOMPILED["add"]
    config = nfg.enable_fusion(torchair.CompilerConfig())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        backend = torchair.get_npu_backend(compiler_config=config)
        result = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(x)
    assert_close(result, model(x))


# -- T2, T3: DTensor ---------------------------------------------------------------------------------------


def _dtensor_rank(rank: int) -> dict[str, Any]:
    """What each backend makes of DTensor parameters and of DTensor inputs and results, on one of two ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2,))
    mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).eval().requires_grad_(False)
    for index, parameter in enumerate(mlp.parameters()):
        parameter.copy_(random(*parameter.shape) + index / 10)
    x = random(4, 8)
    whole = mlp(x)
    parallel = parallelize_module(mlp, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    a, b = (distribute_tensor(random(4, 8) + i, mesh, [Shard(0)]) for i in range(2))

    def add(a: DTensor, b: DTensor) -> tuple[DTensor, DTensor]:
        return a + b * 2, b - a

    cases: dict[str, tuple[Model, tuple[Any, ...], list[Tensor]]] = {
        "parameters": (lambda x: [parallel(x)], (x,), [whole]),
        "inputs and results": (add, (a, b), [t.full_tensor() for t in add(a, b)]),
    }
    found: dict[str, Any] = {"eager": float((parallel(x) - whole).abs().max())}
    for name, (model, inputs, wanted) in cases.items():
        for backend in (stock, ours):
            torch._dynamo.reset()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    results = [t.full_tensor() if isinstance(t, DTensor) else t for t in backend(model, *inputs)]
            except Exception as error:
                found[f"{backend.__name__}, {name}"] = str(error)
            else:
                error = max(float((r - w).abs().max()) for r, w in zip(results, wanted, strict=True))
                found[f"{backend.__name__}, {name}"] = error
    return found


@pytest.fixture(scope="module")
def dtensor_ranks() -> list[dict[str, Any]]:
    return values(run_ranks(_dtensor_rank, 2, limit=100))


def test_t2_stock_torchair_puts_attributes_on_a_device_mesh(dtensor_ranks: list[dict[str, Any]]) -> None:
    for rank in dtensor_ranks:
        assert "with attr '_dynamo_static_input_type' on a FakeScriptObject" in rank["stock, parameters"]


def test_t3_stock_torchair_counts_inputs_wrongly_past_a_device_mesh(dtensor_ranks: list[dict[str, Any]]) -> None:
    for rank in dtensor_ranks:
        assert "element 1 is not a Tensor, got DeviceMesh" in rank["stock, inputs and results"]


def test_t2_t3_our_backend_compiles_dtensors(dtensor_ranks: list[dict[str, Any]]) -> None:
    for rank in dtensor_ranks:
        # the ranks' partial sums meet in another order than in one matrix product, by how much depends on the CPU
        assert [rank[k] < 5e-5 for k in ("eager", "ours, parameters", "ours, inputs and results")] == [True] * 3, rank


# -- T4: GroupedMatmul -------------------------------------------------------------------------------------


def test_t4_stock_torchair_fails_on_a_grouped_matmul_without_optional_inputs() -> None:
    x, w = random(6, 8), random(1, 8, 4)
    with pytest.raises(Exception, match="IndexError: list index out of range"):
        stock(torch.ops.defects.grouped, x, w, torch.tensor([6]))


def test_t4_our_converter_feeds_every_list() -> None:
    x, w = random(6, 16, dtype=torch.bfloat16), random(3, 16, 8, dtype=torch.bfloat16)
    ends = torch.tensor([2, 2, 6], dtype=torch.int32)
    result = ours(lambda x, w, ends: torch._grouped_mm(x, w, offs=ends), x, w, ends)
    wanted = torch.cat([x[:2].double() @ w[0].double(), x[2:].double() @ w[2].double()])
    assert_close(result, wanted)


# -- T5: gelu ----------------------------------------------------------------------------------------------


def test_t5_stock_torchair_drops_approximate() -> None:
    from torchair._ge_concrete_graph.ge_converter.aten import gelu

    x = torch.linspace(-4, 4, 101)
    op = torch.ops.aten.gelu.default
    converter = op._ge_converter
    importlib.reload(gelu)  # registers TorchAir's own converter again
    try:
        assert op._ge_converter is not converter
        exact, tanh = stock(lambda x: (F.gelu(x), F.gelu(x, approximate="tanh")), x)
    finally:
        op._ge_converter = converter
    assert torch.equal(exact, tanh)
    assert (F.gelu(x) - F.gelu(x, approximate="tanh")).abs().max() > 1e-4


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_t5_our_converter_keeps_approximate(approximate: str) -> None:
    x = torch.linspace(-4, 4, 101)
    wide = x.double()
    inner = wide / 2**0.5 if approximate == "none" else (2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)
    wanted = wide / 2 * (1 + (inner.erf() if approximate == "none" else inner.tanh()))
    assert_close(ours(lambda x: F.gelu(x, approximate=approximate), x), wanted)


# -- T7, T8: arguments that converters lose --------------------------------------------------------------------


def stock_with(op: Any, module: str, function: Model, *inputs: Tensor) -> Any:
    """``function`` in stock TorchAir, with TorchAir's own converter of ``op`` in force. module: of aten, or a path."""
    from torchair._ge_concrete_graph.fx2ge_converter import _CHECKPOINT_MAP_FUNC

    converter = op._ge_converter
    repeated = _CHECKPOINT_MAP_FUNC.pop(op, None)  # TorchAir refuses a second registration there
    path = module if "." in module else f"aten.{module}"
    importlib.reload(importlib.import_module(f"torchair._ge_concrete_graph.ge_converter.{path}"))
    try:
        assert op._ge_converter is not converter
        return stock(function, *inputs)
    finally:
        op._ge_converter = converter
        if repeated is not None:
            _CHECKPOINT_MAP_FUNC[op] = repeated


BAGS = torch.tensor([[0, 2], [1, 3]])


def test_t7_stock_torchair_takes_the_mean_of_a_bag_that_is_summed() -> None:
    weight = random(5, 4)
    op = torch.ops.aten._embedding_bag_forward_only.default
    result = stock_with(op, "_embedding_bag_forward_only", lambda w: F.embedding_bag(BAGS, w, mode="sum"), weight)
    assert_close(result, weight[BAGS].double().mean(1))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_t7_our_converter_keeps_the_mode(mode: str) -> None:
    weight = random(5, 4)
    rows = weight[BAGS].double()
    assert_close(
        ours(lambda w: F.embedding_bag(BAGS, w, mode=mode), weight), rows.sum(1) if mode == "sum" else rows.mean(1)
    )


def test_t8_stock_torchair_draws_without_replacement() -> None:
    weights = torch.tensor([1.0, 1.0])
    with pytest.raises(Exception, match="cannot sample n_sample > prob_dist"):
        stock_with(torch.ops.aten.multinomial.default, "multinomial", lambda w: torch.multinomial(w, 8, True), weights)


def test_t8_our_converter_draws_with_replacement() -> None:
    weights = torch.tensor([0.0, 1.0, 1.0])
    drawn = ours(lambda w: torch.multinomial(w, 64, True), weights)
    assert set(drawn.tolist()) == {1, 2}
    assert sorted(ours(lambda w: torch.multinomial(w, 2, False), weights).tolist()) == [1, 2]


# -- T9: one value for several mutated inputs ------------------------------------------------------------------


def two_inputs(r: Tensor, h: Tensor) -> Tensor:
    r.add_(1)
    h.copy_(r)
    return r * 2


def three_inputs(r: Tensor, h: Tensor, q: Tensor) -> Tensor:
    r.add_(1)
    h.copy_(r.detach())
    q.copy_(r)
    return r


def test_t9_stock_torchair_writes_only_the_last_input() -> None:
    r, h = torch.zeros(2), torch.zeros(2)
    stock(two_inputs, r, h)
    assert r.tolist() == [0, 0], "unchanged"
    assert h.tolist() == [1, 1]


@pytest.mark.parametrize("model", [two_inputs, three_inputs])
def test_t9_our_backend_writes_every_input(model: Model) -> None:
    compiled = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
    inputs = [torch.zeros(2) for _ in range(2 if model is two_inputs else 3)]
    with torch.no_grad():
        for count in (1, 2):
            compiled(*inputs)
            assert [x.tolist() for x in inputs] == [[count, count]] * len(inputs)


def test_t9_the_users_own_post_pass_still_runs() -> None:
    torchair = nfg.load_torchair()
    seen: list[Any] = []
    config = torchair.CompilerConfig()
    config.post_grad_custom_post_pass = lambda gm, *rest: seen.append(gm)
    nfg.enable_fusion(nfg.enable_fusion(config))
    r, h = torch.zeros(2), torch.zeros(2)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        backend = torchair.get_npu_backend(compiler_config=config)
        torch.compile(two_inputs, backend=backend, dynamic=False, fullgraph=True)(r, h)
    assert len(seen) == 1
    assert (r.tolist(), h.tolist()) == ([1, 1], [1, 1])


# -- T10: as_strided of what is not dense ------------------------------------------------------------------------


def strided(x: Tensor) -> Tensor:
    return x.as_strided((4, 6), (6, 1)) * 1


def test_t10_stock_torchair_applies_strides_of_memory_to_a_dense_tensor() -> None:
    x = random(6, 4).t()
    assert not torch.allclose(stock(strided, x), strided(x))


@pytest.mark.parametrize("x", [random(6, 4).t(), random(8, 6)[4:]], ids=["transposed", "offset"])
def test_t10_our_backend_refuses_it(x: Tensor) -> None:
    with pytest.raises(
        Exception, match=r"\[backend\] as_strided at .*: expected a contiguous tensor, got one with strides"
    ):
        ours(strided, x)


def test_t10_dense_tensors_may_be_strided() -> None:
    x = random(4, 6)
    assert_close(ours(strided, x), strided(x).double())


# -- T6: warning filters -----------------------------------------------------------------------------------


def test_t6_stock_torchair_puts_its_filter_before_the_users() -> None:
    torchair = nfg.load_torchair()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torchair.get_npu_backend()
        assert warnings.filters[0] == ("once", None, UserWarning, None, 0)
        with warnings.catch_warnings(record=True) as seen:
            warnings.warn("an error by the user's filter", UserWarning, stacklevel=1)
        assert len(seen) == 1


def test_t6_our_backend_leaves_the_filters() -> None:
    before = list(warnings.filters)
    config = nfg.load_torchair().CompilerConfig()
    nfg.enable_fusion(config)
    assert warnings.filters == before
    backend = nfg.get_npu_backend(compiler_config=config)
    assert warnings.filters == before
    compiled = torch.compile(lambda x: x + 1, backend=backend, dynamic=False, fullgraph=True)
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    assert warnings.filters == before
    assert len(nfg.explain(torch.relu, torch.ones(2)).sites) == 0
    assert warnings.filters == before
    with pytest.raises(UserWarning, match="still an error"):
        warnings.warn("still an error", UserWarning, stacklevel=1)


# -- signal handlers ---------------------------------------------------------------------------------------

SWALLOWED = """
import contextlib, os, signal
import npu_fused_graph.host.load as load
load.signals_kept = contextlib.nullcontext
load.load_torchair()
for number in (signal.SIGINT, signal.SIGTERM):
    os.kill(os.getpid(), number)
    print("survived", signal.Signals(number).name, signal.getsignal(number) == signal.SIG_IGN)
"""


@pytest.mark.slow
def test_signals_stock_torchair_swallows_interrupt_and_termination() -> None:
    assert run_code(SWALLOWED).splitlines() == ["survived SIGINT True", "survived SIGTERM True"]


def test_signals_are_the_users_after_loading() -> None:
    # that SIGINT then raises KeyboardInterrupt: tests/host/test_processes.py
    nfg.load_torchair()
    from torchair.core import _backend

    assert signal.getsignal(signal.SIGTERM) is not _backend._signal_handler
    assert signal.getsignal(signal.SIGINT) is not _backend._signal_handler


# -- the user's config -------------------------------------------------------------------------------------


def _options(config: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a CompilerConfig by path: value, and the identity of the object that holds it."""
    found: dict[str, Any] = {}
    for name, option in vars(config).items():
        if hasattr(option, "_fixed_attrs"):
            found |= _options(option, f"{path}{name}.")
        elif name != "_fixed_attrs":
            found[path + name] = (id(option), getattr(option, "value", option))
    return found


def test_config_of_the_user_is_not_modified() -> None:
    config = nfg.load_torchair().CompilerConfig()
    calls: list[int] = []
    config.post_grad_custom_pre_pass = lambda gm, inputs, config: calls.append(len(gm.graph.nodes))
    config.experimental_config.enable_view_optimize = True
    before = _options(config)
    assert before["experimental_config.enable_view_optimize"][1] == "1"
    backend = nfg.get_npu_backend(compiler_config=config)
    compiled = torch.compile(MISCOMPILED["add"], backend=backend, dynamic=False, fullgraph=True)
    x = random(2, 3, 5, 4)
    assert_close(compiled(x), MISCOMPILED["add"](x))
    assert _options(config) == before
    assert len(calls) == 1


def test_config_must_be_one() -> None:
    nfg.load_torchair()
    with pytest.raises(ValueError, match=r"\[backend\] compiler_config: expected a torchair.CompilerConfig, got dict"):
        nfg.get_npu_backend(compiler_config={})


def test_enable_fusion_composes_with_a_hook_and_is_idempotent() -> None:
    torchair = nfg.load_torchair()
    config = torchair.CompilerConfig()
    order: list[str] = []
    config.post_grad_custom_pre_pass = lambda gm, inputs, config: order.append("user's")
    assert nfg.enable_fusion(config, on_sites=lambda sites: order.append("first")) is config
    hook = config.post_grad_custom_pre_pass.value
    assert nfg.enable_fusion(config, on_sites=lambda sites: order.append("ours"), min_rows=7) is config
    again = config.post_grad_custom_pre_pass.value
    assert (again.user_pass, again.options.min_rows) == (hook.user_pass, 7)
    assert config.experimental_config.enable_view_optimize.value == "0"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        backend = torchair.get_npu_backend(compiler_config=config)
        torch.compile(lambda x: x + 1, backend=backend, dynamic=False, fullgraph=True)(torch.ones(2))
    assert order == ["user's", "ours"]


def test_backend_takes_a_config_that_was_enabled_before() -> None:
    config = nfg.load_torchair().CompilerConfig()
    order: list[str] = []
    config.post_grad_custom_pre_pass = lambda gm, inputs, config: order.append("user's")
    nfg.enable_fusion(config)
    backend = nfg.get_npu_backend(compiler_config=config, on_sites=lambda sites: order.append("ours"))
    torch.compile(lambda x: x + 1, backend=backend, dynamic=False, fullgraph=True)(torch.ones(2))
    assert order == ["user's", "ours"]


# -- T13 to T18: converters that mean something else -----------------------------------------------------------

WHOLE = torch.arange(12).reshape(1, 3, 4)
HIDDEN = torch.tensor([[-torch.inf, -torch.inf], [0.0, 0.0]])


def pooled_places(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, return_indices=True)[1]


def padded_average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, padding=1)


def scaled_product(x: Tensor) -> Tensor:
    return torch.baddbmm(x[:, :, :3], x, x.mT, beta=1.5, alpha=0)


def safe(x: Tensor) -> Tensor:
    return torch.ops.aten._safe_softmax.default(x, -1)


def inverse(x: Tensor) -> Tensor:
    return torch.view_as_real(torch.fft.ifft(torch.complex(x, x)))


def test_t13_stock_torchair_takes_values_for_indices() -> None:
    x = torch.arange(16.0).flip(0).reshape(1, 1, 4, 4)
    op = torch.ops.aten.max_pool2d_with_indices.default
    assert stock_with(op, "max_pool2d_with_indices", pooled_places, x).flatten().tolist() == [15, 13, 7, 5]


def test_t13_our_converter_gives_the_places() -> None:
    x = torch.arange(16.0).flip(0).reshape(1, 1, 4, 4)
    assert ours(pooled_places, x).flatten().tolist() == [0, 2, 8, 10]


def test_t14_stock_torchair_does_not_count_the_padding() -> None:
    x = torch.ones(1, 1, 2, 2, dtype=torch.float16)
    result = stock_with(torch.ops.aten.avg_pool2d.default, "avg_pool2d", padded_average, x)
    assert torch.equal(result, torch.ones(1, 1, 2, 2, dtype=torch.float16))


def test_t14_our_converter_counts_the_padding() -> None:
    x = torch.ones(1, 1, 2, 2, dtype=torch.float16)
    assert torch.equal(ours(padded_average, x), torch.full((1, 1, 2, 2), 0.25, dtype=torch.float16))


def test_t15_stock_torchair_picks_rows_0_and_1() -> None:
    from torchair._ge_concrete_graph.ge_converter.aten import index

    source = inspect.getsource(index)
    assert "dtype_promote(i, target_dtype=DataType.DT_INT64) for i in indices" in source


def test_t15_our_converter_picks_where_the_mask_is_set() -> None:
    x, mask = random(3, 4), torch.tensor([False, True, True])
    assert torch.equal(ours(lambda x, mask: x[mask], x, mask), x[1:])


def test_t16_stock_torchair_gives_nan_for_hidden_rows() -> None:
    result = stock_with(torch.ops.aten._safe_softmax.default, "_softmax", safe, HIDDEN)
    assert result[0].isnan().all()


def test_t16_our_converter_gives_zeros() -> None:
    assert torch.equal(ours(safe, HIDDEN), torch.tensor([[0.0, 0.0], [0.5, 0.5]]))


def test_t17_stock_torchair_does_not_look_at_the_direction() -> None:
    from torchair._ge_concrete_graph.ge_converter.aten import _fft_c2c

    body = inspect.getsource(_fft_c2c).split('-> Tensor"""')[1].split("@register")[0]
    assert "normalization" in body
    assert "forward" not in body


def test_t17_our_converter_inverts() -> None:
    x = torch.tensor([0.0, 1.0, 0.0, 0.0])
    backward = torch.view_as_real(torch.fft.ifft(torch.complex(x, x).to(torch.complex128)))
    assert_close(ours(inverse, x), backward)


def test_t18_stock_torchair_keeps_the_fraction() -> None:
    result = stock_with(torch.ops.aten.baddbmm.default, "baddbmm", scaled_product, WHOLE)
    assert not torch.equal(result, WHOLE[:, :, :3])


def test_t18_our_converter_cuts_factors_off() -> None:
    assert torch.equal(ours(scaled_product, WHOLE), WHOLE[:, :, :3])


# -- T27: products of two dtypes ------------------------------------------------------------------------------------

ROWS, GATE = torch.linspace(-1, 1, 24).reshape(3, 8).bfloat16(), torch.linspace(-2, 3, 40).reshape(8, 5)


def product(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


def test_t27_stock_torchair_multiplies_two_dtypes() -> None:
    with pytest.raises(Exception, match=r"expected inputs of one dtype, got x1 torch\.bfloat16, x2 torch\.float32"):
        stock_with(torch.ops.aten.mm.default, "mm", product, ROWS, GATE)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("shape", [(3, 8), (1, 3, 8)])
def test_t27_our_converter_multiplies_in_float32(shape: tuple[int, ...], mode: Callable[[], Any]) -> None:
    with mode():
        result = ours(product, ROWS.reshape(shape), GATE)
    assert result.dtype is torch.bfloat16
    assert torch.equal(result.float(), (ROWS.double() @ GATE.double()).bfloat16().float().reshape(*shape[:-1], 5))


# -- T19: nodes with effects and an optional input that nothing feeds ------------------------------------------------


def sent(x: Tensor) -> Tensor:
    from tests.ops.dispatch_constraint_cases import good

    nfg.npu_attention_to_ffn(**good() | {"x": x, "active_mask": None})
    return x * 2


@pytest.fixture
def attention_rank() -> Iterator[None]:
    """Rank 2 of 4, with windows."""
    with fake_group(4):
        here = comm.communicator("0")
        here.rank = 2
        here.register_windows(1 << 16, [0, 1])
        yield


TOKENS = torch.ones(1, 3, 1024, dtype=torch.bfloat16)


@pytest.mark.usefixtures("attention_rank")
def test_t19_stock_torchair_looks_for_the_producer_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = importlib.import_module("torchair._ge_concrete_graph.graph_pass")
    name = "explicit_order_for_side_effect_nodes"
    monkeypatch.setattr(passes, name, getattr(passes, name).__wrapped__)
    with pytest.raises(Exception, match="KeyError"):
        stock(sent, TOKENS)


def test_t19_a_torchair_without_that_pass_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = importlib.import_module("torchair._ge_concrete_graph.graph_pass")
    monkeypatch.delattr(passes, "explicit_order_for_side_effect_nodes")
    guard_order_of_effects()
    assert not hasattr(passes, "explicit_order_for_side_effect_nodes")


@pytest.mark.usefixtures("attention_rank")
def test_t19_our_torchair_compiles_it() -> None:
    assert torch.equal(ours(sent, TOKENS), TOKENS * 2)
    assert comm.communicator("0").windows.memory(0)[0] == 1


# -- T20: npu_attention_worker_combine never waits --------------------------------------------------------------------


def built(need_schedule: int) -> Any:
    """The attributes of the node TorchAir's builder makes."""
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge._ge_graph import GeGraph, Tensor

    with GeGraph() as graph:
        data = graph.op.add()
        data.name = "data"
        data.output_desc.add()
        x = Tensor(data)
        ge.AttentionWorkerCombine(x, x, x, hidden_size=8, token_dtype=0, need_schedule=need_schedule)
        return {name: value.i for name, value in graph.op[-1].attr.items()}


def test_t20_stock_torchairs_builder_loses_need_schedule() -> None:
    assert "need_schedule" not in built(1)


def test_t20_our_converter_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the engine: what was not answered for is waited for."""
    monkeypatch.setenv("NFG_TIMEOUT", "0.2")
    with fake_group(2):
        own = comm.communicator("0").register_windows(1024 + 512, [1]).own
        holder = ScheduleContextHolder(
            1, 1, 1, 1, 2, 2, 512, 512, attention_window=own.data_ptr(), attention_window_size=own.numel()
        )
        context, layer = holder.get_schedule_context_tensor(), torch.zeros(1, dtype=torch.int32)
        combine = nfg.npu_attention_worker_combine
        with pytest.raises(Exception, match="expected answers for 1 tokens of micro batch 0 within"):
            ours(lambda c, w: combine(c, w, layer, 256, need_schedule=1)[0] + 1, context, torch.ones(1, 1))


# -- T26: npu_fusion_attention --------------------------------------------------------------------------------------


@pytest.fixture
def attention_operator() -> Iterator[Any]:
    """torch_npu's operators as its wheel declares them, with Meta functions: all that a graph needs."""
    from npu_fused_graph import converters
    from npu_fused_graph.host.paths import wheel_file

    text = wheel_file("npu_native_functions_by_codegen.yaml").read_text(encoding="utf-8")
    library = torch.library.Library("npu", "FRAGMENT")
    names = "npu_fusion_attention", "npu_fusion_attention_grad"
    for name in names:
        library.define(next(line for line in text.splitlines() if f"func: {name}(" in line).partition("func: ")[2])

    def meta(query: Tensor, key: Tensor, value: Tensor, head_num: int, *_: Any, **__: Any) -> Any:
        sums = query.new_empty(2, *query.shape[:2], head_num, 8, dtype=torch.float32)
        return torch.empty_like(query), sums[0], sums[1], query.new_empty(0), 0, 0, 0

    library.impl(names[0], meta, "Meta")
    converters.register_all()
    yield torch.ops.npu.npu_fusion_attention
    library._destroy()
    for name in names:
        if hasattr(torch.ops.npu, name):
            delattr(torch.ops.npu, name)


HALVES = [random(1, 2, 8, 16).half() * f for f in (1.0, 0.5, 2.0)]
BIAS = random(1, 2, 8, 8).half() * 3


def softmaxed(bias: Tensor) -> Tensor:
    q, k, v = (x.double() for x in HALVES)
    return torch.softmax((q @ k.mT + bias.double()) * 0.25, -1) @ v


def stock_attention(op: Any, function: Model, *inputs: Tensor) -> Any:
    importlib.import_module("torchair._ge_concrete_graph.ge_converter.custom.npu_fusion_attention")
    return stock_with(op.default, "custom.npu_fusion_attention", function, *inputs)


def test_t26_stock_torchair_drops_the_bias_and_refuses_layouts(attention_operator: Any) -> None:
    op = attention_operator
    result = stock_attention(op, lambda q, k, v, b: op(q, k, v, 2, "BNSD", pse=b, scale=0.25)[0], *HALVES, BIAS)
    assert_close(result, softmaxed(torch.zeros_like(BIAS)))
    swapped = [x.permute(2, 0, 1, 3).flatten(2).contiguous() for x in HALVES]
    with pytest.raises(Exception, match="not implemented when input_layout != BSH"):
        stock_attention(op, lambda q, k, v: op(q, k, v, 2, "SBH", scale=0.25)[0], *swapped)


def test_t26_our_converter_adds_the_bias_in_every_layout(attention_operator: Any) -> None:
    """Gradients, other layouts and modes: tests/host/test_fusion_attention.py."""
    op, wanted = attention_operator, softmaxed(BIAS)
    assert_close(ours(lambda q, k, v, b: op(q, k, v, 2, "BNSD", pse=b, scale=0.25)[0], *HALVES, BIAS), wanted)
    swapped = [x.permute(2, 0, 1, 3).flatten(2).contiguous() for x in HALVES]
    result = ours(lambda q, k, v, b: op(q, k, v, 2, "SBH", pse=b, scale=0.25)[0], *swapped, BIAS)
    assert_close(result.unflatten(2, (2, -1)).permute(1, 2, 0, 3), wanted)


# -- T12: batch norm in training ---------------------------------------------------------------------------------


def normalised(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, training=True, momentum=0.5)


def test_t12_stock_torchair_writes_the_batch_into_the_running_mean() -> None:
    x, mean, var = random(6, 3) + 2, torch.zeros(3), torch.ones(3)
    op = torch.ops.aten._native_batch_norm_legit_functional.default
    stock_with(op, "_native_batch_norm_legit_functional", normalised, x, mean, var)
    assert_close(mean, x.double().mean(0))  # a momentum of 1 instead of 0.5


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4), (2, 3, 2, 2, 2, 2)], ids=len)
def test_t12_our_converter_updates_the_running_statistics(shape: tuple[int, ...]) -> None:
    x, mean, var = random(*shape) * 2 + 1, torch.zeros(3), torch.ones(3)
    y = ours(normalised, x, mean, var)
    axes = [i for i in range(len(shape)) if i != 1]
    wide = x.double()
    batch_mean, batch_var = wide.mean(axes), wide.var(axes, correction=0)
    each = [1, 3] + [1] * (len(shape) - 2)
    assert_close(y, (wide - batch_mean.reshape(each)) / (batch_var.reshape(each) + 1e-5).sqrt())
    assert_close(mean, batch_mean / 2)
    assert_close(var, (1 + wide.var(axes, correction=1)) / 2)
