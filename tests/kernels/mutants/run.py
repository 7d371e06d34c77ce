"""Builds a mutant, forks, and lets the battery loose on it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from npu_fused_graph.ops.attention_to_ffn import SPEC
from npu_fused_graph.sim.build import kernels_folder, simulator
from npu_fused_graph.sim.operators import OperatorKernel
from tests.kernels.built import ENTRIES
from tests.kernels.mutants.battery import Trial, dispatch_trials, norm_trials
from tests.kernels.mutants.operators import Mutant

CAUGHT, SURVIVED, REFUSED = "caught", "survived", "does not compile"
STEMS = ("attention_to_ffn", "matmul_all_reduce_add_rms_norm")
PATIENCE = 60.0
"""Seconds the battery has on a mutant: what hangs is caught, too."""

TYPES = [(torch.float16, "half", "float16"), (torch.bfloat16, "bfloat16_t", "bfloat16")]


@dataclass(frozen=True)
class Verdict:
    """why: what noticed it, or what the compiler said."""

    mutant: Mutant
    verdict: str
    why: str = ""


def targets(folder: Path) -> list[Path]:
    """All that runs on the device; relative to the kernels' folder."""
    found = [p for stem in STEMS for p in folder.glob(f"{stem}/op_kernel/*")]
    return sorted(p.relative_to(folder) for p in [*found, folder / "common" / "windows.h"])


def try_mutant(mutant: Mutant) -> Verdict:
    """One fault, from building to what noticed it."""
    folder = kernels_folder()
    with tempfile.TemporaryDirectory(prefix="nfg-mutant-") as scratch:
        changed = Path(scratch)
        for part in (*STEMS, "common"):
            shutil.copytree(folder / part, changed / part)
        (changed / mutant.file).write_text(mutant.text)
        is_dispatch = "add_rms_norm" not in str(mutant.file)
        for dtype, c_type, scenario in TYPES:
            target = changed / f"{scenario}.so"
            said = _build(folder, changed, target, is_dispatch, c_type)
            if said:
                return Verdict(mutant, REFUSED, said)
            why = _forked(_trials(target, is_dispatch, dtype, scenario))
            if why:
                return Verdict(mutant, CAUGHT, why)
    return Verdict(mutant, SURVIVED)


def _build(folder: Path, changed: Path, target: Path, is_dispatch: bool, c_type: str) -> str:
    """What the compiler says; "" when it built ``target``."""
    include = (changed, folder / "sim" / "include", folder / "sim" / "src", folder / "sim" / "host", folder)
    common = ["g++", "-std=c++17", "-O1", "-fPIC", "-w", "-mavx2", "-mf16c", *(f"-I{path}" for path in include)]
    if is_dispatch:
        sources = [
            changed / "attention_to_ffn" / "op_kernel" / "attention_to_ffn.cpp",
            changed / "attention_to_ffn" / "op_host" / "attention_to_ffn_tiling.cpp",
            folder / "sim" / "host" / "run_tiling.cpp",
        ]
        common += [f"-DDTYPE_X={c_type}"]
    else:
        sources = [ENTRIES / "add_rms_norm.cpp"]
        common += [f"-DDTYPE_X1={c_type}"]
    done = subprocess.run(
        [*common, "-shared", *map(str, sources), str(simulator()), "-ldl", "-o", str(target)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else next((x for x in done.stderr.splitlines() if "error" in x), "?")


def _trials(built: Path, is_dispatch: bool, dtype: torch.dtype, scenario: str) -> Iterator[Trial]:
    if is_dispatch:
        row = next(row for row in SPEC.rows if row.scenario == scenario)
        yield from dispatch_trials(OperatorKernel(SPEC, row, built), dtype)
    else:
        yield from norm_trials(built, dtype)


def _forked(trials: Iterator[Trial]) -> str:
    """What the battery said in a process of its own; "" when it noticed nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        os.dup2(sys.stderr.fileno(), 2)
        said = b""
        try:
            for trial in trials:
                trial()
        except BaseException as error:
            said = (f"{type(error).__name__}: {error}".strip() or "failed").splitlines()[0].encode()[:400]
        os.write(writing, said)
        os._exit(0)
    os.close(writing)
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            said = os.read(reading, 1000).decode(errors="replace")
            os.close(reading)
            return f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    return f"no end within {PATIENCE:g} s"
