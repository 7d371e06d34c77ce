"""A warning where a graph writes a copy of a cache instead of the cache.

The schemas of some operators do not say that they write arguments, so AOTAutograd assigns nothing back. In a GE graph
their nodes write what GE gives them, the caller's memory only for a contiguous argument; a captured graph writes what
was captured, a copy of any argument that TorchAir does not take for a parameter.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from npu_fused_graph.passes.fx import storage_owner

WRITES_UNTOLD = {
    "npu_kv_rmsnorm_rope_cache": {0: "k_cache", 1: "ckv_cache"},
    "npu_mla_prolog": {2: "kv_cache", 3: "kr_cache"},
    "npu_mla_prolog_v2": {2: "kv_cache", 3: "kr_cache"},
}
"""Operators that write arguments and return them, which their schemas do not say: by place among the results."""
_CACHES = {
    "KvRmsNormRopeCache": ("k_cache", "ckv_cache"),
    "MlaProlog": ("kv_cache", "kr_cache"),
    "MlaPrologV2": ("kv_cache", "kr_cache"),
}
"""What these nodes write, by the IR name of both input and output."""
_DATA = ("Data", "RefData")
_SAME_MEMORY = ("Reshape", "Unsqueeze", "Squeeze")


def tell_lost_writes() -> None:
    """Warn while TorchAir builds a graph. Neither result nor graph changes."""
    graph_type: Any = importlib.import_module("torchair._ge_concrete_graph.fx2ge_converter").GeConcreteGraph
    original = graph_type.optimize_graph_without_runtime

    @functools.wraps(original)
    def optimize_graph_without_runtime(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        for node, name, got in _lost(self.graph.op, self._input_info_list):
            _tell(name, node, "contiguous memory of an argument", got, "Pass contiguous memory")
        return result

    graph_type.optimize_graph_without_runtime = optimize_graph_without_runtime


@functools.cache
def tell_lost_writes_of_captures(package: str) -> None:
    """The same of captured graphs. package: of torchair or npugraph_ex."""
    graph_type: Any = importlib.import_module(f"{package}._acl_concrete_graph.fx2acl_converter").AclConcreteGraph
    original = graph_type.optimize_graph_without_runtime

    @functools.wraps(original)
    def optimize_graph_without_runtime(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        options = self.config.debug.aclgraph if hasattr(self.config, "debug") else self.config  # npugraph_ex's own
        if options.clone_input.value:
            copied = self._aclgraph_cache_info.user_inputs_mapping
            for operator, name in _lost_in_captures(self.fx_graph.graph.nodes, copied):
                cure = "Make the cache a buffer of the model, call torch._dynamo.mark_static_address(cache)"
                _tell(name, operator, "a parameter or buffer", "an argument", cure)
        return result

    graph_type.optimize_graph_without_runtime = optimize_graph_without_runtime


def _tell(name: str, node: str, expected: str, got: str, cure: str) -> None:
    warnings.warn(
        f"[backend] {name} of {node}: expected {expected}, got {got}. On a device the node writes a copy of it, and "
        f"the cache stays as it is. {cure}, or assign what the operator returns.",
        stacklevel=3,
    )


def _lost(nodes: Any, inputs: Any) -> Iterator[tuple[str, str, str]]:
    """(type, input, what feeds it) of what is written, is no memory of an argument, and whose output nobody reads."""
    by_name = {node.name: node for node in nodes}
    read = {edge for node in nodes for edge in node.input}
    for node in nodes:
        written = _CACHES.get(node.type, ())
        outputs = {desc.name: f"{node.name}:{i}" for i, desc in enumerate(node.output_desc)}
        for desc, edge in zip(node.input_desc, node.input, strict=False):
            if desc.name not in written or outputs[desc.name] in read:
                continue
            source = by_name[edge.rpartition(":")[0]]
            while source.type in _SAME_MEMORY:
                source = by_name[source.input[0].rpartition(":")[0]]
            if source.type not in _DATA:
                yield node.type, desc.name, f"the result of {source.type}"
            elif "Discontiguous" in type(inputs[source.attr["index"].i].func).__name__:
                yield node.type, desc.name, "a view with gaps"


def _lost_in_captures(nodes: Any, copied: Any) -> Iterator[tuple[str, str]]:
    """(operator, argument) that is written in memory of an input of ``copied``, where nobody reads the result."""
    for node in nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "npu":
            continue
        schema = node.target._schema
        operator = schema.name.partition("::")[2]
        for place, name in WRITES_UNTOLD.get(operator, {}).items():
            given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs
            owner = storage_owner(given[name])
            is_read = any(item.args[1] == place and item.users for item in node.users)
            if owner.op == "placeholder" and owner.target in copied and not is_read:
                yield operator, name
