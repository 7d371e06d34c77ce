"""The private names of torch, TorchAir and npugraph_ex that are used: they must be there, or nothing may begin."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any, Literal

from npu_fused_graph.errors import HostError

PYTHON = ((3, 10), (3, 13))
TORCH = ((2, 9), (2, 14))
"""First and last version that anything was tried with; newer ones may work."""

CURE = (
    "Take a torch from {}.{} to {}.{}, or another TorchAir: npu-fused-graph host install --torch-npu VERSION "
    "(on a device: the torch_npu that belongs to this torch)."
).format(*TORCH[0], *TORCH[1])


def check_names(package: Literal["torch", "torchair", "npugraph_ex"], *, is_run: bool = False) -> None:
    """Raise HostError unless every private name of ``package`` we use exists. is_run: those of the stand-ins."""
    names = json.loads((Path(__file__).parent / "private_names.json").read_text(encoding="utf-8"))
    wanted = names["npugraph_ex" if package == "npugraph_ex" else "run" if is_run else "always"]
    missing = [name for name in wanted if name.partition(".")[0] == package and not _exists(name)]
    if missing:
        cure = "npu-fused-graph run needs torch 2.10 or later." if is_run else CURE
        raise out_of_range(f"missing {', '.join(missing)}", cure)


def out_of_range(reason: str, cure: str = CURE) -> HostError:
    """The error where nothing can work. reason: what is missing."""
    return HostError(
        f"[host] versions: expected torch and TorchAir that go together, got torch {torch_version()} on Python "
        f"{platform.python_version()}, out of range: {reason}. {cure}"
    )


def _exists(name: str) -> bool:
    module, *rest = name.split(".")
    value: Any = importlib.import_module(module)
    for part in rest:
        module += f".{part}"
        try:
            value = getattr(value, part)
        except AttributeError:
            try:
                value = importlib.import_module(module)
            except ImportError:
                return False
    return True


def torch_version() -> str:
    """Of the installed torch, without what follows a +."""
    return importlib.metadata.version("torch").partition("+")[0]
