"""Where the unpacked TorchAir is looked for: ``NFG_TORCHAIR``, our cache, an installed torch_npu wheel."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from pathlib import Path

from npu_fused_graph.cache import cache_dir
from npu_fused_graph.errors import HostError

DEFAULT_TORCH_NPU = "2.13.0"
"""The torch_npu release whose TorchAir is fetched where none is asked for; it serves every torch in range."""

PACKAGES = Path(__file__).parent / "packages"
"""The stand-in packages of ``npu-fused-graph run``."""

EXTRA_FILES = {
    "torch_npu/csrc/aten/npu_native_functions.yaml": "npu_native_functions.yaml",
    "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml": "npu_native_functions_by_codegen.yaml",
    "torch_npu/op_plugin/meta/_meta_registrations.py": "_meta_registrations.py",
}
"""What is unpacked besides TorchAir: place in the wheel -> name in the cache."""


CANN_VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
"""What the script that sets CANN's environment sets."""


def unpacked_dir(version: str | None = None) -> Path:
    """The folder ``npu-fused-graph host install`` fills. version: of torch_npu; None: the one this environment uses."""
    return cache_dir() / f"torch_npu-{version or chosen_version()}"


def chosen_version() -> str:
    """The torch_npu release whose TorchAir is used in this Python environment."""
    try:
        return _choice().read_text(encoding="utf-8").strip() or DEFAULT_TORCH_NPU
    except OSError:
        return DEFAULT_TORCH_NPU


def choose_version(version: str) -> None:
    """Use this torch_npu release's TorchAir in this Python environment from now on."""
    choice = _choice()
    choice.parent.mkdir(parents=True, exist_ok=True)
    fresh = choice.with_name(f"{choice.name}.{os.getpid()}")
    fresh.write_text(version, encoding="utf-8")
    fresh.replace(choice)


def _choice() -> Path:
    """One file per environment: environments share the cache, and their torch may need another TorchAir."""
    return cache_dir() / "chosen" / hashlib.sha256(sys.prefix.encode()).hexdigest()[:16]


def version_in(torchair: Path) -> str:
    """The torch_npu release that a folder ``torchair`` was unpacked from or installed with; "" if nothing says so."""
    if torchair.parent.name.startswith("torch_npu-"):
        return torchair.parent.name.removeprefix("torch_npu-")
    # of torch_npu/dynamo/torchair, or beside it
    found = [info for site in torchair.parents[:3] for info in sorted(site.glob("torch_npu-*.dist-info"))]
    return found[-1].name.removeprefix("torch_npu-").removesuffix(".dist-info") if found else ""


def imitated_version() -> str:
    """The torch_npu release the stand-in packages say they are: the one whose TorchAir is used."""
    return version_in(find_torchair()[0] / "torchair") or DEFAULT_TORCH_NPU


def find_torchair() -> tuple[Path, str]:
    """The folder that holds the package ``torchair``, and which rule found it.

    Raises HostError with the one command that cures its absence.
    """
    explicit = os.environ.get("NFG_TORCHAIR")
    if explicit:
        folder = Path(explicit).expanduser().absolute()
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


def find_npugraph_ex() -> Path:
    """The folder that holds the package ``npugraph_ex``: that of TorchAir, whose wheel it comes in.

    Raises HostError with the one command that cures its absence.
    """
    folder, _ = find_torchair()
    if not (folder / "npugraph_ex" / "npu_fx_compiler.py").is_file():
        raise HostError(
            f"[host] npugraph_ex: expected it beside TorchAir in {folder}, got none. "
            "Run: npu-fused-graph host install (torch_npu from 2.13.0 on has it; unset NFG_TORCHAIR)"
        )
    return folder


def has_npugraph_ex() -> bool:
    """Whether the TorchAir that is found comes with npugraph_ex, which older releases do not."""
    try:
        return bool(find_npugraph_ex())
    except HostError:
        return False


def npugraph_ex_of_npu() -> Path:
    """The folder that holds the package ``torch_npu.npu.npugraph_ex``, which hands on to the other one."""
    folder = find_npugraph_ex()
    return next((x for x in (folder / "npu", folder.parent / "npu") if (x / "npugraph_ex").is_dir()), folder / "npu")


def installed_wheel() -> Path | None:
    """Where an installed torch_npu has its ``torchair``; None without torch_npu."""
    for distribution in importlib.metadata.distributions(name="torch_npu"):
        folder = Path(str(distribution.locate_file("torch_npu/dynamo")))
        if not (distribution.metadata["Summary"] or "").startswith("Stand-in of npu_fused_graph"):
            return folder
    return None


def is_cann_present() -> bool:
    """Whether this looks like a machine where ``import torch_npu`` can work."""
    if "torch_npu" in sys.modules:
        module = sys.modules["torch_npu"]
        return hasattr(module, "npu") and not hasattr(module, "__npu_fused_graph_stand_in__")
    return any(os.environ.get(name) for name in CANN_VARIABLES)


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
