"""torch.compile backends: TorchAir's, with our fusion passes in it and TorchAir's known defects guarded."""

from __future__ import annotations

import copy
import functools
import logging
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule

from npu_fused_graph.errors import InvalidArgumentError, UnsupportedModeError, argument_error, warn_once
from npu_fused_graph.passes import DEFAULT_PASSES, FusionOptions, Pass, fuse_all
from npu_fused_graph.passes.guards import (
    drop_assertions,
    refuse_strides_of_what_is_not_dense,
    refuse_unknown_numbers,
    separate_assigned_values,
)
from npu_fused_graph.passes.outside import calls_outside
from npu_fused_graph.passes.records import FusionSite, Numerics
from npu_fused_graph.passes.refusals import CATALOGUE, Refusal
from npu_fused_graph.passes.tracing import Break, is_for_autograd, listen

log = logging.getLogger("npu_fused_graph")

Compile = Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]

site_listeners: list[Callable[[Sequence[FusionSite]], None]] = []
"""Called with the verdicts on every graph that is compiled with fusion, besides its own ``on_sites``."""


def get_npu_backend(
    *,
    compiler_config: Any = None,
    custom_decompositions: Mapping[Any, Callable[..., Any]] | None = None,
    numerics: Numerics = "same_rounding",
    min_rows: int | None = None,
    in_place: bool = False,
    grouped: bool = False,
    compare_ranks: bool = False,
    passes: Sequence[Pass] = DEFAULT_PASSES,
    on_sites: Callable[[list[FusionSite]], None] | None = None,
) -> Callable[..., Any]:
    """A backend for ``torch.compile(model, backend=..., dynamic=False)`` that fuses.

    Call the model under torch.no_grad() or torch.inference_mode(); one compiled with autograd warns once.
    compiler_config: a ``torchair.CompilerConfig``; it is not modified. custom_decompositions: as in TorchAir.
    numerics: largest change of rounding a fusion may bring: "same_rounding" (only the order in which ranks are summed),
    "one_ulp" (norm_out is rounded once more) or "any". min_rows: fuse only sites with at least that many rows; None:
    from 768 (more for fewer than 86 columns), where CANN's kernel begins to overlap computing and sending; 0: whatever
    is legal. in_place: where a residual is read by nothing else, let the op write the sum into its memory
    (InplaceMatmulAllReduceAddRmsNorm). grouped: put independent matmul + all-reduce pairs with (k, n) weights into one
    GroupedMatMulAllReduce; off, because CANN marks that operator as deprecated. compare_ranks: while compiling, ranks
    exchange their decisions and raise CommunicationError at the first difference, instead of hanging in the first run;
    all ranks must compile the same graphs in the same order. passes: () = TorchAir with our converters and guards,
    without fusion. on_sites: called with the verdict records of every graph. Raises InvalidArgumentError for a bad
    option, UnsupportedModeError for TorchAir modes other than "max-autotune" in host mode.
    """
    from npu_fused_graph import converters
    from npu_fused_graph.host import load_torchair

    torchair = load_torchair()
    converters.register_all()
    if not isinstance(custom_decompositions, (Mapping, types.NoneType)):
        raise argument_error(
            "backend", "custom_decompositions", "a mapping from operators to functions",
            type(custom_decompositions).__name__, "As torch._decomp.get_decompositions returns it.",
        )  # fmt: skip
    config = _private_copy(torchair.CompilerConfig() if compiler_config is None else compiler_config)
    enable_fusion(
        config, numerics=numerics, min_rows=min_rows, in_place=in_place, grouped=grouped,
        compare_ranks=compare_ranks, passes=passes, on_sites=on_sites,
    )  # fmt: skip
    with warnings.catch_warnings():
        # TorchAir puts warnings.filterwarnings("once", UserWarning) in front of the user's filters (defect T6)
        stock = torchair.get_npu_backend(
            compiler_config=config, custom_decompositions=dict(custom_decompositions or {})
        )
    return _Backend(stock, config, dict(custom_decompositions or {}))


