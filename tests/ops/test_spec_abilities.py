"""What a SPEC can describe that no operator of the package uses yet: toy operators, from schema to prototype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npu_fused_graph.codegen.proto import proto_header
from npu_fused_graph.errors import InvalidArgumentError, UnsupportedDeviceError
from npu_fused_graph.ops import ascend, registration
from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.spec import AttrSpec, DTypeRow, OpSpec, TensorSpec
from tests.passes.capture import capture

X, Y = TensorSpec("x", ("m n",)), TensorSpec("y", like="x")
WEIGH = OpSpec(
    stem="toy_weigh", ge_type="ToyWeigh", torch_name="toy_weigh", signature=("x", "weights", "*", "steps"),
    inputs=(X,), outputs=(Y,),
    attrs=(AttrSpec("weights", "ListFloat"), AttrSpec("steps", "ListInt", (1, 2))),
    rows=(DTypeRow("any", {"x": "float16", "y": "float16"}),), doc="Weighs.", source="this test",
)  # fmt: skip
NOTE = OpSpec(
    stem="toy_note", ge_type="ToyNote", torch_name="toy_note", signature=("x",), inputs=(X,), outputs=(), attrs=(),
    rows=(DTypeRow("any", {"x": "float16"}),), doc="Notes.", source="this test", chips=("Ascend910_93",),
)  # fmt: skip


def weigh(x: Tensor, weights: Sequence[float], steps: Sequence[int]) -> Tensor:
    return x * sum(weight * step for weight, step in zip(weights, steps, strict=True))


@contextmanager
def operator(spec: OpSpec, **functions: Callable[..., Any]) -> Iterator[Any]:
    """The operator as the package registers its own."""
    module = ModuleType(spec.stem)
    vars(module).update(functions, SPEC=spec)
    library = torch.library.Library(registration.NAMESPACE, "FRAGMENT")
    try:
        registration._register(library, module)
        yield getattr(torch.ops.npu_fused_graph, spec.torch_name)
    finally:
        library._destroy()
        vars(torch.ops.npu_fused_graph).pop(spec.torch_name, None)  # torch.ops may remember what it once found


def test_list_attributes() -> None:
    assert WEIGH.torch_schema() == "toy_weigh(Tensor x, float[] weights, *, int[] steps=[1, 2]) -> Tensor"
    with operator(WEIGH, reference=weigh) as op:
        x = torch.ones(2, 3).half()
        assert torch.equal(op(x, [2.0, 0.5]), x * 3)
        assert torch.equal(op(x, [2.0, 0.5], steps=[0, 4]), x * 2)
        gm = capture(lambda x: op(x, [2.0, 0.5], steps=[3, 4]), x)
    (call,) = gm.graph.find_nodes(op="call_function", target=op.default)
    assert (call.args[1:], call.kwargs) == (([2.0, 0.5],), {"steps": [3, 4]})
    assert call.meta["val"].shape == (2, 3)
    header = proto_header(WEIGH)
    assert "    .REQUIRED_ATTR(weights, ListFloat)\n" in header
    assert "    .ATTR(steps, ListInt, {1, 2})\n" in header
    assert [(a.type, a.default) for a in WEIGH.ir_def().attrs] == [("VT_LIST_FLOAT", None), ("VT_LIST_INT", "{1, 2}")]


def test_a_list_that_may_be_none_and_defaults_nobody_can_change() -> None:
    spec = replace(WEIGH, attrs=(WEIGH.attrs[0], AttrSpec("steps", "ListInt", (1, 2), is_nullable=True)))
    assert spec.torch_schema().endswith("int[]? steps=None) -> Tensor")

    def greedy(x: Tensor, weights: list[float], steps: list[int]) -> Tensor:
        steps.append(9)
        return weigh(x, weights, steps[:-1])

    x = torch.ones(2, 3).half()
    for each in (spec, WEIGH):
        with operator(each, reference=greedy) as op:
            assert all(torch.equal(op(x, [2.0, 0.5]), x * 3) for _ in range(2))
    with operator(spec, reference=weigh) as op:
        assert torch.equal(op(x, [2.0, 0.5], steps=None), x * 3)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"weights": 2.0}, r"\[toy_weigh\] weights: expected a list of floats, got float\. Pass a list\."),
        ({"weights": [1.0, True]}, r"\[toy_weigh\] weights\[1\]: expected a float, got True\. Pass a number\."),
        ({"steps": [1, 2.5]}, r"\[toy_weigh\] steps\[1\]: expected an int, got 2\.5\. Pass a number\."),
        ({"steps": [1, np.float32(2)]}, r"\[toy_weigh\] steps\[1\]: expected an int, got "),
        ({"weights": [1.0, np.bool_(True)]}, r"\[toy_weigh\] weights\[1\]: expected a float, got "),
        ({"weights": [1j, 1.0]}, r"\[toy_weigh\] weights\[0\]: expected a float, got 1j\. Pass a number\."),
        ({"steps": torch.ones(2)}, r"\[toy_weigh\] steps: expected a list of ints, got Tensor\. Call \.tolist"),
    ],
)
def test_wrong_lists_are_refused(wrong: dict[str, Any], text: str) -> None:
    right = {"x": torch.ones(2, 3), "weights": [1, np.float32(2)], "steps": (1, np.int64(2))}
    check_types(WEIGH, right)
    with pytest.raises(InvalidArgumentError, match=text):
        check_types(WEIGH, right | wrong)


def test_an_operator_without_outputs_is_called_and_stays_in_graphs() -> None:
    noted: list[float] = []
    assert NOTE.torch_schema() == "toy_note(Tensor x) -> ()"
    with operator(NOTE, reference=lambda x: noted.append(float(x.sum()))) as op:
        assert op(torch.ones(2, 3).half()) is None
        assert noted == [6.0]

        def model(x: Tensor) -> Tensor:
            op(x)
            return x + 1

        gm = capture(model, torch.ones(2, 3).half())
        gm.graph.eliminate_dead_code()
        assert gm.graph.find_nodes(op="call_function", target=op.default)
    assert "OUTPUT" not in proto_header(NOTE).replace("INPUT", "")


def test_an_operator_of_another_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    ascend.check_soc(NOTE, "Ascend910_9382")
    ascend.check_soc(NOTE, "")
    text = r"\[toy_note\] device: expected Ascend910_93x \(Atlas A3\), got 'Ascend910B3'\. "
    with pytest.raises(UnsupportedDeviceError, match=text):
        ascend.check_soc(NOTE, "Ascend910B3")
    both = replace(NOTE, chips=("Ascend910B", "Ascend910_93"))
    assert both.chips_text == "Ascend910Bx (Atlas A2) or Ascend910_93x (Atlas A3)"
    assert both.runs_on("Ascend910B3") and both.runs_on("Ascend910_9382") and not both.runs_on("Ascend310P3")
    assert WEIGH.runs_on("Ascend310P3"), "it says nothing of chips"


def test_what_a_mutating_operator_must_have() -> None:
    written = TensorSpec("x", like="x")
    for outputs in ((written,), (written, TensorSpec("z", like="z"), Y)):
        inputs = (X, TensorSpec("z", ("m n",)))
        spec = replace(NOTE, signature=("x", "z"), inputs=inputs, outputs=outputs)
        text = r"\[toy_note\] outputs: expected one mutated input and a new result, got "
        with pytest.raises(TypeError, match=text), operator(spec, reference=lambda x, z: (x, z)):
            pass


def test_functions_that_drifted_from_the_spec_are_refused() -> None:
    def toy_weigh(x: Tensor, weights: Sequence[float], *, steps: Sequence[int] = (1,)) -> Tensor:
        return x

    text = r"toy_weigh: expected the SPEC's parameters .* others: \['steps'\]"
    with pytest.raises(TypeError, match=text), operator(WEIGH, reference=weigh, toy_weigh=toy_weigh):
        pass

    def as_it_is(x: Tensor, weights: Sequence[float], *, steps: Sequence[int] = (1, 2)) -> Tensor:
        return weigh(x, weights, steps)

    with operator(WEIGH, reference=weigh, toy_weigh=as_it_is):
        pass
    text = r"reference: expected parameters of the SPEC, got \['step'\]"
    with pytest.raises(TypeError, match=text), operator(WEIGH, reference=lambda x, weights, step=1: x):
        pass
    text = r"reference: expected parameters of the SPEC, got \['scale'\]"
    with pytest.raises(TypeError, match=text), operator(WEIGH, reference=lambda x, scale, rank=None: x):
        pass
