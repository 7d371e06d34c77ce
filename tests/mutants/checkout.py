"""Copies of a checkout, each with an interpreter of its own that imports the package from the copy.

The interpreter is a virtual environment that borrows every installed package from the checkout's own. Whatever a
test starts with it, in whatever folder and environment, finds the copy: no PYTHONPATH a test might replace is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.targets import MutantsError, Project, python_of

INSIDE = Path(__file__).with_name("inside")
_LEFT_OUT = (".venv", ".git", "build", "__pycache__")
_OURS = ("COVERAGE_", "MUTANTS_", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_", "PYTEST_ADDOPTS")
_BORROW = "import json, site, sysconfig; print(json.dumps([sysconfig.get_path('purelib'), *site.getsitepackages()]))"
_LOCATE = "import importlib, json, sys; print(json.dumps([importlib.import_module(n).__file__ for n in sys.argv[1:]]))"


@dataclass(frozen=True)
class Checkout:
    """What is judged, as it was at the beginning: it may be edited meanwhile. origin: where it came from."""

    project: Project
    origin: Path
    root: Path
    files: tuple[str, ...]

    @classmethod
    def taken(cls, project: Project, origin: Path, folder: Path) -> Checkout:
        """The files of ``origin``, copied to ``folder``, which is made."""
        files = _files_of(origin)
        _copy(origin, folder, files)
        return cls(project, origin, folder, tuple(files))

    def digest(self) -> str:
        """Of everything a verdict may depend on: what was recorded holds for these files alone. Not of this tool."""
        found = hashlib.sha256()
        for name in self.files:
            if name.endswith((".py", ".csv", ".txt", ".toml")) and not name.startswith("tests/mutants/"):
                found.update(f"{name}\0".encode() + hashlib.sha256((self.root / name).read_bytes()).digest())
        return found.hexdigest()


@dataclass(frozen=True)
class Copy:
    """root: the copied checkout. python: its interpreter. temp: for what its tests write."""

    checkout: Checkout
    root: Path
    python: Path
    temp: Path

    @classmethod
    def made(cls, checkout: Checkout, folder: Path) -> Copy:
        """In ``folder``, which is made; MutantsError if the package would be imported from elsewhere."""
        copy = cls(checkout, folder / checkout.origin.name, folder / "venv" / "bin" / "python", folder / "t")
        _copy(checkout.root, copy.root, checkout.files)
        for name, target in checkout.project.links.items():
            (copy.root / name).symlink_to(target)
        for name in checkout.project.beside:
            if (checkout.origin.parent / name).exists():
                (folder / name).symlink_to(checkout.origin.parent / name)
        copy.temp.mkdir()
        copy._make_interpreter()
        copy._check_imports()
        return copy

    def restore(self) -> None:
        """Make every file what it was, and remove what is new, bytecode above all."""
        known = set(self.checkout.files)
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder) / name
                inner = path.relative_to(self.root).as_posix()
                if inner not in known:
                    path.unlink()
                elif _stamp(path) != _stamp(self.checkout.root / inner):
                    shutil.copy2(self.checkout.root / inner, path)
        shutil.rmtree(self.temp, ignore_errors=True)
        self.temp.mkdir(exist_ok=True)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        environment.setdefault("OMP_NUM_THREADS", "1")
        for name in ("PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR"):
            environment.pop(name, None)
        return environment | {"TMPDIR": str(self.temp)} | dict(more or {})

    def _make_interpreter(self) -> None:
        python = str(python_of(self.checkout.origin))
        borrowed = sorted(set(json.loads(self._output(python, "-c", _BORROW))))
        self._output(python, "-m", "venv", "--without-pip", str(self.python.parents[1]))
        (own,) = self.python.parents[1].glob("lib/python*/site-packages")
        lines = [str(self.root), str(INSIDE), *(f"import site; site.addsitedir({path!r})" for path in borrowed)]
        (own / "borrowed.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _check_imports(self) -> None:
        packages = self.checkout.project.packages
        found = json.loads(self._output(str(self.python), "-c", _LOCATE, *packages))
        for (name, folder), path in zip(packages.items(), found, strict=True):
            if not Path(path).resolve().is_relative_to((self.root / folder).resolve()):
                raise MutantsError(f"{name} is imported from {path}, not from the copy in {self.root}")

    def _output(self, *command: str) -> str:
        """Of a command that is run outside of the copy: the folder one is in has no part in what is imported."""
        environment = self.environment({"PYTHONDONTWRITEBYTECODE": "1"})
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.temp, env=environment)
        if done.returncode:
            raise MutantsError(f"{' '.join(command[:2])}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
        return done.stdout


def _files_of(root: Path) -> list[str]:
    """The files of a checkout that git knows or would take; of a folder without git, all but what tools make."""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        if listed.returncode:
            raise MutantsError(f"git ls-files in {root}: {listed.stderr.strip()}")
        return sorted({name for name in listed.stdout.split("\0") if name and (root / name).is_file()})
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(_LEFT_OUT) and not f.endswith(("_cache", ".egg-info"))]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names if not name.endswith(".pyc")]
    return sorted(found)


def _copy(source: Path, target: Path, files: tuple[str, ...] | list[str]) -> None:
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
