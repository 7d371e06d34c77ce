"""get_npu_backend(): TorchAir's backend for torch.compile, with our passes in it and its known defects guarded."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch.fx import GraphModule

from npu_fused_graph.aot.autograd import compile_with_aot
from npu_fused_graph.aot.tensors_only import tensors_only
from npu_fused_graph.compile.fusion import check_config, enable_fusion
from npu_fused_graph.errors import UnsupportedModeError, argument_error
from npu_fused_graph.host import load_torchair
from npu_fused_graph.host.config import is_npugraph_ex
from npu_fused_graph.host.decompositions import decompositions
from npu_fused_graph.host.defects import torchairs_warnings_hidden
from npu_fused_graph.host.dtypes import check_dtypes
from npu_fused_graph.host.npugraph_ex import load_npugraph_ex
from npu_fused_graph.passes import DEFAULT_PASSES, AttentionSites, Passes
from npu_fused_graph.passes.verdicts import FusionSite, Numerics

Mode = Literal["max-autotune", "npugraph_ex"]
MODES: tuple[Mode, ...] = ("max-autotune", "npugraph_ex")
"""TorchAir's back ends: a GE graph, or a captured graph of eager calls."""


def get_npu_backend(
    *,
    mode: Mode | None = None,
    compiler_config: Any = None,
    custom_decompositions: Mapping[Any, Callable[..., Any]] | None = None,
    numerics: Numerics = "same_rounding",
    min_rows: int | None = None,
    in_place: bool = False,
    grouped: bool = False,
    compare_ranks: bool = False,
    attention: AttentionSites = "all",
    passes: Passes = DEFAULT_PASSES,
    on_sites: Callable[[list[FusionSite]], None] | None = None,
) -> Callable[..., Any]:
    """A backend for ``torch.compile(model, backend=..., dynamic=False)`` that fuses.

    Call the model under torch.no_grad() or torch.inference_mode() unless it is trained: with autograd some sites are
    not fused, of which a UserWarning tells once. docs/training.md says what training does.
    mode: "max-autotune" (the default) lowers to a GE graph by TorchAir; "npugraph_ex" captures eager calls, those of
    the fused operators among them, and replays them (docs/npugraph_ex.md). compiler_config: a CompilerConfig of
    TorchAir or of npugraph_ex, which says the mode, too; it is not modified. custom_decompositions: as in TorchAir.
    numerics: largest change of rounding a fusion may bring: "same_rounding" (only the order in which ranks are summed),
    "one_ulp" (norm_out is rounded once more) or "any"; of attention see below. min_rows: fuse only sites with at least
    that many rows; None: from 768 (more for fewer than 86 columns), where CANN's kernel begins to overlap computing and
    sending, and attention from 3072 queries over all heads, which keep every core busy; 0: whatever is legal.
    in_place: where a residual is read by nothing else, let the op write the sum into its memory
    (InplaceMatmulAllReduceAddRmsNorm). grouped: put independent matmul + all-reduce pairs with (k, n) weights into one
    GroupedMatMulAllReduce; off, because CANN marks that operator as deprecated. compare_ranks: while compiling, ranks
    exchange their decisions and raise CommunicationError at the first difference, instead of hanging in the first run;
    all ranks must compile the same graphs in the same order. attention: "all": one operator for attention that is
    written out, too, which then rounds its scores no more; "calls": only for calls of scaled_dot_product_attention;
    "none". passes: () = TorchAir with our converters and guards, without fusion. on_sites: called with the verdict
    records of every graph; where the configuration asks for graph dumps they are stored beside these, too
    (docs/inspect.md). Raises InvalidArgumentError for a bad option, HostError where the mode's package is not there.
    """
    if not isinstance(custom_decompositions, (Mapping, types.NoneType)):
        raise argument_error(
            "backend", "custom_decompositions", "a mapping from operators to functions",
            type(custom_decompositions).__name__, "As torch._decomp.get_decompositions returns it.",
        )  # fmt: skip
    package = _package(mode, compiler_config)
    config = _private_copy(package.CompilerConfig() if compiler_config is None else compiler_config)
    enable_fusion(
        config, numerics=numerics, min_rows=min_rows, in_place=in_place, grouped=grouped,
        compare_ranks=compare_ranks, attention=attention, passes=passes, on_sites=on_sites,
    )  # fmt: skip
    with warnings.catch_warnings():
        # TorchAir puts warnings.filterwarnings("once", UserWarning) in front of the user's filters (defect T6)
        stock = package.get_npu_backend(compiler_config=config, custom_decompositions=dict(custom_decompositions or {}))
    return _Backend(stock, package, config, dict(custom_decompositions or {}))


def _package(mode: str | None, config: Any) -> types.ModuleType:
    """TorchAir or npugraph_ex: what ``mode`` asks for, or else ``config``."""
    if mode is not None and mode not in MODES:
        raise argument_error("backend", "mode", f"one of {MODES}", repr(mode), "Leave it out for a GE graph.")
    if config is not None:
        check_config(config)
        if mode not in (None, config.mode.value):
            raise argument_error(
                "backend", "mode", f"{config.mode.value!r}, as in compiler_config", repr(mode), "Leave it out."
            )
        return load_npugraph_ex() if is_npugraph_ex(config) else load_torchair()
    return load_npugraph_ex() if mode == "npugraph_ex" else load_torchair()


class _Backend:
    """Calls TorchAir's backend; graphs with DTensor inputs take a path around defects T2 and T3."""

    def __init__(
        self, stock: Callable[..., Any], package: types.ModuleType, config: Any, decompositions: dict[Any, Any]
    ) -> None:
        self._stock = stock
        self._package = package
        self._config = config
        self._decompositions = decompositions

    def __call__(self, gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

        check_dtypes(example_inputs)
        with torchairs_warnings_hidden():
            if any(_is_dtensor(x) for x in (*example_inputs, *gm.parameters(), *gm.buffers())):
                return self._compile_dtensor(gm, example_inputs)
            self._config.post_grad_custom_pre_pass.value.before_autograd(gm, self._config)
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
        compile_graph = torchairs_warnings_hidden()(tensors_only(self._package.get_compiler(self._config)))
        return compile_with_aot(
            gm, example_inputs, compile_graph, decompositions(self._package, self._config, self._decompositions)
        )


def _is_dtensor(x: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def _private_copy(config: Any) -> Any:
    """A CompilerConfig whose hooks and experimental options can be set without touching the user's."""
    check_config(config)
    private = copy.copy(config)
    for name in ("post_grad_custom_pre_pass", "post_grad_custom_post_pass"):
        vars(private)[name] = copy.copy(getattr(config, name))
    if is_npugraph_ex(config):
        return private
    vars(private)["experimental_config"] = copy.copy(config.experimental_config)
    experimental = vars(private)["experimental_config"]
    vars(experimental)["enable_view_optimize"] = copy.copy(experimental.enable_view_optimize)
    return private
