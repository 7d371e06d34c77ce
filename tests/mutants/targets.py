"""What is mutated, and what running its tests needs: one table."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class MutantsError(Exception):
    """The tool cannot go on; one line."""


@dataclass(frozen=True)
class Project:
    """A checkout's files, relative to its root.

    targets, excluded: patterns of what is mutated. stems: where the tuple STEMS is, whose names fill ``{stem}`` in
    targets. packages: folder by importable name, of everything that is measured. links: symbolic links a copy needs
    so that these names are found in it. beside: what tests read next to the checkout. preload: modules a process may
    have imported before it runs the tests of a mutant; none of the project's own. marks: the suite that is judged.
    """

    targets: tuple[str, ...]
    packages: Mapping[str, str]
    excluded: tuple[str, ...] = ()
    stems: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    marks: str = ""
    tests: tuple[str, ...] = ("tests",)


NPU_FUSED_GRAPH = Project(
    targets=(
        "npu_fused_graph/passes/**/*.py",
        "npu_fused_graph/aot/*.py",
        "npu_fused_graph/engine/executor.py",
        "npu_fused_graph/engine/program.py",
        "npu_fused_graph/engine/straight_line.py",
        "npu_fused_graph/ops/*.py",
        "npu_fused_graph/comm/*.py",
        "npu_fused_graph/engine/kernels/fused.py",
        "converters/fused.py",
        "converters/{stem}.py",
        "converters/hcom.py",
    ),
    excluded=("npu_fused_graph/ops/*_samples.py",),
    stems="npu_fused_graph/ops/__init__.py",
    packages={"npu_fused_graph": "npu_fused_graph", "npu_fused_graph.converters": "converters"},
    links={"npu_fused_graph/converters": "../converters"},
    beside=("shared",),
    preload=(
        "torch", "torch._dynamo.testing", "torch._dynamo.backends.inductor", "torch._functorch.aot_autograd",
        "torch._inductor.codecache", "torch._inductor.decomposition", "torch.distributed.tensor.experimental",
        "torch.export._trace", "torch.nn.attention.flex_attention", "torch.testing", "networkx", "numpy", "sympy",
        "safetensors.torch", "google.protobuf.internal.builder", "packaging.version",
    ),
    marks="not slow",
)  # fmt: skip


def target_files(project: Project, root: Path) -> list[str]:
    """Paths of the files that are mutated, sorted."""
    patterns = [p.format(stem=stem) for p in project.targets for stem in (_stems(project, root) if "{" in p else [""])]
    excluded = {path for pattern in project.excluded for path in root.glob(pattern)}
    found = {path for pattern in patterns for path in root.glob(pattern)} - excluded
    if not found:
        raise MutantsError(f"{root}: expected a checkout with {project.targets[0]}, found none")
    return sorted(path.relative_to(root).as_posix() for path in found)


def _stems(project: Project, root: Path) -> tuple[str, ...]:
    path = root / project.stems
    for statement in ast.parse(path.read_bytes()).body if path.is_file() else []:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "STEMS":
            stems: tuple[str, ...] = ast.literal_eval(statement.value)
            return stems
    raise MutantsError(f"{path}: expected a tuple STEMS")


def module_name(project: Project, path: str) -> str:
    """The importable name of a file of ``packages``, "" for any other."""
    for name, folder in sorted(project.packages.items(), key=lambda item: -len(item[1])):
        if path.startswith(folder + "/"):
            inner = path.removeprefix(folder + "/").removesuffix(".py").removesuffix("__init__").strip("/")
            return f"{name}.{inner.replace('/', '.')}" if inner else name
    return ""


def python_of(root: Path) -> Path:
    """The interpreter of a checkout: that of its ``.venv``, else this one."""
    own = root / ".venv" / "bin" / "python"
    return own if own.exists() else Path(sys.executable)
