"""FX graphs of written programs, captured under a process group that communicates nothing."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from npu_fused_graph import ops
from tests.passes.capture import capture_with_arguments, fake_group
from tests.passes.foreign_ops import foreign_ops
from tests.passes.fuzz.program import Written

VLLM_STATE = "vllm.distributed.parallel_state"


@dataclass(frozen=True)
class Captured:
    """inputs: for each placeholder the number of the program's input it is, or a value equal on all ranks."""

    gm: GraphModule
    inputs: tuple[Any, ...]

    def arguments(self, written: Written, ranks: int) -> list[list[Any]]:
        """What the placeholders get on each rank."""
        given = [written.tensors(rank) for rank in range(ranks)]
        return [[values[x] if isinstance(x, int) else x for x in self.inputs] for values in given]


class Groups:
    """The default group, changed when a program needs another number of ranks, and a second group over all ranks."""

    def __init__(self) -> None:
        self.size = 0
        self.names: dict[str, str] = {}
        self._group: Any = None

    def use(self, size: int) -> dict[str, str]:
        if size != self.size:
            self.close()
            self._group = fake_group(size)
            self._group.__enter__()
            self.size = size
            second = dist.new_group(list(range(size)))
            assert isinstance(second, dist.ProcessGroup)
            self.names = {"world": dist.group.WORLD.group_name, "second": second.group_name}
            sys.modules[VLLM_STATE] = _vllm_state()
        return self.names

    def close(self) -> None:
        if self._group is not None:
            self._group.__exit__(None, None, None)
            sys.modules.pop(VLLM_STATE, None)
        self.size, self._group = 0, None


def _vllm_state() -> types.ModuleType:
    """vLLM's table of groups, with its name for the default group."""
    module = types.ModuleType(VLLM_STATE)
    coordinator = types.SimpleNamespace(device_group=dist.group.WORLD)
    module._groups = {"tp:0": lambda: coordinator}  # type: ignore[attr-defined]
    return module


@contextmanager
def environment() -> Iterator[Groups]:
    """The operators that programs use, and groups to be switched."""
    ops.register()
    groups = Groups()
    with foreign_ops():
        try:
            yield groups
        finally:
            groups.close()
            torch._dynamo.reset()


def captured(written: Written, groups: Groups) -> Captured:
    function = written.function(groups.use(written.plan.ranks))
    inputs = written.tensors(0)
    if written.plan.capture == "plain":
        with torch.no_grad():
            gm = make_fx(function, pre_dispatch=True, tracing_mode="fake")(*inputs)
        return Captured(gm, tuple(range(len(inputs))))
    gm, arguments = capture_with_arguments(function, *inputs)
    torch._dynamo.reset()
    return Captured(gm, tuple(_number(x, inputs) for x in arguments))


def _number(argument: Any, inputs: list[Tensor]) -> Any:
    found = [i for i, x in enumerate(inputs) if x is argument]
    if found:
        return found[0]
    assert not isinstance(argument, Tensor)
    return argument