def enable_fusion(
    config: Any,
    *,
    numerics: Numerics = "same_rounding",
    min_rows: int | None = None,
    in_place: bool = False,
    grouped: bool = False,
    compare_ranks: bool = False,
    passes: Sequence[Pass] = DEFAULT_PASSES,
    on_sites: Callable[[list[FusionSite]], None] | None = None,
) -> Any:
    """Add our passes to a ``torchair.CompilerConfig`` you already use; returns it.

    The pass runs after your own ``post_grad_custom_pre_pass`` and before TorchAir's pattern passes. Our converters
    are registered, ``experimental_config.enable_view_optimize`` is switched off (it miscompiles), and guards run after
    your own ``post_grad_custom_post_pass`` (docs/torchair_defects.md: T1, T9, T10). Options are those of
    get_npu_backend. Calling it twice on one config changes only the options. Raises InvalidArgumentError for a bad
    option, UnsupportedModeError like get_npu_backend.
    """
    from npu_fused_graph import converters

    options = FusionOptions(numerics, min_rows, in_place, grouped, compare_ranks, passes)
    if on_sites is not None and not callable(on_sites):
        raise argument_error("fusion", "on_sites", "a function of a list of sites", repr(on_sites), "Pass a callable.")
    converters.register_all()
    _check_config(config)
    check_host_mode(config)
    current = config.post_grad_custom_pre_pass.value
    user_pass = current.user_pass if isinstance(current, FusionHook) else current
    config.post_grad_custom_pre_pass = FusionHook(options, user_pass, on_sites)
    current = config.post_grad_custom_post_pass.value
    config.post_grad_custom_post_pass = current if isinstance(current, GuardHook) else GuardHook(current)
    config.experimental_config.enable_view_optimize = False
    listen(_log_break)
    return config


def _log_break(one: Break) -> None:
    for record in (one, *calls_outside(one)):
        log.info("%s", record)


_WITH_AUTOGRAD = (
    "[backend] model: expected a call without autograd, got one compiled with autograd: what its backward needs is a "
    "result of the graph, which can keep sites from being fused. Call the model under torch.no_grad() or "
    "torch.inference_mode()."
)


class FusionHook:
    """The ``post_grad_custom_pre_pass`` that fuses, after the pass the user had installed."""

    def __init__(
        self,
        options: FusionOptions,
        user_pass: Callable[..., Any] | None,
        on_sites: Callable[[list[FusionSite]], None] | None,
    ) -> None:
        self.options = options
        self.user_pass = user_pass
        self.on_sites = on_sites
        self.__name__ = "npu_fused_graph"

    def __call__(self, gm: GraphModule, example_inputs: Any = None, config: Any = None) -> None:
        from npu_fused_graph import converters

        converters.register_all()  # a model's package may have defined operators since the backend was made
        if self.user_pass is not None:
            self.user_pass(gm, example_inputs, config)
        mode = "max-autotune" if config is None else config.mode.value
        sites = fuse_all(gm, replace(self.options, unavailable=unavailable(mode)))
        for site in sites:
            log.info("%s", site)
        if is_for_autograd() and not all(site.is_fused for site in sites):
            # not in TorchAir's name: what it warns about is hidden while it compiles
            warn_once(_WITH_AUTOGRAD, stacklevel=2)
        for listener in site_listeners:
            listener(sites)
        if self.on_sites is not None:
            self.on_sites(sites)


class GuardHook:
    """The ``post_grad_custom_post_pass`` with the guards of passes/guards.py, after the pass the user had installed."""

    def __init__(self, user_pass: Callable[..., Any] | None) -> None:
        self.user_pass = user_pass
        self.__name__ = "npu_fused_graph_guard"

    def __call__(self, gm: GraphModule, example_inputs: Any = None, config: Any = None) -> None:
        if self.user_pass is not None:
            self.user_pass(gm, example_inputs, config)
        refuse_strides_of_what_is_not_dense(gm)
        separate_assigned_values(gm)
        drop_assertions(gm)
        refuse_unknown_numbers(gm)


def unavailable(mode: str = "max-autotune") -> dict[str, Refusal]:
    """Refusals, by stem, of operators the installed CANN or the chip lacks. mode: TorchAir's ``config.mode``."""
    from npu_fused_graph import converters

    return {stem: CATALOGUE[gap.reason](gap.text, gap.cure) for stem, gap in converters.gaps(mode).items()}


