"""Our aten converters: values against eager and float64, use, need, and legality of the GE ops they emit.

That TorchAir's own gelu converter has its defect is shown in tests/test_defects.py (T5).
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import npu_fused_graph as nfg
from npu_fused_graph.converters import aten_completed, aten_corrected
from npu_fused_graph.converters.aten import CONVERTERS
from npu_fused_graph.ir.reg_op import IrDef, read_ir_defs
from npu_fused_graph.selftest.aten_samples import POINTWISE, TAKEN_APART
from npu_fused_graph.selftest.aten_samples import SAMPLES as FIRST_SAMPLES
from npu_fused_graph.selftest.calls import Call, OpCalls, Sample, batches_of, check_values
from npu_fused_graph.selftest.grad_samples import GRADIENTS
from npu_fused_graph.selftest.more_samples import MORE_SAMPLES
from npu_fused_graph.testing import assert_close
from tests.converters.recorder import Emitted, recording
from tests.engine.op_case import Make

aten = torch.ops.aten

SAMPLES = [*FIRST_SAMPLES, *MORE_SAMPLES, *GRADIENTS]

WRONG_UPSTREAM = {
    aten.gelu.default,
    aten._fft_c2c.default,
    *aten_corrected.CONVERTERS,
    *aten_completed.CONVERTERS,
}
"""Ops whose converter in TorchAir is wrong, as tests/test_defects.py shows, or fails for some calls."""


@pytest.fixture(scope="module")
def backend() -> Any:
    return nfg.get_npu_backend()


@pytest.fixture(scope="module")
def ir_defs(torchair_folder: Path) -> dict[str, IrDef]:
    return read_ir_defs(torchair_folder)


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batched(samples: list[Sample]) -> list[Any]:
    """Parameters of batches."""
    return [pytest.param(b, id=f"{b[0].id()} to {b[-1].id()}") for b in batches_of(samples)]


def compiled(fn: Callable[..., Any], backend: Any, *, dynamic: bool = False) -> Callable[..., Any]:
    return torch.no_grad()(torch.compile(fn, backend=backend, dynamic=dynamic, fullgraph=True))


BF16_OF_STOCK = {"Conv2D", "Identity", "Maximum", "Minimum", "Muls", "ReverseV2", "Round", "Shape", "TensorMove"}
"""Types whose texts do not list bfloat16; TorchAir's own converters, which ours build on, emit them with it."""

OF_STOCK = {"AvgPoolV2", "AxpyV2", "BatchMatMul", "Conv2DTranspose", "InplaceIndexAdd", "MatMul", "MaxPoolWithArgmaxV1"}
"""The same for other dtypes too."""


def check_legal(emitted: Emitted, ir_defs: dict[str, IrDef]) -> None:
    """Every type exists in the REG_OP texts, takes the dtypes it got, and gives the dtypes its converter declared."""
    assert emitted.types - {"Data", "Const", "NetOutput"} <= set(ir_defs)
    for ge_type, name, dtype in emitted.inputs:
        inputs = {p.name: p for p in ir_defs[ge_type].inputs}
        legal = (inputs.get(name) or inputs[name.rstrip("0123456789")]).dtypes
        if legal <= {"bool", "string"}:  # nothing listed, or what is left of "BasicType(), DT_BOOL, DT_STRING"
            continue
        text = str(dtype).removeprefix("torch.")
        allowed = text in legal or (text == "bfloat16" and ge_type in BF16_OF_STOCK) or ge_type in OF_STOCK
        assert allowed, (ge_type, name, dtype)
    assert not emitted.disagreements


@contextmanager
def used_converters() -> Iterator[Counter[Any]]:
    """How often the converter of each op of ours ran inside."""
    used: Counter[Any] = Counter()
    originals = {op: op._ge_converter for op in CONVERTERS}

    def logged(op: Any, original: Any) -> Any:
        def convert(*args: Any, **kwargs: Any) -> Any:
            used[op] += 1
            return original(*args, **kwargs)

        convert.require_meta = original.require_meta
        return convert

    try:
        for op, original in originals.items():
            op._ge_converter = logged(op, original)
        yield used
    finally:
        for op, original in originals.items():
            op._ge_converter = original


def run_batch(batch: list[Sample], backend: Any, subtests: pytest.Subtests) -> None:
    """Every sample in all its dtypes, in one graph."""
    calls = [[sample.build(Make(dtype)) for dtype in sample.dtypes] for sample in batch]
    fn = OpCalls([(sample.op, call) for sample, own in zip(batch, calls, strict=True) for call in own])
    results = iter(compiled(fn, backend)(*fn.tensors))
    for sample, own in zip(batch, calls, strict=True):
        of_sample = list(islice(results, len(own)))
        with subtests.test(sample.id()):
            check_values(sample, own, of_sample)


