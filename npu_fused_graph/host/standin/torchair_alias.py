"""TorchAir in a run: loaded with our converters, once, whatever name it is imported under."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any

from npu_fused_graph.host import load
from npu_fused_graph.host.config import check_host_mode
from npu_fused_graph.host.standin.device import mark
from npu_fused_graph.host.standin.formats import use_internal_format_weight


def on_load() -> None:
    """Once TorchAir is there: our converters, as MindSpeed brings its own, and a count of the graphs it makes."""
    from npu_fused_graph import converters
    from npu_fused_graph.host import native
    from npu_fused_graph.host.standin import process
    from npu_fused_graph.host.support import support

    converters.register_all()
    native.result_listeners.append(mark)
    torchair: Any = importlib.import_module("torchair")
    for module in (torchair, importlib.import_module("torchair.experimental.inference")):
        vars(module)["use_internal_format_weight"] = use_internal_format_weight
    watch("torchair")
    process.tell_versions(str(support()))
    native.graph_listeners.append(lambda executable: process.counts.update(("graphs",)))


def watch(package: str) -> None:
    """Count what becomes of the graphs of ``package``, torchair or npugraph_ex, and repair what its defects spoil."""
    from npu_fused_graph.host import defects
    from npu_fused_graph.host.standin import causes, fusable, process, state, survey

    is_stock = state.options().stock

    def tell(defect: str, graph: str) -> None:
        process.counts[f"spoiled {defect} {graph}" if is_stock else f"guarded {defect}"] += 1

    _watch_backend(package)
    instead = survey.run_eagerly if survey.is_on() else None
    defects.watch(tell, repairs=not is_stock, package=package, instead=instead)
    fusable.watch(
        process.count_sites, lambda error: process.counts.update((f"unexamined {causes.one_line(error)}",)), package
    )


def _watch_backend(package: str) -> None:
    """Count failures after which Dynamo lets the model run eagerly, with no more than a line in its log.

    A configuration that cannot be served here is refused as by our own backend.
    """
    from torch._dynamo.exc import exceptions_allowed_to_be_fallback

    from npu_fused_graph.host.defects import PG_DEVICE
    from npu_fused_graph.host.standin import causes, process

    compiler: Any = importlib.import_module(f"{package}.npu_fx_compiler")
    original = compiler._npu_backend

    @functools.wraps(original)
    def backend(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("compiler_config") is not None:
            check_host_mode(kwargs["compiler_config"])
        # TorchAir asks c10d for a group's default device in a deprecated way; nothing the script could change. Here,
        # since Dynamo has just put a filter of its own before all others.
        warnings.filterwarnings("ignore", message=PG_DEVICE)
        try:
            return original(*args, **kwargs)
        except exceptions_allowed_to_be_fallback as error:
            process.counts[f"fallback {causes.one_line(error)}"] += 1
            raise

    compiler._npu_backend = backend


def install(parent: str) -> None:
    """Make ``<parent>.torchair``, and every module below it, another name of ``torchair``."""
    sys.meta_path.insert(0, AliasFinder(f"{parent}.torchair"))
    load.on_load.append(on_load)


class AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules of one package under the name of another; they are the same objects."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._alias and not name.startswith(self._alias + "."):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        real = self._alias.rpartition(".")[2] + spec.name.removeprefix(self._alias)
        module = importlib.import_module(real)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has just given it the alias's
