"""Every operator by which the pass recognises a norm, in a graph of its own: none is there that nothing tries."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.fx import Graph, GraphModule, Node

from npu_fused_graph.passes import FusionOptions, fuse_all
from npu_fused_graph.passes.spellings.norms import SPELLINGS
from npu_fused_graph.passes.spellings.statistics import ROOTS
from tests.passes.capture import fake_group
from tests.passes.foreign_ops import foreign_ops

M, K, N = 4, 16, 32
aten, functional = torch.ops.aten, torch.ops._c10d_functional

SCHEMAS = (
    "npu_add_rms_norm_dynamic_quant(Tensor x1, Tensor x2, Tensor gamma, *, Tensor? smooth_scale1=None, Tensor? "
    "smooth_scale2=None, Tensor? beta=None, float epsilon=1e-6, bool[2]? output_mask=None, int? y_dtype=None) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    "npu_add_rms_norm_dynamic_mx_quant(Tensor x1, Tensor x2, Tensor gamma, *, Tensor? beta=None, float epsilon=1e-06, "
    'int scale_alg=0, str round_mode="rint", int dst_type=296) -> (Tensor, Tensor, Tensor, Tensor)',
    "npu_rms_norm_quant(Tensor x, Tensor gamma, Tensor beta, Tensor scale, Tensor offset, float epsilon=1e-06, *, "
    "int? dst_dtype=None) -> Tensor",
    "npu_rms_norm_quant_v2(Tensor x, Tensor gamma, Tensor scale, *, Tensor? offset=None, Tensor? beta=None, float "
    "epsilon=1e-06, bool div_mode=True, int? dst_dtype=None) -> (Tensor, Tensor)",
    "npu_rms_norm_dynamic_mx_quant(Tensor x, Tensor gamma, *, Tensor? beta=None, float epsilon=1e-06, int scale_alg=0, "
    'str round_mode="rint", int dst_type=296) -> (Tensor, Tensor, Tensor)',
)
"""Of torch_npu 2.13, beside those of foreign_ops."""

VERDICTS = {
    "aten::rms_norm": "one_ulp",
    "aten::_fused_rms_norm": "one_ulp",
    "npu::npu_rms_norm": "one_ulp",
    "npu::npu_add_rms_norm": "same_rounding",
    "_C_ascend::npu_add_rms_norm_bias": "same_rounding",
    "vllm_ir::fused_add_rms_norm": "any",
    "npu::npu_add_rms_norm_quant": "quantised_norm",
    "npu::npu_add_rms_norm_dynamic_quant": "quantised_norm",
    "npu::npu_add_rms_norm_dynamic_mx_quant": "quantised_norm",
    "npu::npu_rms_norm_quant": "quantised_norm",
    "npu::npu_rms_norm_quant_v2": "quantised_norm",
    "npu::npu_rms_norm_dynamic_mx_quant": "quantised_norm",
    "aten::native_layer_norm": "layer_norm",
    "aten::layer_norm": "layer_norm",
}
WRITTEN_OUT = set(ROOTS)
"""What norms of basic operators are recognised by: the columns of verdicts.csv."""


@pytest.fixture(autouse=True, scope="module")
def _operators() -> Iterator[None]:
    library = torch.library.Library("npu", "FRAGMENT")
    with foreign_ops():
        for schema in SCHEMAS:
            library.define(schema)
        yield
    library._destroy()


def test_every_operator_of_the_table_is_tried() -> None:
    assert {anchor for spelling in SPELLINGS for anchor in spelling.anchors} == VERDICTS.keys() | WRITTEN_OUT


def call(graph: Graph, target: Any, *args: Any, value: Any) -> Node:
    node = graph.call_function(target, args)
    node.meta["val"] = value
    return node


def graph_with(target: Any) -> GraphModule:
    """norm(all_reduce(x @ w) + residual), the sum by the norm's own operator if it adds."""
    graph, rows = Graph(), torch.empty(M, N).half()
    values = {"x": torch.empty(M, K).half(), "w": torch.empty(K, N).half(), "r": rows, "gamma": rows[0].clone()}
    x, w, r, gamma = (graph.placeholder(name) for name in values)
    for node, value in zip((x, w, r, gamma), values.values(), strict=True):
        node.meta["val"] = value
    product = call(graph, aten.mm.default, x, w, value=rows.clone())
    reduced = call(
        graph, functional.all_reduce.default, product, "sum", dist.group.WORLD.group_name, value=rows.clone()
    )
    reduced = call(graph, functional.wait_tensor.default, reduced, value=rows.clone())
    given = target._schema.arguments
    adds = any(a.name in ("x2", "x_residual") for a in given)
    total = reduced if adds else call(graph, aten.add.Tensor, reduced, r, value=rows.clone())
    known = {"x2": r, "x_residual": r, "weight": gamma, "normalized_shape": [N], "epsilon": 1e-6, "eps": 1e-6}
    positional = [a for a in given[1:] if not a.kwarg_only]
    arguments = [total, *(known.get(a.name, gamma if str(a.type) == "Tensor" else a.default_value) for a in positional)]
    count = len(target._schema.returns)
    norm = call(graph, target, *arguments, value=rows.clone() if count == 1 else (rows.clone(),) * count)
    graph.output(norm if count == 1 else call(graph, operator.getitem, norm, 0, value=rows.clone()))
    return GraphModule(torch.nn.Module(), graph)


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict_of_an_operator(name: str) -> None:
    namespace, _, operator_name = name.partition("::")
    with fake_group(2):
        gm = graph_with(getattr(getattr(torch.ops, namespace), operator_name).default)
        (site,) = fuse_all(gm, FusionOptions(numerics="any", min_rows=0))
    assert (site.reason or site.numerics) == VERDICTS[name], site