@pytest.mark.parametrize("batch", batched(SAMPLES))
def test_values(batch: list[Sample], backend: Any, ir_defs: dict[str, IrDef], subtests: pytest.Subtests) -> None:
    with recording() as emitted, used_converters() as used:
        run_batch(batch, backend, subtests)
    assert [s.id() for s in batch if used[s.op] < len(s.dtypes)] == [], "each call of an op is converted"
    check_legal(emitted, ir_defs)


@pytest.mark.parametrize("batch", batched(TAKEN_APART))
def test_taken_apart_by_torch(batch: list[Sample], backend: Any, subtests: pytest.Subtests) -> None:
    assert not {sample.op for sample in batch} & set(CONVERTERS)
    run_batch(batch, backend, subtests)


def symbolic() -> list[Any]:
    """Parameters: most are slow, since converters get their sizes from the same few helpers."""
    plain = [s for s in SAMPLES if s.name == ""]
    fast = [s for s in plain if s not in POINTWISE][::3]
    return [pytest.param(s, id=s.id(), marks=[] if s in fast else [pytest.mark.slow]) for s in plain]


@pytest.mark.parametrize("sample", symbolic())
def test_values_with_symbolic_sizes(sample: Sample, backend: Any, ir_defs: dict[str, IrDef]) -> None:
    """In one dtype, and a graph of its own: a size that one op takes for a constant is one for all that share it."""
    call = sample.build(Make(sample.dtypes[0]))
    fn = OpCalls([(sample.op, call)])
    with recording() as emitted:
        results = compiled(fn, backend, dynamic=True)(*fn.tensors)
    check_values(sample, [call], results)
    check_legal(emitted, ir_defs)


# -- need --------------------------------------------------------------------------------------------------

ELSEWHERE = {
    *(aten._assert_async.msg, aten._assert_scalar.default),
    *(aten._functional_assert_async.msg, aten._functional_assert_scalar.default),
    *(aten.empty_strided.default, aten.empty_permuted.default),
    *(torch.sym_max, torch.sym_min, aten._local_scalar_dense.default),
    *(aten.rand_like.default, aten.randn_like.default, aten.randint.low),
    *(aten.randint_like.default, aten.randint_like.low_dtype),
    *(aten.normal_functional.default, aten.normal.float_float, aten.normal.Tensor_float),
    *(aten.nonzero.default, aten.masked_select.default, aten.bincount.default, aten._conj.default),
    *(aten.true_divide.Tensor, aten.true_divide.Scalar),
    *(aten.normal.float_Tensor, aten.normal.Tensor_Tensor, aten.exponential.default),
}
"""Ops without values to compare; they have tests of their own below."""


def test_every_converter_has_a_sample() -> None:
    assert {s.op for s in SAMPLES} | ELSEWHERE | set(aten_corrected.CONVERTERS) == set(CONVERTERS)


@pytest.fixture(scope="module")
def working_upstream(torchair_folder: Path) -> set[str]:
    """Source texts of the ops TorchAir has a converter for that does more than raise."""
    found: set[str] = set()
    for path in (torchair_folder / "_ge_concrete_graph" / "ge_converter").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not _only_raises(node):
                found.update(filter(None, map(_registered_op, node.decorator_list)))
    return found


