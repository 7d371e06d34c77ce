"""TorchAir in a run: loaded with our converters, once, whatever name it is imported under."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any

from npu_fused_graph.host import load
from npu_fused_graph.host.standin.device import mark


def on_load() -> None:
    """Once TorchAir is there: our converters, as MindSpeed brings its own, and a count of the graphs it makes."""
    from npu_fused_graph import converters
    from npu_fused_graph.host import native
    from npu_fused_graph.host.standin import process

    converters.register_all()
    # TorchAir asks c10d for a group's default device in a deprecated way; nothing the script could change
    warnings.filterwarnings("ignore", message=r"(`_get_pg_default_device`|Multiple backends are registered)")
    native.result_listeners.append(mark)
    native.graph_listeners.append(lambda executable: process.counts.update(("graphs",)))


def install(parent: str) -> None:
    """Make ``<parent>.torchair``, and every module below it, another name of ``torchair``."""
    sys.meta_path.insert(0, _AliasFinder(f"{parent}.torchair"))
    load.on_load.append(on_load)


class _AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
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
        real = "torchair" + spec.name.removeprefix(self._alias)
        module = importlib.import_module(real)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has just given it the alias's
