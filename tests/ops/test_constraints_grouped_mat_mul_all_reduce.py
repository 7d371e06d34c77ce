"""Every constraint (B1 to B20): refused where it can first be known, with one text at every stage.

For the converter the checks at trace time are taken away: it trusts nobody. The table of all of it is
docs/grouped_mat_mul_all_reduce_constraints.md; ``NFG_ACCEPT=1`` rewrites it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed, TorchRuntimeError
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import npu_fused_graph as nfg
from npu_fused_graph.errors import InvalidArgumentError, UnsupportedDeviceError
from npu_fused_graph.ops import ascend, registration
from npu_fused_graph.ops import grouped_mat_mul_all_reduce as op
from npu_fused_graph.spec import CallFacts, TensorFacts
from tests.ops.constraint_table import DOCS, FORM, check_page, in_fake_mode, quoted, refused
from tests.ops.grouped_constraint_cases import ALLOWED, CASES, ELSEWHERE, RESULTS, TYPES, good, half

OP = nfg.npu_grouped_mat_mul_all_reduce
TORCH_OP = torch.ops.npu_fused_graph.npu_grouped_mat_mul_all_reduce
TABLE = DOCS / "grouped_mat_mul_all_reduce_constraints.md"
PREFIX = "[grouped_mat_mul_all_reduce] "
ALL = [(number, i) for number, (_, cases) in CASES.items() for i in range(len(cases))]
HEAD = [
    "# Constraints of npu_grouped_mat_mul_all_reduce",
    "",
    "Written by tests/ops/test_constraints_grouped_mat_mul_all_reduce.py from what each stage really says.",
    "*fake*: while a graph is traced; *eager*: when the operator runs by itself; *converter*: while TorchAir",
    "lowers a graph; *function*: the public function, before torch sees the arguments. Every text begins with",
    "`[grouped_mat_mul_all_reduce]`. A38, A41 and A43 are the rules of",
    "npu_mm_all_reduce_add_rms_norm that hold here, too.",
]


@contextmanager
def ranks(size: int) -> Iterator[None]:
    """A group of ``size`` ranks that communicates nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def two_ranks() -> Iterator[None]:
    with ranks(2):
        yield


