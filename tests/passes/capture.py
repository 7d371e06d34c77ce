"""The FX graph a pass sees, captured in one process: AOTAutograd under a process group that communicates nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch.fx import GraphModule

from npu_fused_graph.aot.autograd import compile_with_aot


@contextmanager
def fake_group(size: int) -> Iterator[None]:
    """A default process group of ``size`` ranks whose collectives return at once."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def capture(model: Callable[..., Any], *inputs: Any, dynamic: bool | None = False, grad: bool = False) -> GraphModule:
    """The one forward graph of ``model(*inputs)``; needs an initialised group for collectives."""
    torch._dynamo.reset()
    gm, _ = capture_with_arguments(model, *inputs, dynamic=dynamic, grad=grad)
    torch._dynamo.reset()
    return gm


def capture_with_arguments(
    model: Callable[..., Any], *inputs: Any, dynamic: bool | None = False, grad: bool = False
) -> tuple[GraphModule, list[Any]]:
    """Also what each placeholder stood for: Dynamo drops unused inputs, orders the rest by use and lifts parameters."""
    found: list[GraphModule] = []
    arguments: list[Any] = []

    def keep(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        found.append(gm)
        from torch._functorch.aot_autograd import make_boxed_func

        def run(*args: Any) -> Any:
            arguments[:] = args
            raise _Captured

        return make_boxed_func(run)

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_with_aot(gm, example_inputs, keep, {})

    with torch.set_grad_enabled(grad), suppress(_Captured):
        torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)(*inputs)
    assert found
    return found[0], arguments


class _Captured(Exception):
    """The graph is there and what it would get is known: it need not run."""


def capture_as(how: str, model: torch.nn.Module, *inputs: Any) -> GraphModule:
    """The graph as a front half's ``capture`` says: "aot", "dynamic", "plain", ..."""
    if how == "plain":
        return torch.export.export(model, inputs).graph_module
    if how == "mark_dynamic":
        for tensor in inputs:
            torch._dynamo.mark_dynamic(tensor, 0)
        return capture(model, *inputs, dynamic=None)
    if how == "specialize_float":
        with torch._dynamo.config.patch(specialize_float=True):
            return capture(model, *inputs, dynamic=True)
    return capture(model, *inputs, dynamic=how == "dynamic", grad=how == "training")