def _only_raises(function: ast.FunctionDef) -> bool:
    body = [s for s in function.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return bool(body) and all(isinstance(s, ast.Raise) for s in body)


def _registered_op(decorator: ast.expr) -> str | None:
    if not isinstance(decorator, ast.Call) or ast.unparse(decorator.func) != "register_fx_node_ge_converter":
        return None
    op = decorator.args[0]
    if isinstance(op, ast.Call):  # getattr(torch.ops.aten.x, "overload", None)
        return f"{ast.unparse(op.args[0])}.{ast.literal_eval(op.args[1])}"
    return ast.unparse(op)


def test_the_scan_of_torchair_sees_both_kinds(working_upstream: set[str]) -> None:
    assert {"torch.ops.aten.add.Tensor", "torch.ops.aten.max.dim", "operator.add"} <= working_upstream
    assert "torch.ops.aten.amax.default" not in working_upstream


@pytest.mark.parametrize("op", [pytest.param(op, id=str(getattr(op, "__name__", op))) for op in CONVERTERS])
def test_torchair_has_none_that_works(op: Any, working_upstream: set[str]) -> None:
    """When this fails, TorchAir has gained the converter: remove ours."""
    name = f"torch.ops.{op}" if isinstance(op, torch._ops.OpOverload) else f"torch.{op.__name__}"
    assert (name in working_upstream) == (op in WRONG_UPSTREAM)


# -- ops without values to compare ---------------------------------------------------------------------------


def test_assertions_vanish(backend: Any, ir_defs: dict[str, IrDef]) -> None:
    def checked(x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        aten._assert_async.msg((x > -9).all(), "in range")
        handed_on = aten._functional_assert_async.msg((x > -9).all(), "in range", token)
        return x + handed_on

    x = torch.rand(3)
    with recording() as emitted, used_converters() as used:
        result = compiled(checked, backend)(x, torch.zeros(()))
    assert torch.equal(result, x)
    assert {aten._assert_async.msg, aten._functional_assert_async.msg} <= set(used)
    check_legal(emitted, ir_defs)


def test_scalar_assertions_vanish(backend: Any) -> None:
    def checked(x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        aten._assert_scalar.default(x.shape[0], "rows")
        return x + aten._functional_assert_scalar.default(x.shape[0] > 1, "rows", token)

    import torchair

    x = torch.rand(3)
    with used_converters() as used:
        assert torch.equal(compiled(checked, backend)(x, torch.zeros(())), x)
        assert set(used) == {aten._functional_assert_scalar.default}, "the backend drops the others"
        assert torch.equal(compiled(checked, torchair.get_npu_backend())(x, torch.zeros(())), x)
    assert {aten._assert_scalar.default, aten._functional_assert_scalar.default} <= set(used)


def test_memory_without_values(backend: Any) -> None:
    def blank(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        strided = torch.empty_strided((3, 4), (1, 3), dtype=x.dtype)
        permuted = aten.empty_permuted.default([2, 5], [1, 0], dtype=torch.int32)
        return strided.fill_(2) + x, torch.zeros_like(permuted)

    with used_converters() as used:
        strided, permuted = compiled(blank, backend)(torch.ones(3, 4))
    assert torch.equal(strided, torch.full((3, 4), 3.0))
    assert permuted.shape == (2, 5)
    assert permuted.dtype == torch.int32
    assert {aten.empty_strided.default, aten.empty_permuted.default} <= set(used)


X = torch.tensor([0, 1, 3, 3])


@pytest.mark.parametrize(
    ("op", "fn"),
    [
        (aten.nonzero.default, lambda x: torch.nonzero(x - 1)),
        (aten.nonzero.default, lambda x: torch.nonzero(x[1])),
        (aten.masked_select.default, lambda x: torch.masked_select(x, x > 1) * 2),
        (aten.masked_select.default, lambda x: torch.masked_select(x.reshape(2, 2), x[:2] < 1)),
        (aten.bincount.default, torch.bincount),
        (aten.bincount.default, lambda x: torch.bincount(x, x / 4, minlength=6)),
        (aten.bincount.default, lambda x: torch.bincount(x[:0], minlength=3)),
        (aten.index.Tensor, lambda x: x[x > 0] * 2),
        (aten.index.Tensor, lambda x: x.repeat(3, 1)[:, x > 0]),
    ],
)
def test_results_as_large_as_the_values_say(op: Any, fn: Callable[..., Any], backend: Any, ir_defs: Any) -> None:
    with recording() as emitted, used_converters() as used:
        result = compiled(fn, backend)(X)
    assert op in used
    assert result.dtype == fn(X).dtype
    assert torch.equal(result, fn(X))
    check_legal(emitted, ir_defs)


def test_numbers_only_the_values_say_are_refused(backend: Any) -> None:
    text = r"\[backend\] operator.lt at .*test_aten.py:\d+: expected numbers known while compiling"
    with pytest.raises(Exception, match=text):
        compiled(lambda x, start: torch.narrow(x, 0, start, 2), backend)(X, torch.tensor(1))
    with pytest.raises(
        Exception, match=r"\[backend\] sizes: expected numbers known while compiling, got: Could not guard"
    ):
        compiled(lambda x: x[x > 0].sum(0), backend)(X)


def test_conjugates(backend: Any) -> None:
    z = torch.complex(torch.rand(3), torch.rand(3))
    with used_converters() as used:
        result = compiled(lambda z: torch.view_as_real(torch.ops.aten._conj.default(z).resolve_conj()), backend)(z)
    assert torch.equal(result, torch.stack([z.real, -z.imag], -1))
    assert aten._conj.default in used


@pytest.mark.parametrize("overload", ["Tensor", "Scalar"])
def test_true_division(overload: str) -> None:
    """Torch takes it apart, but not in every mode a graph is traced in: it is put back."""

    def keep(gm: torch.fx.GraphModule, *_: Any) -> None:
        for node in gm.graph.nodes:
            if node.target in (aten.div.Tensor, aten.div.Scalar):
                node.target = getattr(aten.true_divide, overload)
        gm.recompile()

    config = nfg.load_torchair().CompilerConfig()
    config.post_grad_custom_pre_pass = keep
    backend = nfg.get_npu_backend(compiler_config=config)
    with used_converters() as used:
        result = compiled(lambda x: x / 3 if overload == "Scalar" else x / x.sum(), backend, dynamic=True)(X)
    assert torch.equal(result, X / (3 if overload == "Scalar" else 7))
    assert getattr(aten.true_divide, overload) in used


def test_item_in_arithmetic(backend: Any) -> None:
    def scaled(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return x * factor.item() + factor[0].item()

    with torch._dynamo.config.patch(capture_scalar_outputs=True), used_converters() as used:
        result = compiled(scaled, backend)(torch.ones(2), torch.tensor([3]))
    assert torch.equal(result, torch.full((2,), 6.0))
    assert aten._local_scalar_dense.default in used


def test_symbolic_minimum_and_maximum(backend: Any) -> None:
    def square(x: torch.Tensor) -> torch.Tensor:
        return x.new_ones(torch.sym_min(x.shape[0], x.shape[1]), torch.sym_max(x.shape[0], x.shape[1]))

    with used_converters() as used:
        result = compiled(square, backend, dynamic=True)(torch.rand(3, 5))
    assert torch.equal(result, torch.ones(3, 5))
    assert {torch.sym_max, torch.sym_min} <= set(used)


N = 4096
"""Numbers drawn; the bounds below are five standard errors or more."""


def like(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((N,), 5).to(dtype)


RANDOM: list[tuple[Any, Callable[[], Call], torch.dtype, float, float]] = [
    (aten.rand_like.default, lambda: Call(like()), torch.float32, 0.5, 1 / 12),
    (aten.rand_like.default, lambda: Call(like(), dtype=torch.float16), torch.float16, 0.5, 1 / 12),
    (aten.randn_like.default, lambda: Call(like(torch.bfloat16)), torch.bfloat16, 0, 1),
    (aten.randint.low, lambda: Call(-3, 5, [N]), torch.int64, 0.5, 63 / 12),
    (aten.randint_like.default, lambda: Call(like(torch.int32), 8), torch.int32, 3.5, 63 / 12),
    (aten.randint_like.low_dtype, lambda: Call(like(), -3, 5), torch.float32, 0.5, 63 / 12),
    (aten.normal_functional.default, lambda: Call(like(), 2.0, 3.0), torch.float32, 2, 9),
    (aten.normal.float_float, lambda: Call(2.0, 3.0, [N]), torch.float32, 2, 9),
    (aten.normal.Tensor_float, lambda: Call(like(), 3.0), torch.float32, 5, 9),
    (aten.normal.float_Tensor, lambda: Call(2.0, like()), torch.float32, 2, 25),
    (aten.normal.Tensor_Tensor, lambda: Call(like(), like()), torch.float32, 5, 25),
    (aten.exponential.default, lambda: Call(like(), 0.5), torch.float32, 2, 4),
]


@pytest.mark.parametrize(
    ("op", "build", "dtype", "mean", "variance"), [pytest.param(*case, id=f"{case[0]}-{case[2]}") for case in RANDOM]
)
def test_random_numbers(
    op: Any, build: Callable[[], Call], dtype: torch.dtype, mean: float, variance: float, backend: Any, ir_defs: Any
) -> None:
    fn = OpCalls([(op, build())])
    with recording() as emitted, used_converters() as used:
        draw = compiled(fn, backend)
        first, second = draw(*fn.tensors)[0], draw(*fn.tensors)[0]
    assert op in used
    check_legal(emitted, ir_defs)
    assert first.dtype == dtype
    assert first.shape == (N,)
    assert not torch.equal(first, second)
    wide = torch.cat([first, second]).double()
    assert abs(wide.mean() - mean) < 5 * math.sqrt(variance / (2 * N))
    assert 0.75 * variance < wide.var() < 1.35 * variance


def test_seed_repeats_the_numbers(backend: Any) -> None:
    draw = compiled(torch.rand_like, backend)
    x = torch.rand(8)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(draw(x))
    assert torch.equal(*results)


# -- as models use them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("columns", [64, 1200])
def test_attention_is_as_near_to_float64_as_eager(dtype: str, columns: int, backend: Any) -> None:
    make = Make(dtype)
    q, k, v = make(2, 4, 7, 32), make(2, 2, columns, 32), make(2, 2, columns, 32)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    exact = attend(q.double(), k.double(), v.double())
    eager_error = (attend(q, k, v) - exact).abs().max()
    error = (compiled(attend, backend)(q, k, v) - exact).abs().max()
    assert error <= 1.5 * eager_error + 1e-6


def test_a_query_that_sees_nothing_gives_zeros(backend: Any) -> None:
    q, k, v = torch.rand(3, 1, 2, 4, 8).unbind()
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[1] = False

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    result = compiled(attend, backend)(q, k, v, mask)
    assert_close(result, attend(q, k, v, mask))
    assert torch.equal(result[:, :, 1], torch.zeros(1, 2, 8))


def test_writes_into_an_input(backend: Any) -> None:
    def write(cache: torch.Tensor, place: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        cache.index_copy_(1, place, row)
        cache[:, place + 1] = 7
        cache[cache > 6.5] = -1
        return cache.sum()

    cache, row = torch.zeros(2, 5, 3), torch.rand(2, 1, 3)
    wanted = cache.clone()
    run = compiled(write, backend)
    for step in (1, 3, 0):
        place = torch.tensor([step])
        expected = write(wanted, place, row)
        assert_close(run(cache, place, row), expected)
        assert torch.equal(cache, wanted)


def test_index_put_leaves_its_argument_alone(backend: Any) -> None:
    x = torch.zeros(4, 3)

    def put(x: torch.Tensor) -> torch.Tensor:
        return torch.index_put(x, [torch.tensor([1, 2])], torch.ones(3)) + x

    run = compiled(put, backend)
    for _ in range(3):
        assert torch.equal(run(x), put(torch.zeros(4, 3)))
    assert torch.equal(x, torch.zeros(4, 3))


def test_experts_by_grouped_products(backend: Any) -> None:
    """The form transformers gives a mixture of experts: histogram, cumulative counts, grouped products."""

    def experts(x: torch.Tensor, weights: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
        order = torch.argsort(expert, stable=True)
        counts = torch.histc(expert.float(), bins=3, min=0, max=2)
        ends = torch.cumsum(counts, 0, dtype=torch.int32)
        rows = torch._grouped_mm(x[order], weights, offs=ends)
        return torch.zeros_like(rows).index_put((order,), rows)

    make = Make("bfloat16")
    inputs = make(8, 16), make(3, 16, 24), torch.tensor([2, 0, 2, 2, 0, 2, 0, 0])
    assert_close(compiled(experts, backend)(*inputs), experts(*inputs), scale=4)


def test_grouped_product_of_transformers(backend: Any) -> None:
    """The op exists only after transformers' import, here after the backend was made."""
    pytest.importorskip("transformers.integrations.moe")
    op = torch.ops.transformers.grouped_mm_fallback.default
    make = Make("float32")
    inputs = make(8, 16), make(3, 16, 24), torch.tensor([2, 2, 8])

    def product(x: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return op(x, weights, ends)

    assert_close(compiled(product, backend)(*inputs), product(*inputs), scale=4)


# -- refusals ------------------------------------------------------------------------------------------------

Y = torch.rand(4, 4)
REFUSED: list[tuple[str, Any, Call, str]] = [
    (
        "dropout",
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        Call(*torch.rand(3, 1, 2, 4, 8).unbind(), 0.1),
        r"\[aten._scaled_dot_product_flash_attention_for_cpu\] dropout_p: expected 0, got 0.1",
    ),
    (
        "mask with integers",
        aten.index_put.default,
        Call(Y, [torch.ones(4, dtype=torch.bool), torch.tensor([1, 2, 3, 0])], torch.ones(())),
        r"\[aten.index_put\] indices: expected integers, or one mask without accumulate, got a mix of them. Use",
    ),
    ("histc of float64", aten.histc.default, Call(Y.double()), r"\[aten.histc\] self: expected a dtype among float32"),
    (
        "wide randint",
        aten.randint.low,
        Call(0, 1 << 30, [4]),
        r"\[aten.randint\] high - low: expected at most 2\*\*24, got 1073741824. Draw",
    ),
]


@pytest.mark.parametrize(("op", "call", "text"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
def test_refusals_say_why(op: Any, call: Call, text: str, backend: Any) -> None:
    fn = OpCalls([(op, call)])
    with pytest.raises(Exception, match=text):
        compiled(fn, backend)(*fn.tensors)
