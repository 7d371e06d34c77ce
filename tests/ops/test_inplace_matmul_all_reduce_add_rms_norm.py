"""npu_mm_all_reduce_add_rms_norm_: the residual is written, and nobody is surprised by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import npu_fused_graph as nfg
from npu_fused_graph.errors import InvalidArgumentError
from npu_fused_graph.ops import inplace_matmul_all_reduce_add_rms_norm as op
from npu_fused_graph.ops import specs
from npu_fused_graph.testing import assert_close
from tests.ops.gathering import Gathering

pytestmark = pytest.mark.usefixtures("one_rank")

SAMPLES = list(op.samples())
OP = nfg.npu_mm_all_reduce_add_rms_norm_


def fresh(sample: dict[str, Any]) -> dict[str, Any]:
    return sample | {"residual": sample["residual"].clone()}


def test_the_schema_says_what_is_written() -> None:
    schema = str(torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm_in_place.default._schema)
    assert "Tensor(a!) residual" in schema
    assert schema.endswith("-> (Tensor(a!), Tensor)")
    functional = str(torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm.default._schema)
    arguments = schema[schema.index("(") : schema.index(" -> ")].replace("(a!)", "")
    assert arguments == functional[functional.index("(") : functional.index(" -> ")]


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_as_the_functional_form_into_the_residual(index: int) -> None:
    sample = SAMPLES[index]
    y, norm_out = nfg.npu_mm_all_reduce_add_rms_norm(**sample, hcom="0")
    arguments = fresh(sample)
    version = arguments["residual"]._version
    got = OP(**arguments, hcom="0")
    assert got[0] is arguments["residual"]
    assert torch.equal(arguments["residual"], y)
    assert torch.equal(got[1], norm_out)
    assert arguments["residual"]._version > version, "autograd must notice the write"
    decomposed = op.decompose(**fresh(sample), rank=Gathering())
    assert all(a.shape == b.shape for a, b in zip(decomposed, got, strict=True))


def test_decompose_writes_too() -> None:
    arguments = fresh(SAMPLES[0])
    y, _ = op.decompose(**arguments, rank=Gathering())
    assert y is arguments["residual"]
    assert not torch.equal(y, SAMPLES[0]["residual"])


@pytest.mark.parametrize("overload", ["default", "unaliased", "functional"])
def test_opcheck(overload: str) -> None:
    sample = fresh(SAMPLES[2])
    torch.library.opcheck(
        getattr(torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm_in_place, overload),
        (*(sample[name] for name in ("x1", "x2", "residual", "gamma")), "0"),
        {"bias": sample["bias"], "epsilon": sample["epsilon"]},
        test_utils=("test_schema", "test_faketensor"),
    )


def test_functionalisation_keeps_the_order_of_reads_and_writes() -> None:
    """A read before the call sees the old residual, one after it the sum; the caller's tensor is written at the end."""
    sample = SAMPLES[0]

    def model(residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        before = residual * 2
        y, norm_out = OP(**sample | {"residual": residual}, hcom="0")
        return before, y + residual, norm_out

    eager_residual = sample["residual"].clone()
    eager = model(eager_residual)
    residual = sample["residual"].clone()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(residual)
    assert torch.equal(residual, eager_residual)
    assert all(torch.equal(a, b) for a, b in zip(compiled, eager, strict=True))


def test_functionalize_of_torch_func() -> None:
    sample = SAMPLES[0]

    def model(residual: Tensor) -> Tensor:
        return OP(**sample | {"residual": residual}, hcom="0")[1]

    residual, other = sample["residual"].clone(), sample["residual"].clone()
    with torch.no_grad():
        got = torch.func.functionalize(model)(residual)
    assert torch.equal(got, model(other))
    assert torch.equal(residual, other)


def test_the_functional_overload_writes_nothing() -> None:
    sample = SAMPLES[0]
    before = sample["residual"].clone()
    positional = [sample[name] for name in ("x1", "x2", "residual", "gamma")]
    y, norm_out = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm_in_place.functional(*positional, "0")
    assert torch.equal(sample["residual"], before)
    wanted = nfg.npu_mm_all_reduce_add_rms_norm(**sample, hcom="0")
    assert torch.equal(y, wanted[0])
    assert torch.equal(norm_out, wanted[1])


Sum = Callable[[Tensor], Tensor]
STORAGES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor], Sum]] = {
    # storage, the graph's input in it, the residual the graph takes from that input
    "row of a column half": ((8, 32), lambda s: s[:, 16:], lambda t: t[2:3].view(1, 1, 16)),
    "transposed": ((8, 16), lambda s: s.t(), lambda t: t.t().unsqueeze(0)),
    "rows at an offset": ((8, 8, 16), lambda s: s[2:5], lambda t: t[:1, 2:3]),
    "slice at an offset": ((8, 8, 16), lambda s: s[2:5], lambda t: t[1:2, 4:5]),
    "view of a flat part": ((400,), lambda s: s[16:], lambda t: t[:384].view(3, 8, 16)[1:2, :1]),
    "all of it": ((1, 1, 16), lambda s: s, lambda t: t),
}


