"""enable_fusion(): our passes and guards as hooks of a ``torchair.CompilerConfig``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch.fx import GraphModule

from npu_fused_graph import converters
from npu_fused_graph.aot.guards import (
    drop_assertions,
    refuse_strides_of_copied_inputs,
    refuse_strides_of_what_is_not_dense,
    refuse_unknown_numbers,
    separate_assigned_values,
)
from npu_fused_graph.compile.stored import store_sites
from npu_fused_graph.errors import argument_error, warn_once
from npu_fused_graph.host.capabilities import capabilities
from npu_fused_graph.host.config import check_host_mode, is_known, is_npugraph_ex
from npu_fused_graph.host.defects import CAPTURING
from npu_fused_graph.passes import (
    DEFAULT_PASSES,
    AttentionSites,
    FusionOptions,
    Passes,
    fuse_all,
    fuse_before_autograd,
)
from npu_fused_graph.passes.driver import check_passes
from npu_fused_graph.passes.outside import calls_outside
from npu_fused_graph.passes.tracing import Break, is_for_autograd, listen
from npu_fused_graph.passes.verdicts import FusionSite, Numerics, site_listeners

log = logging.getLogger("npu_fused_graph")


def enable_fusion(
    config: Any,
    *,
    numerics: Numerics = "same_rounding",
    min_rows: int | None = None,
    in_place: bool = False,
    grouped: bool = False,
    compare_ranks: bool = False,
    attention: AttentionSites = "all",
    passes: Passes = DEFAULT_PASSES,
    on_sites: Callable[[list[FusionSite]], None] | None = None,
) -> Any:
    """Add our passes to a CompilerConfig of TorchAir or of npugraph_ex you already use; returns it.

    The pass runs after your own ``post_grad_custom_pre_pass`` and before TorchAir's pattern passes. Our converters
    are registered, ``experimental_config.enable_view_optimize`` is switched off (it miscompiles), and guards run after
    your own ``post_grad_custom_post_pass`` (docs/torchair_defects.md: T1, T9, T10). Options are those of
    get_npu_backend, and verdicts are stored beside graph dumps as there; attention is fused before autograd, so by its
    backend only, not by TorchAir's with this config. Calling it twice on one config changes only the options. Raises
    InvalidArgumentError for a bad option, UnsupportedModeError like get_npu_backend.
    """
    options = FusionOptions(numerics, min_rows, in_place, grouped, compare_ranks, attention)
    check_passes(passes)
    if on_sites is not None and not callable(on_sites):
        raise argument_error("fusion", "on_sites", "a function of a list of sites", repr(on_sites), "Pass a callable.")
    check_config(config)
    converters.register_all()
    check_host_mode(config)
    current = config.post_grad_custom_pre_pass.value
    user_pass = current.user_pass if isinstance(current, FusionHook) else current
    config.post_grad_custom_pre_pass = FusionHook(options, passes, user_pass, on_sites)
    current = config.post_grad_custom_post_pass.value
    config.post_grad_custom_post_pass = current if isinstance(current, GuardHook) else GuardHook(current)
    if not is_npugraph_ex(config):
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
        passes: Passes,
        user_pass: Callable[..., Any] | None,
        on_sites: Callable[[list[FusionSite]], None] | None,
    ) -> None:
        self.options = options
        self.passes = passes
        self.user_pass = user_pass
        self.on_sites = on_sites
        self.__name__ = "npu_fused_graph"

    def __call__(self, gm: GraphModule, example_inputs: Any = None, config: Any = None) -> None:
        converters.register_all()  # a model's package may have defined operators since the backend was made
        if self.user_pass is not None:
            self.user_pass(gm, example_inputs, config)
        sites = fuse_all(gm, self._options(config), self.passes)
        if is_for_autograd() and not all(site.is_fused for site in sites):
            # not in TorchAir's name: what it warns about is hidden while it compiles
            warn_once(_WITH_AUTOGRAD, stacklevel=2)
        self._tell(sites, config)

    def before_autograd(self, gm: GraphModule, config: Any) -> None:
        """Fuse what has to be fused in the graph as Dynamo hands it over."""
        sites = fuse_before_autograd(
            gm, replace(self.options, **capabilities(config.mode.value)._asdict()), self.passes
        )
        if sites:
            self._tell(sites, config)

    def _options(self, config: Any) -> FusionOptions:
        """What was asked for, and what this machine has."""
        return replace(self.options, **capabilities("max-autotune" if config is None else config.mode.value)._asdict())

    def _tell(self, sites: list[FusionSite], config: Any) -> None:
        store_sites(sites, config)
        for site in sites:
            log.info("%s", site)
        for listener in site_listeners:
            listener(sites)
        if self.on_sites is not None:
            self.on_sites(sites)


class GuardHook:
    """The ``post_grad_custom_post_pass`` with the guards of aot/guards.py, after the pass the user had installed.

    warms_up: whether code that is captured first lets its groups allocate what they need.
    """

    warms_up = True

    def __init__(self, user_pass: Callable[..., Any] | None) -> None:
        self.user_pass = user_pass
        self.__name__ = "npu_fused_graph_guard"

    def __call__(self, gm: GraphModule, example_inputs: Any = None, config: Any = None) -> None:
        if self.user_pass is not None:
            self.user_pass(gm, example_inputs, config)
        if config is not None and config.mode.value in CAPTURING:
            refuse_strides_of_copied_inputs(gm)  # calls are eager ones: the rest is right there
            return
        refuse_strides_of_what_is_not_dense(gm)
        separate_assigned_values(gm)
        drop_assertions(gm)
        refuse_unknown_numbers(gm)


def check_config(config: Any) -> None:
    """Raise InvalidArgumentError for what is no CompilerConfig."""
    if not is_known(config):
        raise argument_error(
            "backend", "compiler_config", "a torchair.CompilerConfig", type(config).__name__,
            "Make one with torchair.CompilerConfig() or npugraph_ex.CompilerConfig().",
        )  # fmt: skip
