"""``npu-fused-graph doctor``: what is installed, in which mode it runs, and the one command that cures a gap."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import HostError, NpuFusedGraphError
from npu_fused_graph.host.paths import find_torchair, installed_wheel, is_cann_present, wheel_file
from npu_fused_graph.version import __version__

INSTALL = "npu-fused-graph host install"


def diagnose() -> dict[str, Any]:
    """Versions, what is known of them, mode, where TorchAir comes from, problems and cures. Loads TorchAir."""
    problems: list[dict[str, str]] = []
    is_device = is_cann_present() and _version("torch_npu") is not None
    torch_version = _version("torch")
    if torch_version is None:
        problems.append({"problem": "torch is not installed", "cure": "pip install torch"})
    if _version("protobuf") is None:
        problems.append({"problem": "protobuf is not installed, TorchAir needs it", "cure": "pip install protobuf"})
    torchair: dict[str, str] | None = None
    try:
        folder, rule = find_torchair()
        torchair = {"folder": str(folder), "found_by": rule}
    except HostError as error:
        if not is_device:
            explicit = os.environ.get("NFG_TORCHAIR")
            cure = "unset NFG_TORCHAIR, or point it at an unpacked torch_npu wheel" if explicit else INSTALL
            problems.append({"problem": str(error), "cure": cure})
    can_run = False
    if torchair is not None:
        try:
            can_run = bool(wheel_file("_meta_registrations.py"))
        except HostError as error:
            problems.append({"problem": str(error), "cure": f"{INSTALL} --force"})
    if installed_wheel() is not None and not is_device:
        problems.append(
            {
                "problem": "torch_npu is installed but CANN is not: `import torch` and `import transformers` break",
                "cure": "pip uninstall torch_npu",
            }
        )
    known, problem = _known() if torch_version and (torchair or is_device) else (None, None)
    problems += [problem] if problem else []
    return {
        "ok": not problems,
        "npu_fused_graph": __version__,
        "python": platform.python_version(),
        "torch": torch_version,
        "torch_npu": _version("torch_npu"),
        "transformers": _version("transformers"),
        "protobuf": _version("protobuf"),
        "mindspeed": _version("mindspeed"),
        "cann": _cann(),
        "collectives": "HCCL" if is_device else "gloo, also under the name hccl in `run`",
        "run": "ready" if can_run else "not possible",
        "mode": "device" if is_device else "host",
        "torchair": torchair,
        "versions": known,
        "problems": problems,
    }


def format_diagnosis(diagnosis: dict[str, Any]) -> str:
    """The diagnosis as a person reads it."""
    names = ("npu_fused_graph", "python", "torch", "torch_npu", "transformers", "protobuf", "mindspeed", "cann", "mode")
    lines = [f"{name:<16}{diagnosis[name] or 'not installed'}" for name in names]
    torchair = diagnosis["torchair"]
    lines.append(f"{'torchair':<16}" + (f"{torchair['folder']} ({torchair['found_by']})" if torchair else "not found"))
    lines += [f"{name:<16}{diagnosis[name]}" for name in ("collectives", "run")]
    if known := diagnosis["versions"]:
        lines.append(f"{'versions':<16}{known['text']}")
        lines += [f"{'':<16}skipped by TorchAir: {file}: {why}" for file, why in known["skipped"].items()]
    for problem in diagnosis["problems"]:
        lines += ["", f"problem: {problem['problem']}", f"cure:    {problem['cure']}"]
    return "\n".join([*lines, "", "everything is in place" if diagnosis["ok"] else "something is missing"])


def _known() -> tuple[dict[str, Any] | None, dict[str, str] | None]:
    """What is known of torch and TorchAir together, or the problem why they do not work."""
    try:
        from npu_fused_graph.host.names import CURE
        from npu_fused_graph.host.support import support

        found = support()
    except NpuFusedGraphError as error:
        what, _, cure = str(error).partition(". ")
        return None, {"problem": what, "cure": cure}
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        return None, {"problem": f"torch does not import: {error}", "cure": "install it again, or see the cause above"}
    facts = {**found.as_dict(), "text": str(found)}
    return facts, {"problem": "; ".join(found.reasons), "cure": CURE} if found.reasons else None


def _cann() -> str | None:
    """Folder and version of the CANN the environment points at; the version as its install file has it."""
    folder = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")
    if not folder:
        return None
    for path in sorted(Path(folder).glob("*/ascend_toolkit_install.info")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("version="):
                return f"{line.removeprefix('version=')} in {folder}"
    return f"unknown version in {folder}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
