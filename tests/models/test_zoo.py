"""transformers models through the real TorchAir and our engine: one graph, equal to eager."""

from __future__ import annotations

import warnings

import pytest
import torch

import npu_fused_graph as nfg
from npu_fused_graph.engine import Executable
from npu_fused_graph.host import native
from tests.models.zoo import DENSE, MOE, NO_SDPA, build, first_output

LIMIT = {"float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}
"""Largest |compiled - eager| / max |eager|. Half types: softmax and matmul round at other places in a fused SDPA."""

FAST = {("llama", "sdpa", "float16"), ("t5", "eager", "float32"), ("mixtral", "sdpa", "bfloat16")}

ALL = [
    (name, attention, dtype)
    for name in (*DENSE, *MOE)
    for attention in ("sdpa", "eager")
    for dtype in LIMIT
    if not (attention == "sdpa" and name in NO_SDPA)
]


@pytest.mark.parametrize(
    ("name", "attention", "dtype"),
    [pytest.param(*case, marks=[] if case in FAST else [pytest.mark.slow], id="-".join(case)) for case in ALL],
)
def test_compiles_into_one_graph_and_equals_eager(name: str, attention: str, dtype: str) -> None:
    graphs: list[Executable] = []
    native.graph_listeners.append(graphs.append)
    torch._dynamo.reset()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' own notes on tiny configurations
            model, inputs = build(name, getattr(torch, dtype), attention)
            eager = first_output(model(**inputs)).double()
            compiled = torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
            results = [first_output(compiled(**inputs)).double() for _ in range(2)]
    finally:
        native.graph_listeners.remove(graphs.append)
        torch._dynamo.reset()
    assert len(graphs) == 1
    for result in results:
        error = float((result - eager).abs().max() / eager.abs().max())
        assert error <= LIMIT[dtype], error
