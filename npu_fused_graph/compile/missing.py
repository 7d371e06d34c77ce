"""Which operators of a traced graph TorchAir has no converter for, or this executor no kernel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from npu_fused_graph.errors import UnsupportedOpError
from npu_fused_graph.host import mode, native
from npu_fused_graph.host.one_operator import OneOperator
from npu_fused_graph.passes.location import source_line


@dataclass(frozen=True, slots=True)
class MissingOperator:
    """operator: its name with overload. reason: who lacks what. count: its calls. line: file:line of the first."""

    operator: str
    reason: str
    count: int
    line: str

    def __str__(self) -> str:
        calls = f"{self.count} call{'s' * (self.count != 1)}"
        return f"missing {self.operator} ({calls}): {self.reason}" + (f" ({self.line})" if self.line else "")


_OTHERS = ("_c10d_functional", "npu_define", "npu_fused_graph")
"""Collectives, which need their group, and our own operators."""
_NO_CONVERTER = ("ge_converter is not implemented", "PyTorch built-in ops not support auto-generate converters")
"""How TorchAir says so."""
_lowered: set[Any] = set()
"""Kinds of calls that were lowered in this process."""


@dataclass(frozen=True, slots=True)
class _Like:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype)


class Lowering:
    """Operators of graphs, each lowered alone: once for every set of dtypes and settings, sizes apart."""

    def __init__(self) -> None:
        self._lines: dict[Any, list[str]] = {}  # of the calls, by kind
        self._calls: dict[Any, tuple[Any, Any]] = {}  # arguments of the first call of a kind

    def add(self, gm: GraphModule) -> None:
        """The calls in a graph of aten operators with fake values."""
        for node in gm.graph.nodes:
            op = node.target
            if not isinstance(op, OpOverload) or op.namespace in _OTHERS:
                continue
            given = [item.meta.get("val") for item in node.all_input_nodes]
            tensors = [x for x in pytree.tree_leaves([given, node.meta.get("val")]) if isinstance(x, Tensor)]
            if not all(isinstance(x, Tensor) for x in given) or any(
                isinstance(n, SymInt) for x in tensors for n in x.shape
            ):
                continue  # a list of results; sizes that only a run tells
            skipped = (int, float) if op.namespace == "aten" else ()  # those of torch_npu are modes as often as sizes
            settings = _settings([node.args, node.kwargs], skipped)
            kind = (op, *((x.dtype, x.dim()) for x in given), *settings)
            if kind not in _lowered:
                self._lines.setdefault(kind, []).append(source_line(node))
                self._calls.setdefault(kind, map_arg((node.args, node.kwargs), _like))

    def missing(self) -> tuple[MissingOperator, ...]:
        """Lowers them: outside the tracing, which would take the tensors for its own."""
        found: dict[tuple[str, str], list[str]] = {}
        for kind, (args, kwargs) in self._calls.items():
            reason = _reason(kind[0], args, kwargs)
            if reason:
                found.setdefault((str(kind[0]), reason), []).extend(self._lines[kind])
            else:
                _lowered.add(kind)
        return tuple(MissingOperator(op, reason, len(lines), lines[0]) for (op, reason), lines in found.items())


def _like(node: Node) -> Any:
    value: Tensor = node.meta["val"]
    return _Like(tuple(value.shape), value.stride(), value.dtype)


def _settings(x: Any, skipped: tuple[type, ...]) -> Iterator[Any]:
    if isinstance(x, (list, tuple)):
        for item in x:
            yield from _settings(item, skipped)
    elif isinstance(x, dict):
        yield from _settings(list(x.items()), skipped)
    elif not isinstance(x, Node) and type(x) not in skipped:
        yield type(x), repr(x)


def _reason(op: OpOverload, args: Any, kwargs: Any) -> str:
    """ "" where TorchAir lowers the call and the engine takes what it made."""
    args, kwargs = pytree.tree_map_only(_Like, _Like.make, (args, kwargs))
    call = OneOperator(op, args, kwargs)
    tensors = call.tensors
    try:
        with warnings.catch_warnings(), native.only_loading():
            warnings.simplefilter("ignore")  # TorchAir's own deprecations
            lowered = call.compile()
            if mode() == "host":
                lowered(tensors)
    except UnsupportedOpError as error:
        return str(error).strip().splitlines()[0]
    except Exception as error:
        if any(text in str(error) for text in _NO_CONVERTER):
            return "TorchAir has no converter for it"
        return f"lowered alone it fails: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    return ""
