"""Every operator that the verdict of a site without a plain matmul knows by its name, one row each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.fx import Graph

from npu_fused_graph.passes.spellings import no_matmul as rows
from npu_fused_graph.passes.spellings.no_matmul import no_matmul

DROPOUT = "training_dropout", "a dropout stands between the matmul and the collective: "
EXPERTS = "no_matmul", "what is reduced is put together from the rows of experts: "
JOINED = "no_matmul", "what is reduced joins rows of matmuls: "
SUM = "no_matmul", "what is reduced is a sum of 2 matmuls: "

SAID = {
    "aten::dropout": DROPOUT,
    "aten::native_dropout": DROPOUT,
    "npu::_npu_dropout": DROPOUT,
    "npu::npu_dropout_do_mask": DROPOUT,
    "npu::dropout_with_byte_mask": DROPOUT,
    "npu::_dropout_with_byte_mask": DROPOUT,
    "npu::npu_grouped_matmul": EXPERTS,
    "npu::npu_grouped_matmul.List": EXPERTS,
    "aten::_grouped_mm": EXPERTS,
    "transformers::grouped_mm_fallback": EXPERTS,
    "vllm::moe_forward": EXPERTS,
    "aten::index_add": JOINED,
    "aten::index_put": JOINED,
    "aten::scatter_add": JOINED,
    "aten::scatter_reduce.two": JOINED,
    "aten::sum.dim_IntList": JOINED,
    "npu::npu_moe_finalize_routing": JOINED,
    "aten::add.Tensor": SUM,
    "aten::mul.Tensor": SUM,
    "aten::mul.Scalar": SUM,
}


@contextmanager
def operator(name: str) -> Iterator[Any]:
    """The operator of that name, which is defined until the block ends where it does not exist in this process."""
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    operators = getattr(torch.ops, namespace)
    found = getattr(getattr(operators, packet, None), overload or "default", None)
    if found is not None:
        yield found
        return
    vars(operators).pop(packet, None)  # a packet knows the overloads of the time when it was made
    library = torch.library.Library(namespace, "FRAGMENT")
    try:
        library.define(f"{rest}(Tensor x) -> Tensor")
        yield getattr(getattr(operators, packet), overload or "default")
    finally:
        library._destroy()
        vars(operators).pop(packet, None)


def test_a_row_for_each_operator() -> None:
    assert set(SAID) == {*rows.DROPOUTS, *rows.ROUTED, *rows._JOINS, *rows._SUMS}


@pytest.mark.parametrize("name", SAID)
def test_what_is_said(name: str) -> None:
    graph = Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    first, second = (graph.call_function(torch.ops.aten.mm.default, (x, w)) for _ in range(2))
    with operator(name) as target:
        source = graph.call_function(target, (first,))
        if SAID[name] == SUM:  # what is added may have a factor, or be a sum itself
            source = graph.call_function(torch.ops.aten.add.Tensor, (source, second))
        refusal = no_matmul(source)
    assert refusal.reason == SAID[name][0]
    assert refusal.text.startswith(SAID[name][1])
