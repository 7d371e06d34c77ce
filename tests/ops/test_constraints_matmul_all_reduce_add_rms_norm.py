"""Every constraint (A1 to A43): refused where it can first be known, with one text at every stage.

The converter is shown an operator of MindSpeed's prototype, whose own Meta implementation checks nothing. The table
of all of it is docs/matmul_all_reduce_add_rms_norm_constraints.md; ``NFG_ACCEPT=1`` rewrites it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.errors import InvalidArgumentError
from npu_fused_graph.ops import ascend
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as op
from npu_fused_graph.ops.registration import facts_of
from npu_fused_graph.spec import CallFacts, TensorFacts
from tests.ops.constraint_cases import CASES, ELSEWHERE, good, half
from tests.ops.constraint_table import DOCS, FORM, check_page, in_fake_mode, quoted, refused

pytestmark = pytest.mark.usefixtures("one_rank")

OP = nfg.npu_mm_all_reduce_add_rms_norm
IN_PLACE = nfg.npu_mm_all_reduce_add_rms_norm_
TABLE = DOCS / "matmul_all_reduce_add_rms_norm_constraints.md"


PREFIX = "[matmul_all_reduce_add_rms_norm] "
ALL = [(number, i) for number, (_, cases) in CASES.items() for i in range(len(cases))]
HEAD = [
    "# Constraints of npu_mm_all_reduce_add_rms_norm",
    "",
    "Written by tests/ops/test_constraints_matmul_all_reduce_add_rms_norm.py from what each stage really says.",
    "*fake*: while a graph is traced; *eager*: when the operator runs by itself; *converter*: while TorchAir",
    "lowers a graph, also one with MindSpeed's operator of this name; *pass*: a site is refused with a reason",
    "instead. Every text begins with `[matmul_all_reduce_add_rms_norm]`, that of the in-place form with",
    "`[inplace_matmul_all_reduce_add_rms_norm]`; examples of each. Types that are none of the schema's (a process",
    "group for hcom, a string for epsilon) are refused by the public functions in the same form.",
    "",
    "The in-place form has one more rule: no other argument may share memory with residual, which is written.",
    "Only an eager call can see that (`x1: expected memory of its own, since residual is written, got residual's",
    "memory. Clone it.`); in a compiled graph do not pass tensors that overlap.",
]


@pytest.mark.parametrize("scenario", ["float", "full", "full_bf16", "weight", "group"])
def test_the_calls_that_are_changed_are_valid(scenario: str) -> None:
    y, norm_out = OP(**good(scenario))
    assert y.shape == norm_out.shape == (2, 4, 16)


@pytest.mark.parametrize(("number", "index"), ALL)
def test_refused_in_eager_mode_and_at_trace_time(number: str, index: int) -> None:
    scenario, change, text = CASES[number][1][index]
    arguments = good(scenario) | change
    eager = refused(OP, arguments)
    assert eager.startswith(PREFIX + text), eager
    assert re.search(FORM, eager), "form: expected ..., got ... . cure"
    assert refused(in_fake_mode(OP), arguments) == eager
    in_place = refused(IN_PLACE, arguments)
    assert in_place == eager.replace(PREFIX, "[inplace_matmul_all_reduce_add_rms_norm] ")
    assert refused(in_fake_mode(IN_PLACE), arguments) == in_place


@pytest.fixture(scope="module")
def mindspeed() -> Iterator[Any]:
    """An operator as MindSpeed registers it: its prototype, and a Meta implementation that checks nothing."""
    from npu_fused_graph import converters

    library = torch.library.Library("mindspeed", "FRAGMENT")
    schema = op.SPEC.torch_schema().replace("(Tensor y, Tensor norm_out)", "(Tensor, Tensor)")
    library.define(schema)

    def meta(x1: Tensor, x2: Tensor, residual: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(residual), torch.empty_like(residual)

    library.impl(op.SPEC.torch_name, meta, "Meta")
    nfg.load_torchair()
    converters.register_all()
    yield torch.ops.mindspeed.npu_mm_all_reduce_add_rms_norm
    library._destroy()
    vars(torch.ops.mindspeed).pop(op.SPEC.torch_name, None)  # torch.ops may remember what it once found


def refused_by_the_converter(mindspeed: Any, arguments: dict[str, Any]) -> str:
    tensors = {k: v for k, v in arguments.items() if isinstance(v, Tensor)}
    rest = {k: v for k, v in arguments.items() if not isinstance(v, Tensor)}
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: mindspeed(**t, **rest), backend=nfg.get_npu_backend(), dynamic=False)
    with torch.no_grad(), pytest.raises(Exception, match=re.escape(PREFIX.strip())) as caught:
        compiled(tensors)
    return quoted(caught.value, PREFIX)


def test_table_of_constraints(mindspeed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for number, index in ALL:
        about, cases = CASES[number]
        scenario, change, _ = cases[index]
        arguments = good(scenario) | change
        text = refused(OP, arguments)
        assert refused(in_fake_mode(OP), arguments) == text
        assert refused_by_the_converter(mindspeed, arguments) == text, (number, index)
        shown = text.removeprefix(PREFIX).replace("g" * 128, "ggg...")
        rows.append((number, about, "fake, eager, converter", shown))
    rows += [(number, *row) for number, row in ELSEWHERE.items()]
    rows.sort(key=lambda row: int(row[0][1:]))
    assert {int(row[0][1:]) for row in rows} == set(range(1, 44)), "A1 to A43"
    check_page(TABLE, HEAD, rows, capsys)


# -- those that take more than wrong arguments ---------------------------------------------------------------


def test_a12_format_on_an_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Npu:
        @staticmethod
        def get_npu_format(x: Tensor) -> int:
            return 29 if x.dim() == 2 else 2

    monkeypatch.setattr(ascend, "soc_name", lambda device: "Ascend910B3")
    monkeypatch.setattr(torch.ops, "npu", Npu, raising=False)
    with pytest.raises(InvalidArgumentError) as caught:
        ascend.check_device(op.SPEC, [("x1", half(2, 2)), ("residual", half(1, 2, 2))])
    assert str(caught.value) == PREFIX + ELSEWHERE["A12"][2]


def test_a31_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="antiquant_group_size") as caught:
        OP(**good("float") | {"antiquant_group_size": 32})
    assert str(caught[0].message) == PREFIX + ELSEWHERE["A31"][2]


@pytest.mark.parametrize(("axis", "shape"), [("k", (2**31, 1)), ("n", (1, 2**31)), ("b * s", (1, 1))])
def test_a32_sizes_beyond_this_machine(axis: str, shape: tuple[int, int]) -> None:
    k, n = shape
    rows = 2**31 if axis == "b * s" else 1
    facts = {"x1": (rows, k), "x2": (k, n), "residual": (1, rows, n), "gamma": (n,)}
    attributes = {"hcom": "0", "reduce_op": "sum", "epsilon": 1e-6, "antiquant_group_size": 0, "comm_turn": 0}
    with pytest.raises(InvalidArgumentError) as caught:
        op.SPEC.check(CallFacts({name: TensorFacts(size, "float16") for name, size in facts.items()}, attributes))
    assert str(caught.value) == PREFIX + ELSEWHERE["A32"][2].replace("expected n", f"expected {axis}")


def test_a42_devices() -> None:
    arguments = good("float") | {"x2": torch.zeros(96, 16, dtype=torch.float16, device="meta")}
    assert refused(OP, arguments) == PREFIX + ELSEWHERE["A42"][2]
    scales = good("weight") | {"antiquant_scale": torch.zeros(16, dtype=torch.float16, device="meta")}
    assert "antiquant_scale: expected a tensor on cpu" in refused(OP, scales)


def test_a43_no_backward() -> None:
    """Without this, gradients would be those of this rank's part alone."""
    for fn, prefix in ((OP, PREFIX), (IN_PLACE, "[inplace_matmul_all_reduce_add_rms_norm] ")):
        arguments = good("float")
        arguments["gamma"].requires_grad_()
        assert refused(fn, arguments) == prefix + ELSEWHERE["A43"][2]
        assert refused(in_fake_mode(fn), arguments) == prefix + ELSEWHERE["A43"][2]
        with torch.no_grad():
            y, norm_out = fn(**arguments)
        assert not y.requires_grad
        assert not norm_out.requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a43_no_forward_mode_either() -> None:
    """Without this the tangent would silently be zero."""
    arguments = good("float")
    x1 = arguments.pop("x1")
    with pytest.raises(InvalidArgumentError) as caught:
        torch.func.jvp(lambda x: OP(x, **arguments)[0], (x1,), (torch.ones_like(x1),))
    assert "x1: expected a tensor that needs no gradient (there is no backward), got a forward-mode" in str(
        caught.value
    )


