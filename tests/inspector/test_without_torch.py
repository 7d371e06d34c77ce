"""The inspector as a wheel installs it, where there is neither torch nor torch_npu."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import google.protobuf
import numpy
import pytest

from tests.inspector.pages import decoder_dump
from tests.release import ROOT, build

RUN = """
import sys
sys.path[:0] = [sys.argv.pop(1)]
from npu_fused_graph.commands.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel beside numpy and protobuf, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    target = folder / "installed"
    wheel = build(folder)[1]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    numpys = Path(numpy.__file__).parent
    for path in (numpys, numpys.parent / "numpy.libs"):
        if path.exists():
            (target / path.name).symlink_to(path)
    (target / "google").mkdir()
    (target / "google" / "protobuf").symlink_to(Path(google.protobuf.__file__).parent)
    upb = Path(google.protobuf.__file__).parents[1] / "_upb"
    if upb.exists():
        (target / "google" / "_upb").symlink_to(upb)
    return target


def run(installed: Path, *arguments: str) -> str:
    """Without site-packages: -S, so that only ``installed`` and the standard library are there."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", RUN, str(installed), *arguments], check=True, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    return done.stdout


@pytest.mark.slow
def test_every_command_works(installed: Path, tmp_path: Path) -> None:
    dump = str(decoder_dump(tmp_path, 8, [0, 1, 2, 3, 5, 6, 7]))
    other = str(decoder_dump(tmp_path / "b", 8))
    assert json.loads(run(installed, "inspect", dump, "--json"))["types"]["MatmulAllReduceAddRmsNorm"] == 7
    assert "layers 0-3 x4" in run(installed, "inspect", dump, "--fold")
    assert json.loads(run(installed, "fused", dump, "--json"))["count"] == 7
    assert len(json.loads(run(installed, "why", dump, "--json"))["sites"]) == 9
    assert run(installed, "memory", dump)
    assert run(installed, "check", dump, "--expect", "MatmulAllReduceAddRmsNorm=7")
    page = tmp_path / "report.html"
    run(installed, "report", dump, "--against", dump, "-o", str(page))
    text = page.read_text()
    assert "dagre.layout" in text and "Permission is hereby granted" in text
    with pytest.raises(subprocess.CalledProcessError) as differing:
        run(installed, "diff", dump, other)
    assert differing.value.returncode == 1


@pytest.mark.slow
def test_the_wheel_holds_the_page_and_its_licences(installed: Path) -> None:
    def files(root: Path) -> set[str]:
        """Without what Python compiles there."""
        folder = root / "npu_fused_graph" / "inspector" / "page"
        return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    held, here = files(installed), files(ROOT)
    assert held == here
    assert {"dagre.js", "dagre.LICENSE", "vendor.json", "report.html", "report.css"} <= held
