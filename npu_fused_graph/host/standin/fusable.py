"""What is fused in the graphs of a run, and what would be in those that are compiled without our passes.

Such a graph is looked at where our pass would run: on a copy, without guards, so that nothing else changes.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from torch._guards import detect_fake_mode
from torch.fx import Graph, GraphModule

from npu_fused_graph.host import one_operator
from npu_fused_graph.host.capabilities import capabilities
from npu_fused_graph.passes import FusionOptions, FusionSite, fuse_all
from npu_fused_graph.passes.spellings.reduces import candidates
from npu_fused_graph.passes.verdicts import site_listeners

Tell = Callable[[Sequence[FusionSite], bool], None]
"""Called with the verdicts on a graph, and whether it was compiled with our passes."""

_PRE_PASS = "post_grad_custom_pre_pass"


def watch(tell: Tell, tell_failure: Callable[[Exception], None], package: str = "torchair") -> None:
    """Tell of every graph TorchAir, or npugraph_ex, compiles from now on. tell_failure: called when a look fails."""
    compiler: Any = importlib.import_module(f"{package}.npu_fx_compiler")
    optimize = compiler._optimize_fx
    here = threading.local()

    def told(sites: Sequence[FusionSite]) -> None:
        here.is_told = True
        tell(sites, True)

    def look(gm: GraphModule, mode: str) -> None:
        here.is_told = True
        if one_operator.is_compiling() or not any(candidates(gm.graph)):
            return
        try:
            sites = would_fuse(gm, mode)
        except Exception as error:  # the script's own compilation must not depend on it
            tell_failure(error)
        else:
            tell(sites, False)

    @functools.wraps(optimize)
    def optimize_fx(gm: GraphModule, config: Any, observer: Any) -> Any:
        apply = observer.apply_gm_pass
        here.is_told = False

        @functools.wraps(apply)
        def apply_gm_pass(run: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
            if name != _PRE_PASS and not here.is_told:
                look(observer.gm, config.mode.value)
            return apply(run, name, *args, **kwargs)

        observer.apply_gm_pass = apply_gm_pass
        try:
            return optimize(gm, config, observer)
        finally:
            del observer.apply_gm_pass

    here.is_told = True
    site_listeners.append(told)
    compiler._optimize_fx = optimize_fx


def would_fuse(gm: GraphModule, mode: str = "max-autotune") -> list[FusionSite]:
    """The verdicts of ``enable_fusion`` with its default options on ``gm``, which stays as it is."""
    graph = Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    copy = GraphModule(gm, graph)
    values = [node.meta["val"] for node in gm.graph.nodes if "val" in node.meta]
    fake: Any = detect_fake_mode(values)
    shapes = getattr(fake, "shape_env", None)
    with nullcontext() if shapes is None else shapes.suppress_guards():
        return fuse_all(copy, FusionOptions(**capabilities(mode)._asdict()))
