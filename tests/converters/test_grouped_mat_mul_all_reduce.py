"""The operator in a compiled graph: one GE node with dynamic inputs, constants where CANN wants them, its results."""

from __future__ import annotations

import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.engine import Executable, compile_graph
from npu_fused_graph.errors import InvalidArgumentError
from npu_fused_graph.host import native
from npu_fused_graph.ir.graph import Graph, Node, Source, TensorValue
from npu_fused_graph.ir.order import live_nodes
from npu_fused_graph.ir.text import node_text, to_text
from npu_fused_graph.ops import grouped_mat_mul_all_reduce as op
from npu_fused_graph.testing import assert_close, assert_same_graph
from tests.engine.graphs import graph_of, node
from tests.ops.gathering import Reducing
from tests.ops.grouped_exact import exact
from tests.passes.capture import fake_group

GOLDEN = Path(__file__).parent.parent / "golden"
TYPE = "GroupedMatMulAllReduce"
WORLD = "tag=ptd:0;rank_list=0,1"
SAMPLES = [s for s in op.samples() if any(y.numel() for y in exact([s]))]
EVERY_SAMPLE = pytest.mark.parametrize("index", range(len(SAMPLES)))


@pytest.fixture
def group_size() -> int:
    return 2


@pytest.fixture(autouse=True)
def _group(group_size: int) -> Iterator[None]:
    with fake_group(group_size):
        yield


@contextmanager
def graphs_made() -> Iterator[list[Executable]]:
    graphs: list[Executable] = []
    native.graph_listeners.append(graphs.append)
    try:
        yield graphs
    finally:
        native.graph_listeners.remove(graphs.append)


def model_of(arguments: dict[str, Any]) -> tuple[Callable[..., list[Tensor]], list[list[Tensor] | None]]:
    """The op as a function of its tensors, and them; the other arguments are the graph's."""
    rest = {"hcomm": "0"} | {k: v for k, v in arguments.items() if k not in ("x", "weight", "bias")}

    def model(x: list[Tensor], weight: list[Tensor], bias: list[Tensor] | None) -> list[Tensor]:
        return nfg.npu_grouped_mat_mul_all_reduce(x, weight, bias=bias, **rest)

    return model, [arguments["x"], arguments["weight"], arguments.get("bias")]


def compile_and_run(arguments: dict[str, Any]) -> tuple[Graph, list[list[Tensor]]]:
    """(GE graph, results of two runs)."""
    model, tensors = model_of(arguments)
    torch._dynamo.reset()
    run = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
    with graphs_made() as graphs, torch.no_grad():
        results = [run(*tensors) for _ in range(2)]
    (executable,) = graphs
    return executable.graph, results


def grouped_node(graph: Graph) -> Node:
    (found,) = graph.of_type(TYPE)
    return found


def sources(found: Node) -> dict[str, Source | None]:
    return {item.desc.name: item.source for item in found.inputs}


def constant(graph: Graph, source: Source | None) -> TensorValue:
    assert source is not None and source.index == 0
    producer = graph.nodes[source.node]
    assert producer.type == "Const"
    value = producer.attrs["value"]
    assert isinstance(value, TensorValue)
    return value


def int64s(values: list[int]) -> TensorValue:
    return TensorValue("int64", (len(values),), struct.pack(f"<{len(values)}q", *values))


# -- the node -------------------------------------------------------------------------------------------------


