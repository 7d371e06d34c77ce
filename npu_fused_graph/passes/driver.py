"""Runs the fusions on a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from npu_fused_graph import ops
from npu_fused_graph.errors import argument_error
from npu_fused_graph.passes import agreement
from npu_fused_graph.passes.attention_to_ffn import fusion as attention_to_ffn
from npu_fused_graph.passes.flash_attention_score import fusion as flash_attention_score
from npu_fused_graph.passes.grouped_mat_mul_all_reduce import fusion as grouped_mat_mul_all_reduce
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm import fusion as matmul_all_reduce_add_rms_norm
from npu_fused_graph.passes.options import BeforeAutograd, FusionOptions, Pass
from npu_fused_graph.passes.verdicts import FusionSite

Passes = Sequence[Pass | BeforeAutograd]
DEFAULT_PASSES: tuple[Pass | BeforeAutograd, ...] = (
    BeforeAutograd(flash_attention_score.run), matmul_all_reduce_add_rms_norm.run, grouped_mat_mul_all_reduce.run,
    attention_to_ffn.run,
)  # fmt: skip
"""All passes, in the order they run."""


def fuse_all(
    gm: GraphModule, options: FusionOptions | None = None, passes: Passes = DEFAULT_PASSES
) -> list[FusionSite]:
    """Rewrite ``gm`` in place; one record per candidate site, in graph order, those in graphs of its nodes last.

    gm: a graph of aten operators whose nodes carry fake tensors, as AOTAutograd, ``make_fx`` and
    ``torch.export(...).graph_module`` make it. Raises InvalidArgumentError for another kind of graph,
    CommunicationError where the ranks decide differently (with compare_ranks).
    """
    ops.register()
    check_passes(passes)
    _check_graph(gm)
    options = options or FusionOptions()
    places = {node.name: place for place, node in enumerate(gm.graph.nodes)}
    sites = [site for run in passes if not isinstance(run, BeforeAutograd) for site in run(gm, options)]
    sites.sort(key=lambda site: places.get(site.collective, len(places)))
    if options.compare_ranks:
        agreement.compare(sites)
    gm.graph.lint()
    gm.recompile()
    return sites


def fuse_before_autograd(
    gm: GraphModule, options: FusionOptions | None = None, passes: Passes = DEFAULT_PASSES
) -> list[FusionSite]:
    """Rewrite a graph as Dynamo hands it to a backend, in place; one record per candidate site, in graph order."""
    ops.register()
    check_passes(passes)
    options = options or FusionOptions()
    return [site for one in passes if isinstance(one, BeforeAutograd) for site in one.run(gm, options)]


def check_passes(passes: Any) -> None:
    """Raise InvalidArgumentError for what is no sequence of passes."""
    if not isinstance(passes, Sequence) or not all(callable(p) or isinstance(p, BeforeAutograd) for p in passes):
        raise argument_error("fusion", "passes", "a sequence of passes", repr(passes), "() means none.")


def _check_graph(gm: GraphModule) -> None:
    if not isinstance(gm, GraphModule):
        raise argument_error("fusion", "gm", "a torch.fx.GraphModule", type(gm).__name__, "See passes.fuse_all.")
    for node in gm.graph.nodes:
        is_aten = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
        if node.op == "call_method" or (is_aten and node.users and "val" not in node.meta):
            raise argument_error(
                "fusion", "gm", "aten operators with fake tensors (meta['val'])",
                f"{node.op} {node.target} without one",
                "Make the graph with torch.compile, make_fx or torch.export(...).graph_module.",
            )  # fmt: skip
