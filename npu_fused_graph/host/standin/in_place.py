"""Operators of torch_npu that write their arguments: each by its functional twin, one copy per argument written.

The pairs are read from the schemas: ``x_`` and ``x``, or ``x`` and ``x_functional``, with the same arguments; the twin
returns what the operator returns newly, then the new value of every argument it writes. In a graph the copies become
assignments to the graph's inputs, and the engine writes the caller's memory itself, where the twin's kernel does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from npu_fused_graph.errors import UnsupportedOpError
from npu_fused_graph.host.standin import survey
from npu_fused_graph.host.standin.wrong_arguments import overload_of

Operator = Callable[..., Any]


def pairs() -> Iterator[tuple[str, Operator]]:
    """Name (with overload) of every torch_npu operator that writes an argument and has a twin, and the pair's function.

    The function takes the operator's arguments and returns what the operator does.
    """
    for name, schema in _writing():
        twin = _twin(schema)
        if twin is not None:
            yield name, functools.partial(_by_twin, schema, twin)


def without_twin() -> Iterator[tuple[str, Operator]]:
    """Those that have none and return what they write, which AOTAutograd functionalises no other way: a function, too.

    It is for eager calls; torch_npu has no Meta functions of these. It raises UnsupportedOpError where we have no rule.
    """
    for name, schema in _writing():
        if _twin(schema) is None and any(r.alias_info is not None for r in schema.returns):
            yield name, _RULES.get(name, functools.partial(_refused, name))


def readers_apart(
    written: frozenset[str], names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call; of those it only reads, a copy where one lies in memory it writes.

    written: names of those it writes. names: of all, in their order.
    """
    given = dict(zip(names, args, strict=False)) | kwargs
    storages = {x.untyped_storage()._cdata for name in written for x in pytree.tree_leaves(given[name])}

    def apart(name: str, value: Any) -> Any:
        if name in written:
            return value
        return pytree.tree_map_only(Tensor, lambda x: x.clone() if x.untyped_storage()._cdata in storages else x, value)

    return tuple(apart(*item) for item in zip(names, args, strict=False)), {k: apart(k, v) for k, v in kwargs.items()}


def _refused(name: str, *args: Any, **kwargs: Any) -> Any:
    error = UnsupportedOpError(
        f"[run] {name}: expected an operator that writes its arguments and has a functional form, got one without. "
        "Use a functional operator; docs/inference_operators.md has the operators that run."
    )
    if survey.is_on():
        return survey.zeros(name, overload_of(name), error, args, kwargs)
    raise error


_RULES: dict[str, Operator] = {
    "copy_memory_": lambda self, src, non_blocking=False: self.copy_(src),
    "npu_dtype_cast_": lambda self, src: self.copy_(src),
    "npu_view_copy": lambda self, other, non_blocking: self.copy_(other),
    "one_": lambda self: self.fill_(1),
}


def _writing() -> Iterator[tuple[str, Any]]:
    for schema in torch._C._jit_get_all_schemas():
        space, _, name = schema.name.partition("::")
        if space == "npu" and _written(schema) and not schema.overload_name.endswith("out"):
            yield f"{name}.{schema.overload_name}" if schema.overload_name else name, schema


def written_arguments(name: str) -> tuple[frozenset[str], list[str]]:
    """Of an operator (with overload): names of the arguments it writes, and of all."""
    schema = overload_of(name)._schema
    return frozenset(_written(schema)), [a.name for a in schema.arguments]


def _written(schema: Any) -> list[str]:
    return [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def _twin(schema: Any) -> Operator | None:
    arguments = [a.name for a in schema.arguments]
    news = [r for r in schema.returns if r.alias_info is None]
    name = schema.name.partition("::")[2]
    for candidate in (name.removesuffix("_"), f"{name}_functional"):
        packet = getattr(torch.ops.npu, candidate, None)
        if packet is None or candidate == name:
            continue
        for overload in packet.overloads():
            twin = getattr(packet, overload)
            fits = [a.name for a in twin._schema.arguments] == arguments and not _written(twin._schema)
            if fits and len(twin._schema.returns) == len(news) + len(_written(schema)):
                return twin  # type: ignore[no-any-return]
    return None


def _by_twin(schema: Any, twin: Operator, *args: Any, **kwargs: Any) -> Any:
    given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    found = twin(*args, **kwargs)
    values = list(found) if len(twin._schema.returns) > 1 else [found]  # type: ignore[attr-defined]
    names = _written(schema)
    news, written = values[: len(values) - len(names)], values[len(values) - len(names) :]
    for name, value in zip(names, written, strict=True):
        _assign(given[name], value)
    targets = iter(names)
    rest = iter(news)
    results = [next(rest) if r.alias_info is None else given[next(targets)] for r in schema.returns]
    return results[0] if len(results) == 1 else tuple(results) or None


def _assign(target: Tensor | list[Tensor], value: Tensor | list[Tensor]) -> None:
    if isinstance(target, Tensor):
        target.copy_(value)  # type: ignore[arg-type]
        return
    for item, new in zip(target, value, strict=True):
        item.copy_(new)
