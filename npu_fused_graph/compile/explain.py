"""explain(): which sites of a model would be fused, and why the others are not. One process is enough."""

from __future__ import annotations

import inspect
import json
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.fx import Graph, GraphModule
from torch.utils import _pytree as pytree

from npu_fused_graph.aot.autograd import compile_with_aot
from npu_fused_graph.comm.windows import unattended
from npu_fused_graph.compile.backend import MODES, Mode
from npu_fused_graph.compile.missing import Lowering, MissingOperator
from npu_fused_graph.errors import argument_error
from npu_fused_graph.host import load_torchair
from npu_fused_graph.host.capabilities import capabilities
from npu_fused_graph.host.capture.communicators import first_calls
from npu_fused_graph.host.decompositions import decompositions
from npu_fused_graph.host.npugraph_ex import load_npugraph_ex
from npu_fused_graph.host.one_operator import OneOperator
from npu_fused_graph.host.support import support
from npu_fused_graph.passes import AttentionSites, FusionOptions, fuse_all, fuse_before_autograd
from npu_fused_graph.passes.fx import op_name
from npu_fused_graph.passes.outside import Eager
from npu_fused_graph.passes.tracing import breaks
from npu_fused_graph.passes.verdicts import FusionSite, Numerics


@dataclass(frozen=True, slots=True)
class FusionReport:
    """sites: one FusionSite per candidate, in graph order; last the collectives that ran outside every graph.

    graphs: how many graphs Dynamo made. missing: operators that would stop the compiled model. breaks: where Dynamo
    left a graph, and why. conditions: what the verdicts hold under. versions: of torch and TorchAir, and what is known
    of them. captures: of mode npugraph_ex, what has to happen before a graph is captured.
    """

    sites: tuple[FusionSite, ...]
    graphs: int
    breaks: tuple[str, ...] = ()
    conditions: str = ""
    versions: str = ""
    captures: tuple[str, ...] = ()
    missing: tuple[MissingOperator, ...] = ()

    @property
    def fused(self) -> tuple[FusionSite, ...]:
        return tuple(site for site in self.sites if site.is_fused)

    @property
    def refused(self) -> tuple[FusionSite, ...]:
        return tuple(site for site in self.sites if not site.is_fused)

    def to_json(self) -> str:
        """Machine-readable form of all records."""
        return json.dumps(
            {
                "graphs": self.graphs,
                "fused": [s.as_dict() for s in self.fused],
                "refused": [s.as_dict() for s in self.refused],
                "breaks": self.breaks,
                "captures": self.captures,
                "missing": [asdict(m) for m in self.missing],
                "conditions": self.conditions,
                "versions": self.versions,
            },
            indent=2,
        )

    def __str__(self) -> str:
        legal = sum(site.is_legal for site in self.sites)
        graphs = f"{self.graphs} graph{'s' * (self.graphs != 1)}"
        lines = [f"{len(self.fused)} of {len(self.sites)} sites fused, {legal} legal, {graphs}"]
        lines += [f"  {site}" for site in self.sites]
        if not self.sites:
            lines.append(
                "  no all-reduce, attention or dispatch was called, in a graph or outside (inside a custom operator "
                "none is seen)"
            )
        lines += [f"  {one}" for one in (*self.missing, *self.breaks, *self.captures)]
        lines += filter(None, (self.conditions, self.versions))
        return "\n".join(lines)


