"""Loads npugraph_ex, TorchAir's second back end: FX passes, then a captured graph. Its Python is the wheel's own."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from npu_fused_graph.errors import HostError, UnsupportedModeError, warn_once
from npu_fused_graph.host.capture import communicators, lines, recording
from npu_fused_graph.host.defects import (
    guard_backward_calls,
    guard_registration,
    guard_reinplacing,
    guard_removed_copies,
    guard_single_results,
)
from npu_fused_graph.host.load import load_torchair, mode, signals_kept
from npu_fused_graph.host.lost_writes import tell_lost_writes_of_captures
from npu_fused_graph.host.names import check_names
from npu_fused_graph.host.paths import PACKAGES, find_npugraph_ex
from npu_fused_graph.host.registration import registered_for_cpu_too
from npu_fused_graph.host.standin import state
from npu_fused_graph.passes.location import source_line


@functools.cache
def load_npugraph_ex() -> types.ModuleType:
    """The npugraph_ex package. Afterwards ``import npugraph_ex`` works anywhere in the process.

    In host mode torch.npu exists afterwards, too, and says that no NPU is available. Raises HostError where the
    TorchAir that is used comes without it.
    """
    load_torchair()
    package = _load_host() if mode() == "host" else importlib.import_module("npugraph_ex")
    check_names("npugraph_ex")
    _extend_code()
    guard_reinplacing("npugraph_ex")
    guard_removed_copies("npugraph_ex")
    guard_single_results("npugraph_ex")
    tell_lost_writes_of_captures("npugraph_ex")
    guard_registration()
    guard_backward_calls("npugraph_ex")
    if not hasattr(package.CompilerConfig, "experimental_config"):
        # D4: it switches an option off in there that its configuration does not have
        package.CompilerConfig.experimental_config = types.SimpleNamespace(enable_view_optimize=False)
    return package


def _load_host() -> types.ModuleType:
    folder = find_npugraph_ex()
    serve_captures()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder({"npugraph_ex": folder}))
    with signals_kept(), registered_for_cpu_too(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the package, not about the user's code
        try:
            package = importlib.import_module("npugraph_ex")
        except (ImportError, AttributeError) as error:
            raise HostError(
                f"[host] npugraph_ex in {folder}: expected it to import, got: {error}. "
                "Run: npu-fused-graph host install --force"
            ) from error
    _without_a_device("npugraph_ex")
    if state.only_captures:
        _pass_over_patterns("npugraph_ex")
    return package


class _Finder:
    """Finds some top-level packages, each in its folder."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders = folders

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is not None or name not in self._folders:
            return None
        return importlib.machinery.PathFinder.find_spec(name, [str(self._folders[name])])


def serve_captures() -> None:
    """Host mode: TorchAir's modes that capture, and without ``run`` the stand-in torch_npu.

    Of that only what captures graphs is used: no device, no operators.
    """
    _without_a_device("torchair")
    if "torch_npu" in sys.modules:
        return
    state.only_captures = True
    finder = _Finder({"torch_npu": PACKAGES})
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module("torch_npu")
    finally:
        sys.meta_path.remove(finder)
    if not hasattr(torch.Tensor, "is_npu"):
        # asked of inputs while a graph is captured: every tensor is on the device then
        torch.Tensor.is_npu = property(lambda x: recording.current is not None)  # type: ignore[attr-defined]
    _pass_over_patterns("torchair")


def _without_a_device(package: str) -> None:
    """What both back ends do with an NPU besides capturing: static kernels are left out, the rest is refused."""
    replacements = {
        "compile_static_kernel": _no_static_kernels,
        "run_deadlock_check": _refused(
            "deadlock_check", "it reads the trace of a device", "streams that are not joined are refused here anyway"
        ),
        "insert_save_npugraph_tensor": _refused(
            "dump_tensor_data", "torch_npu's save_npugraph_tensor writes it",
            "in mode max-autotune `npu-fused-graph record` keeps values",
        ),
    }  # fmt: skip
    if hasattr(torch.ops.npu, "save_npugraph_tensor"):  # in a run
        del replacements["insert_save_npugraph_tensor"]
    for part in ("acl_graph", "fx2acl_converter", "utils"):
        module: Any = importlib.import_module(f"{package}._acl_concrete_graph.{part}")
        for name in replacements.keys() & vars(module).keys():
            setattr(module, name, replacements[name])


def _no_static_kernels(*args: Any, **kwargs: Any) -> None:
    warn_once("[backend] static_kernel_compile: expected an NPU, got a machine without one. It has no effect.")


def _refused(option: str, why: str, instead: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise UnsupportedModeError(
            f"[backend] {option}: expected an NPU, got a machine without one: {why}. Leave it out; {instead}."
        )

    return refuse


def _pass_over_patterns(package: str) -> None:
    """Its own patterns are traced when the first graph is compiled, with operators of torch_npu, which are not here.

    Nor are they in any graph then. Patterns of users' stay. TorchAir has the same, where it sees a torch_npu.
    """
    module: Any = importlib.import_module(f"{package}.patterns.pattern_util")
    for name in [name for name in vars(module) if name.startswith("_register_")]:
        setattr(module, name, lambda manager: None)


def _extend_code() -> None:
    """Let generated code carry the user's line of every call, and where our hooks are, first warm its groups up.

    Code may come from a cache, in a process whose groups have not communicated yet.
    """
    converter: Any = importlib.import_module("npugraph_ex._acl_concrete_graph.fx2acl_converter").AclConcreteGraph
    original = converter.codegen

    @functools.wraps(original)
    def codegen(self: Any, *args: Any, **kwargs: Any) -> Any:
        code = original(self, *args, **kwargs)
        if code is None:
            return None
        table = {node.name: line for node in self.fx_graph.graph.nodes if (line := source_line(node))}
        head = f"{lines.LINES} = {table!r}\n"
        groups = communicators.groups_in(self.fx_graph)
        if groups and getattr(self.config.post_grad_custom_post_pass.value, "warms_up", False):
            head += f"from {communicators.__name__} import warm_up\nwarm_up({groups!r})\n"
        return head + code

    converter.codegen = codegen
