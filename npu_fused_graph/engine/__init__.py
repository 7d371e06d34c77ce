"""Executes a GE graph on CPU tensors. Public: ``compile_model``, ``register_kernel``."""

from npu_fused_graph.engine.executor import Executable, compile_graph, compile_model
from npu_fused_graph.engine.registry import Int, Ints, kernel, register_kernel, registered_types

__all__ = [
    "Executable",
    "Int",
    "Ints",
    "compile_graph",
    "compile_model",
    "kernel",
    "register_kernel",
    "registered_types",
]