def explain(
    model: Callable[..., Any],
    *inputs: Any,
    mode: Mode = "max-autotune",
    world_size: int | None = None,
    numerics: Numerics = "same_rounding",
    min_rows: int | None = None,
    in_place: bool = False,
    grouped: bool = False,
    attention: AttentionSites = "all",
    **kwargs: Any,
) -> FusionReport:
    """Trace ``model(*inputs, **kwargs)`` as torch.compile would and report every all-reduce, in a graph or outside.

    And every attention and every dispatch of tokens to experts in a graph, and the operators that TorchAir or this
    executor lacks: each kind of call is lowered alone.

    Runs the model once on the inputs, without autograd and with dynamic=False, which its verdicts hold for: what it
    writes in place is written. Collectives inside a custom operator are not seen. Needs no other rank: where no process
    group is initialised, one of ``world_size`` ranks (default 2) that communicates nothing is used and removed again,
    so numbers mean nothing then and only the verdicts count. mode, numerics, min_rows, in_place, grouped, attention:
    as in get_npu_backend. Nothing is kept.
    Raises InvalidArgumentError for a bad option, or if ``world_size`` contradicts an initialised group.
    """
    options = FusionOptions(numerics, min_rows, in_place, grouped, attention=attention)
    if mode not in MODES:
        raise argument_error("explain", "mode", f"one of {MODES}", repr(mode), "Leave it out for a GE graph.")
    if not callable(model):
        raise argument_error("explain", "model", "a module or function", repr(model), "Pass the model first.")
    package = load_npugraph_ex() if mode == "npugraph_ex" else load_torchair()
    options = replace(options, **capabilities(mode)._asdict())

    found: list[FusionSite] = []
    cold: dict[str, None] = {}
    lowering = Lowering()
    graphs = 0

    def compile_graph(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        run = _copy_of(gm)
        if mode != "npugraph_ex":  # there the operators run as they are, as they do here
            lowering.add(gm)
        found.extend(fuse_all(gm, options))
        if mode == "npugraph_ex":
            cold.update(dict.fromkeys(first_calls(gm)))
        return _boxed(eager.hidden(run))

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        found.extend(fuse_before_autograd(gm, options))
        with warnings.catch_warnings():
            return compile_with_aot(gm, example_inputs, compile_graph, taken_apart)

    with (
        _process_group(world_size),
        _nobody_waits(),
        torch.no_grad(),
        warnings.catch_warnings(),
        breaks() as left,
        Eager(left) as eager,
        _isolated() as options_of_compile,
    ):
        conditions = _conditions()
        taken_apart = decompositions(package, package.CompilerConfig(), {})
        compiled = torch.compile(_fresh_call(), backend=backend, dynamic=False, **options_of_compile)
        compiled(model, inputs, kwargs)
    sites, missing = (*found, *eager.sites), lowering.missing()
    return FusionReport(sites, graphs, tuple(map(str, left)), conditions, str(support()), tuple(cold), missing)


def _nobody_waits() -> AbstractContextManager[None]:
    """In a group that communicates nothing nobody fills or empties a window."""
    return unattended() if dist.get_backend() == "fake" else nullcontext()


def _conditions() -> str:
    size = dist.get_world_size()
    return (
        "These verdicts hold for inputs of these shapes and dtypes, compiled with dynamic=False and called under "
        f"torch.no_grad() or torch.inference_mode(), on {size} rank{'s' * (size != 1)}."
    )


def _call(model: Callable[..., Any], inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return model(*inputs, **kwargs)


@contextmanager
def _isolated() -> Iterator[dict[str, Any]]:
    """Options of torch.compile with which what is compiled here, the model's own functions too, leaves no trace.

    Where torch has no such option (2.11 has none): their code is forgotten afterwards, or it would count against the
    recompile limit of the model.
    """
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        yield {"isolate_recompiles": True}
        return
    from torch._C._dynamo.eval_frame import reset_code
    from torch._dynamo import config
    from torch._dynamo.convert_frame import register_bytecode_hook

    compiled: list[types.CodeType] = []
    hook = register_bytecode_hook(lambda code, _: compiled.append(code))
    try:
        with config.patch(recompile_limit=2**31, accumulated_recompile_limit=2**31):
            yield {}
    finally:
        hook.remove()
        for code in compiled:
            reset_code(code)


def _fresh_call() -> Callable[..., Any]:
    """_call with a code object of its own: Dynamo's cache hangs on it, so nothing else is evicted or reused."""
    return types.FunctionType(_call.__code__.replace(co_name="the model"), globals())


def _copy_of(gm: GraphModule) -> GraphModule:
    """A graph of its own with the same attributes, some of which (process groups) cannot be copied."""
    graph = Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    for node in graph.nodes:
        if op_name(node).startswith("npu_define::"):  # TorchAir's collectives have no kernel on a CPU
            node.args, node.target = (node.target, *node.args), _lowered
    return GraphModule(gm, graph)


def _lowered(op: Any, *args: Any, **kwargs: Any) -> Any:
    leaves = pytree.tree_leaves((args, kwargs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchAir's own deprecations
        run = OneOperator(op, args, kwargs).compile()
    return run([x for x in leaves if isinstance(x, torch.Tensor)])


def _boxed(run: Callable[..., Any]) -> Callable[..., Any]:
    from torch._functorch._aot_autograd.utils import make_boxed_func

    boxed: Callable[..., Any] = make_boxed_func(run)
    return boxed


@contextmanager
def _process_group(world_size: int | None) -> Iterator[None]:
    if dist.is_initialized():
        actual = dist.get_world_size()
        if world_size not in (None, actual):
            raise argument_error(
                "explain", "world_size", f"{actual} (the initialised group) or None", world_size, "Leave it out."
            )
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    size = 2 if world_size is None else world_size
    if not isinstance(size, int) or size < 1:
        raise argument_error("explain", "world_size", "a number of ranks, at least 1", repr(size), "Leave it out.")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()
