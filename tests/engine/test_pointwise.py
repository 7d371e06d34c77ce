"""Elementwise and reduction kernels: result dtypes, what is refused, and equality with eager torch in every bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from npu_fused_graph.engine import compile_graph
from npu_fused_graph.errors import NpuFusedGraphError, UnsupportedOpError
from tests.engine.op_case import OpCase, build_graph, dtype_value

HALVES = (torch.float16, torch.bfloat16)


def run(
    ge_type: str,
    inputs: dict[str, Any],
    attrs: dict[str, Any] | None = None,
    *,
    const: tuple[str, ...] = (),
    outputs: tuple[str, ...] = ("y",),
) -> list[Tensor]:
    case = OpCase(ge_type, lambda m: inputs, lambda **_: [], dict(attrs or {}), const=const, outputs=outputs)
    graph, data = build_graph(case, inputs)
    return compile_graph(graph).run(data)


X = torch.tensor([1, 3, 2])
AXIS = torch.tensor([0])


@pytest.mark.parametrize(
    ("ge_type", "inputs", "attrs", "dtypes"),
    [
        ("Cast", {"x": X}, {"dst_type": 1}, ["float16"]),
        ("Muls", {"x": X.int()}, {"value": 1.5}, ["int32"]),
        ("Muls", {"x": torch.tensor(1.0).half()}, {"value": 1.5}, ["float16"]),
        ("RealDiv", {"x1": X, "x2": X}, {}, ["int64"]),
        ("Log", {"x": X}, {"scale": 2.0}, ["float32"]),
        ("Exp", {"x": X.half()}, {"base": 3.0}, ["float16"]),
        ("Real", {"input": X.to(torch.complex128)}, {}, ["float32"]),
        ("Imag", {"input": X.to(torch.complex64)}, {"Tout": dtype_value("float64")}, ["float64"]),
        ("Complex", {"real": X.double(), "imag": X.double()}, {}, ["complex64"]),
        ("HardSigmoid", {"input_x": X.int()}, {}, ["float32"]),
        ("HardSigmoid", {"input_x": X.bfloat16()}, {"alpha": 0.3}, ["bfloat16"]),
        ("FastGelu", {"x": X.bfloat16()}, {}, ["bfloat16"]),
        ("ThresholdV2", {"x": X.half(), "threshold": torch.tensor(1.0), "value": torch.tensor(0.5)}, {}, ["float16"]),
        ("Lerp", {"start": X.half(), "end": X.half(), "weight": torch.tensor(0.5)}, {}, ["float16"]),
        ("Less", {"x1": X, "x2": X}, {}, ["bool"]),
        ("Sub", {"x1": X.to(torch.uint16), "x2": X.to(torch.uint16)}, {}, ["uint16"]),
        ("ReduceSum", {"x": X.to(torch.int8), "axes": AXIS}, {}, ["int8"]),
        ("ReduceSum", {"x": X.to(torch.uint32), "axes": AXIS}, {}, ["uint32"]),
        ("ReduceProd", {"x": X.int(), "axes": AXIS}, {}, ["int32"]),
        ("ReduceMean", {"x": X.int(), "axes": AXIS}, {}, ["int32"]),
        ("ReduceMeanWithCast", {"x": X.int(), "axes": AXIS}, {"dtype": 27}, ["bfloat16"]),
        ("Cumsum", {"x": X.int(), "axis": torch.tensor(0)}, {}, ["int32"]),
        ("Cumprod", {"x": X.to(torch.int8), "axis": torch.tensor(0)}, {"reverse": True}, ["int8"]),
        ("ArgMaxV2", {"x": X, "dimension": torch.tensor(0)}, {}, ["int64"]),
        ("ArgMin", {"x": X, "dimension": torch.tensor(0)}, {"dtype": dtype_value("int32")}, ["int32"]),
        ("ArgMaxWithValue", {"x": X.half()}, {"dimension": 0}, ["int32", "float16"]),
        ("TopKV2", {"x": X.half(), "k": torch.tensor(2)}, {}, ["float16", "int32"]),
        ("Sort", {"x": X.half()}, {}, ["float16", "int32"]),
        ("Histogram", {"x": X.int()}, {"bins": 3}, ["int32"]),
        ("Histogram", {"x": X.half()}, {"bins": 3}, ["float32"]),
        ("ReduceStdV2", {"x": X.half()}, {}, ["float16", "float16"]),
        ("LpNormV2", {"x": X.bfloat16()}, {}, ["bfloat16"]),
    ],
)
def test_result_dtype(ge_type: str, inputs: dict[str, Any], attrs: dict[str, Any], dtypes: list[str]) -> None:
    results = run(ge_type, inputs, attrs, outputs=tuple(f"y{i}" for i in range(len(dtypes))))
    assert [str(r.dtype).removeprefix("torch.") for r in results] == dtypes


@pytest.mark.parametrize(
    ("ge_type", "inputs", "attrs", "words"),
    [
        ("GeluV2", {"x": X.float()}, {"approximate": "erf"}, "GeluV2.*approximate.*'erf'"),
        ("Log", {"x": X.float()}, {"base": 0.0}, "Log.*base.*0.0"),
        ("Log", {"x": X.float()}, {"base": 1.0}, "Log.*base.*1.0"),
        ("Exp", {"x": X.float()}, {"base": -2.0}, "Exp.*base.*-2.0"),
        ("Cast", {"x": X}, {"dst_type": 28}, "Cast.*dst_type.*UNDEFINED"),
        ("Bitcast", {"x": X}, {"type": 28}, "Bitcast.*type.*UNDEFINED"),
        ("MseLoss", {"predict": X.float(), "label": X.float()}, {"reduction": "max"}, "MseLoss.*reduction.*'max'"),
    ],
)
def test_refused_when_loading(ge_type: str, inputs: dict[str, Any], attrs: dict[str, Any], words: str) -> None:
    graph, _ = build_graph(OpCase(ge_type, lambda m: inputs, lambda **_: [], attrs), inputs)
    with pytest.raises(UnsupportedOpError, match=words):
        compile_graph(graph)


def test_uint64_beyond_int64() -> None:
    big = torch.tensor([2**63 + 5, 7], dtype=torch.uint64)
    one = torch.tensor([1, 1], dtype=torch.uint64)
    assert run("Add", {"x1": big, "x2": one})[0].tolist() == [2**63 + 6, 8]
    assert run("Equal", {"x1": big, "x2": big})[0].all()
    for ge_type in ("Maximum", "Greater", "FloorDiv"):
        with pytest.raises(NpuFusedGraphError, match=r"below 2\*\*63"):
            run(ge_type, {"x1": big, "x2": one})


def test_other_missing_kernels_are_not_hidden() -> None:
    flags = torch.tensor([True, False])
    with pytest.raises(NpuFusedGraphError, match="not implemented for 'Bool'"):
        run("FloorMod", {"x1": flags, "x2": flags})


def test_mixed_dtypes_are_refused() -> None:
    with pytest.raises(NpuFusedGraphError, match="one dtype"):
        run("Add", {"x1": X, "x2": X.int()})


def test_copies_are_copies() -> None:
    x = torch.ones(3)
    for ge_type in ("Identity", "TensorMove"):
        assert run(ge_type, {"x": x})[0].data_ptr() != x.data_ptr()


# -- every number of a half precision format, or many of float32 ------------------------------------------


def every(dtype: torch.dtype) -> Tensor:
    if dtype is torch.float32:
        return torch.randn(60000, generator=torch.Generator().manual_seed(0)) * 4
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    assert a.dtype is b.dtype
    both_nan = a.isnan() & b.isnan()
    bits = torch.int32 if a.dtype is torch.float32 else torch.int16
    assert torch.equal(a.view(bits)[~both_nan], b.view(bits)[~both_nan])


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("ge_type", "numbers", "attrs", "eager"),
    [
        ("Pow", {"x2": 2.0}, {}, lambda x: x.pow(2)),
        ("Pow", {"x2": 3.0}, {}, lambda x: x.pow(3)),
        ("Pow", {"x2": 0.5}, {}, lambda x: x.pow(0.5)),
        ("Pow", {"x2": -0.5}, {}, lambda x: x.pow(-0.5)),
        ("Pow", {"x2": -2.0}, {}, lambda x: x.pow(-2)),
        ("Muls", {}, {"value": 0.3}, lambda x: x * 0.3),
        ("Adds", {}, {"value": 0.3}, lambda x: x + 0.3),
        ("Muls", {}, {"value": 3.0}, lambda x: x * 3),
        ("ClipByValueV2", {"clip_value_min": -1.5, "clip_value_max": 2.5}, {}, lambda x: x.clamp(-1.5, 2.5)),
        ("Square", {}, {}, lambda x: x.square()),
        ("Rsqrt", {}, {}, lambda x: x.rsqrt()),
        ("Exp", {}, {}, lambda x: x.exp()),
        ("Log", {}, {"base": 2.0}, lambda x: x.log2()),
        ("Log", {}, {"base": 10.0}, lambda x: x.log10()),
        ("Tanh", {}, {}, lambda x: x.tanh()),
        ("Erf", {}, {}, lambda x: x.erf()),
        ("Round", {}, {}, lambda x: x.round()),
        ("Sigmoid", {}, {}, lambda x: x.sigmoid()),
        ("Swish", {}, {}, functional.silu),
        ("Gelu", {}, {}, functional.gelu),
        ("GeluV2", {}, {"approximate": "tanh"}, lambda x: functional.gelu(x, approximate="tanh")),
        ("Mish", {}, {}, functional.mish),
        ("HardSwish", {}, {}, functional.hardswish),
        ("LogSigmoid", {}, {}, functional.logsigmoid),
        ("Softplus", {}, {}, functional.softplus),
        ("LeakyRelu", {}, {"negative_slope": 0.01}, lambda x: functional.leaky_relu(x, 0.01)),
        ("Elu", {}, {}, functional.elu),
    ],
)
def test_same_bits_as_eager(
    ge_type: str,
    numbers: dict[str, float],
    attrs: dict[str, Any],
    eager: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
) -> None:
    x = every(dtype)
    constants = {name: torch.tensor(value, dtype=dtype) for name, value in numbers.items()}
    first = "x1" if ge_type == "Pow" else "x"
    result = run(ge_type, {first: x, **constants}, attrs, const=tuple(constants))[0]
    assert_same_bits(result, eager(x))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_log_sum_exp_as_torchair_emits_it(dtype: torch.dtype) -> None:
    """logsumexp arrives as ReduceMax, Sub, ReduceLogSumExp, Add."""
    x = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    top = x.amax(1, keepdim=True)
    inner = run("ReduceLogSumExp", {"x": x - top, "axes": torch.tensor([1])})[0]
    assert_same_bits(inner + top.squeeze(1), x.logsumexp(1))
