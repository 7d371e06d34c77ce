"""npugraph_ex in a run: loaded when a script imports it, under either of its names."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

from npu_fused_graph.host.capture import graphs, recording
from npu_fused_graph.host.npugraph_ex import load_npugraph_ex
from npu_fused_graph.host.paths import npugraph_ex_of_npu
from npu_fused_graph.host.standin import process, state, torchair_alias
from npu_fused_graph.host.standin.device import mark


def install(parent: str) -> None:
    """Let ``import npugraph_ex`` load it, and make ``<parent>.npugraph_ex`` another name of it."""
    sys.meta_path[:0] = [_Loading(), torchair_alias.AliasFinder(f"{parent}.npugraph_ex")]
    recording.allocation_listeners.append(mark)
    graphs.poisons = state.options().strict
    graphs.capture_listeners.append(lambda graph: process.counts.update(("captured",)))


class _Loading(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads the package at its first import, and finds the one in torch_npu.npu that hands on to it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torch_npu.npu.npugraph_ex":
            return importlib.machinery.PathFinder.find_spec(name, [str(npugraph_ex_of_npu())])
        if name != "npugraph_ex" or self._is_loading:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    _is_loading = False

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        self._is_loading = True
        module = load_npugraph_ex()
        self._spec = module.__spec__
        torchair_alias.watch("npugraph_ex")
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec
