"""Which private names of torch, and which of TorchAir and npugraph_ex, the package uses: read from its own source."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping

RUN = ("npu_fused_graph/host/standin/", "npu_fused_graph/host/packages/")


def private_names(sources: Mapping[str, str]) -> str:
    """JSON: ``always``, ``run`` and ``npugraph_ex`` -> sorted names. sources: text of every module by its path in the
    project.

    run: what only processes of ``npu-fused-graph run`` need of torch, before they have TorchAir. npugraph_ex: its own.

    Private is a name of torch with a part that begins with ``_``, or of torch.fx.experimental. A name that may be
    missing is asked for with getattr, and so is not among them.
    """
    names: dict[str, set[str]] = {"always": set(), "run": set(), "npugraph_ex": set()}
    for path, text in sources.items():
        for name in filter(_is_private, _of_each_package(_names(ast.parse(text)))):
            is_run = path.startswith(RUN) and name.startswith("torch.")
            when = "npugraph_ex" if name.startswith("npugraph_ex.") else "run" if is_run else "always"
            names[when].add(name)
    names["run"] -= names["always"]
    return json.dumps({when: sorted(found) for when, found in names.items()}, indent=1) + "\n"


def _of_each_package(names: Iterable[str]) -> Iterator[str]:
    """Names below ``package`` stand for those of both that have it."""
    for name in names:
        first, dot, rest = name.partition(".")
        yield from (f"{x}{dot}{rest}" for x in (("torchair", "npugraph_ex") if first == _EITHER else (first,)))


_EITHER = "{package}"


def _is_private(name: str) -> bool:
    first, *rest = name.split(".")
    if first == "torch":
        return rest[:2] == ["fx", "experimental"] or any(p[:1] == "_" and p[:2] != "__" for p in rest)
    # its native modules are our own in host mode
    return first in ("torchair", "npugraph_ex") and rest[:1] != ["core"]


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
    if name != "import_module":
        return ""
    if isinstance(first, ast.JoinedStr):
        placeholder, *rest = first.values
        is_package = isinstance(placeholder, ast.FormattedValue) and ast.unparse(placeholder.value) == "package"
        if is_package and len(rest) == 1 and isinstance(rest[0], ast.Constant):
            return _EITHER + str(rest[0].value)
    return str(first.value) if isinstance(first, ast.Constant) else ""


def _chain(node: ast.expr) -> list[str]:
    """The parts of ``a.b.c``; of anything else the first is empty."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return [node.id if isinstance(node, ast.Name) else ""]
