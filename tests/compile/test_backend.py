"""get_npu_backend and enable_fusion: what cannot be served without an NPU is said, not ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule

import npu_fused_graph as nfg
from npu_fused_graph.aot.tensors_only import tensors_only
from npu_fused_graph.errors import InvalidArgumentError, UnsupportedModeError


def config(**options: Any) -> Any:
    made = nfg.load_torchair().CompilerConfig()
    for name, value in options.items():
        *path, last = name.split("__")
        target = made
        for part in path:
            target = getattr(target, part)
        setattr(target, last, value)
    return made


ENTRIES: dict[str, Callable[[Any], Any]] = {
    "get_npu_backend": lambda c: nfg.get_npu_backend(compiler_config=c),
    "enable_fusion": nfg.enable_fusion,
}


def test_these_are_all_modes_of_torchair() -> None:
    assert set(config().mode.optional) == {"max-autotune", "reduce-overhead", "npugraph_ex"}


@pytest.mark.parametrize("entry", list(ENTRIES))
@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("dump_config__enable_dump", True, "dump_config.enable_dump: expected no value without an NPU, got '1'"),
        ("aoe_config__aoe_mode", "2", "aoe_config.aoe_mode: expected no value without an NPU, got '2'"),
    ],
)
def test_options_without_effect_are_said(entry: str, option: str, value: Any, text: str) -> None:
    with pytest.warns(UserWarning, match=r"\[backend\]") as caught:
        ENTRIES[entry](config(**{option: value}))
    assert [str(w.message).startswith(f"[backend] {text}. It has no effect.") for w in caught] == [True]


def test_the_users_config_is_not_touched_by_get_npu_backend() -> None:
    mine = config()
    before = mine.post_grad_custom_pre_pass.value, mine.experimental_config.enable_view_optimize.value
    nfg.get_npu_backend(compiler_config=mine)
    assert (mine.post_grad_custom_pre_pass.value, mine.experimental_config.enable_view_optimize.value) == before


def test_what_is_no_config() -> None:
    with pytest.raises(InvalidArgumentError, match=r"expected a torchair\.CompilerConfig, got dict"):
        nfg.get_npu_backend(compiler_config={"mode": "max-autotune"})


def test_a_plain_config_is_served() -> None:
    backend = nfg.get_npu_backend(compiler_config=config())
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.compile(lambda x: x + 1, backend=backend, dynamic=False)(torch.ones(2)).tolist() == [2, 2]


def test_an_object_that_the_graph_uses_is_refused() -> None:
    """Objects in front of the backend, as a DTensor's mesh, are handed through; a graph that computes with one is none
    of ours."""
    graph = Graph()
    x, mesh = graph.placeholder("x"), graph.placeholder("mesh")
    graph.output((graph.call_function(torch.add, (x, 1)), mesh))
    handed = tensors_only(lambda gm, inputs: gm)(GraphModule({}, graph), [torch.ones(2), "mesh"])
    y, same = handed(torch.ones(2), "mesh")
    assert y.tolist() == [2.0, 2.0] and same == "mesh"

    graph = Graph()
    x, mesh = graph.placeholder("x"), graph.placeholder("mesh")
    graph.output((graph.call_function(torch.add, (x, mesh)),))
    with pytest.raises(UnsupportedModeError) as caught:
        tensors_only(lambda gm, inputs: gm)(GraphModule({}, graph), [torch.ones(2), "mesh"])
    assert str(caught.value) == (
        "[backend] input mesh: expected a tensor or a size, got an object the graph uses. Keep it out of the compiled "
        "region."
    )