@pytest.fixture(scope="module")
def backend() -> Callable[..., Any]:
    return nfg.get_npu_backend()


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is checked while a graph is traced."""

    def bound(overload: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(overload.signature.bind(*args, **kwargs).arguments)

    monkeypatch.setattr(registration._Overload, "_checked", bound)
    monkeypatch.setattr(registration._Overload, "_check_group_if_known", lambda overload, arguments: None)
    monkeypatch.setattr(op, "fake", lambda group_list=None: [torch.empty(1)])


def compiled(
    backend: Callable[..., Any], *, fullgraph: bool = True, dynamic: bool | None = False
) -> Callable[..., Any]:
    torch._dynamo.reset()
    run = torch.compile(lambda a: OP(**a), backend=backend, dynamic=dynamic, fullgraph=fullgraph)
    return lambda **arguments: run(arguments)


def refused_while_compiling(backend: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """Everything torch or TorchAir says."""
    with torch.no_grad(), pytest.raises(Exception, match=re.escape(PREFIX.strip())) as caught:
        compiled(backend)(**arguments)
    return str(caught.value)


def converted(**arguments: Any) -> Any:
    """The converter by itself, as TorchAir calls it: with tensors that carry a fake one."""

    def carried(value: Any) -> Any:
        return [SimpleNamespace(meta=x) for x in value] if value and isinstance(value[0], Tensor) else value

    return TORCH_OP.default._ge_converter(
        **{name: carried(value) if isinstance(value, list) else value for name, value in arguments.items()}
    )


def refused_while_lowering(backend: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """trusting is in force."""
    torch._dynamo.reset()
    run = torch.compile(lambda a: TORCH_OP(**a), backend=backend, dynamic=False, fullgraph=True)
    with torch.no_grad(), pytest.raises(BackendCompilerFailed, match=re.escape(PREFIX.strip())) as caught:
        run(arguments)
    return quoted(caught.value, PREFIX)


def shapes(results: list[Tensor]) -> list[list[int]]:
    return [list(y.shape) for y in results]


# -- the table -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("kind", RESULTS)
def test_the_calls_that_are_changed_are_valid(kind: str, backend: Callable[..., Any]) -> None:
    for run in (OP, TORCH_OP, in_fake_mode(OP), compiled(backend)):
        assert shapes(run(**good(kind))) == RESULTS[kind]


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("index", range(len(ALLOWED)))
def test_b8_groups_without_rows_are_allowed(index: int, backend: Callable[..., Any]) -> None:
    kind, change, wanted = ALLOWED[index]
    for run in (OP, TORCH_OP, in_fake_mode(OP), compiled(backend)):
        assert shapes(run(**good(kind) | change)) == wanted


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize(("number", "index"), ALL)
def test_refused_with_one_text_at_every_stage(number: str, index: int, backend: Callable[..., Any]) -> None:
    kind, change, text = CASES[number][1][index]
    arguments = good(kind) | change
    eager = refused(OP, arguments)
    assert eager.startswith(PREFIX + text), eager
    assert re.search(FORM, eager), "form: expected ..., got ... . cure"
    assert refused(TORCH_OP, arguments) == eager
    assert refused(in_fake_mode(OP), arguments) == eager
    assert refused(in_fake_mode(TORCH_OP), arguments) == eager
    with torch.no_grad(), pytest.raises(TorchRuntimeError) as caught:
        compiled(backend)(**arguments)
    assert eager in str(caught.value)
    assert refused(converted, arguments) == eager


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("index", range(len(TYPES)))
def test_types_are_refused_by_the_public_function(index: int, backend: Callable[..., Any]) -> None:
    kind, change, text = TYPES[index]
    arguments = good(kind) | change
    eager = refused(OP, arguments)
    assert eager.startswith(PREFIX + text), eager
    assert re.search(FORM, eager), "form: expected ..., got ... . cure"
    with torch.no_grad():
        assert refused(compiled(backend, fullgraph=False), arguments) == eager


@pytest.mark.usefixtures("two_ranks", "trusting")
@pytest.mark.parametrize("number", CASES)
def test_a_graph_that_nobody_checked_is_refused_while_it_is_lowered(number: str, backend: Callable[..., Any]) -> None:
    kind, change, text = CASES[number][1][0]
    assert refused_while_lowering(backend, good(kind) | change).startswith(PREFIX + text)


@pytest.mark.usefixtures("two_ranks")
def test_table_of_constraints(capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for number, (about, cases) in CASES.items():
        for kind, change, _ in cases:
            text = refused(OP, good(kind) | change).removeprefix(PREFIX).replace("g" * 128, "ggg...")
            rows.append((number, about, "fake, eager, converter", text))
    rows += [(number.partition(" ")[0], *row) for number, row in ELSEWHERE.items()]
    rows.append(("B8", "groups without rows", "none: allowed", "-"))
    assert {row[0] for row in rows} == {f"B{i}" for i in range(1, 21)} | {"A38", "A41", "A43"}
    rows.sort(key=lambda row: (row[0][0] == "A", int(row[0][1:])))
    for kind, change, _ in TYPES:
        rows.append(("types", next(iter(change)), "function", refused(OP, good(kind) | change).removeprefix(PREFIX)))
    check_page(TABLE, HEAD, list(dict.fromkeys(rows)), capsys)


# -- those that take more than wrong arguments ---------------------------------------------------------------


@pytest.mark.usefixtures("two_ranks")
def test_b3_64_groups_are_allowed(backend: Callable[..., Any]) -> None:
    arguments = {
        "x": [half(64, 8)], "weight": [half(8, 4)] * 64, "bias": [half(4)] * 64, "group_list": list(range(1, 65)),
        "split_item": 3, "hcomm": "0",
    }  # fmt: skip
    for run in (OP, in_fake_mode(OP), compiled(backend)):
        assert shapes(run(**arguments)) == [[64, 4]]


@pytest.mark.usefixtures("two_ranks")
def test_b14_and_b15_the_largest_sizes_are_allowed() -> None:
    columns = {"x": [half(1, 65535)], "weight": [half(65535, 1)], "hcomm": "0"}
    rows = {"x": [half(2147483632, 0)], "weight": [half(0, 0)], "hcomm": "0"}
    for run in (OP, in_fake_mode(OP)):
        assert shapes(run(**columns)) == [[1, 1]]
        assert shapes(run(**rows)) == [[2147483632, 0]]


@pytest.mark.parametrize(("rows", "is_allowed"), [(2147483632, True), (2147483633, False), (2**40, False)])
@pytest.mark.parametrize("split_item", [0, 1, 2, 3])
def test_b15_sizes_beyond_this_machine(rows: int, is_allowed: bool, split_item: int) -> None:
    lists = {"x": (TensorFacts((rows, 8), "float16"),), "weight": (TensorFacts((8, 4), "float16"),), "bias": ()}
    group_list = [rows] if split_item in (1, 3) else None
    attributes = {"hcomm": "0", "split_item": split_item, "group_list": group_list, "reduce_op": "sum", "comm_turn": 0}
    call = CallFacts({}, attributes, lists)
    if is_allowed:
        op.SPEC.check(call)
        return
    with pytest.raises(InvalidArgumentError) as caught:
        op.SPEC.check(call)
    assert str(caught.value) == (f"{PREFIX}x[0]: expected sizes of at most 2147483632, got {rows}. Split the problem.")


def test_b17_numbers_of_ranks(
    backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    wanted = PREFIX + ELSEWHERE["B17"][2]
    for size in (1, 3, 5, 16):
        with ranks(size):
            text = wanted.replace("with 3", f"with {size}")
            assert refused(OP, good("0")) == text
            assert refused(in_fake_mode(OP), good("0")) == text
            assert text in refused_while_compiling(backend, good("0"))
    for size in (2, 4, 8):
        with ranks(size):
            for run in (OP, in_fake_mode(OP), compiled(backend)):
                assert shapes(run(**good("2"))) == RESULTS["2"]
    request.getfixturevalue("trusting")
    with ranks(3):
        assert refused_while_lowering(backend, good("0")) == wanted


def test_b17_subgroups() -> None:
    with ranks(4):
        three, pair = dist.new_group([0, 1, 2]), dist.new_group([0, 3])
        wrong = good("1") | {"hcomm": three.group_name}
        text = PREFIX + ELSEWHERE["B17"][2].replace("'0'", repr(three.group_name))
        assert refused(OP, wrong) == text
        assert refused(in_fake_mode(OP), wrong) == text
        assert shapes(OP(**good("1") | {"hcomm": pair.group_name})) == RESULTS["1"]


def test_a_group_that_does_not_exist_yet_is_no_matter_at_trace_time() -> None:
    assert shapes(in_fake_mode(OP)(**good("1") | {"hcomm": "made later"})) == RESULTS["1"]


def test_a41_a_second_group() -> None:
    with ranks(4):
        names = sorted(dist.new_group(pair).group_name for pair in ([0, 1], [0, 2]))
        OP(**good("0") | {"hcomm": names[0]})
        with pytest.warns(UserWarning, match="one communication domain") as caught:
            OP(**good("0") | {"hcomm": names[1]})
        text = PREFIX + ELSEWHERE["A41"][2].replace("'0' and '1'", f"{names[0]!r} and {names[1]!r}")
        assert [str(w.message) for w in caught] == [text]


def test_b19_format_on_an_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Npu:
        @staticmethod
        def get_npu_format(x: Tensor) -> int:
            return 29 if x.size(0) == 3 else 2

    monkeypatch.setattr(ascend, "soc_name", lambda device: "Ascend910B3")
    monkeypatch.setattr(torch.ops, "npu", Npu, raising=False)
    ascend.check_device(op.SPEC, [("x[0]", half(2, 2)), ("weight[0]", half(2, 2))])
    with pytest.raises(InvalidArgumentError) as caught:
        ascend.check_device(op.SPEC, [("x[0]", half(2, 2)), ("weight[0]", half(3, 2))])
    assert str(caught.value) == PREFIX + ELSEWHERE["B19 format"][2]


@pytest.mark.usefixtures("two_ranks")
def test_b19_another_chip(backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascend, "soc_name", lambda device=None: "Ascend910_9382")
    with pytest.raises(UnsupportedDeviceError) as caught:
        ascend.check_device(op.SPEC, [("x[0]", half(2, 2))])
    assert str(caught.value) == PREFIX + ELSEWHERE["B19 chip"][2]
    assert PREFIX + ELSEWHERE["B19 chip"][2] in refused_while_compiling(backend, good("0"))


@pytest.mark.usefixtures("two_ranks")
def test_b19_tensors_that_are_all_elsewhere() -> None:
    arguments = good("0") | {"x": [x.to("meta") for x in good("0")["x"]]}
    arguments["weight"] = [w.to("meta") for w in arguments["weight"]]
    assert shapes(OP(**arguments)) == RESULTS["0"]


def test_b20_a_number_that_the_graph_computes() -> None:
    unknown = ShapeEnv().create_unbacked_symint()
    lists = {"x": (TensorFacts((10, 8), "float16"),), "weight": (TensorFacts((8, 4), "float16"),) * 2, "bias": ()}
    attributes = {"hcomm": "0", "split_item": 1, "group_list": [unknown, 10], "reduce_op": "sum", "comm_turn": 0}
    with pytest.raises(InvalidArgumentError) as caught:
        op.SPEC.check(CallFacts({}, attributes, lists))
    assert str(caught.value) == PREFIX + ELSEWHERE["B20"][2]


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("dynamic", [False, None, True])
def test_b20_a_list_that_the_graph_computes(backend: Callable[..., Any], dynamic: bool | None) -> None:
    torch._dynamo.reset()
    arguments = good("3")
    ends = torch.tensor(arguments.pop("group_list"))
    run = torch.compile(
        lambda a, ends: OP(**a, group_list=ends.tolist()), backend=backend, dynamic=dynamic, fullgraph=True
    )
    with torch._dynamo.config.patch(capture_scalar_outputs=True), pytest.raises(TorchRuntimeError) as caught:
        run(arguments, ends)
    assert PREFIX + ELSEWHERE["B20"][2] in str(caught.value)


@pytest.mark.usefixtures("two_ranks")
def test_b20_a_list_computed_between_two_graphs(backend: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    arguments = good("3")
    ends = torch.tensor(arguments.pop("group_list"))
    run = torch.compile(lambda a, ends: OP(**a, group_list=ends.tolist()), backend=backend, dynamic=False)
    assert shapes(run(arguments, ends)) == RESULTS["3"]


@pytest.mark.usefixtures("two_ranks")
def test_b20_a_size_is_a_constant_of_each_graph(backend: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    weight = good("3")["weight"]
    run = torch.compile(
        lambda x: OP([x], weight, "0", group_list=[4, x.size(0)], split_item=3),
        backend=backend, dynamic=True, fullgraph=True,
    )  # fmt: skip
    assert shapes(run(half(10, 8))) == [[10, 6]]
    assert shapes(run(half(12, 8))) == [[12, 6]]


@pytest.mark.usefixtures("two_ranks")
def test_a43_no_backward() -> None:
    """Without this, gradients would be those of this rank's part alone."""
    arguments = good("1")
    arguments["weight"][1].requires_grad_()
    text = PREFIX + ELSEWHERE["A43"][2]
    for run in (OP, TORCH_OP, in_fake_mode(OP)):
        assert refused(run, arguments) == text
    with torch.no_grad():
        assert not any(y.requires_grad for y in OP(**arguments))


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a43_no_forward_mode_either() -> None:
    """Without this the tangent would silently be zero."""
    arguments = good("3")
    (x,) = arguments.pop("x")
    with pytest.raises(InvalidArgumentError) as caught:
        torch.func.jvp(lambda t: OP([t], **arguments)[0], (x,), (torch.ones_like(x),))
    assert "x[0]: expected a tensor that needs no gradient (there is no backward), got a forward-mode" in str(
        caught.value
    )


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("group_list", [None, []])
def test_a_stacked_weight_of_no_groups(group_list: list[int] | None) -> None:
    text = refused(OP, good("3 stacked") | {"weight": [half(0, 8, 6)], "group_list": group_list})
    assert text.startswith(PREFIX), text
