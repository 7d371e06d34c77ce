"""The release: what is in it, what it asks for, and that it works where nothing of this folder is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import torch

from npu_fused_graph.version import __version__
from tests.release import ROOT, build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def bare(release: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a venv with the installed wheel, which finds torch and the like where these tests have them."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(release[1])]
    subprocess.run(install, check=True, timeout=120)
    (own,) = folder.glob("lib/python*/site-packages")
    # a plain path: the .pth files there, such as that of our own editable installation, are not read
    (own / "zz_dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return python


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"npu_fused_graph-{__version__}.dist-info/METADATA").decode())


def test_what_it_asks_for(release: tuple[Path, Path]) -> None:
    said = metadata(release[1])
    assert (said["Version"], said["Requires-Python"]) == (__version__, ">=3.10")
    needs = [need for need in said.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert needs[0] == "torch", "without a version: no resolver has a reason to touch an installed one"
    assert not [need for need in needs if need.startswith("torch") and need != "torch"]
    assert said["Description-Content-Type"] == "text/markdown"
    assert said.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_twine_finds_nothing(release: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, release)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_is_in_it(release: tuple[Path, Path]) -> None:
    sdist, wheel = release
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name.removeprefix("npu_fused_graph/") for name in names}
    assert {"py.typed", "rules.json", "host/private_names.json", "host/packages/torch_npu/__init__.py"} <= inside
    assert {"converters/fused.py", "_kernels/CMakeLists.txt", "_examples/01_eager.py", "selftest/parts.py"} <= inside
    assert not [name for name in names if "tests/" in name or name.endswith(".pyc")]
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {"converters/fused.py", "kernels/CMakeLists.txt", "docs/README.md", "ge_op_protos/README.md"} <= files
    assert not [name for name in files if name.startswith("tests")]


def run(python: Path, *arguments: str, cwd: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(python.parent / "npu-fused-graph"), *arguments], cwd=cwd, env=environ, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_it_works_where_nothing_else_is(bare: Path, tmp_path: Path) -> None:
    code = "import npu_fused_graph, sys; print(npu_fused_graph.__file__)"
    found = subprocess.run([str(bare), "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(bare.parents[1])
    demo = json.loads(run(bare, "demo", "--json", cwd=tmp_path))
    assert (demo["fused"], demo["legal"]) == (8, 8)
    report = json.loads(run(bare, "selftest", "--part", "capabilities", "--json", cwd=tmp_path))
    assert report["bad"] == 0
    (tmp_path / "script.py").write_text("import torch, torch_npu\nprint(torch.ones(2).npu() + 1)\n")
    assert "tensor([2., 2.])" in run(bare, "run", "script.py", cwd=tmp_path)
