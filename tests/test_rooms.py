"""Who may import whom, read from the sources of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import npu_fused_graph
import npu_fused_graph.converters
from tests.processes import run_code

PACKAGE = "npu_fused_graph"
FOLDERS = {
    PACKAGE: Path(npu_fused_graph.__file__).parent,
    f"{PACKAGE}.converters": Path(npu_fused_graph.converters.__file__).parent,
}

ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "errors": set(),
    "cache": set(),
    "testing": set(),
    "ir": {"errors"},
    "spec": {"errors", "ir"},
    "comm": {"errors"},
    "flash": set(),
    "ops": {"errors", "spec", "comm", "flash"},
    "passes": {"comm", "errors", "ops", "spec"},
    "aot": {"errors", "passes"},
    "engine": {"errors", "ir", "spec", "comm", "ops", "flash", "sim"},
    "inspector": {"errors", "ir", "version"},
    "sim": {"cache", "errors", "ir", "spec"},
    "codegen": {"spec", "ops", "passes", "converters", "engine", "host"},
    "converters": {"comm", "errors", "spec", "ops"},
    "afd": {"comm", "errors", "ops"},
    "host": {
        "cache", "version", "errors", "testing", "ir", "spec", "comm", "ops", "passes", "aot", "engine", "converters",
    },
    "selftest": {"afd", "comm", "compile", "converters", "errors", "host", "ops", "testing"},
    "compile": {"comm", "errors", "passes", "aot", "converters", "host"},
    "commands": {"version", "errors", "ir", "ops", "passes", "engine", "host", "compile", "sim", "inspector",
        "selftest",
    },
    "": {"afd", "version", "ops", "passes", "engine", "host", "compile"},
}  # fmt: skip
"""Room -> rooms it may import, anywhere in its modules, besides itself. Nobody imports the package "" itself."""

ONLY_IN: dict[tuple[str, str], str] = {("engine", "ops"): "engine.kernels.fused"}
"""The one module of a room that may import another: the fused kernels are the operators' reference implementations."""

TORCHAIR_IN_FUNCTIONS = ("converters", "host")
"""Rooms that may import torchair or torch_npu inside functions. Nobody may at module level."""

TORCH_FREE = (
    "errors",
    "cache",
    "spec",
    "ir",
    "inspector",
    "sim",
    "codegen",
    "version",
    "commands.cli",
    "commands.doctor",
    "commands.inspect",
    "host.paths",
    "host.install",
    "host.run",
    "host.descendants",
    "host.standin.state",
    "",
)
"""Rooms and modules without torch at module level. codegen reads the rooms that have it in __main__."""


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
        if module.startswith(f"{PACKAGE}.host.packages."):
            return None  # the stand-in of torch_npu itself
        if not imported.is_local:
            return "only inside functions"
        return None if room in TORCHAIR_IN_FUNCTIONS else f"not a room that may, see {TORCHAIR_IN_FUNCTIONS}"
    if top == "torch" and not imported.is_local:
        inner = module.removeprefix(PACKAGE).lstrip(".")
        return "this room imports no torch" if room in TORCH_FREE or inner in TORCH_FREE else None
    if top == "converters":
        return "it is npu_fused_graph.converters"
    if top != PACKAGE:
        return None
    target = room_of(imported.module)
    if room not in ALLOWED:
        return f"room {room} has no rule: add one to ALLOWED"
    if target == room:
        return None
    only = ONLY_IN.get((room, target))
    if target in ALLOWED[room] and only in (None, module.removeprefix(f"{PACKAGE}.")):
        return None
    return f"{room or 'the package'} may not import {target or 'the package'}"


