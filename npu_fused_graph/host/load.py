"""Loads TorchAir: the installed one on a device, the unpacked one with stand-ins on a host."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from npu_fused_graph.errors import HostError
from npu_fused_graph.host.names import check_names, out_of_range
from npu_fused_graph.host.paths import find_torchair, installed_wheel, is_cann_present

Mode = Literal["device", "host"]

on_load: list[Callable[[], None]] = []
"""Called once TorchAir is there."""

_loaded: tuple[Mode, types.ModuleType] | None = None
_lock = threading.RLock()


def mode() -> Mode:
    """``device`` where CANN and torch_npu import, else ``host``; decided once per process."""
    return _load()[0]


def load_torchair() -> types.ModuleType:
    """The TorchAir package. Afterwards ``import torchair`` works anywhere in the process.

    Raises HostError when there is none; its text names the command that installs it.
    """
    return _load()[1]


def _load() -> tuple[Mode, types.ModuleType]:
    global _loaded
    with _lock:
        if _loaded is not None:
            return _loaded
        check_names("torch")
        device = _load_installed()
        from npu_fused_graph.host.compile_cache import guard_module_names
        from npu_fused_graph.host.defects import guard_backward_calls, guard_order_of_effects, guard_shape_inference
        from npu_fused_graph.host.lost_writes import tell_lost_writes

        found: tuple[Mode, types.ModuleType] = ("host", _load_host()) if device is None else ("device", device)
        if device is not None:
            check_names("torchair")
        guard_order_of_effects()
        guard_shape_inference()
        tell_lost_writes()
        guard_backward_calls("torchair")
        guard_module_names()
        _loaded = found
        for hook in on_load:
            hook()
        return found


def _load_installed() -> types.ModuleType | None:
    if not is_cann_present():
        return None
    try:
        importlib.import_module("torch_npu")
        return importlib.import_module("torchair")
    except (ImportError, OSError, RuntimeError) as error:
        warnings.warn(
            f"[host] CANN's environment is set but torch_npu does not import ({error}): host mode.", stacklevel=3
        )
        return None


def _load_host() -> types.ModuleType:
    from npu_fused_graph.host import native
    from npu_fused_graph.host.compile_cache import refresh_groups_code
    from npu_fused_graph.host.defects import guard_view_optimisation
    from npu_fused_graph.host.empty_collectives import KeptWhenEmpty
    from npu_fused_graph.host.random import rng_state_class
    from npu_fused_graph.host.registration import registered_for_cpu_too
    from npu_fused_graph.host.unknown_sizes import has_no_elements
    from npu_fused_graph.ops import specs

    if "torchair" in sys.modules:
        raise HostError(
            "[host] torchair: expected to be the first to import it, got one imported already. "
            "Call npu_fused_graph.load_torchair() before `import torchair`."
        )
    folder, _ = find_torchair()
    if "torch_npu" not in sys.modules and installed_wheel() is not None:
        _hide_torch_npu()
    own = {spec.ge_type: spec.ir_def() for spec in specs()}
    modules = native.build_modules(native.IrRegistry(folder / "torchair", own))
    sys.modules.update(modules)
    sys.meta_path.insert(0, _TorchairFinder(folder))  # before the shim of host/packages
    try:
        with signals_kept(), registered_for_cpu_too(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # third-party deprecations at import, not about the user's code
            torchair = importlib.import_module("torchair")
            # Converters of torch.ops.npu.* that do not exist here are skipped with a warning each, once, at the
            # first look-up. Doing it now keeps 123 of them away from the user without a filter that stays.
            importlib.import_module("torchair._ge_concrete_graph.ge_converter.custom")
            # imported at the first compile otherwise, with a SyntaxWarning
            importlib.import_module("torchair.patterns._recover_view_inplace_pattern")
            check_names("torchair")
    except BaseException as error:
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchair"]:
            del sys.modules[name]
        sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _TorchairFinder)]
        if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] not in ("torch", "torchair"):
            raise HostError(
                f"[host] {error.name}: expected it beside TorchAir, got none. pip install {error.name}"
            ) from error
        if isinstance(error, (ImportError, AttributeError)):
            raise out_of_range(f"TorchAir in {folder} does not import: {error}") from error
        raise
    graphs: Any = importlib.import_module("torchair.ge._ge_graph")
    graphs.map_graph_rng_state = rng_state_class(graphs._GraphRngState)
    lowering: Any = importlib.import_module("torchair._ge_concrete_graph.fx2ge_converter")
    lowering.codegen_refresh_cache_pgname = refresh_groups_code
    lowering._DONT_EMPTY_TENSOR_OPT_OPS = KeptWhenEmpty(lowering._DONT_EMPTY_TENSOR_OPT_OPS)
    lowering.is_zero_element_tensor = has_no_elements
    guard_view_optimisation()
    core = importlib.import_module("torchair.core")
    for name, module in modules.items():
        setattr(core, name.rpartition(".")[2], module)
    return torchair


class _TorchairFinder:
    """Finds the top-level package ``torchair`` in one folder, and nothing else there."""

    def __init__(self, folder: Path) -> None:
        self._path = [str(folder)]

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torchair" or path is not None:
            return None
        return importlib.machinery.PathFinder.find_spec(name, self._path)


def _hide_torch_npu() -> None:
    """Make find_spec("torch_npu") say "not installed": without CANN the package cannot be imported."""

    class WithoutTorchNpu(importlib.machinery.PathFinder):
        @classmethod
        def find_spec(
            cls, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
        ) -> importlib.machinery.ModuleSpec | None:
            if fullname.partition(".")[0] == "torch_npu":
                return None
            return super().find_spec(fullname, path, target)

    sys.meta_path[:] = [WithoutTorchNpu if f is importlib.machinery.PathFinder else f for f in sys.meta_path]


@contextmanager
def signals_kept() -> Iterator[None]:
    """Packages of torch_npu install handlers that swallow Ctrl-C: they re-send the signal after ignoring it."""
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
