"""Graphs without the inputs that are no tensors, which TorchAir counts wrongly (T3 in docs/torchair_defects.md)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from npu_fused_graph.aot.autograd import Compile
from npu_fused_graph.errors import UnsupportedModeError


def tensors_only(compile_graph: Compile) -> Compile:
    """Compile without the placeholders that hold DeviceMesh objects: TorchAir counts Data nodes wrongly past them.

    AOTAutograd flattens a DTensor into its local tensor and its mesh; the graph only hands the mesh through, to a
    result that is a DTensor.
    """

    @functools.wraps(compile_graph)
    def compile_tensors(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        keep = [isinstance(x, (torch.Tensor, int, torch.SymInt)) for x in example_inputs]
        if all(keep):
            return compile_graph(gm, example_inputs)
        handed_through = _drop_placeholders(gm, keep)
        compiled = compile_graph(gm, [x for x, wanted in zip(example_inputs, keep, strict=True) if wanted])

        def run(*args: Any) -> Any:
            results = list(compiled(*(x for x, wanted in zip(args, keep, strict=True) if wanted)))
            for result, argument in handed_through:
                results.insert(result, args[argument])
            return results

        return run

    return compile_tensors


def _drop_placeholders(gm: GraphModule, keep: Sequence[bool]) -> list[tuple[int, int]]:
    """Remove the placeholders not kept; (position of the result, of the argument) of those that are results."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    dropped = {node: i for i, (node, wanted) in enumerate(zip(placeholders, keep, strict=True)) if not wanted}
    (output,) = gm.graph.find_nodes(op="output")
    results = list(output.args[0])
    output.args = (tuple(x for x in results if x not in dropped),)
    for node in dropped:
        if node.users:
            raise UnsupportedModeError(
                f"[backend] input {node.name}: expected a tensor or a size, got an object the graph uses. "
                "Keep it out of the compiled region."
            )
        gm.graph.erase_node(node)
    gm.recompile()
    return [(i, dropped[x]) for i, x in enumerate(results) if x in dropped]
