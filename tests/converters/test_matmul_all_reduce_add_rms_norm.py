"""The operator in a compiled graph: one GE node, its attributes, its result against decompose and float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.engine import Executable
from npu_fused_graph.host import native
from npu_fused_graph.ir.graph import Graph, Source
from npu_fused_graph.ir.order import live_nodes
from npu_fused_graph.ir.text import to_text
from npu_fused_graph.ops import inplace_matmul_all_reduce_add_rms_norm as in_place_op
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as op
from npu_fused_graph.testing import assert_close, assert_same_graph
from tests.ops.exact import exact
from tests.ops.gathering import Gathering

pytestmark = pytest.mark.usefixtures("one_rank")

GOLDEN = Path(__file__).parent.parent / "golden"
SAMPLES = [s for s in op.samples() if s["residual"].numel()]
TYPE = "MatmulAllReduceAddRmsNorm"
IN_PLACE = "InplaceMatmulAllReduceAddRmsNorm"
GLUE = {"Const", "Transpose", "Bitcast", "Shape", "Mul", "Reshape"}
"""What may stand in front of the node: scales that go with a transposed weight, words and int4 in GE's dtypes."""


@dataclass
class Compiled:
    """The op alone under torch.compile. graphs: what TorchAir loaded so far."""

    run: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]
    tensors: dict[str, Tensor]
    graphs: list[Executable]

    @property
    def graph(self) -> Graph:
        (executable,) = self.graphs
        return executable.graph


@contextmanager
def compiling(arguments: dict[str, Any], *, in_place: bool = False, dynamic_rows: bool = False) -> Iterator[Compiled]:
    graphs: list[Executable] = []
    native.graph_listeners.append(graphs.append)
    tensors = {k: v for k, v in arguments.items() if isinstance(v, Tensor)}
    rest = {k: v for k, v in arguments.items() if not isinstance(v, Tensor)}
    function = nfg.npu_mm_all_reduce_add_rms_norm_ if in_place else nfg.npu_mm_all_reduce_add_rms_norm

    is_transposed = not tensors["x2"].is_contiguous()
    if is_transposed:  # as nn.Linear does: the stored weight is the input, its transpose is taken in the graph
        tensors["x2"] = tensors["x2"].t()

    def model(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        weight = tensors["x2"].t() if is_transposed else tensors["x2"]
        return function(**tensors | {"x2": weight}, hcom="0", **rest)

    if dynamic_rows:
        torch._dynamo.mark_dynamic(tensors["x1"], tensors["x1"].dim() - 2)
        torch._dynamo.mark_dynamic(tensors["residual"], 1)
    torch._dynamo.reset()
    run = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=None if dynamic_rows else False, fullgraph=True)
    try:
        with torch.no_grad():
            yield Compiled(run, tensors, graphs)
    finally:
        native.graph_listeners.remove(graphs.append)


def compile_and_run(arguments: dict[str, Any]) -> tuple[Graph, list[tuple[Tensor, Tensor]]]:
    """(GE graph, results of two runs)."""
    with compiling(arguments) as compiled:
        results = [compiled.run(compiled.tensors) for _ in range(2)]
        return compiled.graph, results


def fused_node(graph: Graph, ge_type: str = TYPE) -> Any:
    (node,) = graph.of_type(ge_type)
    return node


def check_graph(graph: Graph, ge_type: str, sample: dict[str, Any]) -> None:
    types = Counter(graph.nodes[name].type for name in live_nodes(graph))
    copies = {"TensorMove"} if ge_type == IN_PLACE else set()
    assert set(types) - GLUE == {"Data", ge_type, "NetOutput"} | copies, types
    if sample["x2"].dtype in (torch.float16, torch.bfloat16):
        assert not set(types) & GLUE, "one node and nothing else"
    node = fused_node(graph, ge_type)
    assert node.attrs["is_trans_b"] == (not sample["x2"].is_contiguous())
    fed = {item.desc.name: item.source for item in node.inputs}
    assert list(fed) == [t.name for t in op.SPEC.inputs]
    optional = ("bias", "antiquant_scale", "antiquant_offset", "dequant_scale")
    assert {n: s is not None for n, s in fed.items() if n in optional} == {
        n: sample.get(n) is not None for n in optional
    }


def check_results(results: tuple[Tensor, Tensor], sample: dict[str, Any]) -> None:
    wanted = op.decompose(**sample, rank=Gathering())
    real = exact([sample], sample["residual"], sample["gamma"], sample["epsilon"])
    scale = 8 if sample.get("antiquant_scale") is not None else 4  # see tests/ops
    for got, want, number in zip(results, wanted, real, strict=True):
        assert_close(got, want, scale=2)
        assert_close(got, number, scale=scale)


NAMED = {
    "plain": 0, "transposed_bias": 2, "full_words": 4, "full_unsigned_words_transposed": 5, "weight_only": 8,
    "per_group": 11, "per_group_transposed": 12, "int4": 14, "int4_per_group_transposed": 15,
}  # fmt: skip
"""Samples whose graphs, of both forms, are golden files; by position among the float16 ones."""


