"""Every example as a program of its own: it must end well, and say that its results are the ones it expects."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from npu_fused_graph.host.paths import has_npugraph_ex
from npu_fused_graph.selftest.device import Device
from npu_fused_graph.selftest.report import Check

PART = "examples"
LIMIT = 300.0
"""Seconds one may take."""

CLI = ("-m", "npu_fused_graph.commands.cli")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-endpoint", "127.0.0.1:0",
            "--rdzv-backend", "c10d")  # fmt: skip

EXAMPLES: dict[str, tuple[tuple[str, ...], str]] = {
    "01_eager": ((), r"y +\(2, 8, 32\) torch\.bfloat16"),
    "02_existing_pipeline": (("{folder}",), "my pass saw"),
    "03_two_ranks": (TORCHRUN, r"fused into matmul_all_reduce_add_rms_norm .* largest difference to eager [\de.-]+"),
    "04_quantised": ((), "compiled equal to eager: True"),
    "05_npu_script": ((*CLI, "run"), "graph equals eager: True"),
    "06_grouped_experts": ((), "grouped=True: fused into grouped_mat_mul_all_reduce"),
    "07_attention_and_ffn": (("{port}",), "equal to one process: True"),
    "08_flash_attention": ((), "relative errors against float64"),
    "09_kernel_on_the_simulator": (("{port}",), "equal to what was sent: True"),
    "10_captured_pipeline": ((), "my post pass: .*npu_mm_all_reduce_add_rms_norm"),
}
"""By name: what stands in front of the file (beginning with -m), else behind it; and what it must say."""


def checks(device: Device) -> Iterator[Check]:
    """Examples compute on CPU tensors, so on an NPU they have nothing to tell; there only the NPU script runs."""
    for name, (extra, wanted) in EXAMPLES.items():
        if device.name == "npu" and name != "05_npu_script":
            yield Check(PART, name, "skipped", "written for CPU tensors")
            continue
        if name == "10_captured_pipeline" and not has_npugraph_ex():
            yield Check(PART, name, "skipped", "this TorchAir comes without npugraph_ex")
            continue
        begin = time.perf_counter()
        outcome = _run(name, () if device.name == "npu" else extra, wanted)
        yield Check(PART, name, "FAILED" if outcome else "agrees", outcome or wanted, time.perf_counter() - begin)


def _run(name: str, extra: tuple[str, ...], wanted: str) -> str:
    """What went wrong; "" = nothing."""
    path = Path(str(files("npu_fused_graph._examples"))) / f"{name}.py"
    with tempfile.TemporaryDirectory() as folder:
        filled = [part.format(folder=folder, port=_free_port()) for part in extra]
        arguments = [*filled, str(path)] if extra[:1] == ("-m",) else [str(path), *filled]
        try:
            result = subprocess.run(
                [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return f"it had not ended after {LIMIT:.0f} s"
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return f"exit code {result.returncode}: {last}"
    if not re.search(wanted, result.stdout) or re.search(r"\bequal\w*[^:]*: False", result.stdout):
        last = (result.stdout.strip().splitlines() or ["nothing"])[-1]
        return f"expected it to say {wanted!r}, got: {last}"
    return ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