@pytest.mark.parametrize("backend", ["aot_eager", "npu"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", list(STORAGES))
def test_residual_is_a_view_of_an_input_that_is_no_plain_tensor(name: str, dynamic: bool, backend: str) -> None:
    """TorchAir feeds graphs dense tensors: strides and offsets of the caller's memory must not stay in the graph."""
    shape, part, take = STORAGES[name]
    rows = take(part(torch.empty(shape))).numel() // 16
    x1, x2, gamma = torch.randn(rows, 32).half(), torch.randn(32, 16).half() / 8, torch.ones(16).half()

    def model(x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        y, norm_out = OP(x1, x2, take(t), gamma, "0")
        return norm_out, y * 1

    torch._dynamo.reset()
    run = torch.compile(model, backend=nfg.get_npu_backend() if backend == "npu" else backend, dynamic=dynamic)
    for _ in range(3):
        storage = torch.randn(shape).half()
        other = storage.clone()
        with torch.no_grad():
            (norm_out, y), wanted = run(x1, part(storage)), model(x1, part(other))
        assert torch.equal(storage, other), "exactly the rows an eager call writes"
        assert torch.equal(y, wanted[1])
        assert_close(norm_out, wanted[0])  # other strides, another order of the sum: 1 of 200 draws rounds otherwise


def test_in_a_graph_it_is_not_pure() -> None:
    """MindSpeed's schema declares no mutation: common subexpressions and dead code of it are removed wrongly (D9)."""
    sample = SAMPLES[0]

    def twice(residual: Tensor) -> Tensor:
        OP(**sample | {"residual": residual}, hcom="0")
        OP(**sample | {"residual": residual}, hcom="0")
        return residual * 1

    torch._dynamo.reset()
    residual, other = sample["residual"].clone(), sample["residual"].clone()
    result = torch.compile(twice, backend="aot_eager", fullgraph=True)(residual)
    assert torch.equal(result, twice(other))
    assert torch.equal(residual, other)


@pytest.mark.parametrize("name", ["x1", "gamma", "bias", "x2"])
def test_shared_memory_is_refused(name: str) -> None:
    """The write would change an operand while it is still read."""
    memory = torch.zeros(4096).half()
    sample = {"x1": torch.zeros(8, 16).half(), "x2": torch.zeros(16, 16).half(), "gamma": torch.zeros(16).half()}
    sample |= {"bias": torch.zeros(16).half(), "residual": memory[100:228].view(1, 8, 16)}
    sample[name] = memory[227 : 227 + sample[name].numel()].view(sample[name].shape)
    before = memory.clone()
    with pytest.raises(InvalidArgumentError, match=f"{name}: expected memory of its own, since residual is written"):
        OP(**sample, hcom="0")
    assert torch.equal(memory, before)
    sample[name] = memory[228 : 228 + sample[name].numel()].view(sample[name].shape)
    OP(**sample, hcom="0")


def test_fake_returns_the_residual_itself() -> None:
    with FakeTensorMode() as mode:
        arguments = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in SAMPLES[0].items()}
        y, norm_out = OP(**arguments, hcom="0")
    assert y is arguments["residual"]
    assert norm_out.shape == y.shape


def test_inference_mode() -> None:
    with torch.inference_mode():
        arguments = fresh(SAMPLES[0])
        y, _ = OP(**arguments, hcom="0")
    assert y is arguments["residual"]


def test_torch_pairs_no_operator_of_ours_with_one_that_writes_another_argument() -> None:
    """What torch's reinplacing looks up for every operator of a graph, TorchAir's too."""
    from torch.fx.passes.reinplace import _maybe_get_inplace_op

    overloads = [
        getattr(packet, name)
        for spec in specs()
        for packet in [getattr(torch.ops.npu_fused_graph, spec.operator_name)]
        for name in packet.overloads()
    ]
    assert len(overloads) > len(specs())
    for overload in overloads:
        twin = _maybe_get_inplace_op(overload)
        assert twin is None or twin._schema.arguments[0].alias_info.is_write