def check_text(graph: Graph, index: int, form: str = "") -> None:
    for name in (name for name, position in NAMED.items() if position == index):
        assert_same_graph(to_text(graph).replace(graph.name, "graph"), GOLDEN / f"mm_ar_norm_{name}{form}.txt")


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_one_node_equal_to_decompose(index: int) -> None:
    sample = SAMPLES[index]
    graph, results = compile_and_run(sample)
    check_graph(graph, TYPE, sample)
    check_text(graph, index)
    for result in results:
        check_results(result, sample)


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_in_place_one_node_that_writes_the_residual(index: int) -> None:
    sample = SAMPLES[index]
    residual = sample["residual"].clone()
    with compiling(sample | {"residual": residual}, in_place=True) as compiled:
        first = compiled.run(compiled.tensors)
        assert first[0] is residual
        check_results((residual, first[1]), sample)
        check_graph(compiled.graph, IN_PLACE, sample)
        check_text(compiled.graph, index, "_in_place")
        second_input = residual.clone()
        second = compiled.run(compiled.tensors)  # now compiled by the engine, on the sum of the first run
        check_results(second, sample | {"residual": second_input})
        assert second[0] is residual


@pytest.mark.parametrize(
    ("index", "in_place"),
    [
        pytest.param(index, in_place, marks=[pytest.mark.slow] if in_place and index else [])
        for index in range(0, len(SAMPLES), 2)
        for in_place in (False, True)
    ],
)
def test_dynamic_rows_need_one_graph(index: int, in_place: bool) -> None:
    """mark_dynamic on the rows: any number of them runs on the graph of the first call."""
    sample = {k: v.clone() if isinstance(v, Tensor) else v for k, v in SAMPLES[index].items()}
    if sample["x1"].dim() == 2:
        sample["residual"] = sample["residual"].reshape(1, -1, sample["residual"].size(-1))
    if sample["residual"].size(1) == 1:
        pytest.skip("one row: torch specialises sizes of 1, there is nothing dynamic")
    if not SAMPLES[index]["x2"].is_contiguous():
        sample["x2"] = SAMPLES[index]["x2"].t().clone().t()
    more = sample | {
        name: torch.cat([sample[name]] * 3, dim=dim) for name, dim in (("x1", sample["x1"].dim() - 2), ("residual", 1))
    }
    originals = [{**s, "residual": s["residual"].clone()} for s in (sample, more)]
    with compiling(sample, in_place=in_place, dynamic_rows=True) as compiled:
        check_results(compiled.run(compiled.tensors), originals[0])
        changed = compiled.tensors | {name: more[name] for name in ("x1", "residual")}
        check_results(compiled.run(changed), originals[1])
        assert fused_node(compiled.graph, IN_PLACE if in_place else TYPE)
        assert any(-1 in (n.outputs[0].shape or ()) for n in compiled.graph.of_type("Data")), "rows are unknown"


def test_scales_that_are_stored_transposed_need_no_transpose() -> None:
    """A weight and its scales per group, both kept as (n, ...): the node reads them as they lie."""
    sample = SAMPLES[NAMED["per_group_transposed"]]
    stored = {name: sample[name].t().contiguous() for name in ("x2", "antiquant_scale", "antiquant_offset")}
    rest = {name: value for name, value in sample.items() if name not in stored}
    graphs: list[Executable] = []
    native.graph_listeners.append(graphs.append)

    def model(stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return nfg.npu_mm_all_reduce_add_rms_norm(**{n: t.t() for n, t in stored.items()}, **rest, hcom="0")

    torch._dynamo.reset()
    try:
        with torch.no_grad():
            results = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)(stored)
    finally:
        native.graph_listeners.remove(graphs.append)
    check_results(results, sample)
    graph = graphs[0].graph
    assert {graph.nodes[name].type for name in live_nodes(graph)} == {"Data", TYPE, "NetOutput"}


def test_every_overload_that_a_graph_may_hold_has_a_converter() -> None:
    """All but those that write: a graph has the functional one in their place."""
    from npu_fused_graph import converters

    nfg.load_torchair()
    converters.register_all()
    packets = [getattr(torch.ops.npu_fused_graph, spec.operator_name) for spec in (op.SPEC, in_place_op.SPEC)]
    overloads = [getattr(packet, name) for packet in packets for name in packet.overloads()]
    held = {str(o): hasattr(o, "_ge_converter") for o in overloads if not o._schema.is_mutable}
    name = "npu_fused_graph.npu_mm_all_reduce_add_rms_norm"
    assert held == dict.fromkeys(
        [
            f"{name}.default",
            f"{name}.transposed_x2",
            f"{name}_in_place.functional",
            f"{name}_in_place.consuming",
            f"{name}_in_place.consuming_transposed_x2",
        ],
        True,
    )


