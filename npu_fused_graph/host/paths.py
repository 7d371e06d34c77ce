"""Where the unpacked TorchAir is looked for: ``NFG_TORCHAIR``, our cache, an installed torch_npu wheel."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

from npu_fused_graph.cache import cache_dir
from npu_fused_graph.errors import HostError

TORCH_NPU_VERSION = "2.13.0"
"""The torch_npu release whose TorchAir is fetched and that everything here is tested with."""

PACKAGES = Path(__file__).parent / "packages"
"""The stand-in packages of ``npu-fused-graph run``."""

EXTRA_FILES = {
    "torch_npu/csrc/aten/npu_native_functions.yaml": "npu_native_functions.yaml",
    "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml": "npu_native_functions_by_codegen.yaml",
    "torch_npu/op_plugin/meta/_meta_registrations.py": "_meta_registrations.py",
}
"""What is unpacked besides TorchAir: place in the wheel -> name in the cache."""


def unpacked_dir() -> Path:
    """The folder ``npu-fused-graph host install`` fills."""
    return cache_dir() / f"torch_npu-{TORCH_NPU_VERSION}"


def find_torchair() -> tuple[Path, str]:
    """The folder that holds the package ``torchair``, and which rule found it.

    Raises HostError with the one command that cures its absence.
    """
    explicit = os.environ.get("NFG_TORCHAIR")
    if explicit:
        folder = Path(explicit).expanduser()
        for candidate in (folder, folder / "torch_npu" / "dynamo", folder.parent):
            if holds_torchair(candidate):
                return candidate, "NFG_TORCHAIR"
        raise HostError(
            f"[host] NFG_TORCHAIR: expected a folder that holds torchair/, got {explicit}. "
            "Point it at an unpacked torch_npu wheel, or unset it."
        )
    unpacked = unpacked_dir()
    if holds_torchair(unpacked):
        return unpacked, "cache"
    wheel = installed_wheel()
    if wheel is not None and holds_torchair(wheel):
        return wheel, "installed torch_npu"
    raise HostError(
        f"[host] TorchAir: expected it in the cache ({unpacked}) or in an installed torch_npu, got neither. "
        "Run: npu-fused-graph host install"
    )


def holds_torchair(folder: Path) -> bool:
    """Whether the package ``torchair`` lies in ``folder``."""
    return (folder / "torchair" / "npu_fx_compiler.py").is_file()


def installed_wheel() -> Path | None:
    """Where an installed torch_npu has its ``torchair``; None without torch_npu."""
    for distribution in importlib.metadata.distributions(name="torch_npu"):
        folder = Path(str(distribution.locate_file("torch_npu/dynamo")))
        if PACKAGES not in folder.parents:
            return folder
    return None


def is_cann_present() -> bool:
    """Whether this looks like a machine where ``import torch_npu`` can work."""
    if "torch_npu" in sys.modules:
        module = sys.modules["torch_npu"]
        return hasattr(module, "npu") and not hasattr(module, "__npu_fused_graph_stand_in__")
    return any(os.environ.get(name) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"))


def wheel_file(name: str) -> Path:
    """A file of the torch_npu wheel besides TorchAir: one of :data:`EXTRA_FILES`, beside the TorchAir that is found.

    Raises HostError with the one command that cures its absence.
    """
    folder, _ = find_torchair()
    inside = next(path for path, short in EXTRA_FILES.items() if short == name)
    for candidate in (folder / name, folder.parents[1] / inside):
        if candidate.is_file():
            return candidate
    raise HostError(
        f"[host] {name}: expected it beside TorchAir in {folder}, got no such file. "
        "Run: npu-fused-graph host install --force (and unset NFG_TORCHAIR)"
    )
