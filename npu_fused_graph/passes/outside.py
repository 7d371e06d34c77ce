"""All-reduces that run outside every graph: where they are called, and what keeps them out."""

from __future__ import annotations

import dis
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type

from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm import SPEC
from npu_fused_graph.passes.location import innermost
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.site import UNKNOWN
from npu_fused_graph.passes.refusals import OutsideEveryGraph, Refusal
from npu_fused_graph.passes.spellings.reduces import SPELLINGS
from npu_fused_graph.passes.tracing import Break
from npu_fused_graph.passes.verdicts import FusionSite

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


class Eager(TorchDispatchMode):
    """Inside the with-statement, records the all-reduces that are no part of a graph.

    breaks: the graph breaks so far, which grow while the model runs. sites: one record per line of the model.
    """

    supports_higher_order_operators = True

    def __init__(self, breaks: Sequence[Break]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sites: list[FusionSite] = []
        self._breaks = breaks
        self._is_hidden = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """torch.compile works inside, as if this mode were not there."""
        return True

    def hidden(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run``, which is a graph: its collectives are reported otherwise."""

        def run_hidden(*args: Any) -> Any:
            before, self._is_hidden = self._is_hidden, True
            try:
                return run(*args)
            finally:
                self._is_hidden = before

        return run_hidden

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented  # a tensor of another kind, as DTensor, shows its collectives when it is unwrapped
        if not self._is_hidden and func.name() in SPELLINGS:
            self.sites += [site for site in self._sites(func.name()) if site not in self.sites]
        return func(*args, **(kwargs or {}))

    def _sites(self, name: str) -> list[FusionSite]:
        frames = list(_frames())
        script = next((x for x in (frame.f_locals.get("self") for frame in frames) if _is_script(x)), None)
        lines = [] if script is None else _script_lines(script, name)
        if lines:
            cure = "Compile the module it was scripted or traced from."
            return [
                _site(name, line, OutsideEveryGraph("it runs in TorchScript, outside every graph", cure))
                for line in lines
            ]
        calls = [(frame.f_code, frame.f_lineno) for frame in frames]
        found = [one for code, line in calls for one in self._breaks if one.at == (code.co_filename, line)]
        found += [one for code, _ in calls for one in self._breaks if one.is_skipped and one.code is code]
        line = innermost([(code.co_filename, str(line)) for code, line in reversed(calls)])
        return [_site(name, line, _refusal(found[0] if found else None))]


def calls_outside(one: Break) -> list[FusionSite]:
    """The calls of reduces that a graph break keeps out of graphs, as far as the function's own code tells."""
    if one.code is None:
        return []
    starts, line = dict(dis.findlinestarts(one.code)), 0
    names = [(str(x.argval), line := starts.get(x.offset) or line) for x in dis.get_instructions(one.code)]
    file = one.code.co_filename
    found = {
        (name, f"{file}:{line}"): None
        for name, line in names
        if _REDUCE.fullmatch(name) and (one.is_skipped or one.at == (file, line))
    }
    return [_site(name, line, _refusal(one)) for name, line in found]


_REDUCE = re.compile(r"\w*all_reduce\w*|reduce_scatter\w*")


def _site(name: str, source: str, refusal: Refusal) -> FusionSite:
    return FusionSite(SPEC.stem, name, source, "", refusal=replace(refusal, source=source), facts=dict(UNKNOWN))


def _refusal(found: Break | None) -> Refusal:
    if found is None:
        return OutsideEveryGraph("it is called outside every graph, by code that torch.compile does not see")
    cure = "Leave out async_op=True." if found.reason.startswith("async_op") else ""
    return OutsideEveryGraph(f"it is called outside every graph: {found}", cure)


def _frames() -> Iterator[FrameType]:
    """The frames that called the operator, innermost first."""
    frame = sys._getframe(1)
    while frame.f_code is not Eager.__torch_dispatch__.__code__:
        assert frame.f_back is not None
        frame = frame.f_back
    while frame.f_back is not None:
        frame = frame.f_back
        yield frame


def _is_script(x: Any) -> bool:
    return isinstance(x, torch.jit.ScriptModule)


def _script_lines(module: torch.jit.ScriptModule, operator: str) -> list[str]:
    """Where the source of a TorchScript module calls an operator."""
    graph: Any = module.inlined_graph  # torch's stubs lack what it can do
    ranges = [node.sourceRange() for node in graph.findAllNodes(operator.partition(".")[0])]
    return list(dict.fromkeys(f"{file}:{line}" for text in ranges for file, line in _FRAME.findall(text)[:1]))