Layout = Callable[[Tensor], Tensor]
TWO = ("t() in the graph", "copied and t()")
"""Layouts that every kind of weight has in make test."""
LAYOUTS: dict[str, tuple[Layout, Layout]] = {
    # what becomes the graph's input, made from x2; what the graph makes of it
    "as it is": (lambda x2: x2, lambda t: t),
    "t() in the graph": (lambda x2: x2.t(), lambda t: t.t()),
    "copied and t()": (lambda x2: x2.t().contiguous(), lambda t: t.t()),
    "permute": (lambda x2: x2.t().contiguous(), lambda t: t.permute(1, 0)),
    "mT": (lambda x2: x2.t(), lambda t: t.mT),
    "t() twice": (lambda x2: x2, lambda t: t.t().t()),
    "through views": (lambda x2: x2.t(), lambda t: t.t().unsqueeze(0).squeeze(0)),
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(name, layout, marks=[] if name == "plain" or layout in TWO else [pytest.mark.slow])
        for name in NAMED
        if name not in ("full_unsigned_words_transposed", "per_group")
        for layout in LAYOUTS
    ],
)
def test_weights_in_any_layout(name: str, layout: str) -> None:
    """Where a transpose is taken, in front of the graph or in it, and by which op, changes no number."""
    sample = SAMPLES[NAMED[name]]
    outside, inside = LAYOUTS[layout]
    rest = {k: v for k, v in sample.items() if k != "x2"}
    given = inside(outside(sample["x2"]))
    if not (given.is_contiguous() or given.t().is_contiguous()) or (
        sample["x2"].dtype is torch.int32 and given.stride() != sample["x2"].stride()
    ):
        pytest.skip("another matrix: the copy holds int4 words along the other axis")

    def model(t: Tensor) -> tuple[Tensor, Tensor]:
        return nfg.npu_mm_all_reduce_add_rms_norm(x2=inside(t), **rest, hcom="0")

    torch._dynamo.reset()
    with torch.no_grad():
        run = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
        check_results(run(outside(sample["x2"])), sample)


def test_scales_packed_in_the_graph() -> None:
    """TransQuantParamV2 gives int64 or uint64, by version of CANN; the Bitcast makes it uint64 from either."""
    sample = {k: v for k, v in SAMPLES[NAMED["full_words"]].items() if k != "dequant_scale"}
    scale = torch.tensor([0.003])
    graphs: list[Executable] = []
    native.graph_listeners.append(graphs.append)

    def model(scale: Tensor) -> tuple[Tensor, Tensor]:
        words = nfg.npu_trans_quant_param(scale, None, 1)
        return nfg.npu_mm_all_reduce_add_rms_norm(**sample, dequant_scale=words, hcom="0")

    torch._dynamo.reset()
    try:
        with torch.no_grad():
            results = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)(scale)
    finally:
        native.graph_listeners.remove(graphs.append)
    check_results(results, sample | {"dequant_scale": nfg.npu_trans_quant_param(scale, None, 1)})
    (pack,) = graphs[0].graph.of_type("TransQuantParamV2")
    assert pack.attrs["round_mode"] == 1
    (bitcast,) = graphs[0].graph.of_type("Bitcast")
    assert bitcast.inputs[0].source == Source(pack.name, 0)
    assert Source(bitcast.name, 0) in fused_node(graphs[0].graph).sources()


def test_each_attribute_reaches_the_node() -> None:
    base, _ = compile_and_run(SAMPLES[0] | {"epsilon": 1e-6})
    changed, _ = compile_and_run(SAMPLES[0] | {"epsilon": 3e-3})
    assert fused_node(base).attrs["epsilon"] == pytest.approx(1e-6)
    assert fused_node(changed).attrs["epsilon"] == pytest.approx(3e-3)
    assert fused_node(base).attrs["group"] == "tag=ptd:0;rank_list=0"
    same = {k: v for k, v in fused_node(base).attrs.items() if k not in ("epsilon",) and not k.startswith("_")}
    assert same.items() <= fused_node(changed).attrs.items()


def test_epsilon_changes_the_result() -> None:
    _, small = compile_and_run(SAMPLES[0] | {"epsilon": 1e-6})
    _, large = compile_and_run(SAMPLES[0] | {"epsilon": 0.9})
    assert torch.equal(small[0][0], large[0][0])
    assert not torch.equal(small[0][1], large[0][1])


def test_empty_rows_compile() -> None:
    empty = [s for s in op.samples() if not s["residual"].numel()]
    for sample in empty:
        _, results = compile_and_run_empty(sample)
        assert all(r.shape == sample["residual"].shape for r in results)


def compile_and_run_empty(sample: dict[str, Any]) -> tuple[None, tuple[Tensor, Tensor]]:
    """TorchAir replaces an empty result by a constant: no graph has the op then."""
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(
            lambda: nfg.npu_mm_all_reduce_add_rms_norm(**sample, hcom="0"), backend=nfg.get_npu_backend(), dynamic=False
        )
        return None, compiled()


def test_bad_argument_is_refused_while_tracing() -> None:
    with pytest.raises(Exception, match=r"\[matmul_all_reduce_add_rms_norm\] comm_turn: expected 0"):
        compile_and_run(SAMPLES[0] | {"comm_turn": 2})
