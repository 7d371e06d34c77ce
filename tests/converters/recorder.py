"""Which GE ops a compiled function became, and the dtypes that really flowed into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from npu_fused_graph.engine import Executable, program
from npu_fused_graph.engine.dtypes import to_torch
from npu_fused_graph.engine.program import Instruction, cast, flatten
from npu_fused_graph.host.native import graph_listeners
from npu_fused_graph.ir.graph import Source, TensorValue


@dataclass
class Emitted:
    """inputs: (GE type, input name, dtype) of every node that ran. disagreements: (GE type, got, declared) of
    results whose dtype is not the one the graph declares. types: GE types of all nodes."""

    inputs: set[tuple[str, str, torch.dtype]] = field(default_factory=set)
    disagreements: set[tuple[str, torch.dtype, torch.dtype]] = field(default_factory=set)
    types: set[str] = field(default_factory=set)


@contextmanager
def recording() -> Iterator[Emitted]:
    """Record every graph TorchAir loads inside; constants are not folded, so that all nodes run."""
    emitted = Emitted()

    def listen(executable: Executable) -> None:
        graph = executable.graph
        dtypes: dict[Source, torch.dtype] = {}
        for node in graph.nodes.values():
            emitted.types.add(node.type)
            value = node.attrs.get("value")
            if isinstance(value, TensorValue):
                dtypes[Source(node.name, 0)] = to_torch(value.dtype)
            elif node.type in ("Data", "RefData"):
                dtypes[Source(node.name, 0)] = to_torch(node.outputs[0].dtype)
        for instruction in executable.program.instructions:
            instruction.call = _recorded(instruction, instruction.call, dtypes, emitted)

    graph_listeners.append(listen)
    try:
        with mock.patch.object(program, "FOLD_LIMIT", -1):
            yield emitted
    finally:
        graph_listeners.remove(listen)


def _recorded(
    instruction: Instruction, call: Callable[..., Any], dtypes: dict[Source, torch.dtype], emitted: Emitted
) -> Callable[..., Any]:
    node = instruction.node

    def run(*args: Any) -> Any:
        for item in node.inputs:
            if item.source is not None:
                emitted.inputs.add((node.type, item.desc.name, dtypes[item.source]))
        result = call(*args)
        for i, (value, declared) in enumerate(zip(flatten(result, instruction), instruction.casts, strict=True)):
            dtypes[Source(node.name, i)] = cast(value, declared).dtype
            if declared is not None and value.dtype is not declared:
                emitted.disagreements.add((node.type, value.dtype, declared))
        return result

    return run
