"""npu_mm_all_reduce_add_rms_norm: schema, fake, both oracles in every scenario, one process."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import npu_fused_graph as nfg
from npu_fused_graph.comm.protocol import ReduceMode
from npu_fused_graph.errors import CommunicationError, InvalidArgumentError
from npu_fused_graph.ops import _chunks
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as op
from npu_fused_graph.ops.ascend import native_op
from npu_fused_graph.testing import assert_close
from tests.ops.exact import exact, partial
from tests.ops.gathering import Gathering
from tests.ranks import run_ranks

pytestmark = pytest.mark.usefixtures("one_rank")

SAMPLES = list(op.samples())
OP = nfg.npu_mm_all_reduce_add_rms_norm


def good() -> dict[str, Any]:
    return {
        "x1": torch.randn(2, 4, 32).half(),
        "x2": torch.randn(32, 16).half(),
        "residual": torch.randn(2, 4, 16).half(),
        "gamma": torch.randn(16).half(),
        "hcom": "0",
    }


def half(*shape: int) -> Tensor:
    return torch.zeros(shape).half()


def test_schema_is_the_one_existing_callers_use() -> None:
    schema = str(torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm.default._schema)
    assert schema == (
        "npu_fused_graph::npu_mm_all_reduce_add_rms_norm(Tensor x1, Tensor x2, Tensor residual, Tensor gamma, "
        'str hcom, *, str reduce_op="sum", float epsilon=9.9999999999999995e-07, Tensor? bias=None, '
        "Tensor? antiquant_scale=None, Tensor? antiquant_offset=None, Tensor? dequant_scale=None, "
        "int antiquant_group_size=0, int comm_turn=0) "
        "-> (Tensor y, Tensor norm_out)"
    )


def test_public_signature_is_the_requirements() -> None:
    """Requirement 002: 输入 x1, x2, residual, gamma, hcom, reduce_op(sum), epsilon(1e-06), ..., comm_turn(0)."""
    parameters = inspect.signature(OP).parameters
    assert list(parameters)[:5] == ["x1", "x2", "residual", "gamma", "hcom"]
    assert {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY} == {
        "reduce_op": "sum", "epsilon": 1e-06, "bias": None, "antiquant_scale": None, "antiquant_offset": None,
        "dequant_scale": None, "antiquant_group_size": 0, "comm_turn": 0,
    }  # fmt: skip


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_sample(index: int) -> None:
    sample = SAMPLES[index]
    y, norm_out = OP(**sample, hcom="0")
    assert y.shape == norm_out.shape == sample["residual"].shape
    assert y.dtype == norm_out.dtype == sample["residual"].dtype
    assert y.is_contiguous()
    assert norm_out.is_contiguous()
    want_y, want_norm = exact([sample], sample["residual"], sample["gamma"], sample["epsilon"])
    # two roundings (product, sum) of values about sqrt(k) large, and two more in the norm; a weight that is
    # quantised alone is rounded too, element by element
    scale = 8 if sample.get("antiquant_scale") is not None else 4
    assert_close(y, want_y, scale=scale)
    assert_close(norm_out, want_norm, scale=scale)
    other_y, other_norm = op.decompose(**sample, rank=Gathering())
    assert_close(other_y, want_y, scale=scale)
    assert_close(other_norm, want_norm, scale=scale)
    positional = [sample[name] for name in ("x1", "x2", "residual", "gamma")]
    keywords = {name: value for name, value in sample.items() if name not in ("x1", "x2", "residual", "gamma")}
    torch.library.opcheck(
        torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm.default,
        (*positional, "0"),
        keywords,
        test_utils=("test_schema", "test_faketensor"),
    )


def test_samples_hold_every_row_of_the_ir_with_data() -> None:
    """A quantised test on zeros shows nothing: MindSpeed's own cast torch.rand to int8."""
    dtypes = {(s["x1"].dtype, s["x2"].dtype, s["residual"].dtype) for s in SAMPLES}
    assert len(dtypes) == 2 + 2 + 2 + 2  # float, full, weight-only int8 and int4, each with both result types
    for sample in SAMPLES:
        if sample["residual"].numel():
            assert sample["x1"].count_nonzero()
            assert sample["x2"].count_nonzero()


