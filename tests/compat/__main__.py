"""``make compat ENVS="folder[@torch_npu] ..."``: what works in other Python environments, each with a torch of its own.

An environment needs any torch, what this package asks for besides, transformers, and pytest with pytest-xdist and
pytest-timeout; docs/versions.md says how to make one. Our wheel is put beside it, not into it. What was found goes into
npu_fused_graph/host/tested_versions.json, from which docs/versions.md and the word "tested" come.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from npu_fused_graph.host.paths import DEFAULT_TORCH_NPU
from tests.compat.causes import Cell, cause_of

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "compat"
RESULTS = ROOT / "npu_fused_graph" / "host" / "tested_versions.json"

PARTS: dict[str, tuple[str, ...]] = {
    "Llama": ("tests/models/test_zoo.py", "-k", "llama"),
    "operators": (
        "tests/ops/test_matmul_all_reduce_add_rms_norm.py", "tests/ops/test_grouped_mat_mul_all_reduce.py",
        "tests/ops/test_attention_to_ffn.py", "tests/ops/test_attention_ffn_partners.py",
        "tests/ops/test_trans_quant_param_v2.py", "tests/ops/test_ranks_matmul_all_reduce_add_rms_norm.py",
    ),
    "verdicts": (
        "tests/passes/test_verdicts.py", "tests/passes/test_explain.py", "tests/models/test_tensor_parallel.py",
    ),
    "defects": ("tests/test_defects.py",),
    "converters": (
        "tests/converters/test_aten.py", "tests/converters/test_matmul_all_reduce_add_rms_norm.py",
        "tests/converters/test_grouped_mat_mul_all_reduce.py", "tests/converters/test_flash_attention.py",
        "tests/converters/test_hcom.py",
    ),
    "run": ("tests/host/test_run.py", "tests/host/test_npu_operators.py", "tests/host/test_device_mode.py"),
}  # fmt: skip
"""Columns of the matrix, besides the demo: tests that are not slow, run in the environment."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compat", description=__doc__)
    parser.add_argument("environments", nargs="+", metavar="FOLDER[@TORCH_NPU]", help="of python -m venv")
    parser.add_argument("--jobs", type=int, default=2, help="processes of pytest (default 2)")
    parser.add_argument("--part", action="append", choices=tuple(PARTS), help="only this column; nothing is stored")
    arguments = parser.parse_args()
    for environment in arguments.environments:
        if not (python := Path(environment.partition("@")[0]) / "bin" / "python").exists():
            parser.error(f"expected an environment of python -m venv, got no {python}")
    own = [f":!{path.relative_to(ROOT)}" for path in (RESULTS, ROOT / "docs" / "versions.md")]
    changes = _git("status", "--porcelain", "--", ".", *own)
    commit = _git("rev-parse", "--short=9", "HEAD") + ("+changes" if changes else "")
    wheel = _build_wheel()
    bad = 0
    for environment in arguments.environments:
        folder, _, torch_npu = environment.partition("@")
        cell = run_cell(Path(folder).absolute(), torch_npu or DEFAULT_TORCH_NPU, wheel, arguments)
        bad += bool(cell["unexplained"])
        if not arguments.part:
            store({**cell, "commit": commit, "date": f"{datetime.now(timezone.utc):%Y-%m-%d}"})
    return int(bad > 0)