def test_a42_missing_tensor() -> None:
    call = facts_of(op.SPEC, good("float") | {"gamma": None})
    with pytest.raises(InvalidArgumentError, match="gamma: expected a tensor, got None"):
        op.SPEC.check(call)


# -- groups --------------------------------------------------------------------------------------------------


def test_a39_and_a41_groups() -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    three = dist.new_group([0, 1, 2])
    pairs = [dist.new_group([0, 1]), dist.new_group([0, 2])]
    wrong = refused(OP, good("float") | {"hcom": three.group_name})
    assert wrong == PREFIX + ELSEWHERE["A39"][2].replace("'0'", repr(three.group_name))
    assert refused(in_fake_mode(OP), good("float") | {"hcom": three.group_name}) == wrong
    OP(**good("float") | {"hcom": pairs[0].group_name})
    with pytest.warns(UserWarning, match="one communication domain") as caught:
        OP(**good("float") | {"hcom": pairs[1].group_name})
    names = sorted(p.group_name for p in pairs)
    text = PREFIX + ELSEWHERE["A41"][2].replace("'0'", repr(names[0])).replace("'1'", repr(names[1]))
    assert [str(w.message) for w in caught] == [text]
    OP(**good("float") | {"hcom": pairs[1].group_name})  # said once


def test_a_group_that_does_not_exist_yet_is_no_matter_at_trace_time() -> None:
    y, _ = in_fake_mode(OP)(**good("float") | {"hcom": "made later"})
    assert y.shape == (2, 4, 16)