@EVERY_SAMPLE
def test_one_node_and_its_results(index: int) -> None:
    sample = SAMPLES[index]
    graph, results = compile_and_run(sample)
    is_stacked, is_split, bias = sample["weight"][0].dim() == 3, sample["split_item"] in (1, 3), sample["bias"] or []
    groups = len(sample["weight"][0]) if is_stacked else len(sample["weight"])
    wanted = exact([sample] * 2)

    types = Counter(graph.nodes[name].type for name in live_nodes(graph))
    assert types == Counter(
        {"Data": len(sample["x"]) + len(sample["weight"]) + len(bias), TYPE: 1, "NetOutput": 1}
    ) + Counter({"Const": (not bias) + is_split, "Unpack": int(is_stacked)})

    found = grouped_node(graph)
    fed = sources(found)
    assert list(fed) == [
        *(f"x{i}" for i in range(len(sample["x"]))),
        *(f"weight{i}" for i in range(groups)),
        *(f"bias{i}" for i in range(len(bias) or 1)),
        "group_list",
    ]
    if not bias:
        dtype = "float16" if sample["x"][0].dtype is torch.float16 else "float32"
        assert constant(graph, fed["bias0"]) == TensorValue(dtype, (0,), b"")
    if is_split:
        assert constant(graph, fed["group_list"]) == int64s(sample["group_list"])
    else:
        assert fed["group_list"] is None
    if is_stacked:
        (unpack,) = graph.of_type("Unpack")
        assert (unpack.attrs["num"], unpack.attrs["axis"]) == (groups, 0)
        assert [fed[f"weight{i}"] for i in range(groups)] == [Source(unpack.name, i) for i in range(groups)]

    attributes = {name: value for name, value in found.attrs.items() if not name.startswith("_")}
    assert attributes == {"splitItem": sample["split_item"], "group": WORLD, "reduceOp": "sum", "commTurn": 0}
    assert [y.name for y in found.outputs] == [f"y{i}" for i in range(len(wanted))]
    (net_output,) = graph.of_type("NetOutput")
    assert list(net_output.sources()) == [Source(found.name, i) for i in range(len(wanted))]

    for run in results:
        for got, want in zip(run, wanted, strict=True):
            assert got.dtype is sample["x"][0].dtype
            assert_close(got, want, scale=6)  # see tests/ops
        unfused = op.decompose(**sample, rank=Reducing(lambda x: x + x))
        for got, other in zip(run, unfused, strict=True):
            assert_close(got, other.double(), scale=4)
        assert all(torch.equal(a, b) for a, b in zip(run, results[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_absent_bias_is_one_constant_however_it_is_said(dtype: torch.dtype) -> None:
    sample = next(s for s in SAMPLES if s["x"][0].dtype is dtype and not s["bias"])
    texts = {to_text(compile_and_run(sample | {"bias": bias})[0]).partition("\n")[2] for bias in (None, [])}
    assert len(texts) == 1


NAMED = {"split_0": 0, "split_1": 2, "split_2": 4, "split_3": 6, "bias": 1, "stacked": 7}
"""Samples whose graph is a golden file, by position among the float16 ones."""


@pytest.mark.parametrize("name", list(NAMED))
def test_golden_text(name: str) -> None:
    graph, _ = compile_and_run(SAMPLES[NAMED[name]])
    assert_same_graph(to_text(graph).replace(graph.name, "graph", 1), GOLDEN / f"grouped_{name}.txt")


def test_results_without_elements_are_compared_all_the_same() -> None:
    """TorchAir would leave the node out: ranks that have rows would meet the next one."""
    empty = [s for s in op.samples() if not any(y.numel() for y in exact([s]))]
    assert empty
    for sample in empty:
        graph, (results, _) = compile_and_run(sample)
        assert graph.of_type(TYPE)
        assert [y.shape for y in results] == [y.shape for y in exact([sample])]


@pytest.mark.parametrize("split_item", [0, 2])
def test_dynamic_rows_need_one_graph(split_item: int) -> None:
    """mark_dynamic on the rows: any number of them runs on the graph of the first call."""
    sample = {k: [t.clone() for t in v] if isinstance(v, list) else v for k, v in SAMPLES[4].items()}
    sample |= {"split_item": split_item, "x": [torch.cat([t] * 2) for t in sample["x"]]}
    more = sample | {"x": [torch.cat([t] * 3) for t in sample["x"]]}
    model, tensors = model_of(sample)
    for x in sample["x"]:
        torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.reset()
    run = torch.compile(model, backend=nfg.get_npu_backend(), fullgraph=True)
    with graphs_made() as graphs, torch.no_grad():
        for call in (sample, more):
            for got, want in zip(run(call["x"], *tensors[1:]), exact([call] * 2), strict=True):
                assert_close(got, want, scale=6)
    (executable,) = graphs
    assert grouped_node(executable.graph)
    assert any(-1 in (n.outputs[0].shape or ()) for n in executable.graph.of_type("Data")), "rows are unknown"


# -- one argument at a time -----------------------------------------------------------------------------------


def calls() -> dict[int, dict[str, Any]]:
    """By split_item; 0 and 2, 1 and 3 have the same tensors."""
    generator = torch.Generator().manual_seed(5)
    x = [torch.randn(rows, 8, generator=generator).half() for rows in (4, 6)]
    weight = [torch.randn(8, 5, generator=generator).half() for _ in x]
    whole = {"x": x, "weight": weight, "bias": None, "group_list": None}
    cut = whole | {"x": [torch.cat(x)], "group_list": [4, 10]}
    return {i: (cut if i in (1, 3) else whole) | {"split_item": i} for i in range(4)}


@pytest.mark.parametrize(("first", "second"), [(0, 2), (1, 3)])
def test_split_item_reaches_the_node(first: int, second: int) -> None:
    a, b = (grouped_node(compile_and_run(calls()[i])[0]) for i in (first, second))
    assert (a.attrs["splitItem"], b.attrs["splitItem"]) == (first, second)
    assert (len(a.outputs), len(b.outputs)) == (2, 1)
    assert sources(a).keys() == sources(b).keys()
    rest = [{k: v for k, v in n.attrs.items() if k in ("group", "reduceOp", "commTurn")} for n in (a, b)]
    assert rest[0] == rest[1]


def test_split_item_none_is_0_in_the_graph() -> None:
    graphs = [compile_and_run(calls()[0] | {"split_item": i})[0] for i in (0, None)]
    assert len({to_text(graph).partition("\n")[2] for graph in graphs}) == 1


@pytest.mark.parametrize("split_item", [1, 3])
def test_group_list_reaches_the_node(split_item: int) -> None:
    call = calls()[split_item]
    texts = []
    for group_list in ([4, 10], (4, 10), [0, 10], [10, 10]):
        graph, (results, _) = compile_and_run(call | {"group_list": group_list})
        found = grouped_node(graph)
        assert constant(graph, sources(found)["group_list"]) == int64s(list(group_list))
        for got, want in zip(results, exact([call | {"group_list": group_list}] * 2), strict=True):
            assert_close(got, want, scale=6)
        texts.append(node_text(found))
    assert len(set(texts)) == 1, "the values are in the constant alone"


def test_bias_reaches_the_node() -> None:
    call = calls()[0]
    bias = [torch.full((5,), 100.0).half(), torch.full((5,), -100.0).half()]
    (without, (plain, _)), (graph, (results, _)) = (compile_and_run(call | {"bias": b}) for b in (None, bias))
    fed, unfed = sources(grouped_node(graph)), sources(grouped_node(without))
    assert set(fed) - set(unfed) == {"bias1"}
    producers = [fed["bias0"], fed["bias1"]]
    assert [graph.nodes[s.node].type for s in producers if s is not None] == ["Data", "Data"]
    for with_bias, alone, value in zip(results, plain, (200.0, -200.0), strict=True):
        assert_close((with_bias.double() - alone.double()).half(), torch.full_like(alone, value), scale=100)


@pytest.mark.parametrize("group_size", [8])
@pytest.mark.parametrize("is_world", [True, False])
def test_group_reaches_the_node(group_size: int, is_world: bool) -> None:
    group = dist.group.WORLD if is_world else dist.new_group([0, 5])
    assert group is not None
    ranks, tag = dist.get_process_group_ranks(group), dist.distributed_c10d._get_group_tag(group)
    graph, (results, _) = compile_and_run(calls()[0] | {"hcomm": group.group_name})
    assert grouped_node(graph).attrs["group"] == f"tag={tag};rank_list={','.join(map(str, ranks))}"
    for got, want in zip(results, exact([calls()[0]] * len(ranks)), strict=True):
        assert_close(got, want, scale=2 * len(ranks))


# -- refusals -------------------------------------------------------------------------------------------------


def half(*shape: int) -> Tensor:
    return torch.ones(shape).half()


PAIR = [half(8, 5), half(8, 5)]
BAD: dict[str, tuple[int, dict[str, Any], str]] = {
    "split_item": (0, {"split_item": 4}, "split_item: expected 0, 1, 2 or 3, got 4."),
    "x count": (0, {"x": [half(4, 8)]}, "x: expected 2 tensors, one per weight (split_item=0), got 1."),
    "x of 0": (0, {"x": []}, "x: expected at least one tensor, got an empty list."),
    "one x": (1, {"x": [half(5, 8)] * 2}, "x: expected one tensor (split_item=1), got 2."),
    "65 groups": (0, {"x": [half(1, 2)] * 65, "weight": [half(2, 1)] * 65}, "x: expected at most 64 groups, got 65."),
    "unasked group_list": (2, {"group_list": [4, 10]}, "group_list: expected None with split_item=2, got [4, 10]."),
    "no group_list": (1, {"group_list": None}, "group_list: expected 2 numbers, one per group of weights"),
    "short group_list": (3, {"group_list": [10]}, "group_list: expected 2 numbers, one per group of weights"),
    "falling group_list": (1, {"group_list": [11, 10]}, "group_list: expected numbers that do not decrease and end"),
    "group_list's end": (3, {"group_list": [4, 9]}, "end with x's 10 rows, got [4, 9]."),
    "x of 7-D": (0, {"x": [half(4, 8), half(1, 1, 1, 1, 1, 1, 8)]}, "x[1]: expected 2 to 6 dimensions"),
    "x of 3-D": (2, {"x": [half(4, 8), half(1, 6, 8)]}, "x[1]: expected 2 dimensions (split_item=2)"),
    "k": (0, {"weight": [half(8, 5), half(7, 5)]}, "weight[1]: expected k=8 rows, as x[1] has columns, got 7 rows."),
    "n": (3, {"weight": [half(8, 5), half(8, 4)]}, "weight[1]: expected n=5 columns, as weight[0] has (split_item=3)"),
    "bias count": (0, {"bias": [half(5)]}, "bias: expected 2 tensors, one per group, or none, got 1."),
    "bias width": (0, {"bias": [half(5), half(4)]}, "bias[1]: expected shape (5), the columns of its weight"),
    "bias dtype": (0, {"bias": [half(5), half(5).float()]}, "bias[1]: expected float16 with float16 x, got float32."),
    "mixed": (0, {"weight": [half(8, 5), half(8, 5).bfloat16()]}, "weight[1]: expected float16 with float16 x, got bf"),
    "float32": (0, {"x": [half(4, 8).float()] * 2}, "x[0]: expected float16 or bfloat16, got float32."),
    "columns": (0, {"weight": [half(8, 5), half(8, 65536)]}, "weight[1]: expected at most 65535 columns"),
    "reduce_op": (0, {"reduce_op": "max"}, "reduce_op: expected 'sum', got 'max'."),
}  # fmt: skip


def engine_run(call: dict[str, Any], **attrs: Any) -> list[Tensor]:
    """The node alone, built by hand."""
    data = {f"{name}{i}": t.contiguous() for name in ("x", "weight", "bias") for i, t in enumerate(call[name] or ())}
    const = {} if call["group_list"] is None else {"group_list": torch.tensor(call["group_list"])}
    absent = {} if call["bias"] else {"bias0": torch.zeros(0).half()}
    inputs: dict[str, str | None] = {name: name for name in (*data, *absent)}
    groups = 1 if call["split_item"] in (2, 3) else len(call["weight"])
    fused = node(
        "fused", TYPE, inputs | {"group_list": "group_list" if const else None}, [f"y{i}" for i in range(groups)],
        **{"splitItem": call["split_item"], "group": "0", "reduceOp": call.get("reduce_op", "sum"), "commTurn": 0}
        | attrs,
    )  # fmt: skip
    graph = graph_of(data, [fused], [f"fused:{i}" for i in range(groups)], const=const | absent)
    return compile_graph(graph).run(list(data.values()))


def convert(call: dict[str, Any]) -> Any:
    """The converter alone: while tracing the operator's own checks come first."""
    from npu_fused_graph.converters import register_all

    nfg.load_torchair()
    register_all()
    from torchair.ge._ge_graph import GeGraph

    lists = {name: [SimpleNamespace(meta=t) for t in call[name] or ()] for name in ("x", "weight", "bias")}
    packet = torch.ops.npu_fused_graph.npu_grouped_mat_mul_all_reduce
    # TorchAir asks c10d for a group's default device in a deprecated way
    with warnings.catch_warnings(), GeGraph():
        warnings.simplefilter("ignore")
        return packet.default._ge_converter(hcomm="0", **call | lists)


@pytest.mark.parametrize("name", list(BAD))
def test_the_converter_and_the_engine_refuse_the_same(name: str) -> None:
    split_item, change, text = BAD[name]
    call = calls()[split_item] | change
    with pytest.raises(InvalidArgumentError) as caught:
        convert(call)
    assert str(caught.value).startswith("[grouped_mat_mul_all_reduce] ")
    assert text in str(caught.value)
    with pytest.raises(Exception, match=r"\[engine\] fused") as refused:
        engine_run(call)
    if name not in ("x of 0", "reduce_op"):  # nothing is fed there; GE's own name of the attribute
        assert text in str(refused.value)


def test_the_engine_runs_the_node_built_by_hand() -> None:
    for call in calls().values():
        for got, want in zip(engine_run(call), exact([call] * 2), strict=True):
            assert_close(got, want, scale=6)


def test_the_engine_has_no_stacked_weight() -> None:
    """CANN's kernel takes matrices; the converter unpacks."""
    call = calls()[3] | {"weight": [torch.stack(PAIR)]}
    with pytest.raises(Exception, match=r"fused \(.*\): weight: expected matrices \(k, n\), got \[\[2, 8"):
        engine_run(call)


@pytest.mark.parametrize("reduce_op", ["max", "min", "prod", ""])
def test_the_engine_only_sums(reduce_op: str) -> None:
    with pytest.raises(Exception, match=r"fused \(GroupedMatMulAllReduce\): .*expected 'sum'"):
        engine_run(calls()[0], reduceOp=reduce_op)


@pytest.mark.parametrize("group_size", [1, 3])
def test_number_of_ranks_in_the_engine_and_the_converter(group_size: int) -> None:
    text = f"hcomm: expected a group of 2, 4 or 8 ranks, got '0' with {group_size}"
    with pytest.raises(InvalidArgumentError, match=text):
        convert(calls()[0])
    with pytest.raises(Exception, match=text):
        engine_run(calls()[0])


@pytest.mark.parametrize("name", ["comm_turn", "reduce_op", "falling group_list", "bias dtype", "k"])
def test_bad_argument_is_refused_while_tracing(name: str) -> None:
    split_item, change, text = BAD.get(name, (0, {"comm_turn": 2}, "comm_turn: expected 0 (automatic), got 2."))
    with pytest.raises(Exception, match=r"\[grouped_mat_mul_all_reduce\]") as caught:
        compile_and_run(calls()[split_item] | change)
    assert text in str(caught.value)


def cut_at(x: Tensor, weight: list[Tensor], end: Any) -> list[Tensor]:
    return nfg.npu_grouped_mat_mul_all_reduce([x], weight, "0", group_list=[end, x.size(0)], split_item=1)


def test_rows_that_end_group_list_are_a_graph_each() -> None:
    """CANN reads group_list when it compiles, so no graph has other rows than it was made for."""
    call = calls()[1]
    torch._dynamo.reset()
    run = torch.compile(cut_at, backend=nfg.get_npu_backend(), fullgraph=True)
    ends = []
    with graphs_made() as graphs, torch.no_grad():
        for rows in (10, 12, 14, 12):
            x = torch.cat([call["x"][0]] * 2)[:rows]
            wanted = exact([call | {"x": [x], "group_list": [4, rows]}] * 2)
            for got, want in zip(run(x, call["weight"], 4), wanted, strict=True):
                assert_close(got, want, scale=6)
    for executable in graphs:
        ends.append(constant(executable.graph, sources(grouped_node(executable.graph))["group_list"]))
    assert ends == [int64s([4, rows]) for rows in (10, 12, 14)]


def test_group_list_must_be_known_while_tracing() -> None:
    """B20: a number that only the run knows."""
    call = calls()[1]

    def model(x: Tensor, weight: list[Tensor], end: Tensor) -> list[Tensor]:
        return cut_at(x, weight, end.item())

    torch._dynamo.reset()
    run = torch.compile(model, backend=nfg.get_npu_backend(), fullgraph=True, dynamic=False)
    with (
        torch._dynamo.config.patch(capture_scalar_outputs=True),
        pytest.raises(Exception, match=r"group_list\[0\]: expected a number that is known while the graph is traced"),
        torch.no_grad(),
    ):
        run(call["x"][0], call["weight"], torch.tensor(4))


def test_a_transposed_weight_is_refused_while_tracing() -> None:
    """B18: the kernel has no transposed form and the node no attribute for one."""
    call = calls()[0]
    stored = [w.t().contiguous() for w in call["weight"]]

    def model(x: list[Tensor], stored: list[Tensor]) -> list[Tensor]:
        return nfg.npu_grouped_mat_mul_all_reduce(x, [w.t() for w in stored], "0")

    torch._dynamo.reset()
    run = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
    with (
        pytest.raises(Exception, match=r"weight\[0\]: expected a contiguous tensor, got the transpose of one"),
        torch.no_grad(),
    ):
        run(call["x"], stored)
