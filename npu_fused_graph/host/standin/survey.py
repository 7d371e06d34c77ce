"""``run --survey``: where an operator is missing the script goes on, with zeros of the shapes it would return."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from npu_fused_graph.errors import UnsupportedOpError
from npu_fused_graph.host.one_operator import is_compiling
from npu_fused_graph.host.standin import causes, process, state
from npu_fused_graph.passes.location import innermost, source_line

_line = ""
"""Of the node of a compiled model that runs operator by operator; "" outside one."""


def zeros(name: str, overload: Any, error: Exception, args: Any, kwargs: Any) -> Any:
    """What ``npu::name`` would return, all zeros, and the gap counted. Raises ``error`` without a Meta function."""
    given = dict(zip((a.name for a in overload._schema.arguments), args, strict=False)) | kwargs
    if overload._schema.returns and all(r.alias_info is not None for r in overload._schema.returns):
        _tell(f"npu.{name}: {_reason(error)}")
        names = {n: a.name for a in overload._schema.arguments if a.alias_info for n in a.alias_info.before_set}
        written = [given[names[n]] for r in overload._schema.returns for n in r.alias_info.before_set]
        return written[0] if len(written) == 1 else tuple(written)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake_args, fake_kwargs = pytree.tree_map_only(Tensor, mode.from_tensor, (args, kwargs))
            pairs = zip(pytree.tree_leaves((args, kwargs)), pytree.tree_leaves((fake_args, fake_kwargs)), strict=True)
            fakes = {id(fake): tensor for tensor, fake in pairs}
            results = overload(*fake_args, **fake_kwargs)
    except Exception:
        raise error from None
    _tell(f"npu.{name}: {_reason(error)}")

    def real(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        known = fakes.get(id(x))
        return known if known is not None else torch.zeros(x.shape, dtype=x.dtype)

    return pytree.tree_map(real, results)


def run_eagerly(gm: GraphModule, error: Exception) -> Callable[..., Any]:
    """A compiled model that cannot be lowered, operator by operator: each one that is missing tells so itself."""
    if is_compiling():  # one operator alone
        raise error
    first = causes.one_line(error)
    told = False

    def run(*args: Any) -> Any:
        nonlocal told
        before = _count()
        results = _WithLines(gm).boxed_run(list(args))
        if not told and _count() == before:  # no operator of torch_npu is the reason
            _tell(f"a compiled model: {first}")
        told = True
        return results

    return run


class _WithLines(Interpreter):
    """Knows the user's line of the node that runs."""

    def run_node(self, n: Node) -> Any:
        global _line
        before, _line = _line, source_line(n)
        try:
            return super().run_node(n)
        finally:
            _line = before


def _reason(error: Exception) -> str:
    """The innermost reason, which names the GE type."""
    text = str(error).strip().splitlines()[0]
    if isinstance(error, UnsupportedOpError):
        text = text.partition(", got: ")[2] or text
    for rest in _CURES:
        text = text.partition(rest)[0]
    return text.rstrip(". ")


_CURES = (" See docs/", " Node: ", " Give it one with", " Use a functional", ". Please")
"""How what follows the reason begins."""


def _tell(text: str) -> None:
    frames = [(frame.f_code.co_filename, str(line)) for frame, line in traceback.walk_stack(None)]
    where = _line or innermost(frames[::-1])
    process.counts[f"gap {text}" + (f" (at {where})" if where else "")] += 1


def _count() -> int:
    return sum(n for name, n in process.counts.items() if name.startswith("gap "))


@functools.cache
def is_on() -> bool:
    return state.options().survey
