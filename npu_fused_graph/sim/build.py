"""Builds kernels for the simulator with g++, once per source text, into the cache."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from npu_fused_graph.cache import cache_dir
from npu_fused_graph.errors import KernelError

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers")
_LEAST = 12  # the first g++ that has _Float16 on x86-64


def kernels_folder() -> Path:
    """The folder of the kernels' sources: ``kernels/`` of a checkout, shipped with a wheel."""
    spec = importlib.util.find_spec("npu_fused_graph._kernels")
    if spec is None or not spec.submodule_search_locations:
        raise KernelError(
            "[sim] kernels: expected their sources beside the package, got none. Reinstall npu_fused_graph."
        )
    return Path(spec.submodule_search_locations[0])


def library(name: str, sources: Sequence[Path], defines: Mapping[str, str]) -> Path:
    """The shared library of ``sources`` with the simulator, from the cache or built now.

    name: for messages and the file. defines: macros the kernel compiler of CANN would set, such as DTYPE_X. Raises
    KernelError without g++ 12 or newer, and with what g++ says where a source does not compile.
    """
    macros = [f"-D{key}={value}" for key, value in sorted(defines.items())]
    return _built(_compiler(), name, sources, macros, ".so", ["-shared", str(simulator()), "-ldl"])


def simulator() -> Path:
    """The object file of the simulator, which every kernel is linked with."""
    sources = sorted((kernels_folder() / "sim" / "src").glob("*.cpp"))
    return _built(_compiler(), "simulator", sources, [], ".o", ["-r"])


def _built(
    compiler: str, name: str, sources: Sequence[Path], macros: Sequence[str], suffix: str, link: Sequence[str]
) -> Path:
    """``sources`` compiled and linked, from the cache if the same texts were before."""
    folder = kernels_folder()
    flags = [
        *_FLAGS, *_machine_flags(), *macros, f"-I{folder / 'sim' / 'include'}", f"-I{folder / 'sim' / 'src'}",
        f"-I{folder}",
    ]  # fmt: skip
    state = hashlib.sha256(repr((_version(compiler), flags, [Path(part).name for part in link])).encode())
    for path in (*sorted(folder.rglob("*.h")), *sources):
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    built = cache_dir() / "kernels" / f"{name}-{state.hexdigest()[:24]}{suffix}"
    if built.exists():
        return built
    built.parent.mkdir(parents=True, exist_ok=True)
    print(f"building {name} with g++, once (into {built.parent}) ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
        objects = [Path(scratch) / f"{i}.o" for i in range(len(sources))]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            commands = [
                [compiler, *flags, *_host_flags(folder, path), "-c", str(path), "-o", str(target)]
                for path, target in zip(sources, objects, strict=True)
            ]
            list(pool.map(lambda command: _run(command, name), commands))
        fresh = Path(scratch) / built.name
        _run([compiler, *map(str, objects), *link, "-o", str(fresh)], name)
        os.replace(fresh, built)  # another process may have built it meanwhile; both are the same
    return built


def _host_flags(folder: Path, path: Path) -> list[str]:
    """The host's classes have stand-ins of their own, which a kernel must not see."""
    return [f"-I{folder / 'sim' / 'host'}"] if path.parent.name in ("op_host", "host") else []


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"[sim] {name}: expected g++ to build it, got:\n{done.stderr.strip()}")


def _compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        raise KernelError(
            "[sim] g++: expected one on PATH, got none. Kernels are built on first use: install g++ 12 or newer."
        )
    major = _version(found).partition(".")[0]
    if not major.isdigit() or int(major) < _LEAST:
        raise KernelError(
            f"[sim] g++: expected version {_LEAST} or newer, got {_version(found)} ({found}). Install one."
        )
    return found


@functools.lru_cache(maxsize=4)
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True, check=False).stdout.strip()


@functools.lru_cache(maxsize=1)
def _machine_flags() -> tuple[str, ...]:
    """Conversions of half in hardware, where there is any: half of the time of a launch."""
    if platform.machine() != "x86_64":
        return ()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ()
    flags = text.partition("\nflags")[2].partition("\n")[0].split()
    return tuple(f"-m{flag}" for flag in ("avx2", "f16c") if flag in flags)
