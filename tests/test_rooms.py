"""Who may import whom (design.md section 3), read from the sources of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import npu_fused_graph.converters

import npu_fused_graph
from tests.processes import run_code

PACKAGE = "npu_fused_graph"
FOLDERS = {
    PACKAGE: Path(npu_fused_graph.__file__).parent,
    f"{PACKAGE}.converters": Path(npu_fused_graph.converters.__file__).parent,
}

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "ir": {"errors"},
    "spec": {"errors", "ir"},
    "comm": {"errors"},
    "ops": {"errors", "spec", "comm", "ir"},
    "passes": {"comm", "errors", "ops", "spec"},
    "engine": {"errors", "ir", "spec", "comm"},
    "inspector": {"errors", "ir"},
    "codegen": {"spec", "ops", "ir"},
    "converters": {"comm", "errors", "spec", "ops", "ir"},
    "backend": {"errors", "passes"},
    "fusion_report": {"errors", "passes", "backend"},
    "doctor": {"errors", "host"},
    "cli": {"errors"},
    "demo": {"errors", "ir", "passes", "host", "demo_model"},
    "demo_model": set(),
    "testing": set(),
    "": set(),
}
"""Room -> rooms it may import anywhere, besides itself and the package's own names. host may import all."""

ALLOWED_IN_FUNCTIONS: dict[str, dict[str, str]] = {
    "": {"ops": "the first use of a public name registers them"},
    "converters": {"host": "register_all loads TorchAir"},
    "backend": {
        "converters": "get_npu_backend registers them",
        "host": "get_npu_backend loads TorchAir, which needs CANN or the cache",
    },
    "fusion_report": {"host": "TorchAir's decompositions are part of what is traced"},
    "cli": dict.fromkeys(("demo", "doctor", "engine", "ops", "host"), "imported on demand: --help is instant"),
    "demo": {"backend": "in the ranks, through the public name"},
}
"""Room -> rooms it may import inside functions only, and why."""

ALLOWED_MODULES: dict[str, dict[str, str]] = {
    "engine.kernels.fused": {"ops": "the fused kernels are the ops' reference implementations"},
}
"""Single modules that may import more than their room."""

TORCHAIR_IN_FUNCTIONS: dict[str, str] = {
    "converters": "they are TorchAir's plug-ins",
    "host": "it loads TorchAir",
    "backend": "copies a CompilerConfig and, for DTensor inputs, calls TorchAir's compiler itself (T2, T3)",
    "fusion_report": "traces with TorchAir's decompositions",
}
"""Rooms that may import torchair or torch_npu inside functions, and why. Nobody may at module level."""

TORCH_FREE = (
    "errors",
    "spec",
    "ir",
    "inspector",
    "codegen",
    "cli",
    "doctor",
    "host.paths",
    "host.install",
    "host.run",
    "host.descendants",
    "host.standin.state",
    "",
)
"""Rooms and modules without torch at module level (codegen reads ``ops`` in its __main__ only; ops import torch)."""


@dataclass(frozen=True, slots=True)
class Import:
    """module: dotted name. line: where. is_local: inside a function. is_typing: under TYPE_CHECKING, never executed."""

    module: str
    line: int
    is_local: bool
    is_typing: bool