def test_two_roundings_around_gamma() -> None:
    """norm_out rounds x * rstd before gamma, as Llama's own formula does: bit-equal to it."""
    sample = SAMPLES[1]
    y, norm_out = OP(**sample, hcom="0")
    wide = y.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + sample["epsilon"])
    assert torch.equal(norm_out, sample["gamma"] * wide.to(y.dtype))


@pytest.mark.parametrize("mode", ["once", "seq"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_reference_over_ranks(mode: ReduceMode, ranks: int) -> None:
    generator = torch.Generator().manual_seed(ranks)
    shards = [
        {
            "x1": torch.randn(6, 32, generator=generator).bfloat16(),
            "x2": torch.randn(32, 24, generator=generator).bfloat16(),
            "bias": torch.randn(24, generator=generator).bfloat16(),
        }
        for _ in range(ranks)
    ]
    residual, gamma = (
        torch.randn(2, 3, 24, generator=generator).bfloat16(),
        torch.rand(24, generator=generator).bfloat16(),
    )
    partials = [torch.from_numpy(partial(shard)).bfloat16() for shard in shards]
    y, norm_out = op.reference(
        **shards[0],
        residual=residual,
        gamma=gamma,
        rank=Gathering(lambda _: [[p] for p in partials]),
        epsilon=1e-5,
        mode=mode,
    )
    want_y, want_norm = exact(shards, residual, gamma, 1e-5)
    # values up to about sqrt(32 * ranks) * 3: one rounding per rank of that size, in "seq" one more per addition
    assert_close(y, want_y, scale=ranks * 2)
    assert_close(norm_out, want_norm, scale=ranks * 2)
    summed = torch.stack([p.double() for p in partials]).sum(0).bfloat16()
    first = torch.equal(y.reshape(6, 24), (summed.float() + residual.reshape(6, 24).float()).bfloat16())
    assert first == (mode == "once" or (ranks == 2 and first))


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = SAMPLES[2]
    whole = OP(**sample, hcom="0")
    monkeypatch.setattr(_chunks, "CHUNK_BYTES", 4 * sample["residual"].size(-1) * 3)
    rows: list[int] = []

    def gather(partials: Sequence[Tensor]) -> list[list[Tensor]]:
        rows.extend(partial.size(0) for partial in partials)
        return [list(partials)]

    chunked = op.reference(**sample, rank=Gathering(gather))
    assert rows == [3, 3, 2]
    assert all(torch.equal(a, b) for a, b in zip(whole, chunked, strict=True))


def with_all_arguments(sample: dict[str, Any], sign: int = 1) -> dict[str, Any]:
    """As a record has them; sign: -1 for another rank, with values of its own."""
    optional = dict.fromkeys(("bias", "antiquant_scale", "antiquant_offset", "dequant_scale"))
    own = {name: sign * sample[name] for name in ("residual", "gamma")}
    return {**optional, "antiquant_group_size": 0, **sample, **own, "x1": sample["x1"].roll(sign, -1)}


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_what_replay_judges_by(index: int) -> None:
    """Float64 of two ranks in torch against the requirement's formulas in numpy; each has its residual and gamma."""
    ranks = [with_all_arguments(SAMPLES[index], sign) for sign in (1, -1)]
    found = list(op.exact(ranks))
    assert len(found) == 2
    for rank, results in zip(ranks, found, strict=True):
        wanted = exact(ranks, rank["residual"], rank["gamma"], rank["epsilon"])
        for got, want in zip(results, wanted, strict=True):
            assert got.shape == rank["residual"].shape
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [511, 512, 513, 1025])
def test_what_replay_judges_by_comes_in_blocks_of_rows(rows: int) -> None:
    sample = with_all_arguments(good() | {"epsilon": 1e-6})
    sample |= {"x1": torch.randn(rows, 32).half(), "residual": torch.randn(1, rows, 16).half()}
    (results,) = op.exact([sample])
    for got, want in zip(results, exact([sample], sample["residual"], sample["gamma"], 1e-6), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def _bad_k_on_rank_1(rank: int) -> None:
    x1 = torch.zeros(4, 16 + rank).half()
    nfg.npu_mm_all_reduce_add_rms_norm(
        x1, torch.zeros(16, 8).half(), torch.zeros(1, 4, 8).half(), torch.ones(8).half(), "0"
    )


def test_bad_input_on_one_rank_hangs_nobody() -> None:
    outcomes = run_ranks(_bad_k_on_rank_1, 2, timeout=2)
    assert "k=17 from x1" in outcomes[1].error
    assert "CommunicationError" in outcomes[0].error
    assert [outcome.exit_code for outcome in outcomes] == [1, 1]


def test_unknown_group() -> None:
    with pytest.raises(CommunicationError, match="expected one of"):
        OP(**good() | {"hcom": "nobody"})


def test_transposed_weight_is_accepted() -> None:
    sample = good()
    transposed = sample | {"x2": sample["x2"].t().contiguous().t()}
    assert all(torch.equal(a, b) for a, b in zip(OP(**sample), OP(**transposed), strict=True))


def test_fake_follows_residual() -> None:
    with FakeTensorMode() as mode:
        arguments = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in good().items()}
        y, norm_out = OP(**arguments)
    assert y.shape == norm_out.shape == (2, 4, 16)
    assert y.dtype is norm_out.dtype is torch.float16


def test_no_backward() -> None:
    """A43: without this, gradients would be those of this rank's part alone."""
    arguments = good()
    arguments["gamma"].requires_grad_()
    with pytest.raises(InvalidArgumentError, match="gamma: expected a tensor that needs no gradient"):
        OP(**arguments)
    with torch.no_grad():
        y, norm_out = OP(**arguments)
    assert not y.requires_grad
    assert not norm_out.requires_grad


def test_data_dependent_rows_are_traced() -> None:
    def some_rows(x1: Tensor, x2: Tensor, residual: Tensor, gamma: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        rows = mask.nonzero().squeeze(-1)
        return OP(x1[rows], x2, residual[rows].unsqueeze(0), gamma, "0")

    arguments = half(6, 32), half(32, 16), half(6, 16), half(16), torch.tensor([1, 0, 1, 1, 0, 1])
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        y, norm_out = torch.compile(some_rows, backend="aot_eager", fullgraph=True)(*arguments)
    assert y.shape == norm_out.shape == (1, 4, 16)


def test_row_counts_that_are_not_known_when_tracing() -> None:
    """No limit on sizes may become a guard on a number that only the run knows."""

    def some_rows(x1: Tensor, x2: Tensor, residual: Tensor, gamma: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        index = mask.nonzero().flatten()
        return OP(x1[index], x2, residual[index].unsqueeze(0), gamma, "0")

    arguments = half(600, 32), half(32, 16), half(600, 16), half(16), torch.ones(600)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        run = torch.compile(some_rows, backend="aot_eager", fullgraph=True, dynamic=True)
        y, _ = run(*arguments)
    assert y.shape == (1, 600, 16)


def test_export_with_a_dynamic_axis_asks_for_no_maximum() -> None:
    class Model(torch.nn.Module):
        def forward(self, x1: Tensor, x2: Tensor, residual: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
            return OP(x1, x2, residual, gamma, "0")

    m = torch.export.Dim("m", min=2)
    shapes = ({0: m}, None, {1: m}, None)
    with torch.no_grad():
        inputs = half(4, 32), half(32, 16), half(1, 4, 16), half(16)
        exported = torch.export.export(Model(), inputs, dynamic_shapes=shapes)
        y, _ = exported.module()(half(9, 32), half(32, 16), half(1, 9, 16), half(16))
    assert y.shape == (1, 9, 16)


def with_scenario(dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    samples = [s for s in SAMPLES if s["residual"].dtype is dtype and s["residual"].numel()]
    return {
        "float": samples[1],
        "full": next(s for s in samples if s.get("dequant_scale") is not None),
        "weight-only": next(s for s in samples if s.get("antiquant_offset") is not None),
    }


@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scenario", ["float", "full", "weight-only"])
def test_autocast_around_the_call_changes_nothing(scenario: str, dtype: torch.dtype, autocast: torch.dtype) -> None:
    """The kernel accumulates in float32 and int32: an int8 product in half would overflow."""
    sample = with_scenario(dtype)[scenario]
    wanted = OP(**sample, hcom="0")
    in_place = nfg.npu_mm_all_reduce_add_rms_norm_
    with torch.autocast("cpu", dtype=autocast), torch.no_grad():
        got = OP(**sample, hcom="0")
        written = in_place(**sample | {"residual": sample["residual"].clone()}, hcom="0")
    for a, b, c in zip(got, wanted, written, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(c, b)


def test_large_bfloat16_values_do_not_overflow_in_the_norm() -> None:
    """Squares are scaled by 1/n before they are summed, as CANN's kernel does."""
    residual = torch.full((1, 2, 16), 1.2e19).bfloat16()
    zero = torch.zeros(2, 4).bfloat16()
    _, norm_out = OP(zero, torch.zeros(4, 16).bfloat16(), residual, torch.ones(16).bfloat16(), "0")
    assert torch.equal(norm_out, torch.ones(1, 2, 16).bfloat16())


WRONG_TYPES: dict[str, tuple[dict[str, Any], str]] = {
    "group": ({"hcom": "the group itself"}, "hcom: expected a string, got ProcessGroup. For a process group pass its"),
    "no group": ({"hcom": None}, "hcom: expected a string, got NoneType."),
    "epsilon": ({"epsilon": "1e-5"}, "epsilon: expected a float, got '1e-5'."),
    "no epsilon": ({"epsilon": None}, "epsilon: expected a float, got None."),
    "reduce_op": ({"reduce_op": dist.ReduceOp.SUM}, "reduce_op: expected a string, got RedOpType."),
    "group size": ({"antiquant_group_size": 32.0}, "antiquant_group_size: expected an int, got 32.0."),
    "numpy": ({"x1": half(8, 32).numpy()}, "x1: expected a tensor, got ndarray. Make it one with torch.as_tensor."),
    "none": ({"gamma": None}, "gamma: expected a tensor, got NoneType."),
    "list": ({"bias": [1.0]}, "bias: expected a tensor, got list."),
}


@pytest.mark.parametrize("name", list(WRONG_TYPES))
def test_wrong_types_are_said_in_our_words(name: str) -> None:
    change, text = WRONG_TYPES[name]
    if name == "group":
        change = {"hcom": dist.group.WORLD}
    for fn, stem in ((OP, ""), (nfg.npu_mm_all_reduce_add_rms_norm_, "inplace_")):
        with pytest.raises(InvalidArgumentError) as caught:
            fn(**good() | change)
        assert str(caught.value).startswith(f"[{stem}matmul_all_reduce_add_rms_norm] {text}")


def test_a_forgotten_transpose_is_recognised() -> None:
    with pytest.raises(InvalidArgumentError, match=r"got shape \[16, 32\]\. Pass its transpose, x2\.t\(\)\."):
        OP(**good() | {"x2": half(16, 32)})


def test_packed_weights_are_named_where_a_size_comes_from_them() -> None:
    packed = torch.zeros(32, 3, dtype=torch.int32)
    with pytest.raises(InvalidArgumentError, match=r"with n=24 from x2 \(int4\), got shape \[2, 4, 16\]"):
        OP(**good() | {"x2": packed, "antiquant_scale": half(24)})


REGISTER_IN_THREADS = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from npu_fused_graph.ops import register

barrier = Barrier(8)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: (barrier.wait(), register()), range(8)))
"""


def test_threads_may_race_to_register() -> None:
    subprocess.run([sys.executable, "-c", REGISTER_IN_THREADS], check=True, timeout=120)


@pytest.mark.parametrize("namespace", ["mindspeed", "npu"])
def test_the_device_has_an_implementation_where_one_is_registered_for_it(namespace: str) -> None:
    name = op.SPEC.torch_name
    assert native_op(op.SPEC) is None
    library = torch.library.Library(namespace, "FRAGMENT")
    try:
        library.define(f"{name}(Tensor x1) -> Tensor")
        assert native_op(op.SPEC) is None, "a schema alone is none"
        library.impl(name, lambda x1: x1, "PrivateUse1")
        found = native_op(op.SPEC)
        assert found is not None and found.name() == f"{namespace}::{name}"
    finally:
        library._destroy()
        vars(getattr(torch.ops, namespace)).pop(name, None)
