"""Builds a mutant, forks, and lets the battery loose on it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
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
    is_dispatch = "add_rms_norm" not in str(mutant.file)
    with tempfile.TemporaryDirectory(prefix="nfg-mutant-") as scratch:
        for dtype, c_type, scenario in TYPES:
            try:
                changed = {str(mutant.file): mutant.text}
                built = build(Path(scratch), changed, is_dispatch=is_dispatch, c_type=c_type, name=scenario)
            except BuildError as error:
                return Verdict(mutant, REFUSED, str(error))
            why = _forked(_trials(built, is_dispatch, dtype, scenario))
            if why:
                return Verdict(mutant, CAUGHT, why)
    return Verdict(mutant, SURVIVED)


def baseline() -> str:
    """What the battery says of the kernels as they are; "" when all is right: else no verdict means anything."""
    for is_dispatch in (False, True):
        for dtype, c_type, scenario in TYPES:
            with tempfile.TemporaryDirectory(prefix="nfg-mutant-") as scratch:
                built = build(Path(scratch), {}, is_dispatch=is_dispatch, c_type=c_type, name=scenario)
                if why := _forked(_trials(built, is_dispatch, dtype, scenario), patience=10 * PATIENCE):
                    return f"{'AttentionToFFN' if is_dispatch else 'the norm stage'}, {scenario}: {why}"
    return ""


class BuildError(Exception):
    """What the compiler says."""


def build(scratch: Path, changed: Mapping[str, str], *, is_dispatch: bool, c_type: str, name: str) -> Path:
    """A library of a kernel with other texts in place of its own, by file in the kernels' folder.

    is_dispatch: AttentionToFFN, else the norm stage. c_type: of x. Raises BuildError.
    """
    folder = kernels_folder()
    for part in (*STEMS, "common"):
        shutil.copytree(folder / part, scratch / part, dirs_exist_ok=True)
    for file, text in changed.items():
        (scratch / file).write_text(text)
    include = (scratch, folder / "sim" / "include", folder / "sim" / "src", folder / "sim" / "host", folder)
    target = scratch / f"{name}.so"
    if is_dispatch:
        stem = scratch / "attention_to_ffn"
        sources = [
            stem / "op_kernel" / "attention_to_ffn.cpp", stem / "op_host" / "attention_to_ffn_tiling.cpp",
            folder / "sim" / "host" / "run_tiling.cpp",
        ]  # fmt: skip
    else:
        sources = [ENTRIES / "add_rms_norm.cpp"]
    done = subprocess.run(
        [
            "g++", "-std=c++17", "-O1", "-fPIC", "-w", "-mavx2", "-mf16c", *(f"-I{path}" for path in include),
            f"-D{'DTYPE_X' if is_dispatch else 'DTYPE_X1'}={c_type}", "-shared", *map(str, sources), str(simulator()),
            "-ldl", "-o", str(target),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BuildError(next((x for x in done.stderr.splitlines() if "error" in x), "?"))
    return target


def _trials(built: Path, is_dispatch: bool, dtype: torch.dtype, scenario: str) -> Iterator[Trial]:
    if is_dispatch:
        row = next(row for row in SPEC.rows if row.scenario == scenario)
        yield from dispatch_trials(OperatorKernel(SPEC, row, built), dtype)
    else:
        yield from norm_trials(built, dtype)


def _forked(trials: Iterator[Trial], patience: float = PATIENCE) -> str:
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
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})".encode()[:400]
        os.write(writing, said)
        os._exit(0)
    os.close(writing)
    limit = time.monotonic() + patience
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
    return f"no end within {patience:g} s"
