"""AOTAutograd as TorchAir runs it, with any compiler of graphs behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

Compile = Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]
"""A compiler: of a graph of aten operators and its fake inputs."""


def compile_with_aot(
    gm: GraphModule, example_inputs: Sequence[Any], compile_graph: Compile, decompositions: Mapping[Any, Any]
) -> Callable[..., Any]:
    """AOTAutograd as TorchAir runs it, with ``compile_graph`` in TorchAir's place."""
    from torch._functorch._aot_autograd.utils import make_boxed_compiler
    from torch._functorch.aot_autograd import aot_module_simplified
    from torch._functorch.partitioners import default_partition

    compiler: Any = compile_graph  # AOTAutograd's own type for it is a private protocol
    compiled: Callable[..., Any] = aot_module_simplified(
        gm,
        list(example_inputs),
        fw_compiler=compiler,
        bw_compiler=make_boxed_compiler(compiler),
        inference_compiler=compiler,
        partition_fn=default_partition,
        keep_inference_input_mutations=True,
        decompositions=dict(decompositions),
    )
    return compiled
