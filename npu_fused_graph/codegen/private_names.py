"""Which private names of torch, and which names of TorchAir, the package uses: read from its own source."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping

RUN = ("npu_fused_graph/host/standin/", "npu_fused_graph/host/packages/")


def private_names(sources: Mapping[str, str]) -> str:
    """JSON: ``always`` and ``run`` -> sorted names. sources: text of every module by its path in the project.

    run: what only processes of ``npu-fused-graph run`` need of torch, before they have TorchAir.

    Private is a name of torch with a part that begins with ``_``, or of torch.fx.experimental. A name that may be
    missing is asked for with getattr, and so is not among them.
    """
    names: dict[str, set[str]] = {"always": set(), "run": set()}
    for path, text in sources.items():
        for name in filter(_is_private, _names(ast.parse(text))):
            names["run" if path.startswith(RUN) and name.startswith("torch.") else "always"].add(name)
    names["run"] -= names["always"]
    return json.dumps({when: sorted(found) for when, found in names.items()}, indent=1) + "\n"


def _is_private(name: str) -> bool:
    first, *rest = name.split(".")
    if first == "torch":
        return rest[:2] == ["fx", "experimental"] or any(p[:1] == "_" and p[:2] != "__" for p in rest)
    # its native modules are our own in host mode
    return first == "torchair" and rest[:1] != ["core"]


def _names(module: ast.Module) -> set[str]:
    """Dotted names as far as they can be followed from an import, import_module with a literal included."""
    used = set(_used(module, {}))
    return {name for name in used if not any(other.startswith(name + ".") for other in used)}


def _used(scope: ast.AST, outer: Mapping[str, str]) -> Iterator[str]:
    """Of a module or function and the functions in it; what is assigned to is used, too: it must be there."""
    nodes = list(_own(scope))
    bound = {**outer, **dict(_bound(nodes))}
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield _imported(node)
        elif isinstance(node, ast.Attribute):
            first, *rest = _chain(node)
            if first in bound:
                yield ".".join((bound[first], *rest))
        elif isinstance(node, (ast.FunctionDef, ast.Lambda)):
            yield from _used(node, bound)


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """What is executed in a scope: not the bodies of its functions."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.Lambda)):
            yield from _own(child)


def _bound(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    """Names that stand for a module, or for something in one."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Call):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and _imported(node.value):
                yield target.id, _imported(node.value)


def _imported(call: ast.Call) -> str:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    first = call.args[0] if call.args else None
    return str(first.value) if name == "import_module" and isinstance(first, ast.Constant) else ""


def _chain(node: ast.expr) -> list[str]:
    """The parts of ``a.b.c``; of anything else the first is empty."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return [node.id if isinstance(node, ast.Name) else ""]
