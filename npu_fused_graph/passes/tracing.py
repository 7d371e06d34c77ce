"""What Dynamo and AOTAutograd know about the graph they are compiling, and where they leave graphs.

Outside a compilation, as with a graph of make_fx or torch.export, nothing is known.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

from torch._guards import TracingContext
from torch._logging._internal import log_state
from torch.fx import Node

from npu_fused_graph.passes.location import innermost, is_library, source_line

# -- the graph that is being compiled -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Input:
    """What a placeholder stands for. kind: "buffer", "parameter", "number" or "input". name: as the model calls it."""

    kind: str
    name: str


def input_of(node: Node) -> Input:
    """What a placeholder stands for; an "input" with the node's name where Dynamo does not tell."""
    found: Any = node.meta.get("desc")
    while hasattr(found, "base"):  # a part of a DTensor
        found = found.base
    translator, index = _translator(), getattr(found, "idx", None)
    if translator is None or index is None or index >= len(translator.output.graphargs):
        return Input("input", node.name)
    argument = translator.output.graphargs[index]
    if argument.source is None:
        return Input("input", node.name)
    source = argument.source.name
    if callable(source):  # a method until torch 2.9
        source = source()
    name = _readable(source)
    kind = "parameter" if "._parameters[" in source else "buffer" if "._buffers[" in source else "input"
    return Input("number" if argument.pass_arg_as_tensor else kind, name)


def named(node: Node) -> str:
    """How a text calls a node: with its source line, or as the model's parameter, buffer or input."""
    if node.op == "placeholder":
        found = input_of(node)
        return f"{found.kind} {found.name}"
    where = source_line(node)
    return f"{node.name} ({where})" if where else node.name


def is_for_autograd() -> bool:
    """Whether the graph is the forward half of one with a backward."""
    context = TracingContext.try_get()
    names = (context.aot_graph_name if context is not None else None) or []
    return any(name.endswith("forward") for name in names)


def break_behind() -> str:
    """``file:line`` and reason of the graph break that ends the graph; "" if it ends otherwise."""
    translator = _translator()
    reason = None if translator is None else translator.output.compile_subgraph_reason
    if reason is None or not reason.graph_break:
        return ""
    where = innermost([(frame.filename, str(frame.lineno)) for frame in reason.user_stack])
    what = "a branch that depends on a tensor" if reason.reason.startswith("generic_jump") else _first(reason.reason)
    return f"{where}: {what}"


def break_in_front() -> str:
    """``file:line`` of the graph break behind which the graph begins; "" if it begins otherwise."""
    translator = _translator()
    code = None if translator is None else translator.f_code
    resumed = None if code is None else re.match(r"torch_dynamo_resume_in_.*_at_(\d+)$", code.co_name)
    return f"{code.co_filename}:{resumed[1]}" if code is not None and resumed else ""


def _translator() -> Any:
    """Dynamo's translator of the frame that this thread compiles."""
    dynamo = sys.modules.get("torch._dynamo.symbolic_convert")
    return None if dynamo is None else getattr(dynamo.tls, "current_tx", None)


_MODULES = ("_modules", "_buffers", "_parameters")


def _readable(source: str) -> str:
    """``L['self']._modules['norm']._buffers['eps']`` -> ``norm.eps``."""
    root, *path = re.findall(r"\w+", re.sub(r"^[LG]\['([^']+)'\]", r"\1", source))
    is_module = any(part in _MODULES for part in path)
    path = [part for part in path if part not in _MODULES]
    if path and path[0].isdigit() and not is_module:
        root, path = f"{root}[{path[0]}]", []
    return ".".join(path) or root


# -- graph breaks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Break:
    """Where Dynamo left a graph.

    source: ``file:line`` of the user's model. reason: Dynamo's, one line. at: file and line Dynamo names. code: of the
    function that was compiled. is_skipped: it runs without a graph because of this; else what follows is compiled.
    """

    source: str
    reason: str
    at: tuple[str, int]
    code: CodeType | None = None
    is_skipped: bool = False

    def __str__(self) -> str:
        runs = f"; {self.code.co_name} runs without a graph" if self.is_skipped and self.code is not None else ""
        return f"graph break at {self.source}: {self.reason}{runs}"


_MESSAGE = re.compile(r"in user code at (?P<file>[^\n]*):(?P<line>\d+)\nGraph Break Reason: (?P<reason>.*)", re.DOTALL)
_FRAME = re.compile(r'^  File "([^"]+)", line (\d+)', re.MULTILINE)
_SKIPS = "Skipping the function"


class _Listener(logging.Filter):
    """Reads Dynamo's log of graph breaks, and shows it to nobody who did not ask torch for it."""

    callback: Callable[[Break], None] | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        found = _MESSAGE.search(record.getMessage())
        if found is not None and self.callback is not None:
            one = _break(found["file"], int(found["line"]), found["reason"])
            if one is not None:
                self.callback(one)
        return record.levelno > logging.DEBUG or "graph_breaks" in log_state.artifact_names


_listener = _Listener()


def listen(callback: Callable[[Break], None] | None) -> None:
    """Call ``callback`` with every graph break from now on, instead of who listened before."""
    log = logging.getLogger("torch._dynamo.symbolic_convert.__graph_breaks")
    log.addFilter(_listener)  # once, however often it is called
    log.setLevel(logging.DEBUG)
    _listener.callback = callback


@contextmanager
def breaks() -> Iterator[list[Break]]:
    """The graph breaks inside the with-statement, each once; who listened before does not hear of them."""
    found: list[Break] = []
    before = _listener.callback

    def keep(one: Break) -> None:
        # a function is given up after a second attempt, which tells the same break again
        same = [b for b in found if (b.at, b.reason) == (one.at, one.reason)]
        if not same:
            found.append(one)
        elif one.is_skipped:
            found[found.index(same[0])] = replace(same[0], code=one.code, is_skipped=True)

    listen(keep)
    try:
        yield found
    finally:
        listen(before)


def _break(file: str, line: int, text: str) -> Break | None:
    """What Dynamo said; None of a function of torch: what that calls of the user's is tried again by itself."""
    reason, _, stack = text.partition("\nUser code traceback:")
    translator = _translator()
    code = None if translator is None else translator.f_code
    if code is not None and is_library(code.co_filename):
        return None
    where = innermost(_FRAME.findall(stack) or [(file, str(line))])
    _, has_preamble, after = reason.partition(":\n\n")
    return Break(where, _first(after if has_preamble else reason), (file, line), code, _SKIPS in reason)


def _first(text: str) -> str:
    return text.strip().partition("\n")[0]