def run_cell(environment: Path, torch_npu: str, wheel: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything in one environment with the TorchAir of one torch_npu."""
    work = BUILD / f"{environment.name}@{torch_npu}"
    project, site = work / "project", work / "site"
    shutil.rmtree(work, ignore_errors=True)
    project.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in ("tests", "examples", "docs", "ge_op_protos", "kernels"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "Makefile"):
        shutil.copy(ROOT / name, project / name)
    python = _overlay(environment, site, work / "venv")
    environ = {
        **os.environ, "NFG_CACHE": str(BUILD / "cache"), "OMP_NUM_THREADS": "1",
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip

    def ours(*command: str) -> dict[str, Any]:
        run = [str(python), "-m", "npu_fused_graph.commands.cli", *command, "--json"]
        result = subprocess.run(run, cwd=project, env=environ, capture_output=True, text=True, check=False)
        try:
            facts: dict[str, Any] = json.loads(result.stdout)
        except ValueError:
            sys.exit(f"{environment}: {' '.join(command)} failed:\n{result.stdout}{result.stderr}")
        return facts

    ours("host", "install", "--torch-npu", torch_npu)
    versions = ours("doctor")["versions"]
    print(versions["text"], flush=True)
    demo = ours("demo")
    known = Cell(_numbers(versions["torch"]), versions["generation"], _numbers(versions["python"]))
    cell: dict[str, Any] = {
        **{name: versions[name] for name in ("python", "torch", "torch_npu", "generation")},
        "demo": f"{demo['fused']} of {demo['legal']}", "parts": {}, "explained": {}, "unexplained": [],
    }  # fmt: skip
    for part in arguments.part or PARTS:
        report = work / f"{part}.xml"
        command = [str(python), "-m", "pytest", "-q", "-m", "not slow", f"--junitxml={report}", "--tb=short"]
        # torch's advice to users of Python 3.13.0, and tests make errors of warnings
        command += ["-W", "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"]
        command += ["-n", str(arguments.jobs), "--dist", "loadgroup", *PARTS[part]]
        with (work / f"{part}.log").open("w") as log:
            code = subprocess.run(command, cwd=project, env=environ, stdout=log, stderr=log, check=False).returncode
        passed, failed = _read(report)
        if code not in (0, 1) or not passed:
            failed.append(f"{part}: pytest's exit code {code}, {passed} passed")
        for test in failed:
            cause = cause_of(test, known)
            if cause is None:
                cell["unexplained"].append(test)
            else:
                cell["explained"].setdefault(cause, []).append(test)
        cell["parts"][part] = {"passed": passed, "failed": len(failed)}
        print(f"  {part}: {passed} passed, {len(failed)} failed; {work / part}.log", flush=True)
    if demo["fused"] != demo["legal"]:
        cell["unexplained"].append("demo")
    for test in cell["unexplained"]:
        print(f"  unexplained: {test}")
    return cell


def _overlay(environment: Path, site: Path, folder: Path) -> Path:
    """The python of an environment that has all of ``environment`` and the wheel in ``site``; neither is changed."""
    subprocess.run([str(environment / "bin" / "python"), "-m", "venv", "--without-pip", str(folder)], check=True)
    (own,), (theirs,) = (list(f.glob("lib/python*/site-packages")) for f in (folder, environment))
    (own / "compat.pth").write_text(f"{site}\nimport site; site.addsitedir({str(theirs)!r})\n", encoding="utf-8")
    return folder / "bin" / "python"


def store(cell: dict[str, Any]) -> None:
    """Put a cell in the place of an older one of the same versions, and write the page anew."""
    cells = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"]
    key = ("python", "torch", "torch_npu")
    cells = [old for old in cells if any(old[name] != cell[name] for name in key)]
    cells = sorted([*cells, cell], key=lambda c: [[int(n) for n in re.findall(r"\d+", c[k])] for k in key])
    RESULTS.write_text(json.dumps({"cells": cells}, indent=1) + "\n", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "npu_fused_graph.codegen"], cwd=ROOT, check=True)


def _read(report: Path) -> tuple[int, list[str]]:
    """How many passed, and the ids of those that did not; a run without a report failed as a whole."""
    if not report.is_file():
        return 0, [f"{report.stem}: pytest did not end"]
    passed, failed = 0, []
    for case in ElementTree.parse(report).iter("testcase"):
        outcomes = {child.tag for child in case}
        if outcomes & {"failure", "error"}:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" not in outcomes:
            passed += 1
    return passed, sorted(set(failed))


def _build_wheel() -> Path:
    for stale in (BUILD / "wheel", ROOT / "build" / "lib"):  # setuptools takes what it finds there along
        shutil.rmtree(stale, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(BUILD / "wheel"), "."]
    subprocess.run(command, cwd=ROOT, check=True)
    (wheel,) = (BUILD / "wheel").glob("*.whl")
    return wheel


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _numbers(version: str) -> tuple[int, int]:
    first, second = version.split(".")[:2]
    return int(first), int(second)


if __name__ == "__main__":
    sys.exit(main())
