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
from torch.autograd import forward_ad

import npu_fused_graph as nfg
from npu_fused_graph.codegen import op_table
from npu_fused_graph.codegen.proto import proto_header
from npu_fused_graph.errors import InvalidArgumentError, UnsupportedDeviceError
from npu_fused_graph.host import native
from npu_fused_graph.ops import ascend, registration
from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.spec import AttrSpec, OpSpec, TensorSpec
from tests.ops import toys
from tests.ops.toys import gain, gain_grad, line_up, note
from tests.ops.toys import weigh as weigh_toy
from tests.passes.capture import capture

WEIGH, NOTE = weigh_toy.SPEC, note.SPEC
X, Y = WEIGH.inputs[0], WEIGH.outputs[0]
weigh = weigh_toy.reference


@contextmanager
def operator(spec: OpSpec, **functions: Callable[..., Any]) -> Iterator[Any]:
    """An operator made of these functions."""
    module = ModuleType(spec.stem)
    vars(module).update(functions, SPEC=spec)
    with toys.eager(module) as op:
        yield op


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(fn, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)


def test_list_attributes() -> None:
    assert WEIGH.torch_schema() == "toy_weigh(Tensor x, float[] weights, *, int[] steps=[1, 2]) -> Tensor"
    with toys.operator(weigh_toy) as op:
        x = torch.ones(2, 3).half()
        assert torch.equal(op(x, [2.0, 0.5]), x * 3)
        assert torch.equal(op(x, [2.0, 0.5], steps=[0, 4]), x * 2)
        gm = capture(lambda x: op(x, [2.0, 0.5], steps=[3, 4]), x)
        assert torch.equal(compiled(lambda x: op(x, [2.0, 0.5], steps=[0, 4]))(x), x * 2)
        assert torch.equal(compiled(lambda x: op(x, [2.0, 0.5]))(x), x * 3)
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
    noted = note.noted
    noted.clear()
    assert NOTE.torch_schema() == "toy_note(Tensor x) -> ()"
    with toys.operator(note) as op:
        assert op(torch.ones(2, 3).half()) is None
        assert noted == [6.0]

        def model(x: Tensor) -> Tensor:
            op(x)
            op(x + x)
            return x + 1

        gm = capture(model, torch.ones(2, 3).half())
        gm.graph.eliminate_dead_code()
        assert len(gm.graph.find_nodes(op="call_function", target=op.default)) == 2
        run, graphs = compiled(model), []
        native.graph_listeners.append(graphs.append)
        for value in (1, 2):  # the first run of a graph is another path than the later ones
            y = run(torch.full((2, 3), value).half())
            assert torch.equal(y, torch.full((2, 3), value + 1).half())
        native.graph_listeners.remove(graphs.append)
    assert noted == [6.0, 6.0, 12.0, 12.0, 24.0]
    (graph,) = (executable.graph for executable in graphs)
    (end,) = graph.of_type("NetOutput")
    assert set(end.controls) >= {node.name for node in graph.of_type("ToyNote")}, "GE drops what no result needs"
    assert "OUTPUT" not in proto_header(NOTE).replace("INPUT", "")


@pytest.mark.filterwarnings(
    "ignore:Your compiler for AOTAutograd is returning a function:UserWarning"
)  # TorchAir's does
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own use of it
def test_a_gradient_is_an_operator_too() -> None:
    uses = gain_grad.uses
    uses.clear()
    with toys.operator(gain_grad), toys.operator(gain) as op:
        torch.library.opcheck(op.default, (torch.rand(2, 3, requires_grad=True),), {"factor": 3.0})
        for run in (lambda x: op(x, factor=3.0), compiled(lambda x: op(x, factor=3.0))):
            uses.clear()
            x = torch.ones(2, 3, requires_grad=True)
            y = run(x)
            assert torch.equal(y, torch.full((2, 3), 3.0))
            y.sum().backward()
            assert torch.equal(x.grad, torch.full((2, 3), 3.0))  # type: ignore[arg-type]
            assert uses  # more than once: TorchAir infers shapes of backward graphs by calling their operators
        with forward_ad.dual_level():
            x = forward_ad.make_dual(torch.ones(2, 3), torch.ones(2, 3))
            text = r"x: expected a tensor without a tangent \(the gradient is backward only\), got a forward-mode"
            with pytest.raises(InvalidArgumentError, match=text):
                op(x)
    assert "Gradient: `toy_gain_grad`." in op_table([gain.SPEC])


@pytest.mark.parametrize(
    ("spec", "functions"),
    [(gain.SPEC, ("setup_context",)), (gain.SPEC, ("backward",)), (WEIGH, ("backward", "setup_context"))],
)
def test_a_gradient_is_said_in_both_places(spec: OpSpec, functions: Sequence[str]) -> None:
    given = {name: getattr(gain, name) for name in functions}
    with pytest.raises(TypeError, match=r"backward: expected "), operator(spec, reference=weigh, **given):
        pass


def test_gradients_that_cannot_be_registered() -> None:
    functions = {"backward": gain.backward, "setup_context": gain.setup_context, "reference": gain.reference}
    text = r"\[toy_gain\] backward: expected no input that is written, and none behind '\*'"
    written = replace(gain.SPEC, outputs=(replace(gain.SPEC.inputs[0], like="x"), Y))
    for spec in (replace(gain.SPEC, signature=("*", "x", "factor")), written):
        with pytest.raises(TypeError, match=text), operator(spec, **functions):
            pass
    with pytest.raises(TypeError, match=r"\[ops\] backward: expected stems of operators, got toy_gain_grad"):
        registration._register_all.__wrapped__((gain,))


@pytest.mark.usefixtures("one_rank")
def test_communicating_without_a_reduce() -> None:
    with toys.operator(line_up) as op:
        x = torch.arange(6.0).half().view(2, 3)
        assert torch.equal(op(x, "0"), torch.cat([x, x]))
        assert torch.equal(compiled(lambda x: op(x, "0"))(x), torch.cat([x, x]))
    text = r"\[toy_line_up\] group: expected a group of 1 to 768 ranks, got 'tp' with 769\. "
    with pytest.raises(InvalidArgumentError, match=text):
        line_up.SPEC.check_group("tp", 769)
    assert "Ranks: 1 to 768." in op_table([line_up.SPEC])


def test_an_operator_of_another_chip() -> None:
    ascend.check_soc(NOTE, "Ascend910_9382")
    ascend.check_soc(NOTE, "")
    text = r"\[toy_note\] device: expected Ascend910_93x \(Atlas A3\), got 'Ascend910B3'\. "
    with pytest.raises(UnsupportedDeviceError, match=text):
        ascend.check_soc(NOTE, "Ascend910B3")
    assert "Chips: Ascend910_93x (Atlas A3)." in op_table([NOTE])
    both = replace(NOTE, chips=("Ascend910B", "Ascend910_93"))
    assert both.chips_text == "Ascend910Bx (Atlas A2) or Ascend910_93x (Atlas A3)"
    assert both.runs_on("Ascend910B3") and both.runs_on("Ascend910_9382") and not both.runs_on("Ascend310P3")
    assert WEIGH.runs_on("Ascend310P3"), "it says nothing of chips"


def test_what_a_mutating_operator_must_have() -> None:
    outputs = (TensorSpec("x", like="x"), TensorSpec("z", like="z"), Y)
    spec = replace(NOTE, signature=("x", "z"), inputs=(X, TensorSpec("z", ("m n",))), outputs=outputs)
    text = r"\[toy_note\] outputs: expected one mutated input at most, got "
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