def sources() -> dict[str, str]:
    """Source by dotted module name, of every module of the package."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path.read_text(encoding="utf-8")
    return found


def imports_of(source: str, modules: Mapping[str, str]) -> Iterator[Import]:
    """Every import of a source text, import_module(...) with a literal beginning included."""
    yield from _walk(ast.parse(source), modules, is_local=False, is_typing=False)


def _walk(node: ast.AST, modules: Mapping[str, str], *, is_local: bool, is_typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for name in _imported(child, modules):
            yield Import(name, child.lineno, is_local, is_typing)
        inside = is_local or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for statement in child.body:
                holder = ast.Module([statement], [])
                yield from _walk(holder, modules, is_local=is_local, is_typing=True)
            for statement in child.orelse:
                holder = ast.Module([statement], [])
                yield from _walk(holder, modules, is_local=is_local, is_typing=is_typing)
        else:
            yield from _walk(child, modules, is_local=inside, is_typing=is_typing)


def _imported(node: ast.AST, modules: Mapping[str, str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        module = node.module or ""
        return [_member(module, alias.name, modules) for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
        first = node.args[0]
        if isinstance(first, ast.JoinedStr):
            first = first.values[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            return [first.value.rstrip(".")]
    return []


def _member(module: str, name: str, modules: Mapping[str, str]) -> str:
    if f"{module}.{name}" in modules:
        return f"{module}.{name}"
    if module == PACKAGE and name in npu_fused_graph._HOME:
        return npu_fused_graph._HOME[name]
    return module


def room_of(module: str) -> str:
    """First part below the package; "" is the package itself."""
    return module.removeprefix(PACKAGE).lstrip(".").partition(".")[0]


def violations(modules: Mapping[str, str]) -> list[str]:
    """One line per broken rule."""
    found = []
    for module, source in modules.items():
        for imported in imports_of(source, modules):
            problem = None if imported.is_typing else _problem(module, imported)
            if problem:
                found.append(f"{module}:{imported.line} imports {imported.module}: {problem}")
    return found


def _problem(module: str, imported: Import) -> str | None:
    room, top = room_of(module), imported.module.partition(".")[0]
    if top in ("tests", "examples"):
        return "the package never imports tests or examples"
    if top in ("torchair", "torch_npu"):
        if module.startswith(f"{PACKAGE}.host.site."):
            return None  # the stand-in of torch_npu itself
        if not imported.is_local:
            return "only inside functions"
        return None if room in TORCHAIR_IN_FUNCTIONS else f"not a room that may, see {sorted(TORCHAIR_IN_FUNCTIONS)}"
    if top == "torch" and not imported.is_local:
        inner = module.removeprefix(PACKAGE).lstrip(".")
        return "this room imports no torch" if room in TORCH_FREE or inner in TORCH_FREE else None
    if top == "converters":
        return "it is npu_fused_graph.converters"
    if top != PACKAGE or room == "host":
        return None
    target = room_of(imported.module)
    if room not in ALLOWED:
        return f"room {room} has no rule: add one to ALLOWED"
    if target in ("", room) or target in ALLOWED[room]:
        return None
    if target in ALLOWED_MODULES.get(module.removeprefix(f"{PACKAGE}."), {}):
        return None
    if imported.is_local and target in ALLOWED_IN_FUNCTIONS.get(room, {}):
        return None
    return f"{room or 'the package'} may not import {target}"


def test_imports() -> None:
    modules = sources()
    assert {"npu_fused_graph.converters.aten", "npu_fused_graph.ir.graph", "npu_fused_graph"} <= set(modules)
    assert violations(modules) == []


def test_tables_hold_nothing_that_is_unused() -> None:
    modules = sources()
    used = {
        (room_of(module), room_of(imported.module))
        for module, source in modules.items()
        for imported in imports_of(source, modules)
        if imported.module.partition(".")[0] == PACKAGE
    }
    exceptions = {(room, target) for room, targets in ALLOWED_IN_FUNCTIONS.items() for target in targets}
    exceptions |= {(name.partition(".")[0], target) for name, targets in ALLOWED_MODULES.items() for target in targets}
    assert exceptions <= used


def test_broken_rules_are_found() -> None:
    broken = {
        "npu_fused_graph.errors": "import npu_fused_graph.ir.graph",
        "npu_fused_graph.ir.graph": "from npu_fused_graph.engine import compile_graph",
        "npu_fused_graph.ir.order": "import torch",
        "npu_fused_graph.engine.program": "from npu_fused_graph.ops import specs",
        "npu_fused_graph.engine.kernels.math": "def f():\n    from npu_fused_graph import ops",
        "npu_fused_graph.ops": "def f():\n    from npu_fused_graph import load_torchair",
        "npu_fused_graph.passes": "def f():\n    import torchair.ge",
        "npu_fused_graph.passes.records": "import npu_fused_graph.host",
        "npu_fused_graph.converters": "from npu_fused_graph.host import load_torchair",
        "npu_fused_graph.converters.aten": "import torchair",
        "npu_fused_graph.backend": "class A:\n    import torch_npu",
        "npu_fused_graph.cli": "from npu_fused_graph.doctor import diagnose",
        "npu_fused_graph.spec": "from importlib import import_module\nimport_module(f'npu_fused_graph.ops.{1}')",
        "npu_fused_graph.host.paths": "if True:\n    from torch import nn",
        "npu_fused_graph.host.load": "from tests import conftest",
        "npu_fused_graph.fusion_report": "import converters",
        "npu_fused_graph.unheard_of": "from npu_fused_graph.errors import HostError",
    }
    assert [line.partition(":")[0] for line in violations(broken)] == list(broken)


def test_kept_rules_are_not_reported() -> None:
    kept = {
        "npu_fused_graph": "if TYPE_CHECKING:\n    from npu_fused_graph.host import load_torchair",
        "npu_fused_graph.engine.kernels.fused": "from npu_fused_graph.ops import x",
        "npu_fused_graph.ops": "import torch\nfrom npu_fused_graph.spec import OpSpec",
        "npu_fused_graph.converters": "def f():\n    import npu_fused_graph.host\n    import torchair",
        "npu_fused_graph.host.load": "from npu_fused_graph.engine import x\ndef f():\n    import torch_npu",
        "npu_fused_graph.cli": "def f():\n    from npu_fused_graph.doctor import diagnose",
    }
    assert violations(kept) == []


IMPORT_WITHOUT_TORCH = """
import importlib, importlib.util, pkgutil, sys

def loaded(what):
    assert "torch" not in sys.modules, what
    assert "torchair" not in sys.modules, what

import npu_fused_graph
loaded("npu_fused_graph")
dir(npu_fused_graph)
for room in ("ir", "inspector"):
    if importlib.util.find_spec("npu_fused_graph." + room) is None:
        continue
    package = importlib.import_module("npu_fused_graph." + room)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(package.__name__ + "." + module.name)
        loaded(package.__name__ + "." + module.name)
for name in ("errors", "spec", "codegen", "ops", "host", "host.paths", "host.install", "doctor", "cli"):
    importlib.import_module("npu_fused_graph." + name)
    loaded(name)
from npu_fused_graph.cli import main
main(["doctor", "--json"])
loaded("doctor")
for arguments in (["--help"], ["--version"], ["ops", "--help"]):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0
    loaded(arguments)
"""


def test_rooms_without_torch_do_not_load_it() -> None:
    assert '"mode"' in run_code(IMPORT_WITHOUT_TORCH)
