"""Who wants to know about calls of our operators: ``npu-fused-graph run`` counts and records them here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch import distributed as dist

from npu_fused_graph.spec import OpSpec


@dataclass(frozen=True, slots=True)
class ObservedCall:
    """One execution of an operator.

    tensors, attrs: arguments by Python name; tensors may be written by the call, a dynamic input is a list. group: of a
    communicating operator. node: name of the GE node, "" for an eager call.
    """

    spec: OpSpec
    tensors: Mapping[str, Tensor | Sequence[Tensor] | None]
    attrs: Mapping[str, Any]
    group: dist.ProcessGroup | None
    node: str = ""

    @classmethod
    def of(
        cls, spec: OpSpec, arguments: Mapping[str, Any], group: dist.ProcessGroup | None, node: str = ""
    ) -> ObservedCall:
        """arguments: by Python name, tensors and others."""
        names = {t.python_name for t in spec.tensors}
        tensors = {name: value for name, value in arguments.items() if name in names}
        attrs = {name: value for name, value in arguments.items() if name not in names}
        return cls(spec, tensors, attrs, group, node)


Finish = Callable[[tuple[Any, ...]], None]

Listener = Callable[[ObservedCall], Finish | None]

listeners: list[Listener] = []
"""Called before an operator runs; what they return is called with its outputs in GE order, a dynamic one as a list."""


def observed(call: Callable[[], ObservedCall], run: Callable[[], Any]) -> Any:
    """``run()``, with the listeners told. call: makes the description, when anybody listens."""
    if not listeners:
        return run()
    description = call()
    finishes = [finish for listener in listeners if (finish := listener(description)) is not None]
    results = run()
    for finish in finishes:
        finish(results if isinstance(results, tuple) else () if results is None else (results,))
    return results
