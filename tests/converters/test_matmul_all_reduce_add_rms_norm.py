"""The operator in a compiled graph: one GE node, its attributes, its result against decompose and float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.engine import Executable
from npu_fused_graph.host import native
from npu_fused_graph.ir.graph import Graph
from npu_fused_graph.ir.order import live_nodes
from npu_fused_graph.ir.text import to_text
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as op
from npu_fused_graph.testing import assert_close, assert_same_graph

GOLDEN = Path(__file__).parent.parent / "golden"
SAMPLES = [s for s in op.samples() if s["residual"].numel()]
TYPE = "MatmulAllReduceAddRmsNorm"


@pytest.fixture(autouse=True)
def _one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def compile_and_run(
    arguments: dict[str, Any], *, dynamic_rows: bool = False
) -> tuple[Graph, list[tuple[Tensor, Tensor]]]:
    """(GE graph, results of two runs) of the op alone under torch.compile."""
    graphs: list[Executable] = []
    native.graph_listeners.append(graphs.append)
    tensors = {k: v for k, v in arguments.items() if isinstance(v, Tensor)}
    rest = {k: v for k, v in arguments.items() if not isinstance(v, Tensor)}

    is_transposed = not tensors["x2"].is_contiguous()
    if is_transposed:  # as nn.Linear does: the stored weight is the input, its transpose is taken in the graph
        tensors["x2"] = tensors["x2"].t()

    def model(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        weight = tensors["x2"].t() if is_transposed else tensors["x2"]
        return nfg.npu_mm_all_reduce_add_rms_norm(**tensors | {"x2": weight}, hcom="0", **rest)

    if dynamic_rows:
        torch._dynamo.mark_dynamic(tensors["x1"], 0)
        torch._dynamo.mark_dynamic(tensors["residual"], 1)
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            compiled = torch.compile(
                model, backend=nfg.get_npu_backend(), dynamic=None if dynamic_rows else False, fullgraph=True
            )
            results = [compiled(tensors), compiled(tensors)]
    finally:
        native.graph_listeners.remove(graphs.append)
    (graph,) = (g.graph for g in graphs)
    return graph, results


def fused_node(graph: Graph) -> Any:
    (node,) = graph.of_type(TYPE)
    return node


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_one_node_equal_to_decompose(index: int) -> None:
    sample = SAMPLES[index]
    graph, results = compile_and_run(sample)
    types = Counter(graph.nodes[name].type for name in live_nodes(graph))
    assert set(types) == {"Data", TYPE, "NetOutput"}, types
    assert types[TYPE] == 1
    assert fused_node(graph).attrs["is_trans_b"] == (not sample["x2"].is_contiguous())
    wanted = op.decompose(**sample, all_reduce=lambda x: x)
    wide = op.decompose(
        **{k: v.double() if isinstance(v, Tensor) else v for k, v in sample.items()}, all_reduce=lambda x: x
    )
    for result in results:
        for got, want, exact in zip(result, wanted, wide, strict=True):
            assert_close(got, want, scale=2)
            assert_close(got, exact, scale=4)


def test_golden_text() -> None:
    for name, sample in (("plain", SAMPLES[0]), ("transposed_bias", SAMPLES[2])):
        graph, _ = compile_and_run(sample)
        assert_same_graph(to_text(graph).replace(graph.name, "graph"), GOLDEN / f"mm_ar_norm_{name}.txt")


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


def test_dynamic_rows() -> None:
    sample = {k: v.clone() if isinstance(v, Tensor) else v for k, v in SAMPLES[0].items()}
    sample["residual"] = sample["residual"].reshape(1, 8, 16)
    graph, results = compile_and_run(sample, dynamic_rows=True)
    assert len(graph.of_type(TYPE)) == 1
    wanted = op.decompose(**sample, all_reduce=lambda x: x)
    for got, want in zip(results[0], wanted, strict=True):
        assert_close(got, want, scale=2)


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