def edges(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> modules of the package it imports when executed, inside functions too."""
    return {
        module: {i.module for i in imports_of(source, modules) if not i.is_typing and i.module in modules} - {module}
        for module, source in modules.items()
    }


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One cycle of a graph, [] if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_imports() -> None:
    modules = sources()
    assert {"npu_fused_graph.converters.aten", "npu_fused_graph.ir.graph", "npu_fused_graph"} <= set(modules)
    assert violations(modules) == []


def test_nothing_imports_in_a_circle() -> None:
    modules = sources()
    assert cycle(ALLOWED) == []
    assert cycle(edges(modules)) == []


def test_a_circle_is_found_where_a_function_hides_it() -> None:
    modules = {
        "npu_fused_graph.comm.a": "from npu_fused_graph.comm import b",
        "npu_fused_graph.comm.b": "def f():\n    from npu_fused_graph.comm.a import x",
    }
    assert set(cycle(edges(modules))) == set(modules)


def test_tables_hold_nothing_that_is_unused() -> None:
    modules = sources()
    used: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for module, source in modules.items():
        found = {room_of(i.module) for i in imports_of(source, modules) if i.module.partition(".")[0] == PACKAGE}
        used[room_of(module)] |= found - {room_of(module)}
    used[""] |= {room_of(home) for home in npu_fused_graph._HOME.values()}
    rooms = {room_of(module) for module in modules}
    unused = {room: allowed - used[room] for room, allowed in ALLOWED.items() if room in rooms}
    assert {room: targets for room, targets in unused.items() if targets} == {}


def test_broken_rules_are_found() -> None:
    broken = {
        "npu_fused_graph.errors": "import npu_fused_graph.ir.graph",
        "npu_fused_graph.ir.graph": "from npu_fused_graph.engine import compile_graph",
        "npu_fused_graph.ir.order": "import torch",
        "npu_fused_graph.engine.program": "from npu_fused_graph.ops import specs",
        "npu_fused_graph.engine.kernels.math": "def f():\n    from npu_fused_graph import ops",
        "npu_fused_graph.ops": "def f():\n    from npu_fused_graph import load_torchair",
        "npu_fused_graph.passes": "def f():\n    import torchair.ge",
        "npu_fused_graph.passes.verdicts": "import npu_fused_graph.host",
        "npu_fused_graph.converters": "def f():\n    from npu_fused_graph.host import load_torchair",
        "npu_fused_graph.converters.aten": "import torchair",
        "npu_fused_graph.aot.guards": "from npu_fused_graph.host import load",
        "npu_fused_graph.host.load": "def f():\n    from npu_fused_graph.compile import backend",
        "npu_fused_graph.host.run": "from npu_fused_graph import __all__",
        "npu_fused_graph.compile.backend": "def f():\n    import torch_npu",
        "npu_fused_graph.compile.fusion": "from npu_fused_graph.commands import demo",
        "npu_fused_graph.commands.cli": "import torch",
        "npu_fused_graph.spec": "from importlib import import_module\nimport_module(f'npu_fused_graph.ops.{1}')",
        "npu_fused_graph.host.paths": "if True:\n    from torch import nn",
        "npu_fused_graph.host.install": "from tests import conftest",
        "npu_fused_graph.compile.explain": "import converters",
        "npu_fused_graph.unheard_of": "from npu_fused_graph.errors import HostError",
    }
    assert [line.partition(":")[0] for line in violations(broken)] == list(broken)


def test_kept_rules_are_not_reported() -> None:
    kept = {
        "npu_fused_graph": "if TYPE_CHECKING:\n    from npu_fused_graph.host import load_torchair",
        "npu_fused_graph.engine.kernels.fused": "from npu_fused_graph.ops import x",
        "npu_fused_graph.ops": "import torch\nfrom npu_fused_graph.spec import OpSpec",
        "npu_fused_graph.converters": "def f():\n    import torchair",
        "npu_fused_graph.host.load": "from npu_fused_graph.engine import x\ndef f():\n    import torch_npu",
        "npu_fused_graph.commands.cli": "def f():\n    from npu_fused_graph.commands.doctor import diagnose",
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
for name in ("errors", "spec", "codegen", "ops", "host", "host.install", "commands.doctor", "commands.cli"):
    importlib.import_module("npu_fused_graph." + name)
    loaded(name)
from npu_fused_graph.commands.cli import main
for arguments in (["--help"], ["--version"], ["ops", "--help"]):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0
    loaded(arguments)
"""


def test_rooms_without_torch_do_not_load_it() -> None:
    run_code(IMPORT_WITHOUT_TORCH)