class _Backend:
    """Calls TorchAir's backend; graphs with DTensor inputs take a path around defects T2 and T3."""

    def __init__(self, stock: Callable[..., Any], config: Any, decompositions: dict[Any, Any]) -> None:
        self._stock = stock
        self._config = config
        self._decompositions = decompositions

    def __call__(self, gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

        with warnings.catch_warnings():
            # TorchAir asks c10d for a group's default device in a deprecated way; nothing the user could change
            warnings.filterwarnings("ignore", module=r"torchair\.")
            if any(_is_dtensor(x) for x in (*example_inputs, *gm.parameters(), *gm.buffers())):
                return self._compile_dtensor(gm, example_inputs)
            try:
                compiled: Callable[..., Any] = self._stock(gm, example_inputs, **kwargs)
            except GuardOnDataDependentSymNode as error:
                # TorchAir raises it anew with its text in the place of the condition, so that it says nothing
                text = (str(error).strip() or str(error.cond)).partition("\n")[0].rstrip(". ")
                raise UnsupportedModeError(
                    f"[backend] sizes: expected numbers known while compiling, got: {text}. "
                    "Keep what depends on values out of the compiled region."
                ) from error
            return compiled

    def _compile_dtensor(self, gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        import torchair
        from torchair.npu_fx_compiler import _get_merged_decompositions

        compile_graph = tensors_only(torchair.get_compiler(self._config))
        return compile_with_aot(
            gm, example_inputs, compile_graph, _get_merged_decompositions(self._config, self._decompositions)
        )


def compile_with_aot(
    gm: GraphModule, example_inputs: Sequence[Any], compile_graph: Compile, decompositions: Mapping[Any, Any]
) -> Callable[..., Any]:
    """AOTAutograd as TorchAir runs it, with ``compile_graph`` in TorchAir's place."""
    from torch._functorch.aot_autograd import aot_module_simplified
    from torch._functorch.partitioners import default_partition

    compiler: Any = compile_graph  # AOTAutograd's own type for it is a private protocol
    compiled: Callable[..., Any] = aot_module_simplified(
        gm,
        list(example_inputs),
        fw_compiler=compiler,
        bw_compiler=compiler,
        inference_compiler=compiler,
        partition_fn=default_partition,
        keep_inference_input_mutations=True,
        decompositions=dict(decompositions),
    )
    return compiled


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


def _is_dtensor(x: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def _check_config(config: Any) -> None:
    import torchair

    if not isinstance(config, torchair.CompilerConfig):
        raise InvalidArgumentError(
            f"[backend] compiler_config: expected a torchair.CompilerConfig, got {type(config).__name__}. "
            "Make one with torchair.CompilerConfig()."
        )


def _private_copy(config: Any) -> Any:
    """A CompilerConfig whose hooks and experimental options can be set without touching the user's."""
    _check_config(config)
    private = copy.copy(config)
    for name in ("experimental_config", "post_grad_custom_pre_pass", "post_grad_custom_post_pass"):
        vars(private)[name] = copy.copy(getattr(config, name))
    experimental = vars(private)["experimental_config"]
    vars(experimental)["enable_view_optimize"] = copy.copy(experimental.enable_view_optimize)
    return private


_WITHOUT_EFFECT = ("dump_config.enable_dump", "aoe_config.aoe_mode")
"""Options GE's runtime or AOE acts on: on a CPU nothing would happen, silently."""


def check_host_mode(config: Any) -> None:
    """Without an NPU: raise UnsupportedModeError for a mode without a GE graph, warn about options without effect."""
    from npu_fused_graph.host import mode

    if mode() == "device":
        return
    for name in _WITHOUT_EFFECT:
        option = functools.reduce(getattr, name.split("."), config)
        if option:
            text = f"[backend] {name}: expected no value without an NPU, got {option.value!r}. It has no effect."
            warnings.warn(text, stacklevel=3)
    if config.mode.value != "max-autotune":
        raise UnsupportedModeError(
            f"[backend] mode: expected 'max-autotune' without an NPU, got {config.mode.value!r}: it captures NPU "
            "streams and has no GE graph. Set config.mode = 'max-autotune'."
        )
