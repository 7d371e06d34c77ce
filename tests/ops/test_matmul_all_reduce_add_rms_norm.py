"""npu_mm_all_reduce_add_rms_norm, float scenario: schema, fake, both oracles, constraints."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import npu_fused_graph as nfg
from npu_fused_graph.errors import CommunicationError, InvalidArgumentError
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as op
from npu_fused_graph.testing import assert_close
from tests.ranks import run_ranks, values

SAMPLES = list(op.samples())
OP = nfg.npu_mm_all_reduce_add_rms_norm


@pytest.fixture(autouse=True)
def _one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def exact(
    x1s: list[Tensor], x2s: list[Tensor], residual: Tensor, gamma: Tensor, biases: list[Tensor | None], eps: float
) -> tuple[Tensor, Tensor]:
    """The requirement's formula in float64, over all ranks' shards."""
    total = residual.double().clone()
    for x1, x2, bias in zip(x1s, x2s, biases, strict=True):
        part = torch.einsum("mk,kn->mn", x1.double().reshape(-1, x1.size(-1)), x2.double())
        total += (part if bias is None else part + bias.double()).reshape(residual.shape)
    rms = torch.sqrt(total.square().mean(-1, keepdim=True) + eps)
    return total, total / rms * gamma.double()


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
    want_y, want_norm = exact(
        [sample["x1"]], [sample["x2"]], sample["residual"], sample["gamma"], [sample["bias"]], sample["epsilon"]
    )
    # two roundings (product, sum) of values about sqrt(k) large, and two more in the norm
    assert_close(y, want_y, scale=4)
    assert_close(norm_out, want_norm, scale=4)
    other_y, other_norm = op.decompose(**sample, all_reduce=lambda x: x)
    assert_close(other_y, want_y, scale=4)
    assert_close(other_norm, want_norm, scale=4)
    torch.library.opcheck(
        torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm.default,
        (sample["x1"], sample["x2"], sample["residual"], sample["gamma"], "0"),
        {"bias": sample["bias"], "epsilon": sample["epsilon"]},
        test_utils=("test_schema", "test_faketensor"),
    )


def test_two_roundings_around_gamma() -> None:
    """norm_out rounds x * rstd before gamma, as Llama's own formula does: bit-equal to it."""
    sample = SAMPLES[1]
    y, norm_out = OP(**sample, hcom="0")
    wide = y.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + sample["epsilon"])
    assert torch.equal(norm_out, sample["gamma"] * wide.to(y.dtype))


