"""``npu-fused-graph doctor``: what is installed, in which mode it runs, and the one command that cures a gap."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings
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
    known: dict[str, Any] | None = None
    if torch_version and (torchair or is_device):
        known, is_device, found = _known(is_device)
        problems += found
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
        lowered = known["lowered_to"]
        others = {stem: what for stem, what in lowered.items() if " " in what}
        lines.append(f"{'lowered to':<16}their own GE types: {len(lowered) - len(others)} operators")
        lines += [f"{'':<16}{stem}: {what}" for stem, what in others.items()]
        lines += [f"{'':<16}skipped by TorchAir: {file}: {why}" for file, why in known["skipped"].items()]
    for problem in diagnosis["problems"]:
        lines += ["", f"problem: {problem['problem']}", f"cure:    {problem['cure']}"]
    return "\n".join([*lines, "", "everything is in place" if diagnosis["ok"] else "something is missing"])


def _known(seems_device: bool) -> tuple[dict[str, Any] | None, bool, list[dict[str, str]]]:
    """What is known of torch and TorchAir together, whether this is device mode, and why they do not work."""
    problems: list[dict[str, str]] = []
    is_device = seems_device
    facts: dict[str, Any] | None = None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            from npu_fused_graph.host.capabilities import capabilities
            from npu_fused_graph.host.load import mode
            from npu_fused_graph.host.names import CURE
            from npu_fused_graph.host.support import support

            found = support()
            is_device = mode() == "device"
            facts = {**found.as_dict(), "text": str(found)}
            unavailable, targets = capabilities()
            lacking = {stem: f"nothing: {refusal.text}" for stem, refusal in unavailable.items()}
            facts["lowered_to"] = {**targets, **lacking}
            if found.reasons:
                problems.append({"problem": "; ".join(found.reasons), "cure": CURE})
        except NpuFusedGraphError as error:
            what, _, cure = str(error).partition(". ")
            problems.append({"problem": what, "cure": cure})
        except Exception as error:  # whatever an installation is broken by is a finding
            what = f"torch does not load: {type(error).__name__}: {error}".partition("\n")[0]
            problems.append({"problem": what, "cure": "repair what the error names"})
    if seems_device and not is_device:
        why = [str(w.message) for w in said if "torch_npu does not import" in str(w.message)]
        problem = why[0].removesuffix(": host mode.") if why else "torch_npu does not import"
        problems.append({"problem": problem, "cure": "see the cause, and that CANN's set_env.sh was sourced"})
    return facts, is_device, problems


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
