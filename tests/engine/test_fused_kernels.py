"""MatmulAllReduceAddRmsNorm on the engine: signatures are the SPECs', and what GE would refuse is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from npu_fused_graph.engine import compile_graph, registered_types, registry
from npu_fused_graph.engine.kernels import fused
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as op
from npu_fused_graph.ops import specs
from npu_fused_graph.spec import OpSpec
from npu_fused_graph.testing import assert_close
from tests.engine.graphs import graph_of, node
from tests.ops.exact import exact
from tests.passes.capture import fake_group

pytestmark = pytest.mark.usefixtures("one_rank")

TYPES = ("MatmulAllReduceAddRmsNorm", "InplaceMatmulAllReduceAddRmsNorm")


@pytest.mark.parametrize("spec", specs(), ids=lambda s: s.stem)
def test_signature_is_the_spec(spec: OpSpec) -> None:
    kernel = registered_types()[spec.ge_type]
    assert [(p.name, p.kind) for p in kernel.inputs] == [(t.name, t.kind) for t in spec.inputs]
    assert {a.name for a in kernel.attrs} | kernel.ignored == {a.name for a in spec.attrs}
    for attr in kernel.attrs:
        (wanted,) = (a for a in spec.attrs if a.name == attr.name)
        assert (attr.required, attr.default) == (wanted.default is None, wanted.default)
    assert set(kernel.mutates) == {t.name for t in spec.inputs if t.python_name in spec.mutated}
    assert kernel.pure == (not spec.group_sizes and not spec.has_effects), "never folded"


def run(ge_type: str, tensors: dict[str, Tensor], **attrs: Any) -> list[Tensor]:
    inputs = {t.name: t.name if tensors.get(t.name) is not None else None for t in op.SPEC.inputs}
    outputs = ("residual" if ge_type.startswith("Inplace") else "y", "norm_out")
    fused = node("fused", ge_type, inputs, outputs, **{"group": "0"} | attrs)
    graph = graph_of({k: v for k, v in tensors.items() if v is not None}, [fused], ["fused:0", "fused:1"])
    return compile_graph(graph).run([v for v in tensors.values() if v is not None])


def ints(*shape: int) -> Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(0)).to(torch.int8)


def tensors(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    half = {
        name: torch.randn(shape, generator=generator).half()
        for name, shape in {"x1": (6, 80), "x2": (80, 8), "residual": (1, 6, 8), "gamma": (8,)}.items()
    }
    if kind == "float":
        return half
    if kind == "full":
        words = torch.full((8,), 0x3A800000 | 1 << 46)
        return half | {"x1": ints(6, 80), "x2": ints(80, 8), "dequant_scale": words.to(torch.uint64)}
    scale = (torch.rand(3, 8, generator=generator) * 0.02).half()
    return half | {"x2": ints(80, 8), "antiquant_scale": scale, "antiquant_offset": scale * 100}


@pytest.mark.parametrize("ge_type", TYPES)
def test_a_transposed_weight_has_transposed_scales_per_group(ge_type: str) -> None:
    given = tensors("per group")
    stored = given | {n: given[n].t().contiguous() for n in ("x2", "antiquant_scale", "antiquant_offset")}
    wanted = exact([given | {"antiquant_group_size": 32}], given["residual"], given["gamma"], 1e-6)
    plain = run(ge_type, given | {"residual": given["residual"].clone()}, antiquant_group_size=32)
    for got, want in zip(plain, wanted, strict=True):
        assert_close(got, want, scale=8)
    other = run(ge_type, stored | {"residual": given["residual"].clone()}, antiquant_group_size=32, is_trans_b=True)
    assert all(torch.equal(a, b) for a, b in zip(other, plain, strict=True))
    # a converter that only sets the flag fails GE's shape inference (CANN's public shape inference)
    flag_only = stored | {n: given[n] for n in ("antiquant_scale", "antiquant_offset")}
    with pytest.raises(Exception, match=r"fused \(.*\): antiquant_scale: expected shape \[8, 3\], got shape \[3, 8\]"):
        run(ge_type, flag_only, antiquant_group_size=32, is_trans_b=True)


def test_the_in_place_type_writes_the_buffer_it_is_given() -> None:
    """GE's reference semantics; TorchAir puts a TensorMove in front where the caller's tensor must stay."""
    given = tensors("float")
    functional = run(TYPES[0], given)
    out = run(TYPES[1], given)
    assert torch.equal(out[0], functional[0])
    assert torch.equal(given["residual"], functional[0])


BAD: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "transposed x1": ("float", {}, {"is_trans_a": True}, "is_trans_a: expected False, got True"),
    "reduce_op": ("float", {}, {"reduce_op": "max"}, "reduce_op: expected 'sum', got 'max'"),
    "int64 words": (
        "full",
        {"dequant_scale": torch.ones(8, dtype=torch.int64)},
        {},
        "dtypes: expected a combination of ge_op_protos/README.md, got ",
    ),
    "float scale": ("full", {"dequant_scale": torch.ones(8).half()}, {}, "dequant_scale: expected "),
    "bias": ("full", {"bias": torch.ones(8).half()}, {}, "bias: expected int32 (with int8 x1 and x2), got float16"),
    "mixed": ("float", {"gamma": torch.ones(8).bfloat16()}, {}, "gamma: expected "),
    "float32": ("float", {"x1": torch.ones(6, 80), "x2": torch.ones(80, 8)}, {}, "x1, x2: expected "),
}


@pytest.mark.parametrize("ge_type", TYPES)
@pytest.mark.parametrize("name", list(BAD))
def test_refused(ge_type: str, name: str) -> None:
    kind, change, attrs, text = BAD[name]
    with pytest.raises(Exception, match=r"\[engine\] fused") as caught:
        run(ge_type, tensors(kind) | change, **attrs)
    assert text in str(caught.value)


def test_what_a_spec_forbids_is_refused_when_it_runs() -> None:
    graph = graph_of(
        {"scale": torch.ones(8)},
        [node("packed", "TransQuantParamV2", {"scale": "scale", "offset": None}, ("y",), round_mode=2)],
        ["packed:0"],
    )
    with pytest.raises(Exception, match=r"packed \(TransQuantParamV2\): round_mode: expected 0 .* got 2"):
        compile_graph(graph).run([torch.ones(8)])


def test_what_passed_once_says_nothing_of_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks are remembered by dtypes, shapes and attributes, and not without end."""
    kernel = registered_types()[TYPES[0]].fn
    assert isinstance(kernel, fused.FusedKernel)
    monkeypatch.setattr(fused, "PASSED", 2)
    kernel._passed.clear()
    for epsilon in (1e-6, 1e-5, 1e-4, 1e-3):
        run(TYPES[0], tensors("float"), epsilon=epsilon)
        assert 1 <= len(kernel._passed) <= 2
        with pytest.raises(Exception, match="epsilon: expected a number in"):
            run(TYPES[0], tensors("float"), epsilon=2.0)
        with pytest.raises(Exception, match="gamma: expected "):
            run(TYPES[0], tensors("float") | {"gamma": torch.ones(8).bfloat16()}, epsilon=epsilon)


@pytest.mark.parametrize("ge_type", TYPES)
def test_an_attribute_about_speed_takes_any_value(ge_type: str) -> None:
    wanted, got = run(ge_type, tensors("float")), run(ge_type, tensors("float"), comm_turn=3)
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))


def test_names_at_the_decorator_are_those_of_the_signature() -> None:
    def toy(x: Tensor, *, mode: int = 0) -> Tensor:
        return x

    for wrong in ({"unfed": ("y",)}, {"copied": ("y",)}, {"allowed": {"form": (0,)}}):
        with pytest.raises(AssertionError, match="ToyOfTest"):
            registry.kernel("ToyOfTest", **wrong)(toy)  # type: ignore[arg-type]


def test_number_of_ranks() -> None:
    dist.destroy_process_group()
    with fake_group(3), pytest.raises(Exception, match="expected a group of 1, 2, 4 or 8 ranks, got '0' with 3"):
        run(TYPES[0], tensors("float"))
