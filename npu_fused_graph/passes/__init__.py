"""Fusion passes on FX graphs. ``fuse_all(gm)`` works on any graph of aten operators, with or without TorchAir.

One folder per fusion, with the same files: ``fusion`` (the pass), ``match`` (candidates to sites), ``site``, ``rules``
(what a site must fulfil), ``rewrite``. ``spellings/`` reads what models write: norms, products, reduces, calls, masks.
Attention is fused by ``fuse_before_autograd``, in the graph as Dynamo hands it over.
"""

from npu_fused_graph.passes.driver import DEFAULT_PASSES, Passes, fuse_all, fuse_before_autograd
from npu_fused_graph.passes.options import AttentionSites, BeforeAutograd, FusionOptions, Pass
from npu_fused_graph.passes.refusals import CATALOGUE, Refusal
from npu_fused_graph.passes.verdicts import FusionSite

__all__ = [
    "CATALOGUE", "DEFAULT_PASSES", "AttentionSites", "BeforeAutograd", "FusionOptions", "FusionSite", "Pass", "Passes",
    "Refusal", "fuse_all", "fuse_before_autograd",
]  # fmt: skip