@pytest.mark.parametrize("mode", ["once", "seq"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_reference_over_ranks(mode: op.ReduceMode, ranks: int) -> None:
    generator = torch.Generator().manual_seed(ranks)
    x1s = [torch.randn(6, 32, generator=generator).bfloat16() for _ in range(ranks)]
    x2s = [torch.randn(32, 24, generator=generator).bfloat16() for _ in range(ranks)]
    biases = [torch.randn(24, generator=generator).bfloat16() for _ in range(ranks)]
    residual, gamma = (
        torch.randn(2, 3, 24, generator=generator).bfloat16(),
        torch.rand(24, generator=generator).bfloat16(),
    )
    partials = [(x1.float() @ x2.float() + b.float()).bfloat16() for x1, x2, b in zip(x1s, x2s, biases, strict=True)]
    y, norm_out = op.reference(
        x1s[0], x2s[0], residual, gamma, lambda _: partials, bias=biases[0], epsilon=1e-5, mode=mode
    )
    want_y, want_norm = exact(x1s, x2s, residual, gamma, biases, 1e-5)
    # values up to about sqrt(32 * ranks) * 3: one rounding per rank of that size, in "seq" one more per addition
    assert_close(y, want_y, scale=ranks * 2)
    assert_close(norm_out, want_norm, scale=ranks * 2)
    summed = torch.stack([p.double() for p in partials]).sum(0).bfloat16()
    first = torch.equal(y.reshape(6, 24), (summed.float() + residual.reshape(6, 24).float()).bfloat16())
    assert first == (mode == "once" or (ranks == 2 and first))


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = SAMPLES[2]
    whole = OP(**sample, hcom="0")
    monkeypatch.setattr(op, "CHUNK_BYTES", 4 * sample["residual"].size(-1) * 3)
    rows: list[int] = []

    def gather(partial: Tensor) -> list[Tensor]:
        rows.append(partial.size(0))
        return [partial]

    chunked = op.reference(**sample, gather=gather)
    assert rows == [3, 3, 2]
    assert all(torch.equal(a, b) for a, b in zip(whole, chunked, strict=True))


def _on_ranks(rank: int, ranks: int, bias_rank: int | None) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(7)
    x1 = torch.randn(4, 16 * ranks, generator=generator).half().chunk(ranks, 1)[rank].contiguous()
    x2 = torch.randn(16 * ranks, 8, generator=generator).half().chunk(ranks, 0)[rank].contiguous()
    residual, gamma = torch.randn(2, 2, 8, generator=generator).half(), torch.rand(8, generator=generator).half()
    bias = torch.arange(8).half() / (rank + 1) if bias_rank in (None, rank) else None
    y, norm_out = nfg.npu_mm_all_reduce_add_rms_norm(x1, x2, residual, gamma, "0", bias=bias, epsilon=1e-5)
    return tuple(None if t is None else t.float().numpy() for t in (x1, x2, bias, residual, gamma, y, norm_out))


@pytest.mark.parametrize(("ranks", "bias_rank"), [(2, None), (4, 0)])
def test_real_ranks_carry_the_sum_of_biases(ranks: int, bias_rank: int | None) -> None:
    outcomes = values(run_ranks(_on_ranks, ranks, ranks, bias_rank))
    rows = [[None if a is None else torch.from_numpy(a).half() for a in arrays] for arrays in outcomes]
    x1s, x2s, biases = ([row[i] for row in rows] for i in range(3))
    residual, gamma = rows[0][3:5]
    want_y, want_norm = exact(x1s, x2s, residual, gamma, biases, 1e-5)
    for row in rows:
        assert torch.equal(row[5], rows[0][5])
        assert_close(row[5], want_y, scale=8)
        assert_close(row[6], want_norm, scale=8)


def _bad_k_on_rank_1(rank: int) -> None:
    x1 = torch.zeros(4, 16 + rank).half()
    nfg.npu_mm_all_reduce_add_rms_norm(
        x1, torch.zeros(16, 8).half(), torch.zeros(1, 4, 8).half(), torch.ones(8).half(), "0"
    )


def test_bad_input_on_one_rank_hangs_nobody() -> None:
    outcomes = run_ranks(_bad_k_on_rank_1, 2)
    assert "k=17 from x1" in outcomes[1].error
    assert "CommunicationError" in outcomes[0].error
    assert outcomes[0].seconds < 30


# -- constraints ----------------------------------------------------------------------------------------------


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


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "A1": ({"x1": half(32)}, "x1: expected shape (m, k) or (b1, s1, k), got shape [32]"),
    "A1-4d": ({"x1": half(1, 2, 4, 32)}, "x1: expected shape (m, k) or (b1, s1, k), got shape [1, 2, 4, 32]"),
    "A2": ({"x2": half(1, 32, 16)}, "x2: expected shape (k, n), got shape [1, 32, 16]"),
    "A3": ({"residual": half(8, 16)}, "residual: expected shape (b, s, n), got shape [8, 16]"),
    "A4": ({"gamma": half(1, 16)}, "gamma: expected shape (n), got shape [1, 16]"),
    "A5": ({"x2": half(30, 16)}, "x2: expected shape (k, n) with k=32 from x1, got shape [30, 16]"),
    "A6": ({"x1": half(2, 5, 32)}, "x1: expected 8 rows (b * s of residual), got 10 rows in shape [2, 5, 32]"),
    "A7": ({"residual": half(2, 4, 32)}, "residual: expected shape (b, s, n) with n=16 from x2, got shape [2, 4, 32]"),
    "A8": ({"gamma": half(17)}, "gamma: expected shape (n) with n=16 from x2, got shape [17]"),
    "A9": ({"bias": half(15)}, "bias: expected shape (n) with n=16 from x2, got shape [15]"),
    "A9-2d": ({"bias": half(1, 16)}, "bias: expected shape (n), got shape [1, 16]"),
    "A10": ({"x2": half(64, 16)[::2]}, "x2: expected a contiguous tensor or the transpose of its last two dims"),
    "A11-x1": ({"x1": half(4, 2, 32).transpose(0, 1)}, "x1: expected a contiguous tensor, got other strides"),
    "A11-residual": ({"residual": half(2, 16, 4).transpose(1, 2)}, "residual: expected a contiguous tensor"),
    "A11-gamma": ({"gamma": half(32)[::2]}, "gamma: expected a contiguous tensor"),
    "A13": ({"x1": torch.zeros(2, 4, 32)}, "x1, x2: expected float16 or bfloat16 for both, got float32 and float16"),
    "A13-int8": ({"x2": torch.zeros(32, 16, dtype=torch.int8)}, "x1, x2: expected float16 or bfloat16 for both"),
    "A14-x2": ({"x2": half(32, 16).bfloat16()}, "x2: expected float16 (the dtype of x1), got bfloat16"),
    "A14-bias": ({"bias": torch.zeros(16)}, "bias: expected float16 (the dtype of x1), got float32"),
    "A14-residual": ({"residual": half(2, 4, 16).bfloat16()}, "residual: expected float16"),
    "A14-gamma": ({"gamma": torch.zeros(16)}, "gamma: expected float16"),
    "A15-dequant": ({"dequant_scale": torch.zeros(16)}, "dequant_scale: expected no quantisation parameter"),
    "A15-antiquant": ({"antiquant_scale": half(16), "antiquant_offset": half(16)}, "antiquant_scale, antiquant_offset"),
    "A33": ({"x1": half(2, 4, 0), "x2": half(0, 16)}, "x1: expected k of at least 1, got k = 0"),
    "A35": ({"reduce_op": "mul"}, "reduce_op: expected 'sum', got 'mul'"),
    "A36": ({"comm_turn": 1}, "comm_turn: expected 0 (automatic), got 1"),
    "A37-0": ({"epsilon": 0.0}, "epsilon: expected a number in (0, 1), got 0.0"),
    "A37-1": ({"epsilon": 1.0}, "epsilon: expected a number in (0, 1), got 1.0"),
    "A38": ({"hcom": ""}, "hcom: expected a communicator name of 1 to 127 bytes, got ''"),
    "A42": ({"x2": torch.zeros(32, 16, dtype=torch.float16, device="meta")}, "x2: expected a tensor on cpu"),
    "A38-long": ({"hcom": "g" * 128}, "hcom: expected a communicator name of 1 to 127 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_constraint_is_refused_in_eager_and_at_trace_time(name: str) -> None:
    change, text = BAD[name]
    arguments = good() | change
    with pytest.raises(InvalidArgumentError) as eager:
        OP(**arguments)
    assert f"[matmul_all_reduce_add_rms_norm] {text}" in str(eager.value)
    assert str(eager.value).count(". ") >= 1, "a cure follows"
    with FakeTensorMode() as fake_mode, pytest.raises(InvalidArgumentError) as fake:
        OP(**{k: fake_mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in arguments.items()})
    assert str(fake.value) == str(eager.value)


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


REGISTER_IN_THREADS = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from npu_fused_graph.ops._register import register_all

barrier = Barrier(8)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: (barrier.wait(), register_all()), range(8)))
"""


def test_threads_may_race_to_register() -> None:
    subprocess.run([sys.executable, "-c", REGISTER_IN_THREADS], check=True, timeout=120)
